"""`eco-fast completion SHELL`: the script that lets a shell complete commands, options, choices and recipes."""

import argparse
from collections.abc import Iterator

from eco_fast.cli.options import Parser

FILES = {"zsh": "_files", "fish": "(__fish_complete_path (commandline -ct))"}
FOLDERS = {"zsh": "_files -/", "fish": "(__fish_complete_directories)"}
"""Of bash nothing: it completes paths wherever the script says nothing, and options too, within a list of paths."""
PATHS = {
    **dict.fromkeys(("CHECKPOINT", "FILE", "OUT", "SRC", "TEXT"), FILES),
    **dict.fromkeys(("DIR", "HR_DIR", "RUN", "SR_DIR"), FOLDERS),
}
"""What completes an argument, by its name in the help."""
RECIPES = {
    "bash": '_eco_fast_recipes() { compgen -W "NAMES" -- "$1"; compgen -f -X "!*.toml" -- "$1"; compgen -d -- "$1"; }',
    "zsh": """_eco_fast_recipes() { _alternative 'recipes:recipe:(NAMES)' 'files:file:_files -g "*.toml"' }""",
    "fish": "",
}


def completion_script(parser: Parser, shell: str) -> str:
    """The script of a parser for a shell: bash, zsh or fish."""
    import shtab

    from eco_fast.config.recipe_files import recipe_names

    names = " ".join(recipe_names())
    function = "_eco_fast_recipes"
    recipes = {"bash": function, "zsh": function, "fish": f"{names} (__fish_complete_suffix .toml)"}
    for action in _arguments(parser):
        if words := getattr(action, "words", ()):
            action.choices = words  # also where another word may be given
        if "RECIPE" in str(action.metavar):
            vars(action)["complete"] = recipes
        elif action.metavar in PATHS and not action.choices:
            vars(action)["complete"] = PATHS[str(action.metavar)]
    return shtab.complete(parser, shell, preamble=RECIPES[shell].replace("NAMES", names))


def _arguments(parser: Parser) -> Iterator[argparse.Action]:
    """Those of all commands."""
    parser.fill()
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to them
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - as above
            for command in action.choices.values():
                yield from _arguments(command)
