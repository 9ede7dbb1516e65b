"""The keys of a recipe as options, made of the typed recipe when a command needs them: `--train.steps 300`.

Argparse makes them, not a library that makes a command line of types: those turn the architectures of [model] into
commands or the lists into JSON, and answer a slip with a page.
"""

import argparse
import contextlib
import shlex
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from eco_fast.cli.options import Parser

if TYPE_CHECKING:
    from eco_fast.config.keys import Key

SECTIONS = ("", "data", "train", "objective", "optimizer", "teacher", "model")
"""In the order of the help. What [paper] says is a file's alone: no run depends on it."""
ABOUT = {
    "": "Every key is an option, spelt as in the file. A list takes any number of values, also none. "
    "The defaults are those of a recipe that says nothing; --help after a RECIPE shows the recipe's own values.",
    "model": "Each architecture has keys of its own.",
}
"""What the help says of sections whose class does not say it."""
WORDS = {int: "INT", float: "FLOAT", str: "TEXT", dict: "VALUE"}


def add_keys(parser: Parser) -> None:
    """Let a command take every key; the arguments' `overrides` are what is given, by key."""
    parser.set_defaults(overrides={})
    parser.add_argument("-h", "--help", action=_Help, nargs=0, help="show this; after a RECIPE, with its values")
    parser.waiting = _add_keys


def _add_keys(parser: Parser) -> None:
    from eco_fast.config import Config
    from eco_fast.config.keys import RENAMED, RENAMED_VALUES, all_keys, key_of, nearest_key

    known = {name: key for name, key in all_keys().items() if key.section in SECTIONS}
    for section in SECTIONS:
        about = ABOUT.get(section) or type(getattr(Config(), section)).__doc__
        group = parser.add_argument_group(section or "keys of the recipe", about)
        for name, key in known.items():
            if key.section == section:
                renamed = RENAMED_VALUES.get(name, {})
                group.add_argument(f"--{name}{'.KEY' * key.open}", action=_KeyAction, key=key, renamed=renamed)
    parser.gone["--set"] = _instead_of_set
    for old, new in RENAMED.items():
        parser.gone[f"--{old}"] = f"is called --{new} now"
    for name in all_keys().keys() - known:
        parser.gone[f"--{name}"] = "is no option: [paper] is what the file of a recipe says of itself"
    near_key = parser.nearest

    def nearest(name: str) -> str | None:
        key = nearest_key(name.removeprefix("--"), list(known))
        return near_key(name) or (f"--{key}" if key else None)

    def adopt(name: str) -> bool:
        key = key_of(name.removeprefix("--"))
        if key and key.open and name != f"--{key.name}":
            parser.add_argument(name, action=_KeyAction, key=key, renamed={})
            return True
        return False

    parser.nearest, parser.adopt = nearest, adopt


def _instead_of_set(text: str) -> str:
    from eco_fast import config
    from eco_fast.config.keys import RENAMED, all_keys

    old = text.partition("=")[0]
    new = RENAMED.get(old, old)
    if new not in all_keys():
        return "is gone: every key is an option, for example --train.steps 300"
    _, value = config.assignment(text)
    words = [_word(one) for one in (value if isinstance(value, list) else [value])]
    return f"is gone: say {shlex.join([f'--{new}', *words])}"


class _KeyAction(argparse.Action):
    """Keeps the value that is given to a key, checked by itself."""

    def __init__(self, option_strings: Sequence[str], dest: str, key: "Key", renamed: dict[str, str]) -> None:
        annotations = [field.annotation for field in key.fields.values()]
        words = get_args(annotations[0]) if get_origin(annotations[0]) is tuple else None
        self.key, self.renamed, self.is_list = key, renamed, words is not None
        self.kinds = list(dict.fromkeys(kind for annotation in annotations for kind in _kinds(annotation)))
        types = [WORDS[kind] for kind in self.kinds if isinstance(kind, type)]
        self.words = [_word(kind) for kind in self.kinds if not isinstance(kind, type)]
        super().__init__(
            option_strings,
            dest,
            nargs=None if words is None else "*" if Ellipsis in words else len(words),
            default=argparse.SUPPRESS,
            choices=None if types else self.words,
            metavar="|".join([*self.words, *types]) if types else None,
            help=_help_of(key),
        )

    def __call__(self, _: object, namespace: argparse.Namespace, values: Any, __: str | None = None) -> None:
        from eco_fast import config

        name = self.option_strings[0].removeprefix("--")
        if self.is_list and name in namespace.overrides:
            raise ValueError(f"--{name}: given twice; put all its values behind one --{name}")
        value = [self.read(word) for word in values] if self.is_list else self.read(values)
        try:
            config.check(name, value)
        except ValueError as error:
            raise ValueError(f"--{error}") from error
        namespace.overrides = {**namespace.overrides, name: value}

    def read(self, word: str) -> Any:
        """The value that a word stands for; a word that is none of the key's stays a text, which the check refuses."""
        from eco_fast import config

        for kind in self.kinds:
            if kind is dict:
                return config.assignment(f"{self.key.name}={word}")[1]
            if kind in (int, float):
                with contextlib.suppress(ValueError):
                    return kind(word)
            elif word == _word(kind):
                return kind
        return word


def _kinds(annotation: Any) -> Iterator[Any]:
    """What a value can be: int, float, str, a value itself, or a dict of anything."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is bool:
        yield from (True, False)
    elif origin is Literal:
        yield from inner
    elif origin is Annotated:
        yield from _kinds(inner[0])
    elif origin in (Union, UnionType, tuple):
        for one in inner:
            yield from () if one is Ellipsis else _kinds(one)
    else:
        yield origin or annotation


class _Help(argparse.Action):
    """`RECIPE --help`: the help with the recipe's values as the defaults."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, _: str | None = None) -> None:
        from eco_fast import config

        recipe = getattr(namespace, "recipe", None) or next(iter(getattr(namespace, "recipes", None) or ()), None)
        if recipe:
            values = config.load(recipe).model_dump()
            for action in parser._actions:  # noqa: SLF001 - argparse has no other way to them
                if isinstance(action, _KeyAction):
                    action.help = _help_of(action.key, values)
        parser.print_help()
        parser.exit()


def _help_of(key: "Key", recipe: dict[str, Any] | None = None) -> str:
    """Docstring and default; of a key of [model] those of each architecture that has it, or of the recipe's own."""
    from eco_fast.config.model_sections import MODELS

    texts: dict[str, str] = {name: " ".join((field.description or "").split()) for name, field in key.fields.items()}
    defaults = {name: field.default for name, field in key.fields.items()}
    if key.name == "model.name":
        defaults = {"": "edsr"}
    if recipe:
        values = recipe[key.section] if key.section else recipe
        own = values["name"] if key.section == "model" else ""
        if own in texts:
            texts, defaults = {"": texts[own]}, {"": values[key.name.rpartition(".")[2]]}
    if "" in texts or (len(texts) == len(MODELS) and len(set(texts.values())) == 1):
        said = next(iter(texts.values()))
    else:
        of_text = {text: [name for name in texts if texts[name] == text] for text in texts.values()}
        said = " ".join(f"{', '.join(names)}: {text}" for text, names in of_text.items())
    shown = {name: _shown(value) for name, value in defaults.items()}
    if len(set(shown.values())) == 1:
        default = next(iter(shown.values()))
    else:
        default = ", ".join(f"{name} {value}" for name, value in shown.items())
    return f"{said} (default: {default})".replace("%", "%%")


def _shown(value: Any) -> str:
    """A default as the help shows it."""
    return _word(value) or ("none" if isinstance(value, tuple | dict) else '""')


def _word(value: Any) -> str:
    """A value as one types it."""
    if isinstance(value, list | tuple):
        return " ".join(map(_word, value))
    if isinstance(value, dict):
        return " ".join(f"{key}={_word(one)}" for key, one in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)
