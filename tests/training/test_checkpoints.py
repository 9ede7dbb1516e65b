"""Checkpoints that were damaged, removed or half written: the newest whole one goes on, and nothing else is lost."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eco_fast.config import Config, Train
from eco_fast.models import load_network
from eco_fast.models.edsr import EDSR
from eco_fast.training.checkpoints import (
    HASH,
    Checkpoints,
    FoundState,
    load_state,
    read_whole_state,
    settle,
    state_path,
    weights_path,
)
from eco_fast.training.run_folder import RunFolder
from eco_fast.utils.content_hash import content_hash


def network_at(step: int) -> EDSR:
    torch.manual_seed(step)
    return EDSR(2, features=4, blocks=1)


def saved(folder: Path, steps: tuple[int, ...], *, keep: int, best: int = 0) -> None:
    """The checkpoints of a run that has saved at these steps."""
    for step in steps:
        with Checkpoints(folder, Config(train=Train(keep_checkpoints=keep))) as checkpoints:
            network = network_at(step)
            state = {"best": 20.0, "network": network.state_dict(), "updater": {"moments": torch.ones(7) * step}}
            checkpoints.save(network, step, state, best=step == best)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def step_of(path: Path) -> int:
    """The step whose weights a file holds."""
    own = load_network(path, "cpu").state_dict()
    (step,) = (
        step
        for step in range(1, 20)
        if all(torch.equal(value, own[key]) for key, value in network_at(step).state_dict().items())
    )
    return step


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_replace_nothing(value: float, tmp_path: Path) -> None:
    saved(tmp_path, (3,), keep=1, best=3)
    before = content(tmp_path)
    network = network_at(6)
    with torch.no_grad():
        next(network.parameters())[0] = value
    checkpoints = Checkpoints(tmp_path, Config())
    checkpoints.save(network, 6, {"network": network.state_dict()}, best=True)
    with pytest.raises(ValueError, match=r"is not finite .* after step 6, so the checkpoint before it is kept"):
        checkpoints.wait()
    assert content(tmp_path) == before


def test_of_flipped_bits_each_is_found_or_harmless(tmp_path: Path) -> None:
    saved(tmp_path, (3,), keep=1)
    path = state_path(tmp_path, "last")
    whole, state = path.read_bytes(), read_whole_state(path)
    kept = content_hash(state)
    random = np.random.default_rng(0)
    found = 0
    for place in random.integers(8 * len(whole), size=250):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        try:
            assert content_hash(read_whole_state(path)) == kept
        except ValueError:
            found += 1
    assert found > 75, "most of a small file is padding, which no reader looks at"


def test_of_the_flipped_bits_of_weights_each_is_found_or_harmless(tmp_path: Path) -> None:
    saved(tmp_path, (3,), keep=1)
    path = weights_path(tmp_path, "last")
    whole, kept = path.read_bytes(), content_hash(load_network(path, "cpu").state_dict())
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(0, 8 * header, 29), *np.random.default_rng(0).integers(8 * header, 8 * len(whole), size=60)]
    for place in places:
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        try:
            network = load_network(path, "cpu")
        except ValueError:
            continue
        assert place < 8 * header
        assert content_hash(network.state_dict()) == kept
        assert network.hyperparameters == network_at(3).hyperparameters


@pytest.mark.parametrize("harm", ["missing", "empty", "cut", "flipped", "of another", "not a state"])
def test_the_newest_whole_state_goes_on_and_what_is_newer_is_kept(
    harm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, (3, 6, 9), keep=3, best=3)
    last = state_path(tmp_path, "last")
    state_path(tmp_path, "step-00000009").unlink()
    weights = weights_path(tmp_path, "last").read_bytes()
    if harm == "missing":
        last.unlink()
    elif harm == "of another":  # the hash belongs to other values
        last_state = torch.load(last, weights_only=True)
        torch.save({**last_state, "step": 8}, last)
    elif harm == "not a state":
        torch.save({"network": {}}, last)
    else:
        whole = bytearray(last.read_bytes())
        whole[whole.index(np.full(7, 9, np.float32).tobytes())] ^= 1
        last.write_bytes({"empty": b"", "cut": bytes(whole[:-300]), "flipped": bytes(whole)}[harm])
    damaged = last.read_bytes() if last.exists() else None

    found = load_state(tmp_path)
    assert found is not None
    assert (found.name, found.state["step"]) == ("step-00000006", 6)
    assert f"goes on from {state_path(tmp_path, 'step-00000006').name}" in capsys.readouterr().out
    settle(tmp_path, found, network_at(6))
    kept = content(tmp_path)
    assert kept["set-aside.last.safetensors.kept"] == weights
    assert kept.get("set-aside.last.state.pt.kept") == damaged
    assert step_of(weights_path(tmp_path, "last")) == 6
    assert step_of(weights_path(tmp_path, "best")) == 3
    assert read_whole_state(last)["step"] == 6
    settle(tmp_path, found, network_at(6))
    assert content(tmp_path) == kept


@pytest.mark.parametrize("done", range(4))
def test_newer_files_are_kept_also_where_a_kill_comes_while_they_are_renamed(
    done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, (3, 6, 9), keep=3)
    for name in ("last", "step-00000009"):
        state_path(tmp_path, name).write_bytes(name.encode())
    newer = {path for name in ("last", "step-00000009") for path in tmp_path.glob(f"{name}.*")}
    rename, renamed = Path.rename, 0

    def killed(path: Path, target: Path) -> Path:
        nonlocal renamed
        if renamed == done:
            raise KeyboardInterrupt
        renamed += 1
        return rename(path, target)

    found = load_state(tmp_path)
    assert found is not None
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            settle(tmp_path, found, network_at(6))
    again = load_state(tmp_path)
    assert again is not None
    settle(tmp_path, again, network_at(6))
    assert {path.with_name(f"set-aside.{path.name}.kept") for path in newer} == set(tmp_path.glob("set-aside.*"))


def test_what_is_left_of_a_checkpoint_that_was_being_removed_goes(tmp_path: Path) -> None:
    saved(tmp_path, (3, 6, 9), keep=2)
    whole = content(tmp_path)
    shutil.copy(state_path(tmp_path, "last"), state_path(tmp_path, "step-00000003"))
    found = load_state(tmp_path)
    assert found is not None
    settle(tmp_path, found, network_at(9))
    assert content(tmp_path) == whole


@pytest.mark.parametrize("left", ["last.safetensors", "best.safetensors", "step-00000003.safetensors", "last.state.pt"])
def test_where_no_whole_state_is_left_nothing_is_touched(left: str, tmp_path: Path) -> None:
    saved(tmp_path, (3,), keep=2, best=3)
    for path in tmp_path.iterdir():
        if path.name != left:
            path.unlink()
    if left.endswith(".pt"):
        (tmp_path / left).write_bytes(b"torn")
    before = content(tmp_path)
    with pytest.raises(ValueError, match=r"last.state.pt: the training state is .* no other whole training state"):
        load_state(tmp_path)
    assert content(tmp_path) == before


def test_an_interrupted_saving_is_finished(tmp_path: Path) -> None:
    """Whatever files of the very first checkpoint a kill has left, in their order."""
    saved(tmp_path / "whole", (3,), keep=2, best=3)
    names = [f"{name}.{kind}" for name in ("step-00000003", "best", "last") for kind in ("state.pt", "safetensors")]
    whole = content(tmp_path / "whole")
    assert sorted(whole) == sorted(names)
    for count in range(1, len(names)):
        broken = tmp_path / str(count)
        broken.mkdir()
        for name in names[:count]:
            shutil.copy(tmp_path / "whole" / name, broken)
        found = load_state(broken)
        assert found is not None
        settle(broken, found, network_at(3))
        made = content(broken)
        assert sorted(made) == sorted(names)
        for name in names:
            if name.endswith(".pt"):
                assert content_hash(read_whole_state(broken / name)) == content_hash(found.state)
            else:
                assert made[name] == whole[name]


@pytest.mark.parametrize(("name", "hashed"), [("last", 0), ("step-00000006", 1), ("best", 1)])
def test_the_state_that_goes_on_is_hashed_once(
    name: str, hashed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where it is not "last" does anything need to know what "last" is."""
    saved(tmp_path, (6,), keep=2, best=6)
    state = read_whole_state(state_path(tmp_path, name))
    read: list[Path] = []

    def count(path: Path) -> dict[str, Any]:
        read.append(path)
        return state

    monkeypatch.setattr("eco_fast.training.checkpoints.read_whole_state", count)
    settle(tmp_path, FoundState(name, state), network_at(6))
    assert len(read) == hashed


def test_files_that_a_person_has_put_there_are_left_alone(tmp_path: Path) -> None:
    tmp_path.joinpath("step-before-the-change.state.pt").write_bytes(b"mine")
    tmp_path.joinpath("step-00000001-copy.state.pt").write_bytes(b"mine")
    saved(tmp_path, (3, 6, 9), keep=2)
    assert {"step-before-the-change.state.pt", "step-00000001-copy.state.pt"} < content(tmp_path).keys()
    assert "step-00000003.state.pt" not in content(tmp_path)


def test_a_state_is_torchs_own_file_with_its_hash(tmp_path: Path) -> None:
    saved(tmp_path, (3,), keep=1)
    state = torch.load(state_path(tmp_path, "last"), weights_only=True)
    assert state.pop(HASH) == content_hash(state)
    for other in ({**state, "step": 4}, {**state, "best": 20}, {**state, "more": None}, {"step": 3}):
        assert content_hash(other) != content_hash(state)


def test_rows_that_no_checkpoint_stands_for_are_kept(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, Config(train=Train(checkpoint_every=5)), resume=True)
    for step in range(1, 13):
        run.append({"step": step})
    before = run.metrics.read_bytes()
    run.rewind(5)
    assert [row["step"] for row in run.rows()] == [1, 2, 3, 4, 5]
    assert list(tmp_path.iterdir()) == [run.metrics], "a run may be so far ahead of its newest checkpoint"
    run.metrics.write_bytes(before)
    run.rewind(0)
    run.metrics.write_bytes(before)
    run.rewind(1)
    assert (tmp_path / "before-step-0.metrics.jsonl").read_bytes() == before
    assert (tmp_path / "before-step-1.metrics.jsonl").read_bytes() == before
