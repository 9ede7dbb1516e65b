"""The checkpoints of a run: written beside the training, each in one step, so that none is ever half there.

checkpoints/last.safetensors     the weights to use: the network's, or their running average where the recipe keeps one
checkpoints/last.state.pt        what the training continues from
checkpoints/best.*               the same, of the best validation
checkpoints/step-00001000.*      the same, of the last `train.keep_checkpoints`
"""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from eco_fast import config
from eco_fast.config import Config
from eco_fast.models import Network, description, save_weights
from eco_fast.utils import distributed
from eco_fast.utils.files import write_atomically

STEP = "step-{:08d}"


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
        """Write the weights and, after them, the training state, as they are now, under all their names.

        Waits for the one before. `state` has the key "network" for the weights in training: one rename decides, so no
        kill can leave weights and state that do not match.

        Raises:
            OSError: the one before could not be written.
        """
        self.wait()
        if not distributed.is_main_process():
            return
        names = [STEP.format(step)] if self.config.train.keep_checkpoints > 1 else []
        names += ["best", "last"] if best else ["last"]  # a run stopped between them writes both anew
        full, weights = _copy([{"step": step, **state}, network.state_dict()], {})
        full["config"], metadata = config.dump(self.config), description(network, step=step)
        self._writing = self._thread.submit(self._write, names, weights, metadata, full)

    def check(self) -> None:
        """Raise what went wrong with the last one, if it is known by now."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last one is written.

        Raises:
            OSError: it could not be; names the file.
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
        for name in names:
            save_weights(weights_path(self.folder, name), weights, metadata)
            write_atomically(state_path(self.folder, name), lambda file: torch.save(state, file))
        numbered = sorted(self.folder.glob("step-*.state.pt"))
        for old in numbered[: -self.config.train.keep_checkpoints]:
            weights_path(self.folder, old.name.removesuffix(".state.pt")).unlink(missing_ok=True)
            old.unlink()


def load_state(folder: Path, device: str) -> dict[str, Any] | None:
    """The training state of the last checkpoint, or None where there is none yet.

    Raises:
        ValueError: it is damaged.
    """
    path = state_path(folder, "last")
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch.load raises a dozen types on a damaged file
        raise ValueError(f"{path}: the training state is damaged; put best.state.pt in its place") from error
    return state


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
