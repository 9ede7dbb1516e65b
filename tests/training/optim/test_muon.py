"""Muon in the trainer: which weights it takes, that each moves as the formula says, and what it refuses."""

import copy
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from eco_fast_kernels.muon import orthogonalise
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from eco_fast import Network, config
from eco_fast.cli.main import main
from eco_fast.config import EdsrModel, Model, Optimizer, RcanModel, RrdbModel, SwinirModel
from eco_fast.data.images import Pixels, write_png
from eco_fast.models import build, load_network
from eco_fast.training.optim.optimizer_step import OptimizerStep
from eco_fast.training.profiling import training_flops
from tests.helpers import complaint
from tests.kernels.muon_cases import error, exact_orthogonal

KINDS = ("weight", "bias")
SMALL: dict[str, Model] = {
    "edsr": EdsrModel(features=8, blocks=2),
    "rcan": RcanModel(features=16, groups=2, blocks=2, reduction=4),
    "swinir": SwinirModel(features=12, depths=(2, 2), heads=(2, 2), window=4, patch=8),
    "rrdb": RrdbModel(features=8, blocks=2, growth=4),
}


class Chain(Network):
    """A network of one's own, with everything that is no matrix between its first and last layer."""

    halo = 4

    def __init__(self, scale: int) -> None:
        super().__init__(scale)
        self.scaling = Parameter(torch.ones(8, 1, 1))
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 6, 3, padding=1),
            nn.ConvTranspose2d(6, 8, 3, padding=1),
            nn.Conv2d(8, 3 * scale**2, 3, padding=1),
            nn.PixelShuffle(scale),
        )

    def forward(self, lr: Tensor) -> Tensor:
        sr: Tensor = self.layers(lr) * self.scaling[:3]
        return sr


class TwoLayers(Network):
    """Nothing lies between its first and last layer."""

    halo = 2

    def __init__(self, scale: int) -> None:
        super().__init__(scale)
        self.layers = nn.Sequential(nn.Conv2d(3, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, lr: Tensor) -> Tensor:
        sr: Tensor = self.layers(lr)
        return sr


def others(network: Network) -> set[str]:
    """Names of the weights that Adam moves, without numbers."""
    matrices = {id(matrix) for matrix in network.body_matrices()}
    names = (name for name, parameter in network.named_parameters() if id(parameter) not in matrices)
    return {".".join(part for part in name.split(".") if not part.isdigit()) for name in names}


# --- which weights ---


def test_the_body_of_each_architecture() -> None:
    found = {name: build(model, 2) for name, model in SMALL.items()}
    ends = {"head.weight", "head.bias", "body.bias", "body.body.bias", "tail.weight", "tail.bias"}
    assert others(found["edsr"]) == ends
    attention = {"body.body.body.conv_du.weight", "body.body.body.conv_du.bias"}
    assert others(found["rcan"]) == ends | {"body.body.body.bias"} | attention
    assert others(found["rrdb"]) == {
        *(
            f"{name}.{kind}"
            for name in ("conv_first", "conv_up1", "conv_hr", "conv_last")
            for kind in ("weight", "bias")
        ),
        *(f"body.rdb{dense}.conv{index}.bias" for dense in (1, 2, 3) for index in (1, 2, 3, 4, 5)),
        "conv_body.bias",
    }
    block = "layers.residual_group.blocks"
    norms = ("patch_embed.norm", "norm", f"{block}.norm1", f"{block}.norm2")
    convolutions = ("conv_first", "conv_before_upsample", "upsample", "conv_last")
    assert others(found["swinir"]) == {
        *(f"{layer}.{kind}" for layer in (*convolutions, *norms) for kind in KINDS),
        *(f"{block}.{name}.bias" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
        f"{block}.attn.relative_position_bias_table",
        "layers.conv.bias",
        "conv_after_body.bias",
    }
    with torch.device("meta"):
        assert len(build(RcanModel(), 2).body_matrices()) == 411


def test_a_network_of_ones_own() -> None:
    network = Chain(2)
    assert [tuple(matrix.shape) for matrix in network.body_matrices()] == [(6, 8, 3, 3)]
    network.layers[3].requires_grad_(requires_grad=False)
    assert network.body_matrices() == []
    network = Chain(2)
    network.layers[3].weight = network.layers[5].weight = Parameter(torch.randn(12, 8, 3, 3))
    assert len(network.body_matrices()) == 1
    Chain.body_layers = r"layers\.[05]"
    try:
        assert [len(matrix) for matrix in Chain(2).body_matrices()] == [8, 12]
    finally:
        Chain.body_layers = None


# --- the step ---


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_each_weight_moves_as_the_formula_says(name: str, memory_format: torch.memory_format) -> None:
    """In float64, weight by weight as the network has them, whatever their places in the buffer."""
    network = build(SMALL[name], 2).to(memory_format=memory_format)  # type: ignore[call-overload]
    matrices = {id(matrix) for matrix in network.body_matrices()}
    recipe = Optimizer(name="muon", learning_rate=0.02, adam_learning_rate=1e-3, weight_decay=0.1, clip_value=1.0)
    averages = copy.deepcopy(network)
    updater = OptimizerStep(
        network.parameters(),
        recipe,
        "cpu",
        matrices=network.body_matrices(),
        average=list(averages.parameters()),
        average_decay=0.9,
    )
    means = [average.detach().double() for average in averages.parameters()]
    assert {id(parameter) for parameter in updater.parameters} == {id(one) for one in network.parameters()}
    expected, theirs = {}, {}
    for parameter in network.parameters():
        weight = parameter.detach().double()
        expected[id(parameter)] = weight if id(parameter) in matrices else Parameter(weight)
        theirs[id(parameter)] = torch.zeros_like(weight)  # the momentum
    adam = torch.optim.AdamW([one for one in expected.values() if isinstance(one, Parameter)], weight_decay=0.1)
    for rate in (0.02, 0.01, 0.004):
        updater.loss.fill_(1.0)
        for parameter, place in zip(updater.parameters, updater.gradients, strict=True):
            gradient = place.copy_(torch.randn(place.shape)).double().clamp(-1, 1)
            weight = expected[id(parameter)]
            if isinstance(weight, Parameter):
                weight.grad = gradient
                continue
            momentum = theirs[id(parameter)] = 0.95 * theirs[id(parameter)] + gradient
            step = exact_orthogonal((gradient + 0.95 * momentum).flatten(1)).view_as(weight)
            rows, columns = weight.flatten(1).shape
            larger = math.sqrt(max(1, rows / columns))
            expected[id(parameter)] = weight - rate * (larger * step + 0.1 * weight)
        adam.param_groups[0]["lr"] = 1e-3 * rate / 0.02
        adam.step()
        assert not updater.step(torch.tensor(rate))
        wanted = [expected[id(parameter)].detach() for parameter in network.parameters()]
        means = [0.9 * mean + 0.1 * weight for mean, weight in zip(means, wanted, strict=True)]
    for moved, true in ((network, wanted), (averages, means)):
        for parameter, weight in zip(moved.parameters(), true, strict=True):
            assert error(parameter.detach(), weight) < 1e-5


def test_its_products_are_a_small_part_of_a_training_step() -> None:
    """On a CPU; EDSR-baseline, 16 patches."""
    network = build(EdsrModel(), 2)
    updater = OptimizerStep(network.parameters(), Optimizer(name="muon"), "cpu", matrices=network.body_matrices())
    with FlopCounterMode(display=False) as counter:
        updater.step(torch.tensor(0.01))
    products = 5 * 33 * 2 * (64 * 64 * 576 + 64 * 64 * 64 + 64 * 64 * 576)
    assert counter.get_total_flops() == products
    assert products < 0.01 * 16 * training_flops(network, 48)
    with FlopCounterMode(display=False) as counter:
        orthogonalise(torch.randn(2, 60, 20))  # by its smaller side
    assert counter.get_total_flops() == 5 * 2 * 2 * (20 * 20 * 60 + 20 * 20 * 20 + 20 * 20 * 60)


def test_the_matrices_of_a_shape_are_one_batch() -> None:
    batches = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.aten.bmm.default:
                batches.append(tuple(args[0].shape))
            return function(*args, **(kwargs or {}))

    network = build(SMALL["swinir"], 2)
    updater = OptimizerStep(network.parameters(), Optimizer(name="muon"), "cpu", matrices=network.body_matrices())
    with Counting():
        updater.step(torch.tensor(0.01))
    # qkv and proj, both layers of the MLPs, and the convolutions, transposed where they are tall
    shapes = [(4, 12, 36), (4, 12, 12), (4, 12, 24), (4, 12, 24), (3, 12, 108)]
    assert sorted(batches) == sorted(5 * shapes)


# --- what cannot be ---


def test_weights_whose_rows_are_apart_are_refused() -> None:
    weight = Parameter(torch.randn(6, 4).T)
    with pytest.raises(ValueError, match=r"a weight \(4, 6\) has strides \(1, 4\); make it contiguous, or take"):
        OptimizerStep([weight], Optimizer(name="muon"), "cpu", matrices=[weight])


@pytest.fixture
def recipe(tmp_path: Path, photo: Pixels, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The command of a tiny training; settings by name."""
    monkeypatch.chdir(tmp_path)
    write_png(Path("hr.png"), photo[100:160, 150:210])
    own = ModuleType("own_networks")
    own.TwoLayers, own.Chain = TwoLayers, Chain  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_networks", own)

    def command(**settings: Any) -> list[str]:
        chosen: dict[str, Any] = {
            "data.train": "hr.png", "data.patch": 8, "objective.name": "vanilla", "optimizer.name": "muon",
            "train.steps": 60, "train.batch_size": 2, "train.log_every": 10, "train.device": "cpu",
            "train.compile": "false", **{name.replace("__", "."): value for name, value in settings.items()},
        }  # fmt: skip
        Path("tiny.toml").write_text("[model]\nfeatures = 8\nblocks = 1\n" if "model.name" not in chosen else "")
        return ["train", "tiny.toml", "--run", "run", *(f"--{name}={value}" for name, value in chosen.items())]

    return command


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer__backend": "apex"}, "optimizer.backend: apex has no Muon; take optimizer.backend=auto"),
        (
            {"optimizer__backend": "triton"},
            "triton needs a GPU, but the weights are on cpu; take optimizer.back",
        ),
        ({"model__name": "own_networks:TwoLayers"}, "but this network has none; take optimizer.name=adam, or name its"),
    ],
    ids=["apex", "triton", "no matrix"],
)
def test_one_sentence_before_anything_is_done(
    settings: dict[str, str], words: str, recipe: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in complaint(capsys, *recipe(**settings))
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "settings", [{"optimizer__learning_rate": 0.5}, {"model__name": "own_networks:Chain"}], ids=["0.5", "own"]
)
def test_a_high_rate_and_an_unknown_network_end_in_finite_weights(
    settings: dict[str, Any], recipe: Callable[..., list[str]]
) -> None:
    assert main(recipe(**settings)) == 0
    weights = load_network("run/checkpoints/last.safetensors", "cpu").state_dict()
    assert all(weight.isfinite().all() for weight in weights.values())
    made = config.load("run/config.toml")
    assert made.optimizer.name == "muon"


def test_another_optimizer_does_not_go_on_with_a_run(
    recipe: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(recipe()) == 0
    assert "optimizer.name" in complaint(capsys, *recipe(optimizer__name="adam"), "--resume")
