"""Damaged image files are refused by name, or decode to what a strict decoder of another library makes of them.

python -m bench.soak_images [FILES] [SEED]     needs imagecodecs
"""

import io
import random
import struct
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.damages import INSIDE
from eco_fast.data.folders import builtin_images
from eco_fast.data.images import Pixels, read_image

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "baseline.jpg": ("JPEG", {"quality": 90}),
    "progressive.jpg": ("JPEG", {"quality": 80, "progressive": True}),
    "restart.jpg": ("JPEG", {"quality": 95, "subsampling": 0, "restart_marker_rows": 1}),
    "lossless.jp2": ("JPEG2000", {"irreversible": False}),
    "lossy.jp2": ("JPEG2000", {"quality_mode": "rates", "quality_layers": [10]}),
    "raw.tif": ("TIFF", {}),
    "lzw.tif": ("TIFF", {"compression": "tiff_lzw"}),
    "zip.tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "jpeg.tif": ("TIFF", {"compression": "jpeg"}),
    "lossless.webp": ("WEBP", {"lossless": True}),
    "lossy.webp": ("WEBP", {"quality": 80}),
    "bmp": ("BMP", {}),
}


@dataclass(frozen=True)
class Damaged:
    """A file after one damage.

    Attributes:
        name: of the file.
        damage: what was done to it.
        content: its bytes.
        original: the pixels of the whole file, uint8 [H, W, 3].
    """

    name: str
    damage: str
    content: bytes
    original: Pixels


def damaged_files(count: int, seed: int) -> Iterator[Damaged]:
    """So many files, over all kinds and damages in turn."""
    rng = random.Random(seed)  # noqa: S311 - damage, no secret
    _, path = builtin_images("test")[0]
    photo = read_image(path)[60:124, 180:260]
    whole = {kind: _encoded(photo, *how) for kind, how in KINDS.items()}
    for index in range(count):
        kind = list(KINDS)[index % len(KINDS)]
        damage = list(DAMAGES)[index // len(KINDS) % len(DAMAGES)]
        content = DAMAGES[damage](whole[kind], rng)
        if damage == MENDED and kind == "png":
            content = _mended(content)
        original = np.array(Image.open(io.BytesIO(whole[kind])))
        yield Damaged(f"{index}.{kind}", damage, content, original)


MENDED = "flip a bit, mend checksums"
DAMAGES = {**INSIDE, MENDED: INSIDE["flip a bit"]}


def _encoded(pixels: Pixels, kind: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _mended(content: bytes) -> bytes:
    """A PNG whose chunks have right checksums, as far as its chunks can be found."""
    mended, start = bytearray(content), 8
    while start + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, start)
        if start + 12 + length > len(content):
            break
        struct.pack_into(">I", mended, start + 8 + length, zlib.crc32(content[start + 4 : start + 8 + length]))
        start += 12 + length
    return bytes(mended)


def judge(one: Damaged, folder: Path, decode: Callable[[Damaged], Pixels]) -> str:
    """What became of a file: "refused", "read as ...", or "WRONG: ..." with the reason."""
    path = folder / one.name
    path.write_bytes(one.content)
    try:
        pixels = read_image(path)
    except ValueError as error:
        said = str(error)
        return "refused" if said.startswith(f"{path}: ") and "\n" not in said else f"WRONG: says {said!r}"
    if np.array_equal(pixels, one.original):
        return "read unharmed"
    try:
        expected = decode(one)
    except Exception as error:  # noqa: BLE001 - each library has its own
        return f"WRONG: read, but the strict decoder says {error}"
    return "read as the strict decoder reads it" if np.array_equal(pixels, expected) else "WRONG: other pixels"


def strictly(one: Damaged) -> Pixels:
    """The pixels by imagecodecs, whose decoders raise on what their libraries warn of."""
    imagecodecs = import_module("imagecodecs")
    suffix = one.name.rpartition(".")[2]
    decode = {
        "png": imagecodecs.png_decode,
        "jpg": imagecodecs.jpeg8_decode,
        "jp2": imagecodecs.jpeg2k_decode,
        "tif": imagecodecs.tiff_decode,
        "webp": imagecodecs.webp_decode,
        "bmp": imagecodecs.bmp_decode,
    }[suffix]
    pixels: Pixels = decode(one.content)
    return np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels


def main(count: int, seed: int) -> None:
    """Judge so many files."""
    results: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for one in damaged_files(count, seed):
            result = judge(one, Path(folder), strictly)
            results[result.partition(":")[0]] += 1
            if result.startswith("WRONG"):
                print(f"{one.name}, {one.damage}: {result}", flush=True)
    print(f"{count} damaged files of seed {seed}: " + ", ".join(f"{n} {what}" for what, n in sorted(results.items())))
    if results["WRONG"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main(*[int(value) for value in (*sys.argv[1:], *("300", "0")[len(sys.argv) - 1 :])])
