"""RRDB against an independent transcription and spandrel's, its published sizes, and every way to load it."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name
from torch import Tensor

from eco_fast.config import RrdbModel
from eco_fast.models import Network, build, compile_blocks, load_network, save_network, warm_start
from eco_fast.models.rrdb import RRDB

State = dict[str, Tensor]
SMALL: dict[str, Any] = {"features": 8, "blocks": 2, "growth": 32}  # spandrel knows this growth alone
FORMS = [(2, False), (2, True), (4, False), (8, False)]


def transcription(state: State, lr: Tensor, *, unshuffle: bool) -> Tensor:
    """RRDB as its paper and `rrdbnet_arch.py` say; h and w are even where squares become channels."""

    def conv(x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    def dense(x: Tensor, name: str) -> Tensor:
        outputs = [x]
        for index in range(1, 5):
            outputs.append(F.leaky_relu(conv(torch.cat(outputs, 1), f"{name}.conv{index}"), 0.2))
        return conv(torch.cat(outputs, 1), f"{name}.conv5") * 0.2 + x

    if unshuffle:  # the channels of a square's four pixels follow each other, colour by colour
        squares = [lr[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        lr = torch.stack(squares, 2).flatten(1, 2)
    first = x = conv(lr, "conv_first")
    for block in range(len({key.split(".")[1] for key in state if key.startswith("body.")})):
        y = x
        for index in (1, 2, 3):
            y = dense(y, f"body.{block}.rdb{index}")
        x = y * 0.2 + x
    x = first + conv(x, "conv_body")
    for index in range(1, 1 + len({key for key in state if re.match(r"conv_up\d\.weight", key)})):
        x = F.leaky_relu(conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3), f"conv_up{index}"), 0.2)
    return conv(F.leaky_relu(conv(x, "conv_hr"), 0.2), "conv_last")


@pytest.mark.parametrize(
    ("scale", "unshuffle", "parameters"), [(4, False, 16_697_987), (2, True, 16_703_171), (2, False, 16_661_059)]
)
def test_published_sizes(scale: int, unshuffle: bool, parameters: int) -> None:
    with torch.device("meta"):
        network = build(RrdbModel(unshuffle=unshuffle), scale)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize(("scale", "unshuffle"), FORMS)
@pytest.mark.parametrize("size", [(8, 8), (14, 6)], ids=str)
def test_equals_the_transcription(scale: int, unshuffle: bool, size: tuple[int, int]) -> None:
    network, lr = rough(RRDB(scale, **SMALL, unshuffle=unshuffle)), torch.rand(2, 3, *size)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    expected = transcription(network.state_dict(), lr, unshuffle=unshuffle)
    torch.testing.assert_close(network(lr), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("scale", "unshuffle"), FORMS)
def test_equals_spandrels(scale: int, unshuffle: bool, spandrel: Any) -> None:
    network = rough(RRDB(scale, **SMALL, unshuffle=unshuffle))
    other = spandrel.ModelLoader().load_from_state_dict(copy.deepcopy(network.state_dict()))
    assert (other.architecture.id, other.scale) == ("ESRGAN", scale)
    for size in ((12, 16), (11, 14), (13, 7)):
        lr = torch.rand(1, 3, *size)
        with torch.inference_mode():
            torch.testing.assert_close(network(lr), other.model(lr), rtol=0, atol=1e-5)


def test_gradients_equal_the_transcriptions() -> None:
    network, lr = rough(RRDB(2, **SMALL)), torch.rand(2, 3, 9, 7)
    own = {key: value.detach().requires_grad_() for key, value in network.state_dict().items()}
    network(lr).square().sum().backward()
    transcription(own, lr, unshuffle=False).square().sum().backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, own[name].grad, rtol=1e-4, atol=1e-3)


def old_names(state: State) -> State:
    """What ESRGAN's `RRDBNet_arch.py` calls the same weights."""
    names = {"body": "RRDB_trunk", "conv_body": "trunk_conv", "conv_hr": "HRconv"}
    names |= {f"conv_up{index}": f"upconv{index}" for index in (1, 2, 3)}
    spelt = {".".join([names.get(key.split(".")[0], key.split(".")[0]), *key.split(".")[1:]]): key for key in state}
    return {name.replace("rdb", "RDB"): state[key] for name, key in spelt.items()}


def first_names(state: State) -> State:
    """What ESRGAN's first release calls them: places in a sequence that also counts upsampling and activations."""
    ups = len({key for key in state if re.match(r"conv_up\d\.weight", key)})
    names = {"conv_first": "model.0", "conv_body": "model.1.sub.2"}
    names |= {f"conv_up{index + 1}": f"model.{3 * (index + 1)}" for index in range(ups)}
    names |= {"conv_hr": f"model.{3 * ups + 2}", "conv_last": f"model.{3 * ups + 4}"}
    spelt: State = {}
    for key, value in state.items():
        if found := re.fullmatch(r"body\.(\d+)\.rdb(\d)\.conv(\d)\.(weight|bias)", key):
            spelt["model.1.sub.{}.RDB{}.conv{}.0.{}".format(*found.groups())] = value
        else:
            layer, kind = key.rsplit(".", 1)
            spelt[f"{names[layer]}.{kind}"] = value
    return spelt


@pytest.mark.parametrize(("scale", "unshuffle"), FORMS)
@pytest.mark.parametrize("wrapper", ["params", "params_ema", "state_dict", "module.", ""])
def test_files_load_under_all_names(scale: int, unshuffle: bool, wrapper: str, tmp_path: Path, spandrel: Any) -> None:
    network, lr = rough(RRDB(scale, **SMALL, unshuffle=unshuffle)), torch.rand(1, 3, 7, 6)
    for spell in (dict, old_names, first_names):
        state = spell(network.state_dict())
        assert spandrel.ModelLoader().load_from_state_dict(copy.copy(state)).architecture.id == "ESRGAN"
        prefixed = {f"module.{key}": value for key, value in state.items()} if wrapper == "module." else state
        torch.save({wrapper: state} if wrapper[-1:].isalpha() else prefixed, tmp_path / "x.pth")
        loaded = load_network(tmp_path / "x.pth", "cpu")
        assert isinstance(loaded, RRDB)
        assert (loaded.scale, loaded.hyperparameters) == (scale, {**SMALL, "unshuffle": unshuffle})
        torch.testing.assert_close(loaded(lr), network(lr), rtol=0, atol=0)
    save_network(tmp_path / "x.safetensors", network)
    torch.testing.assert_close(load_network(tmp_path / "x.safetensors", "cpu")(lr), network(lr), rtol=0, atol=0)


def test_an_incomplete_file_is_refused_by_the_name_of_what_is_missing(tmp_path: Path) -> None:
    state = RRDB(4, **SMALL).state_dict()
    del state["body.1.rdb2.conv4.bias"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"part\.pth: not a complete RRDB checkpoint, body\.1\.rdb2.* is missing"):
        load_network(tmp_path / "part.pth", "cpu")


def test_warm_start_copies_all_but_the_new_upsampling(tmp_path: Path) -> None:
    save_network(tmp_path / "x2.safetensors", RRDB(2, **SMALL))
    assert warm_start(RRDB(4, **SMALL), tmp_path / "x2.safetensors") == ["conv_up2.bias", "conv_up2.weight"]


def test_scales_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match=r"RRDB has scales \(2, 4, 8\), got 3"):
        RRDB(3)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "blocks"])
def test_compiled_without_breaks_it_is_as_exact_as_eager(
    whole: bool, compiled_is_as_exact_as_eager: Callable[..., None]
) -> None:
    """Loss and gradients, against float64."""
    sizes = {"features": 8, "blocks": 1 if whole else 2, "growth": 8}  # the compiler takes its time
    network, lr = rough(RRDB(2, **sizes, unshuffle=True)), torch.rand(2, 3, 8, 8)

    def compile_whole(network: Network) -> None:
        network.compile(fullgraph=True, dynamic=False, backend="aot_eager")  # the breaks are the question here

    compiled_is_as_exact_as_eager(network, lr, compile_it=compile_whole if whole else compile_blocks)


def rough(network: RRDB) -> RRDB:
    """Weights larger than fresh ones, so that the inner convolutions show."""
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return network
