"""Upscaling files and folders: the network's own pixels, under the expected names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from eco_fast.cli.main import main
from eco_fast.data.images import Pixels, read_image, write_png
from eco_fast.data.resize import downsample_image
from eco_fast.inference.upscale import upscale
from eco_fast.models import save_network
from eco_fast.models.edsr import EDSR
from tests.helpers import upsample_image


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A network that repeats every pixel: head, body and upsampler pass the centre on, exactly in float32."""
    network = EDSR(2, 3, 1)
    for name, tensor in network.state_dict().items():
        if "mean" not in name:
            tensor.zero_()
        if name in ("head.0.weight", "tail.0.0.weight", "tail.1.weight"):
            outputs = torch.arange(tensor.shape[0])
            tensor[outputs, outputs * 3 // tensor.shape[0], 1, 1] = 1
    save_network(tmp_path / "repeat.safetensors", network)
    return tmp_path / "repeat.safetensors"


def repeated(image: Pixels) -> Pixels:
    return image.repeat(2, axis=0).repeat(2, axis=1)


def test_a_file_becomes_the_named_file_or_one_in_the_folder(checkpoint: Path, photo: Pixels, tmp_path: Path) -> None:
    source, folder = tmp_path / "cat.v1.png", tmp_path / "folder"
    write_png(source, photo[:31, :17])
    folder.mkdir()
    written = {
        tmp_path / "big.png": tmp_path / "big.png",
        tmp_path / "new" / "big.PNG": tmp_path / "new" / "big.PNG",
        folder: folder / "cat.v1.png",
        tmp_path / "other": tmp_path / "other" / "cat.v1.png",
    }
    for out, expected in written.items():
        assert main(["upscale", str(checkpoint), str(source), str(out)]) == 0
        with Image.open(expected) as image:
            assert image.format == "PNG"
        assert np.array_equal(read_image(expected), repeated(photo[:31, :17]))


def test_a_folder_becomes_a_folder_of_the_same_layout(checkpoint: Path, photo: Pixels, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    images = ["a.png", "b.JPG", "sub/a.bmp", "sub/deep/c.tif", "d.webp"]
    for index, name in enumerate(images):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo[index : index + 20, : 15 + index]).save(source / name)
    Image.fromarray(photo[:9, :12, 0]).save(source / "grey.png")
    (source / "notes.txt").write_text("no image")
    assert main(["upscale", str(checkpoint), str(source), str(out)]) == 0
    written = sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file())
    assert written == ["a.png", "b.png", "d.png", "grey.png", "sub/a.png", "sub/deep/c.png"]
    for name in [*images, "grey.png"]:
        decoded = np.array(Image.open(source / name).convert("RGB"))
        assert np.array_equal(read_image((out / name).with_suffix(".png")), repeated(decoded)), name


def test_transparency_and_colour_profile_reach_the_file(checkpoint: Path, photo: Pixels, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    opacity = np.tile(np.linspace(0, 255, 20).astype(np.uint8), (24, 1))
    pictures = {
        "rgba.png": Image.fromarray(np.dstack([photo[:24, :20], opacity])),
        "la.png": Image.fromarray(np.dstack([photo[:24, :20, 0], opacity])),
        "rgba.webp": Image.fromarray(np.dstack([photo[:24, :20], opacity])),
        "rgba.tif": Image.fromarray(np.dstack([photo[:24, :20], opacity])),
    }
    (tmp_path / "in").mkdir()
    for name, picture in pictures.items():
        options: dict[str, Any] = {"lossless": True, "exact": True} if name.endswith("webp") else {}
        picture.save(tmp_path / "in" / name, icc_profile=profile, **options)
        source, large, less = (tmp_path / folder / name for folder in ("in", "large", "small"))
        assert main(["upscale", str(checkpoint), str(source), str(large.with_suffix(".png"))]) == 0
        assert main(["downsample", str(source), str(less.with_suffix(".png")), "--scale", "2"]) == 0
        colours = np.asarray(picture.convert("RGBA"))[:, :, :3]
        with Image.open(large.with_suffix(".png")) as image:
            assert image.info["icc_profile"] == profile
            pixels = np.asarray(image)
        assert np.array_equal(pixels[:, :, :3], repeated(colours)), name
        layers = np.repeat(opacity[:, :, None], 3, axis=2)
        assert np.array_equal(pixels[:, :, 3], upsample_image(layers, 2)[:, :, 0])
        with Image.open(less.with_suffix(".png")) as image:
            assert image.info["icc_profile"] == profile
            pixels = np.asarray(image)
        assert np.array_equal(pixels[:, :, :3], downsample_image(colours, 2))
        assert np.array_equal(pixels[:, :, 3], downsample_image(layers, 2)[:, :, 0])


def test_what_is_opaque_all_over_stays_without_opacity(checkpoint: Path, photo: Pixels, tmp_path: Path) -> None:
    opaque = np.full((20, 20, 1), 255, dtype=np.uint8)
    Image.fromarray(np.concatenate([photo[:20, :20], opaque], axis=2)).save(tmp_path / "a.png")
    upscale(checkpoint, tmp_path / "a.png", tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert image.mode == "RGB"


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_turned_images_are_written_upright(orientation: int, checkpoint: Path, photo: Pixels, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo[:20, :30]).save(tmp_path / "a.png", exif=exif)
    upscale(checkpoint, tmp_path / "a.png", tmp_path / "b.png")
    upright = np.rot90(photo[:20, :30], {3: 2, 6: -1, 8: 1}[orientation])
    with Image.open(tmp_path / "b.png") as image:
        assert image.getexif().get(0x0112, 1) == 1
        assert np.array_equal(np.asarray(image), repeated(np.ascontiguousarray(upright)))


def test_the_tile_changes_nothing(checkpoint: Path, photo: Pixels, tmp_path: Path) -> None:
    write_png(tmp_path / "cat.png", photo)
    for tile in ("33", "1000"):
        out = tmp_path / f"{tile}.png"
        assert main(["upscale", str(checkpoint), str(tmp_path / "cat.png"), str(out), "--tile", tile]) == 0
        assert np.array_equal(read_image(out), repeated(photo))


def test_outputs_that_cannot_be_meant_are_refused(checkpoint: Path, photo: Pixels, tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_png(source / "a.png", photo[:20, :20])
    refusals = {
        (source / "a.png", source / "a.png"): r"a\.png would be overwritten",
        (source / "a.png", source): r"a\.png would be overwritten",
        (source, source): r"a\.png would be overwritten",
        (source, source / ".." / "source"): r"a\.png would be overwritten",
        (source / "a.png", tmp_path / "b.jpg"): r"b\.jpg: images are written as PNG",
        (source, checkpoint): "a file, but the images of a folder need a folder",
        (tmp_path / "none.png", tmp_path / "out.png"): r"none\.png: there is no such file or folder",
    }
    for (given, out), said in refusals.items():
        with pytest.raises(ValueError, match=said):
            upscale(checkpoint, given, out)
    assert np.array_equal(read_image(source / "a.png"), photo[:20, :20])
