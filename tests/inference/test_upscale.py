"""Upscaling files and folders: the network's own pixels, under the expected names."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eco_fast.cli.main import main
from eco_fast.data.images import Pixels, read_image, write_png
from eco_fast.inference.upscale import upscale
from eco_fast.models import save_network
from eco_fast.models.edsr import EDSR


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
