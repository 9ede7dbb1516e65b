"""Damage that decoders keep quiet about is found, wherever a format lets it be found."""

import contextlib
import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg  # type: ignore[import-untyped]
import tifffile
from PIL import Image

from bench.soak_images import Damaged, damaged_files, judge
from eco_fast.cli.main import main
from eco_fast.data.images import Pixels, read_image
from tests.data.image_bytes import chunk, encoded, png_of, refusals
from tests.helpers import complaint


@pytest.fixture
def small(photo: Pixels) -> Pixels:
    return np.ascontiguousarray(photo[60:124, 180:260])


def hole(content: bytes, share: float, filling: bytes) -> bytes:
    start = int(len(content) * share)
    return content[:start] + filling + content[start + len(filling) :]


JPEGS: list[dict[str, Any]] = [
    {},
    {"optimize": True},
    {"quality": 95, "subsampling": 0},
    {"quality": 95, "progressive": True},
    {"restart_marker_rows": 1},
]


@pytest.mark.parametrize("options", JPEGS)
@pytest.mark.parametrize("filling", [bytes(1024), b"\xff" * 512, np.random.default_rng(3).bytes(1024)])
def test_jpegs_with_a_hole_are_refused(options: dict[str, Any], filling: bytes, photo: Pixels, tmp_path: Path) -> None:
    """Wherever it is: zeros, which are codes too, may end where the image ends, and then libjpeg says nothing."""
    whole = encoded(photo, "JPEG", **options)
    for share in np.linspace(0.1, 0.9, 12):
        (tmp_path / "a.jpg").write_bytes(hole(whole, share, filling))
        assert all(said.startswith("damaged image (") for said in refusals(tmp_path / "a.jpg"))
    tiff = encoded(photo, "TIFF", compression="jpeg", quality=95)
    (tmp_path / "a.tif").write_bytes(hole(tiff, 0.5, filling))
    assert all(said.startswith("damaged image (") for said in refusals(tmp_path / "a.tif"))


@pytest.mark.parametrize("options", JPEGS)
@pytest.mark.parametrize("level", [0, 128, 255])
def test_zeros_of_a_flat_jpeg_are_no_hole(options: dict[str, Any], level: int, photo: Pixels, tmp_path: Path) -> None:
    flat = np.full((700, 900, 3), level, dtype=np.uint8)
    flat[: photo.shape[0], : photo.shape[1]] = photo
    for image in (flat, np.full_like(flat, level)):
        (tmp_path / "a.jpg").write_bytes(encoded(image, "JPEG", **options))
        assert np.array_equal(read_image(tmp_path / "a.jpg"), simplejpeg.decode_jpeg((tmp_path / "a.jpg").read_bytes()))


def test_every_checksum_of_a_png_counts(small: Pixels, tmp_path: Path) -> None:
    """Also where the compressed data stays readable: stored blocks decode to anything."""
    path = tmp_path / "a.png"
    content = encoded(small, "PNG", compress_level=0)
    for place in (60, 900, len(content) - 60, len(content) - 20, len(content) - 18):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert all(said == "damaged image (wrong checksum of IDAT)" for said in refusals(path))
    header, stream = content[8:33], zlib.compress(b"".join(b"\0" + row.tobytes() for row in small))
    for wrong in (stream[:-4] + b"abcd", stream[:-5], stream + b"x", zlib.compress(small.tobytes())):
        path.write_bytes(png_of(header, chunk(b"IDAT", wrong)))
        assert all(said.startswith("damaged image (") for said in refusals(path))
    path.write_bytes(png_of(header, chunk(b"IDAT", stream[:70]), chunk(b"IDAT", stream[70:])) + b"and more")
    assert np.array_equal(read_image(path), small)


def test_interlaced_png_is_read(small: Pixels, tmp_path: Path) -> None:
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    for height, width in ((64, 80), (1, 1), (3, 5), (9, 2)):
        image = small[:height, :width]
        parts = [image[top::down, left::across] for left, top, across, down in passes]
        rows = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1))
        (tmp_path / "a.png").write_bytes(png_of(header, chunk(b"IDAT", zlib.compress(rows))))
        assert np.array_equal(read_image(tmp_path / "a.png"), image)


def test_colours_beyond_a_palette_are_refused(tmp_path: Path) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 8, 3, 0, 0, 0))
    content = png_of(header, chunk(b"PLTE", bytes(6)), chunk(b"IDAT", zlib.compress(b"\0\0\2")))
    (tmp_path / "a.png").write_bytes(content)
    assert all("palette has 2 colours, but colour 2 is used" in said for said in refusals(tmp_path / "a.png"))


def test_tiffs_with_parts_missing_are_refused(small: Pixels, tmp_path: Path) -> None:
    """Pillow leaves what no strip covers black."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, small, photometric="rgb", rowsperstrip=16)
    content = path.read_bytes()
    at = content.index(struct.pack("<HHI", 257, 4, 1))  # the height
    path.write_bytes(content[: at + 8] + struct.pack("<H", 80) + content[at + 10 :])
    assert all("4 parts, but its pixels need 5" in said for said in refusals(path))


def independently(one: Damaged) -> Pixels:
    """The pixels of what no checksum guards, by other means than Pillow; bench.soak_images has one for every format."""
    suffix = one.name.rpartition(".")[2]
    if suffix == "jpg":
        return np.array(simplejpeg.decode_jpeg(one.content, strict=True))
    if suffix == "bmp":
        (start,) = struct.unpack_from("<I", one.content, 10)
        width, height = struct.unpack_from("<ii", one.content, 18)
        pixels = np.frombuffer(one.content, np.uint8, 3 * width * height, start)
        return pixels.reshape(height, width, 3)[::-1, :, ::-1]
    if one.name.endswith(("raw.tif", "zip.tif")):
        return np.array(tifffile.imread(io.BytesIO(one.content)))
    if suffix == "png":
        raise ValueError("a PNG is whole or refused")
    with Image.open(io.BytesIO(one.content)) as image:
        return np.array(image.convert("RGB"))


def test_damaged_files_are_refused_or_read_as_another_decoder_reads_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = list(damaged_files(104, seed=5))
    said = [judge(one, tmp_path, independently) for one in files]
    wrong = [(one.name, one.damage, word) for one, word in zip(files, said, strict=True) if word.startswith("WRONG")]
    assert not wrong
    refused = [one for one, word in zip(files, said, strict=True) if word == "refused"]
    assert 30 < len(refused) < 80
    for one in refused[::8]:
        path = tmp_path / one.name
        assert complaint(capsys, "downsample", str(path), str(tmp_path / "LR"), "--scale", "2").startswith(f"{path}: ")
    assert not (tmp_path / "LR").exists()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "JPEG2000", "JPEG"])
def test_what_ends_too_early_is_told_in_words(kind: str, small: Pixels, tmp_path: Path) -> None:
    """Wherever it ends: no word of Python's own is in the sentence, such as struct's "unpack requires a buffer"."""
    path, whole = tmp_path / "a.img", encoded(small, kind)
    for end in (*range(9, 80), *range(80, len(whole) - 1, len(whole) // 40)):
        path.write_bytes(whole[:end])
        for said in refusals(path):
            assert not re.search(r"unpack|out of range|KeyError|b'|NoneType|Error$", said), (end, said)


@pytest.mark.parametrize("compression", ["tiff_adobe_deflate", "tiff_lzw", "jpeg", "packbits"])
def test_libtiff_prints_nothing_of_its_own(
    compression: str, small: Pixels, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, path = encoded(small, "TIFF", compression=compression), tmp_path / "a.tif"
    for share in (0.2, 0.5, 0.8):
        path.write_bytes(hole(whole, share, b"\x5a\xff" * 40))
        with contextlib.suppress(ValueError):
            read_image(path)
    assert capfd.readouterr() == ("", "")


def test_a_refused_image_leaves_no_store(photo: Pixels, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(hole(encoded(photo, "JPEG"), 0.5, bytes(256)))
    assert main(["prepare", str(tmp_path / "a.jpg"), "--store", str(tmp_path / "store")]) == 2
    assert not (tmp_path / "store" / "manifest.json").exists()
