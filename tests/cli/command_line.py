"""The command line as a text: `python -m tests.cli.command_line > tests/cli/command_line.txt` writes it anew.

Each command with its arguments: [optional], several..., an option that has to be given!, = default.
"""

import argparse

from eco_fast.cli import main as cli


def commands() -> dict[str, argparse.ArgumentParser]:
    """Every command, and every analysis."""
    top = parsers_of(cli.parser())
    analyses = {f"analyze {name}": parser for name, parser in parsers_of(top.pop("analyze")).items()}
    return {**top, **analyses}


def parsers_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(subparsers.choices)


def spelled(action: argparse.Action) -> str:
    """An argument in one line."""
    name = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.metavar or action.dest.upper()
    if isinstance(name, tuple):
        name = " ".join(name if action.nargs == len(name) else (name[0], *(f"[{more}]" for more in name[1:])))
    elif isinstance(action.nargs, int):
        name = " ".join([name] * action.nargs)
    repeated = action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction)
    value = f"{name}{'...' * repeated}"
    value = f"[{value}]" if action.nargs in ("?", "*") else value
    line = " ".join(filter(None, [*action.option_strings[-1:], value]))
    line += "!" * (action.required and bool(action.option_strings))
    default = action.default
    if is_key(action):
        default = (action.help or "").rpartition("(default: ")[2][:-1]
    return line if default in (None, False, 0.0, [], ()) else f"{line} = {default}"


def is_key(action: argparse.Action) -> bool:
    """Whether it is a key of a recipe."""
    return action.default is argparse.SUPPRESS and action.dest != "help"


def text() -> str:
    """The whole command line; the keys of a recipe, which several commands take, once."""
    blocks, keys = [], {}
    for name, command in commands().items():
        command.format_help()  # which adds the options that wait
        lines = [spelled(action) for action in command._actions if action.dest != "help" and not is_key(action)]
        if found := [spelled(action) for action in command._actions if is_key(action)]:
            keys[name] = found
            lines.append("every key of a recipe")
        blocks.append("\n    ".join([f"eco-fast {name}", *lines]))
    every = next(iter(keys.values()))
    assert all(found == every for found in keys.values())
    return "\n\n".join([*blocks, "\n    ".join([f"every key of a recipe ({', '.join(keys)})", *every])])


if __name__ == "__main__":
    print(text())
