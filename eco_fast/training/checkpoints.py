"""The checkpoints of a run: written beside the training, each in one step, so that none is ever half there.

A state holds all that its weights file does, and its own hash; it is written first. So one rename decides: a state is
whole or is not there, and weights that a kill has kept from being written are made from it.

checkpoints/last.safetensors     the weights to use: the network's, or their running average where the recipe keeps one
checkpoints/last.state.pt        what the training continues from
checkpoints/best.*               the same, of the best validation
checkpoints/step-00001000.*      the same, of the last `train.keep_checkpoints`
"""

import json
import math
import os
import re
import time
import tomllib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from eco_fast import config
from eco_fast.config import Config
from eco_fast.models import (
    METADATA,
    Network,
    description,
    first_not_finite,
    read_state,
    save_network,
    save_weights,
)
from eco_fast.utils import distributed
from eco_fast.utils.content_hash import content_hash
from eco_fast.utils.files import sync_folder, unused, write_atomically
from eco_fast.utils.lasting import patiently

STEP = "step-{:08d}"
HASH = "sha256"
"""Key of a state's own hash, which is that of all the rest."""


class Checkpoints:
    """Writes the first rank's checkpoints in a thread of their own, one at a time; all ranks hold the same.

    Args:
        folder: where they are.
        resolved: the recipe, kept in every state.
    """

    def __init__(self, folder: Path, resolved: Config) -> None:
        self.folder, self.config = folder, resolved
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None
        for half in folder.glob(".*.partial") if distributed.is_main_process() else ():
            half.unlink()  # a killed process was writing it

    def save(self, network: Network, step: int, state: dict[str, Any], *, best: bool) -> None:
        """Write the training state and, after it, the weights, as they are now, under all their names.

        Waits for the one before.

        Raises:
            OSError: the one before could not be written.
            ValueError: its weights were not finite, so it was not.
        """
        self.wait()
        if not distributed.is_main_process():
            return
        names = [STEP.format(step)] if self.config.train.keep_checkpoints > 1 else []
        names += ["best", "last"] if best else ["last"]  # a run stopped between them writes both anew
        full, weights = _copy([{"step": step, **state}, network.state_dict()], {})
        full |= {"config": config.dump(self.config), "names": names}
        metadata = description(network, **_facts(full))
        self._writing = self._thread.submit(self._write, names, weights, metadata, full)

    def rehearse(self, network: Network, state: dict[str, Any]) -> float:
        """Seconds of the first rank for what `save` makes of a state, which is written nowhere."""
        began = time.perf_counter()
        if distributed.is_main_process():
            full, _ = _copy([{"step": 0, **state}, network.state_dict()], {})
            torch.save({**full, HASH: content_hash(full)}, os.devnull)
        return time.perf_counter() - began

    def check(self) -> None:
        """Raise what went wrong with the last one, if it is known by now."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last one is written.

        Raises:
            OSError: it could not be; names the file.
            ValueError: its weights were not finite, so it was not.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()

    def _write(self, names: list[str], weights: dict[str, Tensor], metadata: dict[str, str], state: Any) -> None:
        if key := first_not_finite(weights):
            raise ValueError(
                f"{self.folder}: {key} is not finite (NaN or infinity) after step {state['step']}, so the "
                "checkpoint before it is kept; go on from that one, with a lower optimizer.learning_rate"
            )
        whole = {**state, HASH: content_hash(state)}
        for name in names:
            patiently(self.folder, partial(self._write_one, name, whole, weights, metadata))
        _drop_old(self.folder, self.config.train.keep_checkpoints)

    def _write_one(self, name: str, whole: Any, weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
        self.folder.parent.stat()  # never make the run's folder anew, below a disk that is not there at the moment
        _write_state(state_path(self.folder, name), whole)
        save_weights(weights_path(self.folder, name), weights, metadata)


class FoundState(NamedTuple):
    """A whole training state, and which file holds it."""

    name: str
    """last, best or step-NUMBER."""
    state: dict[str, Any]


def load_state(folder: Path) -> FoundState | None:
    """The newest whole training state, on the CPU, or None where no checkpoint has been written yet.

    That is "last"; where it is missing or damaged, the newest of the others, which is said. `settle` follows.

    Raises:
        ValueError: there are weights or states, but no whole state; says what is wrong.
    """
    wrong: dict[str, str] = {}
    found: dict[str, dict[str, Any]] = {}
    for name in ("last", *reversed(numbered(folder)), "best"):
        try:
            found[name] = read_whole_state(state_path(folder, name))
        except ValueError as error:
            wrong[name] = str(error)
        if name in found and (name == "last" or name.startswith("step-")):
            break  # no other is newer
    if found:
        name = max(found, key=lambda one: int(found[one]["step"]))
        if name != "last":
            print(f"warning: {wrong['last']}; goes on from {state_path(folder, name).name}", flush=True)
        return FoundState(name, found[name])
    if any(folder.glob("*.safetensors")) or any(folder.glob("*.state.pt")):
        raise ValueError(
            f"{wrong['last']}, and {folder} holds no other whole training state to go on from, but weights that a new "
            "start would overwrite; put the state back, or begin a new run with --run (it may start from these "
            "weights, by model.start_from)"
        )
    return None


def read_whole_state(path: Path) -> dict[str, Any]:
    """A training state, on the CPU.

    Raises:
        ValueError: it is missing, or a bit of it is not as it was written.
    """
    if not path.is_file():
        raise ValueError(f"{path}: the training state is missing")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        whole = state.pop(HASH) == content_hash(state)
    except Exception as error:  # torch.load raises a dozen types on a damaged file
        raise ValueError(f"{path}: the training state is damaged") from error
    if not whole:
        raise ValueError(f"{path}: the training state is damaged, its hash is another one")
    return state


def settle(folder: Path, found: FoundState, network: Network) -> None:
    """Finish the saving of a state that a run goes on from, where a kill came in between; the first rank's task.

    Files that are newer, as where a newer state is damaged, are renamed first: they may be all that is left.

    Args:
        folder: where they are.
        found: as `load_state` gave it.
        network: what its weights files hold.
    """
    state, step = found.state, int(found.state["step"])
    others = [weights_path(folder, "last"), *[state_path(folder, "last")] * (found.name != "last")]
    if any(step < _step_of(path) for path in others):
        _set_aside_newer(folder, step)
    for name in state["names"]:
        if not state_path(folder, name).is_file():
            _write_state(state_path(folder, name), {**state, HASH: content_hash(state)})
        if _step_of(weights_path(folder, name)) != step:
            save_network(weights_path(folder, name), network, **_facts(state))
    _drop_old(folder, tomllib.loads(state["config"])["train"]["keep_checkpoints"])


def _facts(state: Mapping[str, Any]) -> dict[str, str | int]:
    """What a weights file tells besides the network: its step, and what it was fitted to, be it no image."""
    return {"step": int(state["step"]), "objective": tomllib.loads(state["config"])["objective"]["name"]}


def _set_aside_newer(folder: Path, step: int) -> None:
    """Rename what is newer than a step, or cannot be read; last of all "last", which tells that this is to be done."""
    files = [*sorted(folder.glob("*.state.pt")), *sorted(folder.glob("*.safetensors"))]
    for last in (False, True):
        for path in files:
            if path.name.startswith("last.") == last and _step_of(path) > step:
                aside = path.rename(unused(path.with_name(f"set-aside.{path.name}.kept")))
                print(f"{path}: not of the state that the run goes on from; kept as {aside.name}", flush=True)
        sync_folder(folder)


def _step_of(path: Path) -> float:
    """The step of a checkpoint's file; -1 where there is none, infinite where it cannot be read."""
    if not path.is_file():
        return -1
    try:
        if path.suffix == ".pt":
            return int(read_whole_state(path)["step"])
        return int(json.loads(read_state(path)[1][METADATA])["step"])
    except (ValueError, KeyError):
        return math.inf


def _write_state(path: Path, whole: dict[str, Any]) -> None:
    write_atomically(path, lambda file: torch.save(whole, file))


def _drop_old(folder: Path, keep: int) -> None:
    """Remove numbered checkpoints but for the newest; states last, which tell that something is to be removed."""
    old = numbered(folder)[:-keep]
    for path_of in (weights_path, state_path):
        for name in old:
            path_of(folder, name).unlink(missing_ok=True)
        if old:
            sync_folder(folder)


def numbered(folder: Path) -> list[str]:
    """The names of the states that `STEP` names, oldest first; other files are not this module's."""
    names = (path.name.removesuffix(".state.pt") for path in folder.glob("step-*.state.pt"))
    return sorted(name for name in names if re.fullmatch(r"step-\d{8,}", name))


def state_path(folder: Path, name: str) -> Path:
    """Where the training state called `name` is."""
    return folder / f"{name}.state.pt"


def weights_path(folder: Path, name: str) -> Path:
    """Where the weights called `name` are."""
    return folder / f"{name}.safetensors"


def _copy(value: Any, copied: dict[int, Tensor]) -> Any:
    """The same structure with copies of its tensors in the computer's own memory: the step goes on changing them.

    Tensors of one memory are copied in one piece, of which they stay views: all of a network's weights are such.

    Args:
        value: of dictionaries, lists and tensors.
        copied: the memory that has been copied, by where it was; grows.
    """
    if isinstance(value, Tensor):
        memory = value.untyped_storage()
        if memory.data_ptr() not in copied:
            whole = torch.empty(0, dtype=value.dtype, device=value.device).set_(memory)
            copied[memory.data_ptr()] = whole.to("cpu", copy=True)
        return copied[memory.data_ptr()].as_strided(value.shape, value.stride(), value.storage_offset())
    if isinstance(value, dict):
        return {key: _copy(item, copied) for key, item in value.items()}
    return [_copy(item, copied) for item in value] if isinstance(value, list) else value
