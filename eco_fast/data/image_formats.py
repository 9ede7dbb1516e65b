"""What the bytes of an image file say themselves: whether they are whole, and what Pillow keeps quiet about.

Pillow decodes 10 to 16 bits of colour to 8, the first of several pages, and JPEGs with holes, all without a word. So
depth, pages and checksums are read from the file. Sources: JPEG 2000 (ITU T.800), TIFF 6.0, AVIF (AV1-ISOBMFF);
PNG and JPEG have modules of their own. `examine` says why an image is refused; what is damaged raises any exception.
"""

import re
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image, ImageSequence

from eco_fast.data.jpeg_files import check_jpeg_data, without_metadata

SUFFIXES_OF = {
    "AVIF": (".avif",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".j2c", ".jpx", ".jpf"),
    "PNG": (".png", ".apng"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TGA": (".tga",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""The kinds of file that are read, as Pillow calls them, and what their names end in."""

UNSIGNED_16BIT = r"(I|LA|RGBA?);16[BLN]?"  # Pillow's names of the layouts whose upper halves it, or we, can take
TIFF_TAGS_OF_PIXELS = frozenset((256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324))
TIFF_TAGS_OF_PIXELS |= frozenset((325, 330, 338, 339, 347, 530))
DEEP = "{} bits a channel, but eco-fast works on 8; convert it first"


def examine(image: Image.Image, content: bytes, *, convert_16bit: bool | None) -> str | None:
    """Why an opened image is refused, or None.

    Args:
        image: as Pillow opened it, not yet decoded.
        content: the whole file.
        convert_16bit: whether the upper 8 of 16 bits will do; see `read_image`.

    Raises:
        Exception: of any type: the file is damaged.
    """
    if image.format == "MPO":  # a JPEG with further images behind it
        sizes = [page.width * page.height for page in ImageSequence.Iterator(image)]
        image.seek(0)
        if max(sizes[1:], default=0) >= sizes[0]:  # else previews and gain maps
            return f"{len(sizes)} images in one file; save the one that is meant"
    elif (pages := getattr(image, "n_frames", 1)) > 1:
        return f"{pages} pages or frames, but eco-fast takes single images; save the one that is meant"
    examine_format = EXAMINERS.get(image.format or "")
    refusal = examine_format(image, content) if examine_format else None
    return refusal or _depth_refusal(image, convert_16bit)


def all_decoders_agree(image: Image.Image, content: bytes) -> bool:
    """Whether DALI decodes an image of 8 bits to the pixels that Pillow has, as far as its format tells."""
    if image.format == "TIFF":
        return image.mode != "P"  # its palettes have 16 bits, which are rounded or cut
    if image.format == "BMP":
        return content[28] in (1, 4, 8, 24, 32)  # bits of a pixel
    if image.format == "JPEG2000":
        start = jpeg2000_codestream(content)
        converted = re.search(rb"pclr|colr\x01..\0\0\0\x12", content[:start], re.DOTALL)  # from a palette, or from YCC
        (components,) = struct.unpack_from(">H", content, start + 40)
        sampling = {content[start + 42 + 3 * place + axis] for place in range(components) for axis in (1, 2)}
        return start > 0 and converted is None and sampling == {1}
    return image.format in ("JPEG", "MPO", "PNG", "WEBP")


def _depth_refusal(image: Image.Image, convert_16bit: bool | None) -> str | None:
    # Pillow decodes 16-bit colour to 8 bits in silence: only the file's own layout tells.
    if image.format not in ("PNG", "TIFF"):
        return None
    bits = image.tag_v2.get(258, (1,)) if image.format == "TIFF" else ()  # type: ignore[attr-defined]
    layouts = [str(tile.args[0] if isinstance(tile.args, tuple) else tile.args) for tile in image.tile]  # type: ignore[attr-defined]
    if 16 not in bits and not any("16" in layout for layout in layouts):
        return None
    if not all(re.fullmatch(UNSIGNED_16BIT, layout) for layout in layouts):
        return "16 bits a channel, signed or plane after plane, but eco-fast works on 8 unsigned ones; convert it first"
    if convert_16bit is None:
        return DEEP.format(16)
    advice = "16 bits a channel, but eco-fast works on 8; `eco-fast prepare --convert-16bit` keeps the upper 8 bits"
    return None if convert_16bit else advice


def _examine_jpeg(image: Image.Image, content: bytes) -> str | None:
    if image.mode in ("L", "RGB"):  # others are refused
        check_jpeg_data(without_metadata(content))
    return None


def _examine_jpeg2000(_: Image.Image, content: bytes) -> str | None:
    start = jpeg2000_codestream(content)
    depths = jpeg2000_depths(content, start)
    if any(depth != 8 for depth in depths):
        return (
            DEEP.format(max(depths))
            if max(depths) > 8
            else "signed or of fewer than 8 bits a channel; convert it first"
        )
    _check_tile_parts(content, start)
    return None


def jpeg2000_codestream(content: bytes) -> int:
    """Where the codestream of a JPEG 2000 file begins."""
    start = 0
    while content[start : start + 4] != b"\xff\x4f\xff\x51":
        length, kind = struct.unpack_from(">I4s", content, start)
        head = 8
        if length == 1:
            (length,), head = struct.unpack_from(">Q", content, start + 8), 16
        start += head if kind == b"jp2c" else max(length, 8)
    return start


def jpeg2000_depths(content: bytes, start: int) -> list[int]:
    """Bits of each component; 0 for signed ones."""
    (components,) = struct.unpack_from(">H", content, start + 40)
    sizes = content[start + 42 : start + 42 + 3 * components : 3]
    return [0 if size & 0x80 else (size & 0x7F) + 1 for size in sizes]


def _check_tile_parts(content: bytes, start: int) -> None:
    """Each part of the data names its length: the last has to end where the end is marked."""
    start += 2
    while (marker := content[start : start + 2]) != b"\xff\xd9":
        length = struct.unpack_from(">H", content, start + 2)[0] + 2
        if marker == b"\xff\x90":  # a tile's part: its own length, or 0 for all that is left
            length = struct.unpack_from(">I", content, start + 6)[0] or len(content) - 2 - start
        elif marker[:1] != b"\xff":
            raise ValueError("a part of its data is missing")
        start += length


def _examine_tiff(image: Image.Image, content: bytes) -> str | None:
    tags = image.tag_v2  # type: ignore[attr-defined]
    announced, following = _tiff_page(content)
    if lost := (TIFF_TAGS_OF_PIXELS & announced) - set(tags):
        raise ValueError(f"tag {min(lost)} cannot be read")
    if following:
        raise ValueError("its next page cannot be read")
    if tags.get(254, 0) & 1:
        return "its first page is a preview; save the page that is meant"
    if tags.get(259) == 6:
        return "compressed as JPEG in a way that TIFF has given up; convert it first"
    parts = _tiff_parts(tags, content)
    if tags.get(259) in (8, 32946):
        for part in parts:
            zlib.decompress(part)  # with its checksum, which libtiff leaves out
    elif tags.get(259) == 7:
        tables = tags.get(347, b"")[:-2]
        for part in parts:
            check_jpeg_data(tables + part[2:] if tables else part)
    return None


def _tiff_parts(tags: Mapping[int, Any], content: bytes) -> list[bytes]:
    """The strips or tiles; fewer than the image needs leave it black, of which Pillow says nothing."""
    width, height, planes = tags[256], tags[257], tags.get(277, 1) if tags.get(284) == 2 else 1
    if 273 in tags:
        offsets, sizes, needed = tags[273], tags.get(279), -(-height // min(tags.get(278, height), height))
    else:
        offsets, sizes, needed = tags[324], tags[325], -(-width // tags[322]) * -(-height // tags[323])
    if len(offsets) != needed * planes:
        raise ValueError(f"it has {len(offsets)} parts, but its pixels need {needed * planes}")
    ends = [offset + size for offset, size in zip(offsets, sizes, strict=True)] if sizes else []
    if max(ends, default=0) > len(content):
        raise ValueError("a part of its data is missing")
    return [content[offset:end] for offset, end in zip(offsets, ends, strict=False)]


def _tiff_page(content: bytes) -> tuple[set[int], int]:
    """The tags that a file's first page announces, and where the next page is, 0 for nowhere."""
    order = "<" if content[:2] == b"II" else ">"
    big = content[2:4] in (b"+\0", b"\0+")
    (start,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", content, 8 if big else 4)
    (count,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", content, start)
    first, size = (start + 8, 20) if big else (start + 2, 12)
    tags = {struct.unpack_from(f"{order}H", content, first + size * place)[0] for place in range(count)}
    return tags, struct.unpack_from(f"{order}{'Q' if big else 'I'}", content, first + size * count)[0]


def _examine_bmp(_: Image.Image, content: bytes) -> str | None:
    start, header = struct.unpack_from("<II", content, 10)
    (size,) = struct.unpack_from("<I", content, 34) if header >= 40 else (0,)
    if not 14 + header <= start <= len(content) - size:
        raise ValueError("a part of its data is missing")
    return None


def _examine_avif(_: Image.Image, content: bytes) -> str | None:
    start = content.find(b"av1C")  # the decoder's configuration, one per item: colours, transparency
    while start >= 0:
        flags = content[start + 6]
        if flags & 0x40:
            return DEEP.format(12 if flags & 0x20 else 10)
        start = content.find(b"av1C", start + 4, content.find(b"mdat"))
    return None


def _examine_ppm(_: Image.Image, content: bytes) -> str | None:
    if content[:2] in (b"P2", b"P3", b"P5", b"P6"):
        width_height_most = re.sub(rb"#[^\n\r]*", b"", content[2:4096]).split()[:3]
        if (most := int(width_height_most[2])) != 255:
            return f"its largest value is {most}, but eco-fast works on 0..255; convert it first"
    return None


EXAMINERS: dict[str, Callable[[Image.Image, bytes], str | None]] = {
    "AVIF": _examine_avif,
    "BMP": _examine_bmp,
    "JPEG": _examine_jpeg,
    "JPEG2000": _examine_jpeg2000,
    "MPO": _examine_jpeg,
    "PPM": _examine_ppm,
    "TIFF": _examine_tiff,
}
