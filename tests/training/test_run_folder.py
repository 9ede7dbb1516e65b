"""The conditions that a run writes down."""

import subprocess
from pathlib import Path

import pytest

from eco_fast.config import Config, Train
from eco_fast.training.run_folder import environment

RECIPE = Config(train=Train(device="cpu"))
TREE = Path(__file__).parents[2]


def test_the_commit_is_the_checkout_s() -> None:
    answer = subprocess.run(["git", "log", "-1", "--format=%H"], cwd=TREE, capture_output=True, text=True, check=False)
    assert environment(RECIPE)["commit"] == (answer.stdout.strip() or None)


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment(RECIPE)["commit"] is None


def test_outside_a_repository_or_in_one_that_cannot_be_read_there_is_no_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path))  # no repository
    assert environment(RECIPE)["commit"] is None
