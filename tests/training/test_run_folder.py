"""The conditions that a run writes down, and what becomes of its files when they are damaged."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from eco_fast import config
from eco_fast.config import Config, Train
from eco_fast.training.pinned import pin
from eco_fast.training.run_folder import RunFolder, check_checkpoint, environment, read_rows
from eco_fast.training.stage_clock import StageClock

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


READERS: dict[str, Callable[[Path], object]] = {
    "metrics.jsonl": read_rows,
    "pinned.json": lambda folder: pin(folder, "weights", [("the file", "0")]),
    "stages.json": lambda folder: StageClock(folder / "stages.json"),
    "environment.json": lambda folder: RunFolder(folder, RECIPE, resume=True).__enter__(),
}
DAMAGES = [
    b"\0" * 40,
    b"\xff\xfe{}",
    b"[" * 100_000,
    b'{"weights": 7, "train": "x", "step": 1e999',
    b'[[{"a": 1}]]',
    b"3\n",
]


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", DAMAGES, ids=range(len(DAMAGES)))
def test_a_damaged_file_of_a_run_is_named_and_left_as_it_is(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(config.dump(RECIPE), encoding="utf-8")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / name).write_bytes(content + b"\n")
    with pytest.raises(ValueError, match=rf"^{tmp_path / name}: damaged; restore it, or move it away$"):
        READERS[name](tmp_path)
    assert (tmp_path / name).read_bytes() == content + b"\n"


def test_a_row_of_which_a_power_cut_left_the_second_block_is_left_out(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, RECIPE, resume=True)
    for step in range(3):
        run.append({"step": step})
    whole = run.rows()
    with run.metrics.open("ab") as file:
        file.write(b"\0" * 9 + b'"loss": 0.1}\n')
    assert run.rows() == whole
    run.rewind(2)
    run.append({"step": 3})
    assert run.rows() == [*whole, {"step": 3}]


@pytest.mark.parametrize("key", ["seed=1", "scale=3", "objective.name=vanilla", "train.steps=7"])
def test_a_checkpoint_of_another_run_is_refused_and_one_of_this_run_goes_on(key: str) -> None:
    other = config.changed(RECIPE, [key], "test")
    with pytest.raises(
        ValueError, match=rf"newest state is of a run with another {key.partition('=')[0]} than .*config"
    ):
        check_checkpoint(config.dump(other), RECIPE, Path("run/checkpoints"))
    check_checkpoint(config.dump(config.changed(RECIPE, ["data.prefetch=7"], "test")), RECIPE, Path("run/checkpoints"))
