"""Networks scored on pairs: what is kept, what is waited for, and how the ranks share the images."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eco_fast.data.images import Pixels
from eco_fast.data.resize import downsample_image, to_pixels, to_tensor
from eco_fast.evaluation.metrics import Scores
from eco_fast.evaluation.scoring import gather, pairs_of, score_network
from eco_fast.inference.upscale import super_resolve
from eco_fast.models.edsr import EDSR
from eco_fast.utils import distributed
from tests.helpers import scores_of


@pytest.fixture
def images(photo: Pixels) -> dict[str, Pixels]:
    return {f"{index}.png": photo[10 * index : 10 * index + 41 + index, 100:150] for index in range(5)}


@pytest.fixture
def network() -> EDSR:
    torch.manual_seed(0)
    network = EDSR(2, 8, 1)
    network.add_mean.bias.fill_(128)
    return network


class Reads(TorchDispatchMode):
    """Counts how often Python asks a tensor for a value."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_pair_is_the_cropped_image_and_its_lr(images: dict[str, Pixels]) -> None:
    for (name, pair), (expected, image) in zip(pairs_of(images, 2), images.items(), strict=True):
        hr = image[: image.shape[0] // 2 * 2, :50]
        assert name == expected
        assert np.array_equal(pair.hr, hr)
        assert [np.array_equal(lr, downsample_image(hr, 2)) for lr in pair.lr] == [True]
    noisy = next(pairs_of(images, 2, noise_sigma=5.0, draws=3))[1]
    assert len({to_pixels(lr).tobytes() for lr in noisy.lr}) == 3


def test_scores_are_read_back_once(network: EDSR, images: dict[str, Pixels]) -> None:
    pairs = list(pairs_of(images, 2))
    with Reads() as reads:
        torch.ones(()).item()
        assert reads.count == 1, "they are counted"
        scores = score_network(network, pairs)
    assert reads.count == 1, "a GPU would be waited for image by image"
    for name, image in images.items():
        hr = image[: image.shape[0] // 2 * 2, :50]
        assert scores[name].as_dict() == pytest.approx(
            scores_of(super_resolve(network, downsample_image(hr, 2)), hr, 2).as_dict(), rel=1e-12
        )


def test_y_alone_is_scored_where_nobody_asks_for_more(network: EDSR, images: dict[str, Pixels]) -> None:
    both, alone = (score_network(network, pairs_of(images, 2), rgb=rgb) for rgb in (True, False))
    assert {name: Scores(psnr_y=one.psnr_y, ssim_y=one.ssim_y) for name, one in both.items()} == alone


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_share_the_images_and_all_have_all_scores_in_order(
    ranks: int, images: dict[str, Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[dict[str, Scores]] = []
    shares: list[str] = []
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        names = [name for name, _ in pairs_of(images, 2)]
        shares += names
        parts.append({name: Scores(psnr_y=float(name[0]), ssim_y=1) for name in names})
    assert sorted(shares) == list(images)
    monkeypatch.setattr(distributed, "all_gather", lambda _: parts)
    for part in parts:
        assert list(gather(part)) == list(images)
        assert [one.psnr_y for one in gather(part).values()] == [0, 1, 2, 3, 4]


def arrays() -> Iterator[tuple[str, Pixels]]:
    image = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    yield from {"whole": image, "a crop": image[1:5, 2:6], "rows reversed": image[::-1]}.items()
    frozen = image.copy()
    frozen.setflags(write=False)
    yield "read-only", frozen


@pytest.mark.parametrize(("kind", "image"), list(arrays()))
def test_every_array_becomes_a_tensor_and_comes_back(kind: str, image: Pixels) -> None:
    tensor = to_tensor(image)
    assert tensor.dtype == torch.uint8
    assert np.array_equal(to_pixels(tensor), image)
    assert (tensor.data_ptr() == image.ctypes.data) == (kind == "whole"), "no image is copied for nothing"
