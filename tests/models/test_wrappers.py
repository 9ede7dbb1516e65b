"""Checkpoints as other programs wrap them: the network inside is found; nothing is run or guessed at."""

import pickle
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from eco_fast.models import load_network, warm_start
from eco_fast.models.edsr import EDSR

State = dict[str, Tensor]


def edsr() -> EDSR:
    torch.manual_seed(5)
    return EDSR(2, features=8, blocks=1)


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def others(state: State) -> State:
    """The same keys with other values: what must not be taken."""
    return {key: value + 1 for key, value in state.items()}


WRAPPED: dict[str, Callable[[State], Any]] = {
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "compiled in parallel": lambda state: prefixed(state, "module._orig_mod."),
    "parallel, then compiled": lambda state: prefixed(state, "_orig_mod.module."),
    "compiled block by block": lambda state: {key.replace("body.0.", "body.0._orig_mod."): state[key] for key in state},
    "tutorial": lambda state: {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {"state": {}}},
    "params-ema": lambda state: {"params": others(state), "params-ema": state},
    "ema": lambda state: {"model": others(state), "ema": state},
    "settings called ema": lambda state: {"ema": {"decay": 0.999}, "model": state},
    "net_g": lambda state: {"net_g": state, "net_d": others(state), "iter": 5},
    "Lightning": lambda state: {
        "pytorch-lightning_version": "2.4.0",
        "hyper_parameters": {"scale": 2},
        "state_dict": {**prefixed(state, "model."), "loss.vgg.weight": torch.ones(2)},
    },
    "Lightning, compiled": lambda state: {"state_dict": prefixed(state, "model._orig_mod.")},
    "mmagic": lambda state: {
        "meta": {},
        "state_dict": {
            **prefixed(others(state), "generator."),
            **prefixed(state, "generator_ema."),
            **prefixed(others(state), "discriminator."),
            "step_counter": torch.tensor(9),
        },
    },
    "net_g and net_d in one": lambda state: {**prefixed(state, "net_g."), **prefixed(others(state), "net_d.")},
    "averaged": lambda state: {"n_averaged": torch.tensor(7), **prefixed(state, "module.")},
    "nested": lambda state: {"checkpoint": {"state_dict": {"params": prefixed(state, "module.")}}},
    "accelerate with an unknown name": lambda state: {"sr_network": prefixed(state, "module."), "epoch": 2},
    "adam beside it": lambda state: {"my_net": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "numpy's scores": lambda state: {
        "best_psnr": np.float64(31.5),
        "step": np.int64(4),
        "curve": np.arange(3.0),
        "done": np.bool_(1),
        "params": state,
    },
    "a counter that is a tensor": lambda state: {"epoch": torch.tensor(3), "model": state},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrapped_weights_load(tmp_path: Path, kind: str) -> None:
    network = edsr()
    torch.save(WRAPPED[kind](dict(network.state_dict())), tmp_path / "net.pth")
    loaded = load_network(tmp_path / "net.pth", "cpu").state_dict()
    assert loaded.keys() == network.state_dict().keys()
    assert all(torch.equal(loaded[key], value) for key, value in network.state_dict().items())


def test_prefixes_in_safetensors_load(tmp_path: Path) -> None:
    network = edsr()
    save_file(prefixed(dict(network.state_dict()), "_orig_mod."), tmp_path / "net.safetensors")
    key = "head.0.weight"
    assert torch.equal(load_network(tmp_path / "net.safetensors", "cpu").state_dict()[key], network.state_dict()[key])


def test_several_unnamed_sets_are_not_guessed_at(tmp_path: Path) -> None:
    state = dict(edsr().state_dict())
    torch.save({"first": state, "second": others(state)}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"net\.pth: holds several sets of weights \(first, second\)"):
        load_network(tmp_path / "net.pth", "cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["body.0.body.0.weight", "tail.1.bias"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("use", [lambda path: load_network(path, "cpu"), lambda path: warm_start(edsr(), path)])
def test_weights_that_are_no_numbers_are_refused(
    tmp_path: Path, value: float, key: str, suffix: str, use: Callable[[Path], Any]
) -> None:
    state = {name: weight.clone() for name, weight in edsr().half().state_dict().items()}
    state[key].view(-1)[-1] = value
    path = tmp_path / f"net.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save({"params": state}, path)
    with pytest.raises(ValueError, match=rf"net\.{suffix}: {key} holds values that are not finite"):
        use(path)


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors", "net.ckpt"])
def test_a_pointer_of_git_lfs_is_called_one(tmp_path: Path, name: str) -> None:
    oid = "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
    (tmp_path / name).write_text(f"version https://git-lfs.github.com/spec/v1\n{oid}\nsize 12345\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{name}: a Git LFS pointer, .* `git lfs pull`"):
        load_network(tmp_path / name, "cpu")


class Runs:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("where", ["beside", "inside an array of numpy"])
def test_code_is_not_run(tmp_path: Path, where: str) -> None:
    trap: Any = Runs(tmp_path / "ran")
    extra = np.array([trap], dtype=object) if where != "beside" else trap
    torch.save({"params": dict(edsr().state_dict()), "extra": extra}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"net\.pth: (holds code besides weights|damaged)"):
        load_network(tmp_path / "net.pth", "cpu")
    assert not (tmp_path / "ran").exists()
    with (tmp_path / "plain.pkl").open("wb") as file:
        pickle.dump(Namespace(scale=2), file)
    with pytest.raises(ValueError, match=r"plain\.pkl"):
        load_network(tmp_path / "plain.pkl", "cpu")
