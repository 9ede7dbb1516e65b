"""Image files made byte by byte, and what is said of those that are refused."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eco_fast.data.images import Pixels, read_image, simple_size


def encoded(pixels: Pixels, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """The same PNG with more chunks behind its header."""
    return png[:33] + b"".join(chunks) + png[33:]


def refusals(path: Path) -> list[str]:
    """What is said of a file, behind its name: where it is decoded once, and where at every step."""
    said = []
    for read in (read_image, simple_size):
        with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        said.append(str(caught.value).removeprefix(f"{path}: "))
    return said
