"""The command line stays what it is: a change for everybody's scripts shows here. And its help."""

import argparse
import itertools
import re
import shlex
from pathlib import Path

import pytest

from eco_fast import config
from eco_fast.cli import main as cli
from eco_fast.config.keys import all_keys
from eco_fast.config.model_sections import MODELS
from tests.cli.command_line import commands, text

COMMANDS = list(commands())
TAKES_KEYS = ("train", "compare", "analyze targets", "bench", "verify")


def test_the_command_line_is_what_it_was() -> None:
    """If it is to change: `python -m tests.cli.command_line > tests/cli/command_line.txt`."""
    was = Path(__file__).with_name("command_line.txt").read_text(encoding="utf-8")
    assert text().splitlines() == was.splitlines()


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example_that_works(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    summary, _, example = said(capsys, *name.split(), "--help").partition("example:\n")
    assert name in summary
    program, *arguments = shlex.split(example.replace("\\\n", " ").partition(" > ")[0])
    assert program == "eco-fast"
    parsed = cli.parser().parse_args(arguments)
    assert [parsed.command, *([parsed.analysis] if "analysis" in parsed else [])] == name.split()
    assert all(action.help and action.help != argparse.SUPPRESS for action in commands()[name]._actions)


@pytest.mark.parametrize("name", ["", "analyze", *COMMANDS])
def test_help_fits_80_columns(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert [line for line in said(capsys, *name.split(), "--help").splitlines() if len(line) > 80] == []


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for part in ([], ["analyze"]) for line in said(capsys, *part, "--help").splitlines()]
    told = [found[1] for line in lines if (found := re.match(r" {4}(\w+) +\w", line))]
    assert sorted(told) == sorted(["analyze", *(name.removeprefix("analyze ") for name in COMMANDS)])


@pytest.mark.parametrize("name", TAKES_KEYS)
def test_help_tells_every_key_with_its_docstring_and_its_default(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "10000")
    lines = said(capsys, *name.split(), "--help").splitlines()
    helps = {line.split()[0]: following.strip() for line, following in itertools.pairwise(lines) if line.strip()}
    for key in all_keys().values():
        for architecture, field in key.fields.items():
            if key.section == "paper":
                assert f"--{key.name}" not in helps
                continue
            told = helps[f"--{key.name}{'.KEY' * key.open}"]
            assert " ".join((field.description or "?").split()) in told
            assert architecture in told or len(key.fields) == len(MODELS)
            assert str(field.default).lower() in told or isinstance(field.default, str | tuple | dict)


def test_help_after_a_recipe_shows_its_values(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "10000")
    told = said(capsys, "train", "edsr_x2_eco", "--help")
    recipe = config.load("edsr_x2_eco")
    assert recipe.train.batch_size != config.Train().batch_size
    assert f"Patches per step, over all devices. (default: {recipe.train.batch_size})" in told
    assert "Channels of the body. (default: 256)" in told
    assert "(default: 0.9 0.99)" in told
    assert "rcan: Residual groups. (default: 10)" in told
