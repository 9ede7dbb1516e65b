"""The DALI loader gives the plain loader's bytes, at every step and rank, from the store and from image files."""

import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eco_fast.config import Config, Data, Objective, Scale, Train
from eco_fast.data.encoded import EncodedImages
from eco_fast.data.folders import find_images
from eco_fast.data.images import Pixels, read_image
from eco_fast.data.store import Store
from tests.helpers import assert_equal_fields, dali_loader, idle, plain_loader, wait_until, write_store

pytest.importorskip("nvidia.dali", reason="DALI is not installed: pip install 'eco-fast[dali]'")

# One is hardly larger than a patch at x8, so that windows cross all its edges; one is large, since DALI cuts large
# samples into blocks; no side is a multiple of all scales.
SIZES = [(41, 47), (203, 151), (1999, 301)]
BOTH = Objective(alpha="constant")


def recipe(scale: Scale = 2, objective: Objective = BOTH, *, batch: int = 5, steps: int = 12, **data: Any) -> Config:
    values: dict[str, Any] = {"patch": 5, **data}
    return Config(
        scale=scale, seed=7, data=Data(**values), objective=objective, train=Train(batch_size=batch, steps=steps)
    )


@pytest.fixture(scope="module")
def pictures() -> list[Pixels]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in SIZES]


@pytest.fixture(scope="module")
def centroids(pictures: list[Pixels]) -> list[Pixels]:
    return [(255 - picture).astype(np.uint8) for picture in pictures]


def write_files(folder: Path, pictures: list[Pixels], suffix: str = "png") -> EncodedImages:
    folder.mkdir()
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{index}.{suffix}")
    return EncodedImages(find_images([folder]))


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, pictures: list[Pixels], centroids: list[Pixels]
) -> tuple[EncodedImages, EncodedImages]:
    folder = tmp_path_factory.mktemp("files")
    return write_files(folder / "hr", pictures), write_files(folder / "sr", centroids)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["store", "files"])
@pytest.mark.parametrize("batch", [5, 16])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_bytes_equal_the_plain_loaders(
    pictures: list[Pixels],
    centroids: list[Pixels],
    files: tuple[EncodedImages, EncodedImages],
    scale: Scale,
    batch: int,
    source: str,
) -> None:
    config = recipe(scale, batch=batch, steps=40 if source == "store" else 6)
    hr, sr = (pictures, centroids) if source == "store" else files
    steps, orientations = 0, set()
    with plain_loader(config, pictures, centroids) as plain, dali_loader(config, hr, sr) as dali:
        for first, second in zip(plain, dali, strict=True):
            assert_equal_fields(first, second)
            plan = plain.planner.plan(first.step)
            orientations |= set(zip(*(value.tolist() for value in vars(plan.crops).values()), strict=True))
            steps += 1
    assert steps == config.train.steps
    assert len({oriented[3:6] for oriented in orientations}) == 8


@pytest.mark.parametrize("source", ["store", "files"])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_windows_at_every_edge_and_corner(tmp_path: Path, scale: Scale, source: str) -> None:
    """Images of 2 by 2 possible places have nothing but corners, and one LR pixel a side folds the margin twice."""
    random = np.random.default_rng(1)
    for patch in (1, 3):
        sides = (scale * patch + scale, scale * (patch + 2) - 1)  # the last columns are no multiple of the scale
        picture = random.integers(0, 256, (*sides, 3), dtype=np.uint8)
        config = recipe(scale, Objective(name="vanilla"), batch=32, steps=2, patch=patch)
        hr: Any = [picture] if source == "store" else write_files(tmp_path / str(patch), [picture])
        with plain_loader(config, [picture], None) as plain, dali_loader(config, hr, None) as dali:
            for first, second in zip(plain, dali, strict=True):
                assert_equal_fields(first, second)
        plan = plain.planner.plan(0).crops
        assert len(set(zip(plan.top.tolist(), plan.left.tolist(), strict=True))) == 4


@pytest.mark.parametrize("suffix", ["jpg", "bmp", "tif", "webp", "jp2"])
def test_other_formats(tmp_path: Path, photo: Pixels, suffix: str) -> None:
    encoded = write_files(tmp_path / "hr", [photo], suffix)
    with Image.open(tmp_path / f"hr/0.{suffix}") as image:
        decoded = np.array(image.convert("RGB"))
    config = recipe(3, Objective(name="vanilla"), steps=3, patch=16)
    with plain_loader(config, [decoded], None) as plain, dali_loader(config, encoded, None) as dali:
        for first, second in zip(plain, dali, strict=True):
            assert_equal_fields(first, second)


ODD_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x12\1\3\0\1\0\0\0\6\0\0\0"  # turned, in the other order of bytes
ACCEPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "progressive.jpg": ("RGB", {"progressive": True, "subsampling": 2}),
    "grey.jpg": ("L", {}),
    "odd exif.jpg": ("RGB", {"exif": ODD_EXIF}),
    "two.mpo": ("RGB", {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]}),
    "palette.png": ("P", {}),
    "palette.bmp": ("P", {}),
    "packed.tif": ("RGB", {"compression": "packbits"}),
    "jpeg.tif": ("RGB", {"compression": "jpeg"}),
    "grey.webp": ("L", {"lossless": True}),
    "grey.jp2": ("L", {}),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_files_that_are_accepted_are_decoded_as_prepare_decodes_them(tmp_path: Path, photo: Pixels, name: str) -> None:
    mode, options = ACCEPTED[name]
    path = tmp_path / name
    Image.fromarray(photo).convert(mode).save(path, **options)
    config = recipe(3, Objective(name="vanilla"), steps=2, patch=16)
    files = EncodedImages({name: path})
    with plain_loader(config, [read_image(path)], None) as plain, dali_loader(config, files, None) as dali:
        for first, second in zip(plain, dali, strict=True):
            assert_equal_fields(first, second)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("name", ["eco", "kd", "vanilla", "noise_free"])
def test_every_objective_and_what_it_does_not_read(
    pictures: list[Pixels], centroids: list[Pixels], name: Any, prefetch: int
) -> None:
    config = recipe(objective=Objective(name=name, alpha_sample=name == "eco"), steps=30, prefetch=prefetch)
    read: set[tuple[bool, bool]] = set()
    with plain_loader(config, pictures, centroids) as plain, dali_loader(config, pictures, centroids) as dali:
        for first, second in zip(plain, dali, strict=True):
            assert_equal_fields(first, second)
            read.add((second.samples.hr is None, second.samples.sr is None))
    assert len(read) == (3 if name == "eco" else 1)


def test_noise_is_the_same_and_gaussian(pictures: list[Pixels], centroids: list[Pixels]) -> None:
    config = recipe(batch=16, patch=8, noise_sigma=10.0)
    values = []
    with plain_loader(config, pictures, centroids) as plain, dali_loader(config, pictures, centroids) as dali:
        for first, second in zip(plain, dali, strict=True):
            assert_equal_fields(first, second)
            assert first.samples.noise is not None
            values.append(first.samples.noise)
    noise = torch.stack(values) / 10
    assert noise.shape == (12, 16, 3, 8, 8)
    assert len(noise.unique()) > 0.99 * noise.numel()  # nothing is drawn twice
    count = noise.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(noise.double().pow(power).mean() - moment) < 4 * (variance / count) ** 0.5


@pytest.mark.parametrize("start", [1, 13, 29])
@pytest.mark.parametrize("source", ["store", "files"])
def test_a_later_start_continues(
    pictures: list[Pixels],
    centroids: list[Pixels],
    files: tuple[EncodedImages, EncodedImages],
    source: str,
    start: int,
) -> None:
    config = recipe(objective=Objective(), steps=30, batch=2, noise_sigma=5.0)  # the sigmoid: reads each kind in part
    hr, sr = (pictures, centroids) if source == "store" else files
    expected = plain_loader(config, pictures, centroids)
    with dali_loader(config, hr, sr, start) as rest:
        steps = []
        for batch in rest:
            assert_equal_fields(batch, expected.batch_at(batch.step))
            steps.append(batch.step)
    assert steps == list(range(start, 30))


@pytest.mark.parametrize("loader", [plain_loader, dali_loader])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_ranks_share_the_global_batch(
    pictures: list[Pixels], centroids: list[Pixels], loader: Any, world: int
) -> None:
    config = recipe(objective=Objective(alpha="constant", alpha_sample=True), batch=16, noise_sigma=5.0)
    whole = plain_loader(config, pictures, centroids)
    loaders = [loader(config, pictures, centroids, rank=rank, world_size=world) for rank in range(world)]
    for step, *parts in zip(range(12), *loaders, strict=True):
        expected = whole.batch_at(step)
        for name in ("hr", "sr", "transposed", "input_alpha", "noise"):
            union = torch.cat([getattr(part.samples, name) for part in parts])
            assert torch.equal(union, getattr(expected.samples, name)), name
    for one in loaders:
        one.__exit__(None, None, None)
    with pytest.raises(ValueError, match="17 processes"):
        loader(config, pictures, centroids, rank=0, world_size=17)


def test_buffers_are_handed_over_without_a_copy_and_stay(pictures: list[Pixels]) -> None:
    config = recipe(objective=Objective(name="vanilla"), steps=20, prefetch=0)
    with dali_loader(config, pictures, None) as dali:
        made = dali._prepare(0)
        first = dali._finish(made)
        assert first.samples.hr is not None
        assert first.samples.hr.data_ptr() == made.group.buffers[0].as_tensor().data_ptr()
        second = dali._finish(dali._prepare(1))
        assert second.samples.hr is not None
        assert second.samples.hr.data_ptr() == first.samples.hr.data_ptr() + first.samples.hr.nbytes  # same group
        before = first.samples.hr.clone(), second.samples.hr.clone()
        for step in range(2, 20):
            dali._prepare(step)
        assert torch.equal(first.samples.hr, before[0])
        assert torch.equal(second.samples.hr, before[1])
    assert torch.equal(first.samples.hr, before[0])  # also when the loader has gone


# --- ends ---


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.parametrize("source", ["store", "files"])
@pytest.mark.parametrize("failure", [None, KeyboardInterrupt, ValueError])
def test_leaving_ends_all_threads(
    pictures: list[Pixels], files: tuple[EncodedImages, EncodedImages], source: str, failure: type[BaseException] | None
) -> None:
    config = recipe(objective=Objective(name="vanilla"), steps=100_000)
    before = threads()
    with (
        suppress(KeyboardInterrupt, ValueError),
        dali_loader(config, pictures if source == "store" else files[0], None) as one,
    ):
        next(one)
        assert threads() > before
        if failure:
            raise failure
    assert next(one._steps) < 1000, "it has gone on"
    wait_until(lambda: threads() <= before)  # the system needs a moment to forget a thread that has ended


@pytest.mark.slow
def test_an_interrupted_program_ends(tmp_path: Path) -> None:
    program = """
        import os
        import signal
        import numpy as np
        from eco_fast.config import Config, Data, Objective
        from tests.helpers import dali_loader, wait_until

        signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts in the background ignores it
        config = Config(data=Data(patch=8), objective=Objective(name="vanilla"))
        before = len(os.listdir("/proc/self/task"))
        try:
            with dali_loader(config, [np.zeros((64, 64, 3), np.uint8)], None) as loader:
                for batch in loader:
                    if batch.step == 20:
                        print("running", flush=True)
        finally:
            wait_until(lambda: len(os.listdir("/proc/self/task")) == before)
            print("all threads have ended", flush=True)
    """
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'kernels'}"}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "all threads have ended\n"
        _, said = process.communicate()
    assert "KeyboardInterrupt" in said
    assert process.returncode not in (0, -signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT)


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_memory_stays(pictures: list[Pixels], centroids: list[Pixels]) -> None:
    with dali_loader(recipe(steps=600, batch=16), pictures, centroids) as loader:
        for batch in loader:
            if batch.step == 100:
                begin = resident_mb()
        assert resident_mb() - begin < 10  # each batch has 0.1 MB a kind, the images 2 MB


# --- files that break ---


def stored(folder: Path, pictures: list[Pixels]) -> Store:
    return write_store(folder, {f"hr/{index}.png": picture for index, picture in enumerate(pictures)})


@pytest.mark.parametrize("loader", [plain_loader, dali_loader])
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("remove", [False, True])
def test_a_stored_image_that_breaks_is_named(
    tmp_path: Path, pictures: list[Pixels], loader: Any, prefetch: int, remove: bool
) -> None:
    store = stored(tmp_path, pictures)
    broken = tmp_path / store.entries[2].file  # the largest: in every batch, nearly
    config = recipe(objective=Objective(name="vanilla"), steps=1000, prefetch=prefetch)
    with loader(config, store, None) as one:
        next(one)
        if prefetch:
            wait_until(lambda: idle(one))  # a file cut short under its reading would be a SIGBUS
        if remove:
            broken.unlink()
        else:
            os.truncate(broken, 4096)
        with pytest.raises(ValueError, match=broken.name):
            list(one)


@pytest.mark.parametrize("damage", ["shorter", "scribbled", "gone"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_an_image_file_that_breaks_is_named(tmp_path: Path, photo: Pixels, suffix: str, damage: str) -> None:
    encoded = write_files(tmp_path / "hr", [photo, photo], suffix)
    broken = tmp_path / f"hr/1.{suffix}"
    config = recipe(objective=Objective(name="vanilla"), steps=1000)
    with dali_loader(config, encoded, None) as dali:
        next(dali)
        content = broken.read_bytes()
        if damage == "gone":
            broken.unlink()
        else:
            broken.write_bytes(content[:-100] if damage == "shorter" else bytes(len(content)))
        with pytest.raises(ValueError, match=str(broken)):
            list(dali)


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_an_error_reaches_the_consumer_after_the_good_batches(prefetch: int, fails_later: Pixels) -> None:
    config = recipe(objective=Objective(name="vanilla"), prefetch=prefetch, batch=1)
    with dali_loader(config, [fails_later], None) as loader:
        assert [next(loader).step for _ in range(3)] == [0, 1, 2]
        with pytest.raises(OSError, match="the disk has gone"):
            next(loader)
