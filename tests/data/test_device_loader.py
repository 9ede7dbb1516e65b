"""The GPU's loader, on a CPU: the plain loader's batches to the byte, from images on the device or crops in blocks."""

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from eco_fast import config
from eco_fast.config import Config
from eco_fast.data import open_loader
from eco_fast.data.batch import BatchPlanner, Crops, Samples
from eco_fast.data.blocks import BlockLayout
from eco_fast.data.device_loader import DeviceLoader
from eco_fast.data.feeds import Feed, ResidentImages, StagedCrops
from eco_fast.data.images import Pixels
from eco_fast.data.sources import sizes_of
from tests.helpers import assert_equal_fields, plain_loader, source

STEPS = 40


def recipe(scale: int = 2, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "scale": scale,
        "data": {"patch": 6},
        "train": {"steps": STEPS, "batch_size": 5, "device": "cpu"},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values.setdefault(section, {})[name] = value
    return config.validate(values, "test")


def feeds_of(made: Config, images: dict[str, list[Pixels]], resident: bool, **ranks: int) -> tuple[BatchPlanner, Any]:
    planner = BatchPlanner(made, sizes_of(source(images["hr"])), **ranks)
    feeds: dict[str, Feed] = {
        name: ResidentImages(name, source(one), planner, "cpu") if resident else StagedCrops(name, source(one), planner)
        for name, one in images.items()
    }
    return planner, feeds


@pytest.fixture
def images(photo: Pixels) -> dict[str, list[Pixels]]:
    """Odd sizes, from barely a patch on; a centroid is cropped to multiples of the scale 8."""
    hr = [photo[:49, :67], photo[100:190, 50:101], photo[10:212, 200:361]]
    return {"hr": hr, "sr": [np.ascontiguousarray(image[:, ::-1]) for image in hr]}


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "staged"])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_the_batches_are_the_plain_loaders(scale: int, resident: bool, images: dict[str, list[Pixels]]) -> None:
    made = recipe(scale, data__noise_sigma=3.0)
    sr = [image[: image.shape[0] // scale * scale, : image.shape[1] // scale * scale] for image in images["sr"]]
    planner, feeds = feeds_of(made, {"hr": images["hr"], "sr": sr}, resident)
    plain = plain_loader(made, images["hr"], sr)
    kinds = set()
    with DeviceLoader(planner, feeds, 3, device="cpu", steps_per_copy=4) as loader:
        steps = 3
        for batch in loader:
            assert batch.step == steps
            expected, got = plain.batch_at(steps).samples, batch.samples.to("cpu")
            kinds.add((expected.hr is not None, expected.sr is not None))
            # what the step's blend ignores may hold anything
            got = got._replace(**{name: None for name in ("hr", "sr") if getattr(expected, name) is None})
            assert_equal_fields(got, expected)
            for name in ("hr", "sr"):
                crops, wanted = getattr(got, name), getattr(expected, name)
                assert crops is None or crops.stride() == wanted.stride()
            steps += 1
    assert steps == STEPS
    assert len(kinds) == 3


def test_ranks_share_a_batch(images: dict[str, list[Pixels]]) -> None:
    made = recipe()
    whole = plain_loader(made, images["hr"], images["sr"]).batch_at(20).samples
    parts = []
    for rank in range(2):
        planner, feeds = feeds_of(made, images, resident=True, rank=rank, world_size=2)
        with DeviceLoader(planner, feeds, 20, device="cpu") as loader:
            parts.append(next(loader).samples.to("cpu"))
    for name in ("hr", "sr", "transposed"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_blocks_are_used_again_only_when_they_were_copied(prefetch: int, images: dict[str, list[Pixels]]) -> None:
    """Every host buffer is filled many times, while the consumer dawdles or hurries."""
    made = recipe(data__prefetch=prefetch, train__steps=200)
    planner, feeds = feeds_of(made, images, resident=True)
    plain = plain_loader(made, images["hr"], images["sr"])
    together = 3 if prefetch else 1
    with DeviceLoader(planner, feeds, 0, device="cpu", steps_per_copy=together) as loader:
        for batch in loader:
            got = batch.samples.to("cpu")
            assert torch.equal(got.transposed, plain.batch_at(batch.step).samples.transposed)
            assert float(got.learning_rate) == pytest.approx(planner.learning_rate(batch.step))


def test_the_memory_of_a_step_stays_where_it_is(images: dict[str, list[Pixels]]) -> None:
    planner, feeds = feeds_of(recipe(), images, resident=True)
    with DeviceLoader(planner, feeds, 0, device="cpu") as loader:
        batches = [next(loader) for _ in range(5)]
    assert all(batch.samples is batches[0].samples for batch in batches)


def test_an_image_that_cannot_be_read_stops_the_consumer_behind_the_steps_before_it(fails_later: Pixels) -> None:
    planner, feeds = feeds_of(recipe(objective__name="vanilla"), {"hr": [fails_later]}, resident=False)
    with (
        DeviceLoader(planner, feeds, 0, device="cpu", steps_per_copy=4) as loader,
        pytest.raises(OSError, match="gone"),
    ):
        for _ in loader:
            pass


def test_fields_do_not_overlap_and_are_aligned() -> None:
    layout = BlockLayout({"a": ((3,), torch.bool), "b": ((), torch.float32), "c": ((2, 5), torch.int64)})
    block = torch.zeros(layout.size, dtype=torch.uint8)
    views = layout.views(block)
    for index, view in enumerate(views.values()):
        assert view.data_ptr() % 16 == block.data_ptr() % 16
        view.fill_(index + 1)
    assert views["a"].all()
    assert float(views["b"]) == 2
    assert views["c"].tolist() == [[3] * 5] * 2


# --- where the images are ---


def test_images_go_to_the_device_where_they_fit(images: dict[str, list[Pixels]]) -> None:
    size = sum(image.size for image in images["hr"])
    sources = [source(images["hr"])]
    choose = open_loader.choose_residence
    auto, device, host = (recipe(data__residence=name).data for name in ("auto", "device", "host"))
    assert choose(auto, sources, size)[0]
    assert not choose(auto, sources, size - 1)[0]
    assert choose(device, sources, size)[0]
    assert not choose(host, sources, size)[0]
    with pytest.raises(ValueError, match=r"data\.residence=device: .* of images, .* take data\.residence=host"):
        choose(device, sources, size - 1)
    assert "images on the GPU" in choose(auto, sources, size)[1]
    assert "of the GPU's memory left by the training" in choose(auto, sources, -5)[1]


def test_only_what_is_read_is_kept(images: dict[str, list[Pixels]]) -> None:
    hr, sr = source(images["hr"]), source(images["sr"])

    def names(start: int, **changes: Any) -> list[str]:
        planner = BatchPlanner(recipe(**changes), sizes_of(hr))
        return list(open_loader.sources_read(planner, hr, sr, start))

    assert names(0) == ["hr", "sr"]
    assert names(STEPS * 3 // 4) == ["hr"]  # eco's centroids have no weight any more
    assert names(0, objective__name="noise_free") == ["sr"]
    assert names(0, objective__name="kd") == ["hr", "sr"]
    assert names(0, objective__name="vanilla") == ["hr"]


# --- DALI's memory ---


class Later:
    """An event behind work that the device has not come to yet."""

    passed = False

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return self.passed


class Group:
    """Crops in memory that is written anew when nobody holds it any more, as DALI's is."""

    def __init__(self, memory: torch.Tensor) -> None:
        self.memory = memory

    def at(self, place: int) -> Crops:
        return Crops(self.memory[place], None)

    def __del__(self) -> None:
        self.memory.fill_(255)


def test_dalis_memory_is_copied_and_kept_until_then() -> None:
    """What a step reads is never DALI's, and DALI's memory is not given back before the copy of it is over."""
    pytest.importorskip("nvidia.dali")
    from eco_fast.data.dali_device_loader import HandOver, Landing

    landing = Landing(torch.zeros(4, 9, dtype=torch.uint8))
    hand_over = HandOver({"hr": landing})
    memory = torch.arange(72, dtype=torch.uint8).view(2, 4, 9)
    wanted = memory.clone()
    group, copied = Group(memory), Later()
    alive = weakref.ref(group)
    hand_over(group, 1, copied)  # type: ignore[arg-type]
    del group
    gc.collect()
    assert alive() is not None
    assert torch.equal(memory, wanted)
    other = Group(torch.zeros(2, 4, 9, dtype=torch.uint8))
    hand_over(other, 0, Later())  # type: ignore[arg-type]
    assert alive() is not None
    copied.passed = True
    hand_over(other, 1, Later())  # type: ignore[arg-type]
    gc.collect()
    assert alive() is None
    assert (memory == 255).all()
    hand_over(Group(wanted), 1, Later())  # type: ignore[arg-type]
    assert torch.equal(landing.crops({}), torch.arange(36, 72, dtype=torch.uint8).view(4, 9))
    wanted.fill_(0)
    assert int(landing.memory.max()) == 71, "a step's crops alias DALI's memory"


def test_landings_are_laid_out_as_the_kernels_read_them(images: dict[str, list[Pixels]]) -> None:
    pytest.importorskip("nvidia.dali")
    from eco_fast.data.dali_device_loader import landings_of

    made = recipe(data__downsample="dali")
    hr = source(images["hr"])
    landings = landings_of(BatchPlanner(made, sizes_of(hr)), ["hr"], "cpu")
    wanted = plain_loader(recipe(objective__name="vanilla"), hr, None).batch_at(0).samples.hr
    assert wanted is not None
    assert landings["hr"].memory.shape == wanted.shape
    assert landings["hr"].memory.stride() == wanted.stride()
    assert landings["lr_hr"].memory.shape == (5, 6, 6, 3)
    assert set(landings) <= set(Samples._fields)
