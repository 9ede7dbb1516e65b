"""The files of all our networks in spandrel, EDSR's by our extension, which is tested as spandrel tests its own."""

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from eco_fast.models import Network, load_network, save_network
from eco_fast.models.edsr import EDSR
from eco_fast.models.rcan import RCAN
from eco_fast.models.rrdb import RRDB
from eco_fast.models.swinir import SwinIR

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "eco_fast" / "interop" / "spandrel.py"
FAMILIES: dict[str, tuple[Any, ...]] = {
    **{f"edsr x{scale}": (EDSR, scale, 8, 3) for scale in (2, 3, 4, 8)},
    "edsr of 256 features": (EDSR, 2, 256, 1, 0.1),
    **{f"rcan x{scale}": (RCAN, scale, 8, 2, 2, 4) for scale in (2, 3, 4, 8)},
    **{f"swinir x{scale}": (SwinIR, scale, 12, (2, 2), (2, 2)) for scale in (2, 3, 4, 8)},
    "swinir-s x2": (SwinIR, 2, 12, (2, 2), (2, 2), 8, 2.0, "pixelshuffledirect"),
    **{f"rrdb x{scale}": (RRDB, scale, 8, 2) for scale in (2, 4, 8)},
    "rrdb x2, unshuffle": (partial(RRDB, unshuffle=True), 2, 8, 2),
}
State = dict[str, Tensor]


@pytest.fixture
def registry(spandrel: Any) -> Iterator[Any]:
    """spandrel's, without EDSR; it is as before afterwards."""
    registry, others = spandrel.MAIN_REGISTRY, spandrel.ArchRegistry()
    before = registry.copy()
    others.add(*(one for one in before if one.architecture.id != "EDSR"))
    vars(registry).update(vars(others))
    yield registry
    vars(registry).update(vars(before))


@pytest.fixture
def extension(registry: Any) -> Any:
    """The extension, installed."""
    module = importlib.import_module("eco_fast.interop.spandrel")
    module.install()
    assert "EDSR" in registry
    return module


def trained(network: Network) -> Network:
    """Weights of which none is zero or one, as some of a fresh network are."""
    for parameter in network.parameters():
        parameter.data += torch.randn_like(parameter) * (0.05 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    return network.eval().requires_grad_(requires_grad=False)


def farthest(first: Tensor, second: Tensor) -> float:
    """The largest difference, in parts of the largest value."""
    return float((first - second).abs().max() / first.abs().max())


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # spandrel's
@pytest.mark.parametrize("name", FAMILIES)
def test_our_files_open(name: str, extension: Any, spandrel: Any, tmp_path: Path) -> None:
    family, *sizes = FAMILIES[name]
    network = trained(family(*sizes))
    save_network(tmp_path / "network.safetensors", network)
    opened = spandrel.ModelLoader().load_from_file(tmp_path / "network.safetensors").eval()
    assert (opened.scale, opened.input_channels, opened.output_channels, opened.purpose) == (sizes[0], 3, 3, "SR")
    assert isinstance(opened.model, extension.EDSR) == (family is EDSR)
    lr = torch.rand(1, 3, 24, 32)
    assert farthest(network(lr), opened.model(lr).detach()) < 2e-6  # float32 rounds; with more digits nothing is left
    lr = lr.double()
    assert farthest(network.double()(lr), opened.model.double()(lr).detach()) < 1e-13


def test_load(extension: Any) -> None:
    """What spandrel calls `assert_loads_correctly`: a network's weights alone say how to build it."""
    arch = extension.EDSRArch()
    sizes: list[dict[str, Any]] = [{"scale": scale} for scale in (2, 3, 4, 8)]
    sizes += [{"n_resblocks": 12, "n_feats": 24}, {"n_resblocks": 1, "n_feats": 256, "res_scale": 0.1}]
    for values in (*sizes, {"rgb_range": 1}):
        network = extension.EDSR(**values)
        for state in (network.state_dict(), load(save(network.state_dict()))):
            assert arch.detect(state)
            loaded = arch.load(state)
            assert loaded.model.hyperparameters == network.hyperparameters
            assert all(torch.equal(value, loaded.model.state_dict()[key]) for key, value in state.items())


def test_size_requirements(extension: Any) -> None:
    """It says that it takes any size."""
    opened = extension.EDSRArch().load(extension.EDSR(scale=3, n_feats=8, n_resblocks=1).state_dict())
    required = opened.size_requirements
    assert (required.minimum, required.multiple_of, required.square) == (0, 1, False)
    for height, width in ((1, 1), (2, 7), (31, 16)):
        assert opened(torch.rand(1, 3, height, width)).shape == (1, 3, 3 * height, 3 * width)


def test_descriptor(extension: Any) -> None:
    opened = extension.EDSRArch().load(extension.EDSR(scale=4, n_feats=32, n_resblocks=5).state_dict())
    assert (opened.architecture.id, opened.scale, opened.tags) == ("EDSR", 4, ["32nf", "5nb"])
    with pytest.raises(importlib.import_module("spandrel").UnsupportedDtypeError):
        opened.half()
    assert opened.bfloat16()(torch.rand(1, 3, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def basicsr_names(state: State) -> State:
    """What BasicSR's `edsr_arch.py` calls the same weights; it has no mean in its files."""
    blocks = max(int(key.split(".")[1]) for key in state if key.startswith("body."))
    renamed = {}
    for key, value in state.items():
        name = key.replace(".body.0.", ".conv1.").replace(".body.2.", ".conv2.")
        name = name.replace(f"body.{blocks}.", "conv_after_body.").replace("head.0.", "conv_first.")
        renamed[name.replace("tail.0.", "upsample.").replace("tail.1.", "conv_last.")] = value
    return {key: value for key, value in renamed.items() if "mean" not in key}


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("wrapped", ["", "params", "params_ema", "module."])
def test_all_spellings_open(scale: int, wrapped: str, extension: Any, spandrel: Any, tmp_path: Path) -> None:
    """Of twelve blocks, whose names are no longer in the order of their numbers."""
    state = trained(EDSR(scale, 8, 12)).state_dict()
    without_mean = {key: value for key, value in state.items() if "mean" not in key}
    lr, path = torch.rand(1, 3, 9, 11), tmp_path / "edsr.pth"
    torch.save(state, path)
    expected = load_network(path, "cpu")(lr)
    for spelling in (state, without_mean, basicsr_names(state)):
        prefix, key = (wrapped, "") if wrapped.endswith(".") else ("", wrapped)
        named = {f"{prefix}{name}": value for name, value in spelling.items()}
        torch.save({key: named} if key else named, path)
        opened = spandrel.ModelLoader().load_from_file(path).eval()
        assert isinstance(opened.model, extension.EDSR)
        assert farthest(expected, opened.model(lr).detach()) < 1e-6


def test_a_network_of_0_to_1_opens(extension: Any) -> None:
    """EDSR-PyTorch with --rgb_range 1: its mean tells. Biases are what the range shows in."""
    network = extension.EDSR(rgb_range=1, n_feats=8, n_resblocks=1)
    lr = torch.rand(1, 3, 6, 6)
    assert torch.equal(extension.EDSRArch().load(network.state_dict()).model(lr), network(lr))


def test_nobody_elses_files_are_taken_for_it(extension: Any, spandrel: Any) -> None:
    """Nor EDSR's for anybody else's: detection goes from one architecture to the next."""
    detect = extension.EDSRArch().detect
    for name, (family, *sizes) in FAMILIES.items():
        assert detect(family(*sizes).state_dict()) == (family is EDSR), name
    state = EDSR(2, 8, 1).state_dict()
    others = [one.architecture for one in spandrel.MAIN_REGISTRY if one.architecture.id != "EDSR"]
    assert len(others) > 40
    assert [one.id for one in others if one.detect(state) or one.detect(basicsr_names(state))] == []


def test_installing_twice_changes_nothing(extension: Any, spandrel: Any) -> None:
    before = list(spandrel.MAIN_REGISTRY)
    extension.install()
    assert list(spandrel.MAIN_REGISTRY) == before


def test_a_copy_of_the_file_alone_works(registry: Any, spandrel: Any, tmp_path: Path) -> None:
    """In a program whose Python has no eco-fast: as the docs tell users of ComfyUI, which imports folders like this."""
    tree = ast.parse(MODULE.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {getattr(node, "module", "").partition(".")[0] for node in imports} == {"spandrel", "torch"}
    page = (ROOT / "docs" / "consumers" / "comfyui.md").read_text(encoding="utf-8")
    (code,) = re.findall("```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "__init__.py").write_text(code, encoding="utf-8")
    (tmp_path / "edsr.py").write_bytes(MODULE.read_bytes())
    spec = importlib.util.spec_from_file_location("custom_node", tmp_path / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["custom_node"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["custom_node"])
    network = EDSR(2, 8, 1).eval()
    opened = spandrel.ModelLoader().load_from_state_dict(network.state_dict()).eval()
    assert (registry["EDSR"].architecture, type(opened.model).__module__) == (opened.architecture, "custom_node.edsr")
    lr = torch.rand(1, 3, 6, 6)
    assert farthest(network(lr).detach(), opened.model(lr).detach()) < 1e-6
    for name in ("custom_node", "custom_node.edsr"):
        del sys.modules[name]
