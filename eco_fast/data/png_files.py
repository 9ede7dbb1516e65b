"""PNG files without their metadata, checked to the last byte. Source: ISO 15948.

Pillow checks no checksum of the compressed data, stops before its end, and refuses files for the size of their texts.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
CHANGES_PIXELS = frozenset((b"tRNS", b"eXIf", b"acTL"))  # besides the critical chunks, whose names begin in upper case
COLOUR_CHUNKS = frozenset((b"gAMA", b"cHRM", b"cICP"))


@dataclass(frozen=True)
class PngFile:
    """The parts of a PNG file that make its pixels, and its colour profile."""

    pixels: bytes
    """The file without metadata."""
    refusal: str | None
    profile: bytes | None
    colours: list[str]
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
