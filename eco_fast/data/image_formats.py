"""What the bytes of an image file say themselves: whether they are whole, and what Pillow keeps quiet about.

Pillow decodes 10 to 16 bits of colour to 8, the first of several pages, and JPEGs with holes, all without a word. So
depth, pages and checksums are read from the file. Sources: PNG (ISO 15948), JPEG (ITU T.81), JPEG 2000 (ITU T.800),
TIFF 6.0, AVIF (AV1-ISOBMFF). `examine` says why an image is refused; what is damaged raises any exception.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import simplejpeg  # type: ignore[import-untyped]
from PIL import Image, ImageSequence

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

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
CHANGES_PIXELS = frozenset((b"tRNS", b"eXIf", b"acTL"))  # besides the critical chunks, whose names begin in upper case
COLOUR_CHUNKS = frozenset((b"gAMA", b"cHRM", b"cICP"))

UNSIGNED_16BIT = r"(I|LA|RGBA?);16[BLN]?"  # Pillow's names of the layouts whose upper halves it, or we, can take
TIFF_TAGS_OF_PIXELS = frozenset((256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324))
TIFF_TAGS_OF_PIXELS |= frozenset((325, 330, 338, 339, 347, 530))
DEEP = "{} bits a channel, but eco-fast works on 8; convert it first"


@dataclass(frozen=True)
class PngFile:
    """The parts of a PNG file that make its pixels, and its colour profile."""

    pixels: bytes
    """The file without metadata."""
    refusal: str | None
    profile: bytes | None
    colours: list[str] = field(default_factory=list)
    """Other chunks that say what its colours mean."""


def read_png(content: bytes) -> PngFile:
    """Check every part of a PNG file that pixels depend on, down to the last byte of its compressed data."""
    kept: list[bytes] = [PNG_SIGNATURE]
    parts: dict[bytes, bytes] = {}
    for kind, body, whole, intact in _png_chunks(content):
        if kind[:1].isupper() or kind in CHANGES_PIXELS:
            if not intact:
                raise ValueError(f"wrong checksum of {kind.decode('latin-1')}")
            kept.append(whole)
        if intact:
            parts[kind] = parts.get(kind, b"") + body if kind == b"IDAT" else body
    if unknown := sorted(
        kind for kind in parts if kind[:1].isupper() and kind not in (b"IHDR", b"PLTE", b"IDAT", b"IEND")
    ):
        raise ValueError(f"unknown chunk {unknown[0].decode('latin-1')}")
    _check_png_pixels(parts)
    refusal = "an animation, but eco-fast takes single images; save the one that is meant" if b"acTL" in parts else None
    return PngFile(b"".join(kept), refusal, _png_profile(parts), [one.decode() for one in COLOUR_CHUNKS & parts.keys()])


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bytes, bool]]:
    """Kind, body, the whole chunk, and whether its checksum is right; up to IEND."""
    start, kind = len(PNG_SIGNATURE), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, start)
        end = start + 12 + length
        (checksum,) = struct.unpack_from(">I", content, end - 4)
        if start == len(PNG_SIGNATURE) and kind != b"IHDR":
            raise ValueError("does not begin with IHDR")
        yield (
            kind,
            content[start + 8 : end - 4],
            content[start:end],
            checksum == zlib.crc32(content[start + 4 : end - 4]),
        )
        start = end


def _check_png_pixels(parts: dict[bytes, bytes]) -> None:
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(width - left) // across), -(-(height - top) // down)) for left, top, across, down in passes]
    bits = depth * PNG_CHANNELS[colour]
    expected = sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 and rows > 0)
    stream = zlib.decompressobj()
    inflated = len(stream.decompress(parts[b"IDAT"], expected + 1))
    if inflated == expected and not stream.eof:  # nothing but the end and its checksum may follow
        inflated += len(stream.decompress(stream.unconsumed_tail, 1))
    if inflated != expected or not stream.eof or stream.unused_data:
        raise ValueError("its compressed data is not that of its pixels")


def _png_profile(parts: dict[bytes, bytes]) -> bytes | None:
    _, _, packed = parts.get(b"iCCP", b"").partition(b"\0")
    try:
        return zlib.decompress(packed[1:]) if packed else None
    except zlib.error:
        return None


def examine(image: Image.Image, content: bytes, *, convert_16bit: bool | None) -> str | None:
    """Why an opened image is refused, or None.

    Args:
        image: as Pillow opened it, not yet decoded.
        content: the whole file.
        convert_16bit: whether the upper 8 of 16 bits will do; see `read_image`.

    Raises:
        Exception: of any type: the file is damaged.
    """
    if image.format == "MPO":  # a JPEG with further pictures behind it
        sizes = [page.width * page.height for page in ImageSequence.Iterator(image)]
        image.seek(0)
        if max(sizes[1:], default=0) >= sizes[0]:  # else previews and gain maps
            return f"{len(sizes)} pictures in one file; save the one that is meant"
    elif (pages := getattr(image, "n_frames", 1)) > 1:
        return f"{pages} pages or frames, but eco-fast takes single images; save the one that is meant"
    examine_format = EXAMINERS.get(image.format or "")
    refusal = examine_format(image, content) if examine_format else None
    return refusal or _depth_refusal(image, convert_16bit)


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
        check_jpeg_data(_without_metadata(content))
    return None


def check_jpeg_data(content: bytes) -> None:
    """Let libjpeg's warnings of damaged data, which Pillow hides, be errors; decoded at 1/8 scale, in grey."""
    simplejpeg.decode_jpeg(content, "GRAY", min_height=1, min_width=1, min_factor=8, strict=True)


def _without_metadata(content: bytes) -> bytes:
    """A JPEG file without comments and application segments but Adobe's, which says how colours are meant."""
    kept, start = [content[:2]], 2
    while True:
        start = content.index(b"\xff", start)
        while content[start + 1] == 0xFF:
            start += 1
        marker, (length,) = content[start + 1], struct.unpack_from(">H", content, start + 2)
        if marker == 0xDA:
            return b"".join([*kept, content[start:]])
        if marker == 0xEE or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(content[start : start + 2 + length])
        start += 2 + length


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
    if lost := (TIFF_TAGS_OF_PIXELS & _tiff_tags(content)) - set(tags):
        raise ValueError(f"tag {min(lost)} cannot be read")
    if tags.get(254, 0) & 1:
        return "its first page is a preview; save the page that is meant"
    if tags.get(259) == 6:
        return "compressed as JPEG in a way that TIFF has given up; convert it first"
    if tags.get(259) == 7:
        tables = tags.get(347, b"")[:-2]
        offsets, sizes = (tags.get(273), tags.get(279)) if 273 in tags else (tags.get(324), tags.get(325))
        for offset, size in zip(offsets, sizes, strict=True):
            part = content[offset : offset + size]
            check_jpeg_data(tables + part[2:] if tables else part)
    return None


def _tiff_tags(content: bytes) -> set[int]:
    """The tags that a file's first page announces."""
    order = "<" if content[:2] == b"II" else ">"
    big = content[2:4] in (b"+\0", b"\0+")
    (start,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", content, 8 if big else 4)
    (count,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", content, start)
    first, size = (start + 8, 20) if big else (start + 2, 12)
    return {struct.unpack_from(f"{order}H", content, first + size * place)[0] for place in range(count)}


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
    "JPEG": _examine_jpeg,
    "JPEG2000": _examine_jpeg2000,
    "MPO": _examine_jpeg,
    "PPM": _examine_ppm,
    "TIFF": _examine_tiff,
}
