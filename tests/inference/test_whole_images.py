"""What is set around networks on whole images: torch's switches, and tiles that the memory takes."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from eco_fast.config import Optimizer
from eco_fast.inference import whole_images as module
from eco_fast.inference.whole_images import appetite, largest_tile, tile_within, use_memory_format, whole_images
from eco_fast.models import Network
from eco_fast.models.edsr import EDSR
from eco_fast.models.rcan import RCAN
from eco_fast.models.rrdb import RRDB
from eco_fast.models.swinir import SwinIR
from eco_fast.training.optim.optimizer_step import OptimizerStep

Switches = tuple[bool, bool, bool]


def switches() -> Switches:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32


def set_switches(values: Switches) -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = values


@pytest.fixture(params=[(True, True, True), (True, False, False), (False, True, False)], ids=str)
def before(request: pytest.FixtureRequest) -> Iterator[Switches]:
    """The switches as some training has left them."""
    found = switches()
    set_switches(request.param)
    yield request.param
    set_switches(found)


def test_no_search_and_true_float32_inside_and_as_before_behind(before: Switches) -> None:
    with whole_images():
        assert switches() == (False, False, False)
        with whole_images(tf32=True):
            assert switches() == (False, True, True)
        assert switches() == (False, False, False)
    assert switches() == before
    with pytest.raises(KeyError), whole_images():
        raise KeyError
    assert switches() == before


class Chain(Network):
    """Two convolutions, of which everybody can say what lives when."""

    architecture = "chain"
    halo = 2

    def __init__(self) -> None:
        super().__init__(1)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, lr: Tensor) -> Tensor:
        x = self.first(lr).relu()
        y: Tensor = self.second(x)
        return y

    from_state_dict = None  # type: ignore[assignment]


def test_what_lives_at_once_is_counted_without_the_weights() -> None:
    image = torch.zeros(1, 3, 10, 20)
    most = appetite(Chain(), image)
    # the image in channels_last, what the first convolution made, and its positive part; the output comes when the
    # second of them is gone
    assert most.bytes == 4 * 10 * 20 * (3 + 8 + 8)
    assert most.values == 10 * 20 * 8


@pytest.mark.parametrize(
    "network",
    [EDSR(2, 16, 2), EDSR(4, 8, 1), RCAN(3, 8, 2, 2, 4), RRDB(2, features=8, blocks=1), SwinIR(2, 12, (2, 2), (2, 2))],
    ids=lambda network: f"{network.architecture} x{network.scale}",
)
def test_a_tile_with_its_halo_takes_no_more_than_there_is(network: Network) -> None:
    network.eval()
    free = 60_000_000
    tile = tile_within(free, network)
    side = tile + 2 * network.halo
    taken = appetite(network, torch.zeros(1, 3, side, side)).bytes
    assert 0.7 * free < taken < 1.05 * free  # some of it does not grow with the image, and SwinIR fills up windows
    assert tile_within(100, network) == 64


def test_no_tensor_has_more_values_than_cudnn_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_VALUES", 8 * 50**2)
    monkeypatch.setattr(module, "SMALLEST", 1)
    assert tile_within(10**15, Chain()) == 50 - 2 * Chain.halo


@pytest.mark.parametrize("network", [RCAN(2, 16, 1, 2, 4), SwinIR(2, 12, (2, 2), (2, 2))], ids=["rcan", "swinir"])
def test_weights_in_training_stay_in_the_optimizers_memory(network: Network) -> None:
    network.to(memory_format=network.memory_format)  # type: ignore[call-overload]
    updater = OptimizerStep(network.parameters(), Optimizer(), "cpu")
    use_memory_format(network)
    updater.check_places()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with pytest.raises(AssertionError, match="weights have left the optimizer's memory"):
        updater.check_places()
    values = [weight.detach().clone() for weight in network.parameters()]
    use_memory_format(network)
    for weight, value in zip(network.parameters(), values, strict=True):
        assert torch.equal(weight, value)
        assert weight.ndim != 4 or weight.is_contiguous(memory_format=network.memory_format)


def test_on_a_cpu_the_tile_is_the_networks_own() -> None:
    assert largest_tile(RCAN(2, 4, 1, 1, 2)) == RCAN.tile
