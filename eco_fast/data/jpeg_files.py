"""JPEG files without their metadata, and whether their data is whole. Source: ITU T.81.

JPEG has no checksums, and Pillow hides libjpeg's warnings. What is damaged mostly ends too early or too late, or holds
a code that does not exist; a hole of zeros may not, and is looked for.
"""

import re
import struct
from collections.abc import Iterator

import simplejpeg  # type: ignore[import-untyped]

START_OF_SCAN, HUFFMAN_TABLES, COMMENT, ADOBE = 0xDA, 0xC4, 0xFE, 0xEE
APPLICATION = range(0xE0, 0xF0)
END_OF_DATA = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
HOLE = bytes(64)  # zeros that are more than two blocks of coefficients


def check_jpeg_data(content: bytes) -> None:
    """Look for damage in a JPEG file; it is decoded at 1/8 scale, in grey.

    Raises:
        ValueError: libjpeg warns of its data, or it has a hole.
    """
    simplejpeg.decode_jpeg(content, "GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
    if HOLE in content:
        _check_zeros(content)


def without_metadata(content: bytes) -> bytes:
    """A JPEG file without comments and application segments but Adobe's, which says how colours are meant."""
    kept, end = [content[:2]], 2
    for marker, start, end in _segments(content, 2):
        if marker == ADOBE or not (marker in APPLICATION or marker == COMMENT):
            kept.append(content[start:end])
        if marker == START_OF_SCAN:
            break
    return b"".join([*kept, content[end:]])


def _segments(content: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment; the data of a scan is not part of its segment."""
    while (start := content.find(b"\xff", start)) >= 0 and content[start + 1] != 0xD9:
        if content[start + 1] in (0x00, 0xFF, *range(0xD0, 0xD9)):  # of data, or between segments
            start += 1 if content[start + 1] == 0xFF else 2
            continue
        end = start + 2 + struct.unpack_from(">H", content, start + 2)[0]
        yield content[start + 1], start, end
        start = end


def _check_zeros(content: bytes) -> None:
    """Zeros are data where the codes that begin with zeros, the first of their tables, say that a block is flat."""
    first: dict[int, int] = {}  # symbol of each table
    for marker, start, end in _segments(content, 2):
        if marker == HUFFMAN_TABLES:
            place = start + 4
            while place < end:
                first[content[place]] = content[place + 17]
                place += 17 + sum(content[place + 1 : place + 17])
        elif marker == START_OF_SCAN:
            stop = END_OF_DATA.search(content, end)
            if HOLE in content[end : stop.start() if stop else None] and not _zeros_are_flat(content[start:end], first):
                raise ValueError("a hole of zeros in its data")


def _zeros_are_flat(scan: bytes, first: dict[int, int]) -> bool:
    count = scan[4]
    tables = scan[6 : 6 + 2 * count : 2]
    begin, last, refines = scan[5 + 2 * count], scan[6 + 2 * count], scan[7 + 2 * count] >> 4
    if begin == 0 and refines:
        return True  # a plain bit per block
    steady = begin > 0 or all(first.get(table >> 4) == 0 for table in tables)
    ends = {first.get(0x10 | table & 15, 1) for table in tables} if last else set()
    return steady and all(symbol & 15 == 0 and symbol != 0xF0 for symbol in ends)
