"""Whole networks as a GPU runs them, their kernels in Triton's interpreter, against spandrel's with the same weights.

The tensors are the CPU's, but say that they are a GPU's: then the networks take their hand-written passes, and the ops
take Triton. On a machine with a GPU nothing has to be pretended.
"""

import copy
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eco_fast.models.edsr import EDSR
from eco_fast.models.network import Network
from eco_fast.models.rcan import RCAN
from eco_fast.models.swinir import SwinIR

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.meshgrid"),  # which spandrel calls
    pytest.mark.filterwarnings("ignore:overflow encountered in exp"),  # a sigmoid of a large negative number is 0
]
NETWORKS: dict[str, Callable[[], Network]] = {
    "edsr": lambda: EDSR(2, features=8, blocks=2),
    "rcan": lambda: RCAN(2, features=8, groups=1, blocks=2, reduction=4),
    "swinir": lambda: SwinIR(2, features=12, depths=(2,), heads=(2,), patch=16),
}
LAUNCHING = (
    "add_norm",
    "bias_gelu",
    "channel_attention",
    "channel_attention_backward",
    "column_sums",
    "epilogues",
    "window_attention",
    "window_attention_backward",
)
LAUNCHES: list[str] = []


@pytest.fixture
def gpu(device: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A device whose tensors take the kernels; `LAUNCHES` gets their names."""
    LAUNCHES.clear()
    for name in LAUNCHING:
        module = importlib.import_module(f"eco_fast_kernels.fused.{name}")
        wrap = module.wrap_triton if device == "cuda" else lambda kernel: kernel

        def noting(kernel: Any, wrap: Callable[[Any], Any] = wrap) -> Any:
            LAUNCHES.append(kernel.fn.__name__)
            return wrap(kernel)

        monkeypatch.setattr(module, "wrap_triton", noting)
    with monkeypatch.context() as pretending:
        if device == "cpu":
            pretending.setattr(Tensor, "is_cuda", property(lambda _: True))
            pretending.setattr(torch.cuda, "get_device_capability", lambda _=None: (9, 0))
            # cuDNN's own fusion is no part of this
            pretending.setattr("eco_fast.models.passes.convolution_fuses_relu", lambda *_: False)
        yield device


def outputs_and_gradients(network: nn.Module, lr: Tensor) -> dict[str, Tensor]:
    sr = network(lr)
    weights = torch.linspace(-1, 2, sr.numel(), device=lr.device).view(sr.shape)
    named = {name: one for name, one in network.named_parameters() if one.requires_grad}
    gradients = torch.autograd.grad((sr * weights).mean(), list(named.values()))
    return {"output": sr, **dict(zip(named, gradients, strict=True))}


def others_of(spandrel: Any, name: str, state: dict[str, Tensor]) -> nn.Module:
    """Spandrel's network; its EDSR is the extension's, which is not installed for the tests of other files."""
    if name != "edsr":
        found: nn.Module = spandrel.ModelLoader().load_from_state_dict(state).model
        return found
    other: nn.Module = importlib.import_module("eco_fast.interop.spandrel").EDSR(n_resblocks=2, n_feats=8)
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_by_kernels_equal_spandrels(
    name: str, gpu: str, spandrel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for parameter in network.parameters():  # larger than fresh ones: a position bias, say, that shows
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    lr = torch.rand(2, 3, 16, 16)
    with monkeypatch.context() as plain:
        if gpu == "cpu":
            plain.setattr(Tensor, "is_cuda", property(lambda _: False))
        other = others_of(spandrel, name, copy.deepcopy(network.state_dict()))
        other.eval().requires_grad_(requires_grad=True)
        wanted = outputs_and_gradients(other, lr.clone())  # for RCAN there writes to its input
    network.to(gpu)
    made = outputs_and_gradients(network, lr.to(gpu))
    assert LAUNCHES
    assert made["output"].shape == wanted["output"].shape
    for key, one in made.items():
        largest = float(wanted[key].detach().abs().max())
        torch.testing.assert_close(one.cpu(), wanted[key].view_as(one), rtol=0, atol=2e-6 * largest)
