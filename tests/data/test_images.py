"""Images of every kind become 8-bit RGB, or are refused with a sentence that names the file."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from eco_fast.data.folders import BUILTIN, builtin_images, find_images
from eco_fast.data.images import Pixels, image_size, read_image, write_png

HEIGHT, WIDTH = 5, 7
RNG = np.random.default_rng(7)
RGB: Pixels = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY: Pixels = RGB[:, :, 0]
DEEP_RGB = RNG.integers(0, 1 << 16, (HEIGHT, WIDTH, 3), dtype=np.uint16)
DEEP_GREY = DEEP_RGB[:, :, 0]


def replicated(grey: Pixels) -> Pixels:
    return np.stack([grey] * 3, axis=-1)


def png_bytes(pixels: npt.NDArray[np.uint16] | Pixels, *, size: tuple[int, int] | None = None) -> bytes:
    """A PNG written by hand, for what Pillow cannot write: grey or RGB of 8 or 16 bits; `size` may lie."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = size or pixels.shape[:2]
    depth, colour = 8 * pixels.itemsize, 2 if pixels.ndim == 3 else 0
    rows = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def encoded(pixels: Pixels, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.bmp", {}),
        ("a.tif", {}),
        ("a.tiff", {"compression": "tiff_lzw"}),
        ("a.webp", {"lossless": True}),
        ("A.PNG", {}),
    ],
)
def test_lossless_formats_keep_every_byte(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    Image.fromarray(RGB).save(tmp_path / name, **options)
    read = read_image(tmp_path / name)
    assert read.dtype == np.uint8
    assert np.array_equal(read, RGB)
    assert list(find_images([tmp_path]).values()) == [tmp_path / name]


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.webp"])
def test_lossy_formats_stay_close(tmp_path: Path, photo: Pixels, name: str) -> None:
    Image.fromarray(photo).save(tmp_path / name, quality=95)
    read = read_image(tmp_path / name)
    assert read.shape == photo.shape
    assert np.abs(read.astype(int) - photo).mean() < 2


def test_greyscale_is_replicated(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), replicated(GREY))


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(GREY > 127).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), replicated(np.where(GREY > 127, 255, 0).astype(np.uint8)))


@pytest.mark.parametrize("transparency", [None, 1, bytes([255, 0, 255])])
def test_palette_is_expanded_and_its_transparency_becomes_white(
    tmp_path: Path, transparency: int | bytes | None
) -> None:
    index = RNG.integers(0, 3, (HEIGHT, WIDTH), dtype=np.uint8)
    palette = np.array([(200, 10, 30), (1, 2, 3), (90, 250, 0)], dtype=np.uint8)
    image = Image.fromarray(index)
    image.putpalette(palette.tobytes())
    options: dict[str, Any] = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "a.png", **options)
    expected = palette.copy()
    if transparency is not None:
        expected[1] = 255
    assert np.array_equal(read_image(tmp_path / "a.png"), expected[index])


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_composited_on_white(tmp_path: Path, channels: int) -> None:
    colour = GREY[:, :, None] if channels == 2 else RGB
    alpha = np.resize(np.array([0, 255, 128, 51], dtype=np.uint8), (HEIGHT, WIDTH))[:, :, None]
    Image.fromarray(np.concatenate([colour, alpha], axis=2)).save(tmp_path / "a.png")
    share = alpha / 255
    expected = colour * share + 255 * (1 - share)
    assert np.abs(read_image(tmp_path / "a.png") - expected).max() <= 1
    opaque = np.concatenate([colour, np.full_like(alpha, 255)], axis=2)
    Image.fromarray(opaque).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.broadcast_to(colour, RGB.shape))


def test_a_transparent_colour_becomes_white(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png", transparency=tuple(int(value) for value in RGB[2, 3]))
    expected = RGB.copy()
    expected[2, 3] = 255
    assert np.array_equal(read_image(tmp_path / "a.png"), expected)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, RGB),
        (2, RGB[:, ::-1]),
        (3, RGB[::-1, ::-1]),
        (4, RGB[::-1]),
        (5, RGB.transpose(1, 0, 2)),
        (6, np.rot90(RGB, -1)),
        (7, RGB[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90(RGB)),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, upright: Pixels) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), upright)


@pytest.mark.parametrize(
    ("name", "deep"),
    [("grey.png", DEEP_GREY), ("rgb.png", DEEP_RGB), ("grey.tif", DEEP_GREY), ("rgb.tif", DEEP_RGB)],
)
def test_16_bits_are_refused_or_keep_their_upper_half(tmp_path: Path, name: str, deep: npt.NDArray[np.uint16]) -> None:
    path = tmp_path / name
    if path.suffix == ".png":
        path.write_bytes(png_bytes(deep))
    else:
        tifffile.imwrite(path, deep, photometric="rgb" if deep.ndim == 3 else "minisblack")
    with pytest.raises(ValueError, match=r"16 bits a channel.*`eco-fast prepare --convert-16bit`") as caught:
        read_image(path, convert_16bit=False)
    assert str(path) in str(caught.value)
    with pytest.raises(ValueError, match=r"16 bits a channel, but eco-fast works on 8; convert it first$"):
        read_image(path)  # where `prepare` does not help
    upper = (deep >> 8).astype(np.uint8)
    assert np.array_equal(read_image(path, convert_16bit=True), upper if deep.ndim == 3 else replicated(upper))


def test_16_bits_that_cannot_be_halved_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "signed.tif", DEEP_GREY.astype(np.int16))
    planes = np.ascontiguousarray(DEEP_RGB.transpose(2, 0, 1))
    tifffile.imwrite(tmp_path / "planes.tif", planes, photometric="rgb", planarconfig="separate")
    for name in ("signed.tif", "planes.tif"):
        for convert in (None, False, True):
            with pytest.raises(ValueError, match=rf"{name}: 16 bits a channel, signed or .*; convert it first"):
                read_image(tmp_path / name, convert_16bit=convert)


@pytest.mark.parametrize("convert_16bit", [False, True])
@pytest.mark.parametrize(("name", "mode"), [("a.jpg", "CMYK"), ("a.tif", "F"), ("b.tif", "I"), ("c.tif", "LAB")])
def test_other_colour_modes_are_refused(tmp_path: Path, name: str, mode: str, convert_16bit: bool) -> None:
    Image.new(mode, (WIDTH, HEIGHT)).save(tmp_path / name)
    with pytest.raises(ValueError, match=f"colour mode {mode}, expected 8-bit RGB") as caught:
        read_image(tmp_path / name, convert_16bit=convert_16bit)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_a_truncated_image_is_refused_wherever_it_ends(tmp_path: Path, photo: Pixels, kind: str) -> None:
    path = tmp_path / f"cut.{kind.lower()}"
    content = encoded(photo[:40, :40], kind)
    for length in (*range(1, 40), *range(40, len(content) * 9 // 10, len(content) // 20)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.\w+: (not an image|damaged image \(.+\))"):
            read_image(path)


def test_a_flipped_byte_in_a_png_is_noticed(tmp_path: Path) -> None:
    content = bytearray(png_bytes(RGB))
    content[-20] ^= 255
    (tmp_path / "flipped.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"flipped\.png: damaged image"):
        read_image(tmp_path / "flipped.png")


@pytest.mark.parametrize("read", [read_image, image_size])
@pytest.mark.parametrize("content", [b"", b"hello, I am a text\n", b"\x89PNG\r\n\x1a\n\0\0\0\x05IHDR\0"])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes, read: Callable[[Path], object]) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png: (not an|damaged) image"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("read", [read_image, image_size])
def test_a_missing_file_is_named(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(ValueError, match=r"gone\.png: cannot be read \(No such file or directory\)"):
        read(tmp_path / "gone.png")


def test_the_size_comes_from_the_header_and_is_not_bounded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_bytes(RGB, size=(30_000, 20_000)))
    assert image_size(tmp_path / "a.png") == (30_000, 20_000)


def test_write_png_keeps_every_byte_and_makes_its_folder(tmp_path: Path) -> None:
    write_png(tmp_path / "new" / "a.png", RGB)
    assert np.array_equal(read_image(tmp_path / "new" / "a.png"), RGB)
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "a.png"]


def test_builtin_groups_exist_and_share_no_image() -> None:
    names = [name for group in BUILTIN.values() for name in group]
    assert len(names) == len(set(names))
    stereo = {group for group, files in BUILTIN.items() for name in files if name.startswith("motorcycle")}
    assert len(stereo) == 1, "the two views of one scene are on two sides"
    for group in BUILTIN:
        for name, path in builtin_images(group):
            assert min(image_size(path)) >= 256, name
