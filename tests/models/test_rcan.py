"""RCAN against an independent transcription and spandrel's, its published sizes, and every way to load it."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name
from torch import Tensor
from torch._dynamo.utils import counters

from eco_fast.config import RcanModel
from eco_fast.models import Network, build, compile_blocks, load_network, save_network, warm_start
from eco_fast.models.edsr import EDSR
from eco_fast.models.rcan import RCAN
from eco_fast.training.profiling import training_flops

State = dict[str, Tensor]
SMALL = {"features": 16, "groups": 2, "blocks": 3, "reduction": 4}


def transcription(state: State, lr: Tensor, scale: int) -> Tensor:
    """RCAN as its paper and `rcan.py` say, on 0..1 images, the attention as 1x1 convolutions of one pixel."""

    def conv(x: Tensor, name: str, padding: int = 1) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)

    mean = 255 * torch.tensor([0.4488, 0.4371, 0.4040])[None, :, None, None]
    groups = len({key.split(".")[1] for key in state if re.match(r"body\.\d+\.body\.0\.body", key)})
    blocks = len({key.split(".")[3] for key in state if re.match(r"body\.0\.body\.\d+\.body", key)})
    head = x = conv(lr * 255 - mean, "head.0")
    for group in range(groups):
        before_group = x
        for block in range(blocks):
            name = f"body.{group}.body.{block}.body"
            y = conv(F.relu(conv(x, f"{name}.0")), f"{name}.2")
            attention = F.relu(conv(F.adaptive_avg_pool2d(y, 1), f"{name}.3.conv_du.0", 0))
            x = x + y * torch.sigmoid(conv(attention, f"{name}.3.conv_du.2", 0))
        x = conv(x, f"body.{group}.body.{blocks}") + before_group
    x = conv(x, f"body.{groups}") + head
    for index, factor in {2: [(0, 2)], 3: [(0, 3)], 4: [(0, 2), (2, 2)], 8: [(0, 2), (2, 2), (4, 2)]}[scale]:
        x = F.pixel_shuffle(conv(x, f"tail.0.{index}"), factor)
    return (conv(x, "tail.1") + mean) / 255


@pytest.mark.parametrize(
    ("scale", "parameters", "tensors"),
    [(2, 15_444_643, 1632), (3, 15_629_283, 1632), (4, 15_592_355, 1634), (8, 15_740_067, 1636)],
)
def test_published_sizes(scale: int, parameters: int, tensors: int) -> None:
    network = build(RcanModel(), scale)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert len(network.state_dict()) == tensors


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [(8, 8), (13, 9), (1, 5)], ids=str)
def test_equals_the_transcription(scale: int, size: tuple[int, int]) -> None:
    torch.manual_seed(scale)
    network = RCAN(scale, **SMALL).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    lr = torch.rand(2, 3, *size)
    torch.testing.assert_close(network(lr), transcription(network.state_dict(), lr, scale), rtol=0, atol=1e-5)


def test_gradients_equal_the_transcriptions() -> None:
    torch.manual_seed(0)
    network, lr = RCAN(2, **SMALL), torch.rand(2, 3, 9, 7)
    own = {key: value.detach().requires_grad_() for key, value in network.state_dict().items()}
    network(lr).square().sum().backward()
    transcription(own, lr, 2).square().sum().backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, own[name].grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_sizes_are_recognised_from_the_keys_alone(scale: int, tmp_path: Path) -> None:
    network = RCAN(scale, **SMALL)
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}}, tmp_path / "x.pt"
    )
    save_network(tmp_path / "x.safetensors", network)
    for name in ("x.pt", "x.safetensors"):
        loaded = load_network(tmp_path / name, "cpu")
        assert isinstance(loaded, RCAN)
        assert (loaded.scale, loaded.hyperparameters) == (scale, SMALL)
        lr = torch.rand(1, 3, 6, 5)
        torch.testing.assert_close(loaded(lr), network(lr), rtol=0, atol=0)


def basicsr_names(state: State, groups: int, blocks: int) -> State:
    """What BasicSR's `rcan_arch.py` calls the same weights; it has no mean in its files."""
    names: State = {}
    for key, value in state.items():
        name = key
        if key.startswith(("sub_mean", "add_mean")):
            continue
        if found := re.fullmatch(r"body\.(\d+)\.body\.(\d+)\.body\.(\d)(\.conv_du\.(\d))?\.(weight|bias)", key):
            group, block, layer, _, attention, kind = found.groups()
            inner = f"rcab.3.attention.{int(attention) + 1}" if attention else f"rcab.{layer}"
            name = f"body.{group}.residual_group.{block}.{inner}.{kind}"
        elif found := re.fullmatch(rf"body\.(\d+)\.body\.{blocks}\.(weight|bias)", key):
            name = f"body.{found[1]}.conv.{found[2]}"
        elif key.startswith(f"body.{groups}."):
            name = key.replace(f"body.{groups}.", "conv_after_body.")
        name = name.replace("head.0.", "conv_first.").replace("tail.0.", "upsample.").replace("tail.1.", "conv_last.")
        names[name] = value
    return names


def test_files_with_basicsrs_names_load(tmp_path: Path) -> None:
    rcan, edsr, lr = RCAN(4, **SMALL), EDSR(3, 8, 2), torch.rand(1, 3, 6, 5)
    torch.save({"params": basicsr_names(rcan.state_dict(), 2, 3)}, tmp_path / "rcan.pth")
    names = {"head.0": "conv_first", "body.2": "conv_after_body", "tail.0.0": "upsample.0", "tail.1": "conv_last"}
    names |= {f"body.{block}.body.{2 * layer}": f"body.{block}.conv{layer + 1}" for block in (0, 1) for layer in (0, 1)}
    state = edsr.state_dict()
    spelt = {f"{new}.{kind}": state[f"{old}.{kind}"] for old, new in names.items() for kind in ("weight", "bias")}
    torch.save({"params_ema": spelt}, tmp_path / "edsr.pth")
    for network, name in ((rcan, "rcan.pth"), (edsr, "edsr.pth")):
        torch.testing.assert_close(load_network(tmp_path / name, "cpu")(lr), network(lr), rtol=0, atol=0)


def test_an_incomplete_file_is_refused_by_the_name_of_what_is_missing(tmp_path: Path) -> None:
    state = RCAN(2, **SMALL).state_dict()
    del state["body.1.body.2.body.3.conv_du.2.bias"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"part\.pth: not a complete RCAN checkpoint, body\.1\.body\.2.* is missing"):
        load_network(tmp_path / "part.pth", "cpu")


@pytest.mark.parametrize(("scale", "fresh"), [(3, ["tail.0.0"]), (4, ["tail.0.2"])])
def test_warm_start_copies_all_but_the_upsampler(scale: int, fresh: list[str], tmp_path: Path) -> None:
    save_network(tmp_path / "x2.safetensors", RCAN(2, **SMALL))
    kept = warm_start(RCAN(scale, **SMALL), tmp_path / "x2.safetensors")
    assert kept == sorted(f"{layer}.{kind}" for layer in fresh for kind in ("bias", "weight"))


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "blocks"])
def test_compiled_without_breaks_it_is_as_exact_as_eager(
    whole: bool, compiled_is_as_exact_as_eager: Callable[..., None]
) -> None:
    """Loss and gradients, against float64."""
    torch.manual_seed(0)
    network, lr = RCAN(2, **SMALL), torch.rand(2, 3, 8, 8)

    def compile_whole(network: Network) -> None:
        network.compile(fullgraph=True, dynamic=False)

    compiled_is_as_exact_as_eager(network, lr, compile_it=compile_whole if whole else compile_blocks)


@pytest.mark.slow
def test_compiled_blocks_leave_images_of_other_sizes_alone() -> None:
    network = RCAN(2, **SMALL)
    plain = copy.deepcopy(network).eval()
    torch.compiler.reset()
    counters.clear()
    compile_blocks(network)
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    network.eval()
    for size in (5, 7, 9):
        lr = torch.rand(1, 3, size, size)
        torch.testing.assert_close(network(lr), plain(lr), rtol=0, atol=0)
    assert training_flops(network, 8) == training_flops(plain, 8)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_equals_spandrels(scale: int, spandrel: Any) -> None:
    network, lr = RCAN(scale, **SMALL), torch.rand(1, 3, 11, 14)
    other = spandrel.ModelLoader().load_from_state_dict(network.state_dict())
    assert other.architecture.id == "RCAN"
    with torch.inference_mode():
        torch.testing.assert_close(network(lr), other.model(lr), rtol=0, atol=1e-5)
