"""Tiles against the whole image at once: the same pixels, in memory that the image's size does not change."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from eco_fast.data.images import Pixels
from eco_fast.inference.tiling import output_of, quantise
from eco_fast.inference.upscale import super_resolve
from eco_fast.models import Network, compile_for_images
from eco_fast.models.edsr import EDSR
from eco_fast.models.rcan import RCAN
from eco_fast.models.rrdb import RRDB
from eco_fast.models.swinir import SwinIR

SCALES = (2, 3, 4, 8)
SIZES = ((31, 45), (48, 17), (5, 64))  # odd, and shorter than a tile on one side


def far_sighted(scale: int, blocks: int, corner: tuple[int, int]) -> EDSR:
    """An EDSR whose kernels have one tap, in the same corner: each output depends strongly on the farthest input.

    Its weights are powers of two and its values small whole numbers: float32 computes it exactly, in any order.
    """
    network = EDSR(scale, 4, blocks)
    for name, tensor in network.state_dict().items():
        if name.endswith("bias") or "mean" in name:
            tensor.zero_()
            continue
        outputs, inputs = tensor.shape[:2]
        source = torch.arange(outputs) // max(outputs // inputs, 1) % inputs
        tensor.zero_()
        tensor[torch.arange(outputs), source, corner[0], corner[1]] = 2.0**-blocks if name.startswith("tail.1") else 1.0
    return network.eval().requires_grad_(requires_grad=False)


def whole(network: EDSR, lr: Pixels) -> Tensor:
    """The network on the image in one piece: float [3, H, W], on the 0..255 scale."""
    with torch.inference_mode():
        sr: Tensor = network(torch.from_numpy(lr).permute(2, 0, 1)[None].float() / 255)[0]
    return sr * 255


def rounded(image: Tensor) -> Pixels:
    pixels: Pixels = image.numpy().transpose(1, 2, 0).clip(0, 255).round().astype(np.uint8)
    return pixels


def random_image(height: int, width: int) -> Pixels:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("corner", [(0, 0), (2, 2), (0, 2)], ids=["above left", "below right", "above right"])
@pytest.mark.parametrize("scale", SCALES)
def test_tiles_are_exact_where_float32_is(scale: int, corner: tuple[int, int]) -> None:
    network = far_sighted(scale, 2, corner)
    for size in SIZES:
        lr = random_image(*size)
        expected = rounded(whole(network, lr))
        assert len(np.unique(expected)) > 100  # an image, not a flat area
        for tile in (7, 16, 1000):
            assert np.array_equal(super_resolve(network, lr, tile=tile), expected), (size, tile)


@pytest.mark.parametrize("scale", SCALES)
def test_tiles_stay_within_the_last_bit_of_float32(scale: int) -> None:
    """A convolution may sum in another order in an image of another width: what rounds up may then round down."""
    network = EDSR(scale, 8, 2).eval()
    network.add_mean.bias.fill_(128)  # fresh weights give faint images: put them amid the grey levels
    lr = random_image(31, 45)
    exact = whole(network, lr)
    for tile in (7, 16, 1000):
        sr = super_resolve(network, lr, tile=tile)
        off = np.abs(sr - exact.numpy().transpose(1, 2, 0))
        assert off.max() < 0.5 + 1e-3
        assert np.count_nonzero(sr != rounded(exact)) <= sr.size // 1000


def test_an_output_that_is_no_image_is_neither_rounded_nor_clamped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EDSR, "tile", 16)
    network = EDSR(2, 8, 2).eval()
    network.add_mean.bias.fill_(-200)
    lr = random_image(31, 45)
    exact = whole(network, lr)
    assert exact.max() < 0, "what an image cannot hold"
    output = output_of(network, torch.from_numpy(lr))
    torch.testing.assert_close(output, exact.permute(1, 2, 0), rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (1, 23), (23, 1), (2, 3)])
def test_images_smaller_than_the_halo(size: tuple[int, int]) -> None:
    network = far_sighted(2, 3, (0, 0))
    lr = random_image(*size)
    sr = super_resolve(network, lr, tile=4)
    assert sr.shape == (2 * size[0], 2 * size[1], 3)
    assert sr.dtype == np.uint8
    assert np.array_equal(sr, rounded(whole(network, lr)))


@pytest.mark.parametrize("order", ["rows reversed", "columns reversed", "a crop", "read-only"])
def test_any_view_of_an_image(order: str) -> None:
    network = far_sighted(2, 1, (2, 2))
    image = random_image(30, 26)
    views = {"rows reversed": image[::-1], "columns reversed": image[:, ::-1], "a crop": image[3:21, 5:20]}
    lr = views.get(order, image)
    if order == "read-only":
        lr.setflags(write=False)
    for tile in (8, 1000):
        assert np.array_equal(super_resolve(network, lr, tile=tile), rounded(whole(network, np.array(lr))))


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [
        RRDB(2, features=8, blocks=3),
        RRDB(2, features=8, blocks=3, unshuffle=True),
        SwinIR(2, 12, (2, 2), (2, 2)),
        SwinIR(3, 12, (2, 2), (2, 2), window=4, upsampler="pixelshuffledirect"),
        RCAN(2, 8, 2, 3, 4),
    ],
    ids=["rrdb", "rrdb of squares", "swinir", "swinir direct", "rcan, whole"],
)
def test_networks_that_see_everything_stay_within_a_grey_level(network: Network, photo: Pixels) -> None:
    """Their tiles begin on the grid of their windows or squares; RCAN's means are those of the whole image."""
    network.eval()
    lr, tile = (photo[:, 90:], None) if isinstance(network, RCAN) else (photo[30:175, 40:153], 50)
    with torch.inference_mode():
        expected = network(torch.from_numpy(lr.copy()).permute(2, 0, 1)[None].float() / 255)[0] * 255
    sr = super_resolve(network, lr, tile=tile)
    off = np.abs(sr - expected.clamp(0, 255).permute(1, 2, 0).numpy())
    assert off.max() <= (0.5 + 1e-3 if tile is None else 1)
    assert (off > 0.5 + 1e-2).mean() < 1e-4


def test_tiles_of_one_shape_go_together_where_the_memory_allows() -> None:
    network = far_sighted(2, 1, (0, 0))
    batches: list[tuple[int, ...]] = []
    network.register_forward_hook(lambda _module, arguments, _output: batches.append(tuple(arguments[0].shape)))
    lr = random_image(84, 84)
    sr = super_resolve(network, lr, tile=40)  # 3 x 3 tiles of 28
    side = 40 + 2 * network.halo
    assert sum(shape[0] for shape in batches) == 9
    assert max(shape[0] for shape in batches) > 1
    assert all(count * height * width <= side**2 for count, _, height, width in batches)
    assert np.array_equal(sr, rounded(whole(network, lr)))


def test_self_ensemble_is_the_mean_over_the_orientations() -> None:
    network = EDSR(2, 8, 2).eval()
    network.add_mean.bias.fill_(128)
    lr = random_image(21, 34)
    turned = [(turns, flip) for turns in range(4) for flip in (False, True)]
    total = np.zeros((42, 68, 3))
    for turns, flip in turned:
        image = np.rot90(lr[:, ::-1] if flip else lr, turns)
        sr = np.rot90(whole(network, image.copy()).permute(1, 2, 0).numpy(), -turns)
        total += sr[:, ::-1] if flip else sr
    for tile in (8, None):
        off = np.abs(super_resolve(network, lr, tile=tile, self_ensemble=True) - total / 8)
        assert off.max() <= 0.5 + 1e-3
    assert (super_resolve(network, lr) != super_resolve(network, lr, self_ensemble=True)).any()


@pytest.mark.slow
@pytest.mark.parametrize("network", [EDSR(2, 4, 2), RCAN(2, 4, 3, 2, 2)], ids=["whole", "by its block"])
def test_compiled_for_images_it_takes_three_graphs_and_changes_nothing(network: Network) -> None:
    """One for rectangles, one for squares and one for several tiles; RCAN's three groups share them."""
    network.eval().requires_grad_(requires_grad=False)
    lr = [random_image(*size) for size in ((24, 31), (24, 24), (40, 23), (19, 19))]
    plain = [super_resolve(network, one, tile=tile) for one in lr for tile in (16, 64)]
    counters.clear()
    compile_for_images(network)
    for _ in range(2):  # what has been compiled since the first time does not show in the second
        again = [super_resolve(network, one, tile=tile) for one in lr for tile in (16, 64)]
        assert all(np.abs(one.astype(int) - other).max() <= 1 for one, other in zip(again, plain, strict=True))
    assert 1 <= counters["stats"]["unique_graphs"] <= 3


def test_memory_is_bounded_by_the_tile() -> None:
    network, tile = EDSR(2, 4, 1).eval(), 16
    numbers: list[int] = []  # elements of every activation

    def record(_module: nn.Module, _arguments: tuple[Tensor, ...], output: Tensor) -> None:
        numbers.append(output.numel())

    for module in network.modules():
        module.register_forward_hook(record)
    side = tile + 2 * network.halo
    bound = 4 * 4 * side**2  # 4 features at twice the side
    peaks, counts = [], []
    for size in ((16, 16), (64, 64), (50, 301), (301, 50)):
        numbers.clear()
        super_resolve(network, random_image(*size), tile=tile)
        peaks.append(max(numbers))
        counts.append(len(numbers))
    assert max(peaks) == bound  # an inner tile has its whole halo
    assert peaks[0] < bound
    assert counts[1] == 16 * counts[0]
    assert counts[2] == counts[3] == 4 * 19 * counts[0]
    numbers.clear()
    super_resolve(network, random_image(34, 34), tile=tile)
    assert max(numbers) == 4 * 4 * (11 + 2 * network.halo) ** 2  # 11, 11 and 12 pixels rather than 16, 16 and 2


def test_quantise_clamps_and_rounds_to_the_nearest_level() -> None:
    levels = torch.arange(256)
    for shift, expected in ((0.0, levels), (0.49, levels), (-0.49, levels), (0.51, (levels + 1).clamp(max=255))):
        assert torch.equal(quantise((levels + shift) / 255), expected.to(torch.uint8))
    far = torch.tensor([-1e30, -0.01, 1.01, 1e30, float("inf"), float("-inf")])
    assert quantise(far).tolist() == [0, 0, 255, 255, 255, 0]
