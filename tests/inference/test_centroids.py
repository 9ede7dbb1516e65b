"""Centroids: what is made, when it is made again, and that they belong to the store as it is."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eco_fast_kernels import Rounding
from PIL import Image
from torch import Tensor

from eco_fast.data.centroid_store import open_centroids
from eco_fast.data.images import Pixels
from eco_fast.data.prepare import prepare
from eco_fast.data.resize import downsample_image, modcrop
from eco_fast.data.store import MANIFEST, Store
from eco_fast.inference.tiling import upscale_tiled
from eco_fast.inference.upscale import super_resolve
from eco_fast.models import load_network, save_network
from eco_fast.models.edsr import EDSR
from eco_fast.utils.files import file_stamp, sha256_of
from tests.helpers import centroids_of

NAMES = ["set/a.png", "set/b.png", "set/c.png"]
SIZES = [(21, 26), (24, 24), (17, 33)]


def draw(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def hr(tmp_path: Path, photo: Pixels) -> Store:
    """A store of three small images, of odd sizes too."""
    for place, (name, (height, width)) in enumerate(zip(NAMES, SIZES, strict=True)):
        draw(tmp_path / name, photo[50 * place : 50 * place + height, 100 : 100 + width])
    return prepare([str(tmp_path / "set")], tmp_path / "store")


def save_teacher(path: Path, seed: int, scale: int = 2) -> Path:
    torch.manual_seed(seed)
    save_network(path, EDSR(scale, features=8, blocks=1))
    return path


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return save_teacher(tmp_path / "teacher.safetensors", 1)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Sizes of the LR images that the teacher is given, as it does."""
    sizes: list[tuple[int, ...]] = []

    def count(network: EDSR, lr: Tensor, **options: Any) -> Tensor:
        sizes.append(tuple(lr.shape[:2]))
        return upscale_tiled(network, lr, **options)

    monkeypatch.setattr("eco_fast.inference.centroids.upscale_tiled", count)
    return sizes


def snapshot(folder: Path) -> dict[Path, tuple[int, bytes]]:
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"]
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


@pytest.mark.parametrize("rounding", ["uint8", "im2double"])
def test_a_centroid_is_the_teachers_output_over_the_downsampled_image(
    hr: Store, teacher: Path, rounding: Rounding
) -> None:
    out = centroids_of(hr.folder, teacher, 2, rounding=rounding, device="cpu")
    centroids = open_centroids(hr, out, 2)
    network = load_network(teacher, "cpu")
    assert [entry.name for entry in centroids.entries] == NAMES
    for centroid, image, (height, width) in zip(centroids.images, hr.images, SIZES, strict=True):
        assert centroid.dtype == np.uint8
        assert centroid.shape == (height // 2 * 2, width // 2 * 2, 3)
        lr = downsample_image(modcrop(image, 2), 2, rounding)
        assert np.array_equal(centroid, super_resolve(network, lr))
        with torch.inference_mode():
            whole = network(torch.from_numpy(lr).permute(2, 0, 1)[None].float() / 255)[0].permute(1, 2, 0) * 255
        assert np.abs(whole.clamp(0, 255).numpy() - centroid).max() <= 0.5 + 1e-3


def test_the_manifest_tells_what_the_centroids_are(hr: Store, teacher: Path) -> None:
    out = centroids_of(hr.folder, teacher, 2, device="cpu")
    assert json.loads((out / MANIFEST).read_text(encoding="utf-8"))["attributes"] == {
        "kind": "centroids",
        "scale": 2,
        "rounding": "uint8",
        "teacher_sha256": sha256_of(teacher),
        "teacher_stamp": file_stamp(teacher),
    }
    assert [entry.origin for entry in Store(out).entries] == [entry.sha256 for entry in hr.entries]


def test_small_tiles_give_the_same_centroids(hr: Store, teacher: Path, tmp_path: Path) -> None:
    whole = Store(centroids_of(hr.folder, teacher, 2, device="cpu"))
    again = prepare([str(tmp_path / "set")], tmp_path / "again")
    tiled = Store(centroids_of(again.folder, teacher, 2, tile=6, device="cpu"))
    for one, other in zip(whole.images, tiled.images, strict=True):
        difference = np.abs(one.astype(int) - other)
        assert difference.max() <= 1  # the order of the sums may differ
        assert (difference > 0).mean() < 0.01


def test_a_second_run_changes_nothing(hr: Store, teacher: Path, seen: list[tuple[int, ...]]) -> None:
    centroids_of(hr.folder, teacher, 2, device="cpu")
    before = snapshot(hr.folder)
    seen.clear()
    centroids_of(hr.folder, teacher, 2, device="cpu")
    assert snapshot(hr.folder) == before
    assert seen == []


def test_an_interrupted_run_is_refused_and_goes_on_where_it_was(
    hr: Store, teacher: Path, seen: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = iter(range(1))

    def interrupted(network: EDSR, lr: Tensor, **options: Any) -> Tensor:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return upscale_tiled(network, lr, **options)

    with monkeypatch.context() as patch:
        patch.setattr("eco_fast.inference.centroids.upscale_tiled", interrupted)
        with pytest.raises(KeyboardInterrupt):
            centroids_of(hr.folder, teacher, 2, device="cpu")
    (half,) = (hr.folder / "centroids").iterdir()
    with pytest.raises(ValueError, match="an unfinished store"):
        open_centroids(hr, half, 2)
    out = centroids_of(hr.folder, teacher, 2, device="cpu")
    assert out == half
    assert seen == [(height // 2, width // 2) for height, width in SIZES[1:]]
    again = prepare([str(tmp_path / "set")], tmp_path / "again")
    straight = centroids_of(again.folder, teacher, 2, device="cpu")
    resumed, unbroken = (Store(folder) for folder in (out, straight))
    assert list(resumed.entries) == list(unbroken.entries)
    packs = [[pack.read_bytes() for pack in folder.glob("packs/*")] for folder in (out, straight)]
    assert packs[0] == packs[1]
    assert list(map(len, packs[0])) == [sum(entry.size for entry in unbroken.entries)]


def test_a_changed_image_is_noticed_and_it_alone_made_again(
    hr: Store, teacher: Path, seen: list[tuple[int, ...]], photo: Pixels, tmp_path: Path
) -> None:
    out = centroids_of(hr.folder, teacher, 2, device="cpu")
    draw(tmp_path / NAMES[1], photo[:30, :40])
    changed = prepare([str(tmp_path / "set")], hr.folder)
    with pytest.raises(
        ValueError, match=r"set/b\.png has changed since its centroid was made; run `eco-fast centroids`"
    ):
        open_centroids(changed, out, 2)
    seen.clear()
    assert centroids_of(hr.folder, teacher, 2, device="cpu") == out
    assert seen == [(15, 20)]
    assert open_centroids(changed, out, 2).images[1].shape == (30, 40, 3)


def test_a_new_image_is_noticed(hr: Store, teacher: Path, photo: Pixels, tmp_path: Path) -> None:
    out = centroids_of(hr.folder, teacher, 2, device="cpu")
    draw(tmp_path / "set" / "d.png", photo[:20, :20])
    with pytest.raises(ValueError, match=r"set/d\.png has changed since its centroid was made"):
        open_centroids(prepare([str(tmp_path / "set")], hr.folder), out, 2)


def test_centroids_of_another_scale_are_noticed(hr: Store, tmp_path: Path) -> None:
    out = centroids_of(hr.folder, save_teacher(tmp_path / "x3.safetensors", 1, scale=3), 3, device="cpu")
    with pytest.raises(ValueError, match=r"the centroid of set/a\.png does not have the size of its HR image"):
        open_centroids(hr, out, 2)


def test_a_teacher_of_another_scale_is_refused(hr: Store, teacher: Path) -> None:
    with pytest.raises(ValueError, match=r"teacher\.safetensors: a network for x2, but x3 is asked for"):
        centroids_of(hr.folder, teacher, 3, device="cpu")
    assert not (hr.folder / "centroids").exists()


def test_every_teacher_and_rounding_has_a_folder_of_its_own(hr: Store, teacher: Path, tmp_path: Path) -> None:
    other_teacher = save_teacher(tmp_path / "other.safetensors", 2)
    kinds: list[tuple[Path, Rounding]] = [(teacher, "uint8"), (teacher, "im2double"), (other_teacher, "uint8")]
    first = [centroids_of(hr.folder, one, 2, rounding=rounding, device="cpu") for one, rounding in kinds]
    before = snapshot(hr.folder)
    assert [centroids_of(hr.folder, one, 2, rounding=rounding, device="cpu") for one, rounding in kinds] == first
    assert len(set(first)) == 3
    assert snapshot(hr.folder) == before
    mine, _, other = (Store(folder).images[0] for folder in first)
    assert not np.array_equal(mine, other)


def test_a_damaged_centroid_is_repaired(hr: Store, teacher: Path, seen: list[tuple[int, ...]]) -> None:
    out = centroids_of(hr.folder, teacher, 2, device="cpu")
    entry, pixels = Store(out).entries[2], np.array(Store(out).images[2])
    content = bytearray((out / entry.file).read_bytes())
    content[entry.offset] ^= 1
    written = (out / entry.file).stat().st_mtime_ns
    (out / entry.file).write_bytes(content)
    os.utime(out / entry.file, ns=(written, written + 10**9))  # a file system's clock may tick every few milliseconds
    seen.clear()
    centroids_of(hr.folder, teacher, 2, device="cpu")
    assert seen == [(SIZES[2][0] // 2, SIZES[2][1] // 2)]
    assert np.array_equal(Store(out).images[2], pixels)


def test_an_image_smaller_than_the_scale_is_named(teacher: Path, photo: Pixels, tmp_path: Path) -> None:
    draw(tmp_path / "tiny" / "dot.png", photo[:1, :9])
    prepare([str(tmp_path / "tiny")], tmp_path / "store")
    with pytest.raises(ValueError, match=r"tiny/dot\.png: an image of 9x1 pixels is smaller than the scale 2"):
        centroids_of(tmp_path / "store", teacher, 2, device="cpu")


def test_self_ensemble_makes_centroids_of_its_own(hr: Store, teacher: Path) -> None:
    plain = centroids_of(hr.folder, teacher, 2, device="cpu")
    ensemble = centroids_of(hr.folder, teacher, 2, device="cpu", self_ensemble=True)
    assert plain != ensemble
    network = load_network(teacher, "cpu")
    for folder, option in ((plain, False), (ensemble, True)):
        for image, centroid in zip(hr.images, open_centroids(hr, folder, 2).images, strict=True):
            lr = downsample_image(modcrop(image, 2), 2, "uint8")
            assert np.array_equal(centroid, super_resolve(network, lr, self_ensemble=option))
