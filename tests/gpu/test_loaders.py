"""The loaders of a GPU: the plain loader's batches to the byte, also where the device lags behind the host."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from eco_fast.config import Config
from eco_fast.data.batch import Batch
from eco_fast.data.images import Pixels
from eco_fast.data.open_loader import open_loader
from tests.gpu.conftest import recipe
from tests.helpers import assert_equal_fields, plain_loader, source

pytestmark = pytest.mark.gpu

CYCLES = 20_000_000  # about 10 ms
WAYS = {
    "device": {"data__residence": "device"},
    "host": {"data__residence": "host"},
    "dali": {"data__loader": "dali"},
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What makes a recipe take each loader."""
    if request.param == "dali":
        pytest.importorskip("nvidia.dali")
    return WAYS[request.param]


def batches(made: Config, hr: list[Pixels], sr: list[Pixels]) -> Iterator[Batch[Any]]:
    with open_loader(made, source(hr), source(sr), 0, device="cuda:0", room=1 << 30, label="test") as loader:
        yield from loader


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_batches_are_the_plain_loaders(scale: int, way: dict[str, Any], hr: list[Pixels], sr: list[Pixels]) -> None:
    """From centroids alone over both to HR alone."""
    hr = [image[: image.shape[0] // 12 * 12, : image.shape[1] // 12 * 12] for image in hr]
    sr = [image[: one.shape[0], : one.shape[1]] for image, one in zip(sr, hr, strict=True)]
    made = recipe(**way, scale=scale, data__patch=12, data__noise_sigma=2.0)
    plain = plain_loader(made, hr, sr)
    for batch in batches(made, hr, sr):
        expected, got = plain.batch_at(batch.step).samples, batch.samples.to("cuda:0").to("cpu")
        # what the step's blend ignores may hold anything
        got = got._replace(**{name: None for name in ("hr", "sr") if getattr(expected, name) is None})
        assert_equal_fields(got, expected)


def test_a_batch_stays_what_it_is_until_the_device_has_read_it(
    way: dict[str, Any], hr: list[Pixels], sr: list[Pixels]
) -> None:
    """The host runs many steps ahead of a device that sleeps between a batch's arrival and its use."""
    made = recipe(**way, objective__alpha="constant", train__steps=200)
    sums = []
    for batch in batches(made, hr, sr):
        samples = batch.samples.to("cuda:0")
        torch.cuda._sleep(CYCLES)
        sums.append(torch.stack([samples.hr.long().sum(), samples.sr.long().sum()]))
        del samples
    plain = plain_loader(made, hr, sr)
    for step, found in enumerate(torch.stack(sums).tolist()):
        expected = plain.batch_at(step).samples
        assert expected.hr is not None
        assert expected.sr is not None
        assert found == [expected.hr.long().sum().item(), expected.sr.long().sum().item()], step
