"""Centroids: what is made, when it is made again, and that they belong to the store as it is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eco_fast_kernels import Rounding
from PIL import Image

from eco_fast.cli.main import BAD_INPUT, main
from eco_fast.data.images import Pixels
from eco_fast.data.prepare import prepare
from eco_fast.data.resize import downsample_image, modcrop
from eco_fast.data.store import MANIFEST, Store, open_centroids
from eco_fast.inference.centroids import make_centroids
from eco_fast.inference.tiling import super_resolve
from eco_fast.models import load_network, save_network
from eco_fast.models.edsr import EDSR
from eco_fast.utils.files import sha256_of

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


def make(folder: Path, checkpoint: Path, **options: Any) -> Path:
    """The folder of the centroids of a store."""
    return make_centroids(Store(folder), load_network(checkpoint), checkpoint, **options).folder


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return save_teacher(tmp_path / "teacher.safetensors", 1)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Sizes of the LR images that the teacher is given, as it does."""
    sizes: list[tuple[int, ...]] = []

    def count(network: EDSR, lr: Pixels, **options: Any) -> Pixels:
        sizes.append(lr.shape[:2])
        return super_resolve(network, lr, **options)

    monkeypatch.setattr("eco_fast.inference.centroids.super_resolve", count)
    return sizes


def snapshot(folder: Path) -> dict[Path, tuple[int, bytes]]:
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"]
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


@pytest.mark.parametrize("rounding", ["uint8", "im2double"])
def test_a_centroid_is_the_teachers_output_over_the_downsampled_picture(
    hr: Store, teacher: Path, rounding: Rounding
) -> None:
    out = make(hr.folder, teacher, rounding=rounding)
    centroids = open_centroids(hr, out, 2)
    network = load_network(teacher)
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
    out = make(hr.folder, teacher)
    manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["attributes"] == {
        "kind": "centroids",
        "scale": 2,
        "rounding": "uint8",
        "teacher_sha256": sha256_of(teacher),
    }
    assert [entry["origin"] for entry in manifest["entries"]] == [entry.sha256 for entry in hr.entries]


def test_small_tiles_give_the_same_centroids(hr: Store, teacher: Path, tmp_path: Path) -> None:
    whole = Store(make(hr.folder, teacher))
    again = prepare([str(tmp_path / "set")], tmp_path / "again")
    tiled = Store(make(again.folder, teacher, tile=6))
    for one, other in zip(whole.images, tiled.images, strict=True):
        difference = np.abs(one.astype(int) - other)
        assert difference.max() <= 1  # the order of the sums may differ
        assert (difference > 0).mean() < 0.01


def test_a_second_run_changes_nothing(hr: Store, teacher: Path, seen: list[tuple[int, ...]]) -> None:
    make(hr.folder, teacher)
    before = snapshot(hr.folder)
    seen.clear()
    make(hr.folder, teacher)
    assert snapshot(hr.folder) == before
    assert seen == []


def test_an_interrupted_run_is_refused_and_goes_on_where_it_was(
    hr: Store, teacher: Path, seen: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = iter(range(1))

    def interrupted(network: EDSR, lr: Pixels, **options: Any) -> Pixels:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return super_resolve(network, lr, **options)

    with monkeypatch.context() as patch:
        patch.setattr("eco_fast.inference.centroids.super_resolve", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(hr.folder, teacher)
    (half,) = (hr.folder / "centroids").iterdir()
    with pytest.raises(ValueError, match="an unfinished store"):
        open_centroids(hr, half, 2)
    out = make(hr.folder, teacher)
    assert out == half
    assert seen == [(height // 2, width // 2) for height, width in SIZES[1:]]
    again = prepare([str(tmp_path / "set")], tmp_path / "again")
    straight = make(again.folder, teacher)
    resumed, unbroken = (
        {file.relative_to(folder): content for file, (_, content) in snapshot(folder).items()}
        for folder in (out, straight)
    )
    assert len(resumed) == len(NAMES) + 1
    assert resumed == unbroken


def test_a_changed_picture_is_noticed_and_it_alone_made_again(
    hr: Store, teacher: Path, seen: list[tuple[int, ...]], photo: Pixels, tmp_path: Path
) -> None:
    out = make(hr.folder, teacher)
    draw(tmp_path / NAMES[1], photo[:30, :40])
    changed = prepare([str(tmp_path / "set")], hr.folder)
    with pytest.raises(ValueError, match=r"set/b\.png has changed since the centroids were made; run `eco-fast teach`"):
        open_centroids(changed, out, 2)
    seen.clear()
    assert make(hr.folder, teacher) == out
    assert seen == [(15, 20)]
    assert open_centroids(changed, out, 2).images[1].shape == (30, 40, 3)


def test_a_new_picture_is_noticed(hr: Store, teacher: Path, photo: Pixels, tmp_path: Path) -> None:
    out = make(hr.folder, teacher)
    draw(tmp_path / "set" / "d.png", photo[:20, :20])
    with pytest.raises(ValueError, match=r"set/d\.png has changed since the centroids were made"):
        open_centroids(prepare([str(tmp_path / "set")], hr.folder), out, 2)


def test_centroids_of_another_scale_are_noticed(hr: Store, tmp_path: Path) -> None:
    out = make(hr.folder, save_teacher(tmp_path / "x3.safetensors", 1, scale=3))
    with pytest.raises(ValueError, match=r"the centroid of set/a\.png does not have the size of its HR"):
        open_centroids(hr, out, 2)


def test_a_teacher_of_another_scale_is_refused(hr: Store, teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teach", "--store", str(hr.folder), "--teacher", str(teacher), "--scale", "3"]) == BAD_INPUT
    assert "teacher.safetensors: a network for x2, but x3 is asked for" in capsys.readouterr().err
    assert not (hr.folder / "centroids").exists()


def test_every_teacher_and_rounding_has_a_folder_of_its_own(hr: Store, teacher: Path, tmp_path: Path) -> None:
    other_teacher = save_teacher(tmp_path / "other.safetensors", 2)
    kinds: list[tuple[Path, Rounding]] = [(teacher, "uint8"), (teacher, "im2double"), (other_teacher, "uint8")]
    first = [make(hr.folder, one, rounding=rounding) for one, rounding in kinds]
    before = snapshot(hr.folder)
    assert [make(hr.folder, one, rounding=rounding) for one, rounding in kinds] == first
    assert len(set(first)) == 3
    assert snapshot(hr.folder) == before
    mine, _, other = (Store(folder).images[0] for folder in first)
    assert not np.array_equal(mine, other)


def test_a_damaged_centroid_is_repaired(hr: Store, teacher: Path, seen: list[tuple[int, ...]]) -> None:
    out = make(hr.folder, teacher)
    entry, pixels = Store(out).entries[2], np.array(Store(out).images[2])
    content = bytearray((out / entry.file).read_bytes())
    content[-1] ^= 1
    (out / entry.file).write_bytes(content)
    seen.clear()
    make(hr.folder, teacher)
    assert seen == [(SIZES[2][0] // 2, SIZES[2][1] // 2)]
    assert np.array_equal(Store(out).images[2], pixels)


def test_a_picture_smaller_than_the_scale_is_named(teacher: Path, photo: Pixels, tmp_path: Path) -> None:
    draw(tmp_path / "tiny" / "dot.png", photo[:1, :9])
    prepare([str(tmp_path / "tiny")], tmp_path / "store")
    with pytest.raises(ValueError, match=r"tiny/dot\.png: an image of 9x1 pixels is smaller than the scale 2"):
        make(tmp_path / "store", teacher)


def test_self_ensemble_makes_centroids_of_its_own(hr: Store, teacher: Path) -> None:
    plain = make(hr.folder, teacher)
    ensemble = make(hr.folder, teacher, self_ensemble=True)
    assert plain != ensemble
    network = load_network(teacher)
    for folder, option in ((plain, False), (ensemble, True)):
        for image, centroid in zip(hr.images, open_centroids(hr, folder, 2).images, strict=True):
            lr = downsample_image(modcrop(image, 2), 2, "uint8")
            assert np.array_equal(centroid, super_resolve(network, lr, self_ensemble=option))
