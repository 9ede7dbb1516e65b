"""The same on the package's own functions, for the suite: seconds, where whole commands take hours."""

from functools import partial
from pathlib import Path

import torch

from eco_fast.config import Config, Train
from eco_fast.models.edsr import EDSR
from eco_fast.training.checkpoints import Checkpoints, load_state, settle
from eco_fast.training.run_folder import RunFolder
from eco_fast.utils.files import new_folder, write_text
from tests.crash.operations import OPERATIONS, Operation

STEPS = 3
LONG = "x" * 2500
"""Of two rows with it, the second lies in two blocks of the disk."""


def network_at(step: int) -> EDSR:
    torch.manual_seed(step)
    return EDSR(2, features=4, blocks=1)


def go_on(keep: int = 2) -> None:
    """Go on with a run whose steps are no training: a checkpoint each, and a row but for the first."""
    recipe = Config(train=Train(keep_checkpoints=keep, checkpoint_every=1))
    run = RunFolder(Path("run"), recipe, resume=True)
    found = load_state(run.checkpoints)
    done = 0 if found is None else int(found.state["step"])
    run.rewind(done)
    if found is not None:
        settle(run.checkpoints, found, network_at(done))
    with Checkpoints(run.checkpoints, recipe) as checkpoints:
        for step in range(done + 1, STEPS + 1):
            if step > 1:
                run.append({"step": step, "note": LONG})
            network = network_at(step)
            state = {"best": 20.0, "network": network.state_dict(), "updater": {"moments": torch.ones(7) * step}}
            checkpoints.save(network, step, state, best=step == 1)
            checkpoints.wait()


def begin() -> None:
    """What is there before."""
    Path("run").mkdir()


def damage() -> None:
    """Let the newest state be one that cannot be read."""
    begin()
    go_on()
    Path("run/checkpoints/last.state.pt").write_bytes(b"torn")
    Path("run/checkpoints/step-00000003.state.pt").unlink()


def release() -> None:
    """A folder that is there whole or not at all."""
    with new_folder(Path("out/release")) as folder:
        for name in ("README.md", "SHA256SUMS"):
            write_text(folder / name, name)


SMALL = {
    "checkpoints": Operation(begin, go_on, go_on),
    "checkpoints, one kept": Operation(begin, partial(go_on, 1), partial(go_on, 1)),
    "checkpoints, from an older state": Operation(damage, go_on, go_on),
    "store": OPERATIONS["store"],
    "store, other images": OPERATIONS["store, other images"],
    "release": Operation(lambda: None, release, release, may_say="out/release: exists already"),
}
