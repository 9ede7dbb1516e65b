"""`downsample = "dali"`: D inside DALI's graph, against the exact one."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from eco_fast_kernels import downsample, downsample_blend, empty_crops, margin_of
from eco_fast_kernels.downsampling import STENCILS

from eco_fast.config import Config, Data, Objective, Scale, Train
from eco_fast.data.images import Pixels
from eco_fast.training.step import network_input
from tests.helpers import dali_loader, plain_loader

pytest.importorskip("nvidia.dali", reason="DALI is not installed: pip install 'eco-fast[dali]'")

from nvidia.dali import fn
from nvidia.dali.pipeline import pipeline_def

from eco_fast.data.dali_graph import _shrink

Rounding = Literal["uint8", "im2double"]
SCALES: list[Scale] = [2, 3, 4, 8]


def recipe(scale: Scale, rounding: Rounding = "uint8", **objective: Any) -> Config:
    return Config(
        scale=scale,
        data=Data(patch=16, rounding=rounding, downsample="dali"),
        objective=Objective(**objective),
        train=Train(batch_size=16, steps=30),
    )


def exact(window: Pixels, scale: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """D in float64, before any rounding: the stencil written out as a matrix."""
    half, denominator = STENCILS[scale]
    taps = [*half, *reversed(half if scale % 2 == 0 else half[:-1])]
    first = scale // 2 if scale % 2 == 0 else 2
    lr = window.shape[0] // scale - 4
    matrix = np.zeros((lr, window.shape[0]))
    for row in range(lr):
        matrix[row, row * scale + first : row * scale + first + len(taps)] = np.array(taps) / denominator
    made: np.ndarray[Any, np.dtype[np.float64]] = np.einsum("ij,jkc,lk->ilc", matrix, window.astype(np.float64), matrix)
    return made


@pytest.mark.parametrize("scale", SCALES)
def test_before_rounding(photo: Pixels, scale: Scale) -> None:
    patch = 28  # 256 pixels a side at x8
    side, margin = scale * (patch + 4), margin_of(scale)
    window = np.ascontiguousarray(photo[20 : 20 + side, 30 : 30 + side])

    @pipeline_def
    def graph() -> Any:
        image = fn.external_source(lambda: [window], layout="HWC")
        return _shrink(image, [patch, patch], [margin, margin], [side - margin, side - margin])

    pipeline = graph(batch_size=1, num_threads=1, device_id=None)
    made = np.array(pipeline.run()[0].at(0))
    expected = exact(window, scale)
    assert np.abs(made - expected).max() <= (0.04 if scale == 3 else 1e-3)
    # the expectation is the exact op's, which rounds it
    windows = empty_crops(1, side, margin).copy_(torch.from_numpy(window))
    rounded = np.clip(np.floor(expected + 0.5), 0, 255)
    assert np.array_equal(downsample(windows, scale, "im2double")[0].numpy(), rounded)


@pytest.mark.parametrize("rounding", ["uint8", "im2double"])
@pytest.mark.parametrize("scale", SCALES)
def test_after_rounding(photo: Pixels, scale: Scale, rounding: Rounding) -> None:
    off = total = 0
    with dali_loader(recipe(scale, rounding, name="vanilla"), [photo], None) as loader:
        for batch in loader:
            samples = batch.samples
            assert samples.hr is not None
            assert samples.lr_hr is not None
            assert samples.lr_sr is None
            expected = downsample(samples.hr, scale, rounding, samples.transposed)
            assert samples.lr_hr.shape == expected.shape
            difference = (samples.lr_hr.int() - expected.int()).abs()
            assert int(difference.max()) <= 1
            off, total = off + int(difference.count_nonzero()), total + difference.numel()
    assert off < 0.01 * total


@pytest.mark.parametrize(
    "objective",
    [{}, {"alpha_sample": True}, {"name": "kd"}, {"name": "vanilla"}, {"name": "noise_free"}],
    ids=lambda keys: "-".join(map(str, keys.values())) or "eco",
)
def test_the_network_sees_the_same(photo: Pixels, objective: dict[str, Any]) -> None:
    """At x2 both ways agree to the bit, whatever is blended."""
    config = recipe(2, **objective)
    centroid = (255 - photo).astype(np.uint8)
    plain = plain_loader(config, [photo], [centroid])
    with dali_loader(config, [photo], [centroid]) as loader:
        for batch in loader:
            samples = batch.samples
            same, weights = plain.batch_at(batch.step), plain.planner.weights(batch.step)
            for made, crops in zip(samples[:2], same.samples[:2], strict=True):  # turned by DALI, and by numpy
                assert (made is None) == (crops is None)
                assert made is None or crops is None or torch.equal(made, crops)
            expected = downsample_blend(
                samples.hr if weights.input > 0 else None,
                samples.sr if weights.input < 1 else None,
                samples.input_alpha,
                2,
                transposed=samples.transposed,
            )
            lr = network_input(samples, config.scale, config.data)
            assert torch.equal(lr, expected)
            assert lr.stride() == expected.stride()


def test_noise_is_added_to_the_input(photo: Pixels) -> None:
    config = Config(
        data=Data(patch=16, noise_sigma=25.5), objective=Objective(name="vanilla"), train=Train(batch_size=4)
    )
    batch = plain_loader(config, [photo], None).batch_at(3)
    clean = downsample_blend(batch.samples.hr, None, batch.samples.input_alpha, 2, transposed=batch.samples.transposed)
    assert batch.samples.noise is not None
    noise = network_input(batch.samples, config.scale, config.data) - clean
    torch.testing.assert_close(noise * 255, batch.samples.noise, rtol=0, atol=1e-4)
    assert float(noise.std()) == pytest.approx(0.1, rel=0.05)
