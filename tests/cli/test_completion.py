"""Completion, by the shells themselves."""

import shutil
import subprocess
from pathlib import Path

import pytest

from eco_fast.cli import main as cli
from eco_fast.config.recipe_files import recipe_names

ASK_BASH = """
source "$1"; shift
_complete_with=$(complete -p eco-fast | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 ))
"$_complete_with"
printf '%s\\n' "${COMPREPLY[@]}"
"""
LINES = {
    "tr": ["train"],
    "an": ["analyze"],
    "analyze sp": ["spectrum"],
    "train --data.tr": ["--data.train"],
    "train quickstart --data.train A B --train.st": ["--train.steps"],
    "train quickst": ["quickstart"],
    "train quickstart --objective.name ": ["vanilla", "kd", "noise_free", "eco", "residual"],
    "train quickstart --model.name r": ["rcan", "rrdb"],
    "train quickstart --train.compile f": ["false"],
    "compare quickstart --var": ["--variant"],
    "analyze targets runs/eco --teacher.c": ["--teacher.checkpoint"],
    "downsample a b --scale ": ["2", "3", "4", "8"],
    "completion ": ["bash", "zsh", "fish"],
}


def script_for(shell: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["completion", shell]) == 0
    path = folder / f"eco-fast.{shell}"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    return str(path)


def answers(*command: str, where: Path) -> list[str]:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[:-1]


def bash(script: str, line: str, where: Path) -> list[str]:
    return answers("bash", "-c", ASK_BASH, "bash", script, "eco-fast", *line.split(" "), where=where)


@pytest.fixture
def bash_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    return script_for("bash", tmp_path, capsys)


def test_bash_completes_commands_options_choices_and_recipes(bash_script: str, tmp_path: Path) -> None:
    assert {line: bash(bash_script, line, tmp_path) for line in LINES} == LINES
    assert bash(bash_script, "train --optimizer.betas 0.9 0.99 quickst", tmp_path) == ["quickstart"]
    assert set(bash(bash_script, "train ", tmp_path)) == {*recipe_names()}


def test_bash_completes_recipes_of_ones_own(bash_script: str, tmp_path: Path) -> None:
    for name in ("mine.toml", "mine.png"):
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    assert sorted(bash(bash_script, "train m", tmp_path)) == ["mine.toml", "more"]


@pytest.mark.skipif(not shutil.which("fish"), reason="needs fish")
def test_fish_completes_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = script_for("fish", tmp_path, capsys)
    for line, expected in LINES.items():
        told = answers(
            "fish", "-c", 'source $argv[1]; complete -C "$argv[2]"', script, f"eco-fast {line}", where=tmp_path
        )
        assert {answer.split("\t")[0] for answer in told} >= set(expected), line


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_scripts_are_of_their_shell(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not shutil.which(shell):
        pytest.skip(f"needs {shell}")
    subprocess.run([shell, "-n", script_for(shell, tmp_path, capsys)], check=True)
