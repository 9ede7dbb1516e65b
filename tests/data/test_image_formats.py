"""What decoders keep quiet about is found in the files, depth and pages; and metadata never decides on pixels."""

import base64
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg  # type: ignore[import-untyped]
import tifffile
from PIL import Image

from eco_fast.cli.main import main
from eco_fast.data.encoded import EncodedImages, match_centroids
from eco_fast.data.folders import find_images
from eco_fast.data.images import Pixels, image_size, read_image, read_whole, simple_size, write_png
from tests.data.image_bytes import chunk, encoded, refusals, with_chunks

AVIF_OF_8_PIXELS_A_SIDE = {  # by bits a channel; made with imagecodecs
    10: "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUEAAADrbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAAAAAAAAAO"
    "cGl0bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAETAAAALgAAAChpaW5mAAAAAAABAAAAGmluZmUCAAAAAAEAAGF2MDFDb2xvcgAA"
    "AABqaXBycAAAAEtpcGNvAAAAFGlzcGUAAAAAAAAACAAAAAgAAAAQcGl4aQAAAAADCgoKAAAADGF2MUOBIEAAAAAAE2NvbHJuY2x4AAIAAgAG"
    "gAAAABdpcG1hAAAAAAAAAAEAAQQBAoMEAAAANm1kYXQSAAoIOAi/awICBpAyIBICQ0qAgggvIAAAkDwRYrd+U9iZFv/zyPOPcz5il2qA",
    12: "AAAAHGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZgAAAOttZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAAA5waXRt"
    "AAAAAAABAAAAHmlsb2MAAAAARAAAAQABAAAAAQAAAQ8AAAApAAAAKGlpbmYAAAAAAAEAAAAaaW5mZQIAAAAAAQAAYXYwMUNvbG9yAAAAAGpp"
    "cHJwAAAAS2lwY28AAAAUaXNwZQAAAAAAAAAIAAAACAAAABBwaXhpAAAAAAMMDAwAAAAMYXYxQ4FAYAAAAAATY29scm5jbHgAAgACAAaAAAAA"
    "F2lwbWEAAAAAAAAAAQABBAECgwQAAAAxbWRhdBIACghYCL9rQICBojIbEgJDSoCCCC8gAACQOuLzFeQJMl0qRUoR0C7A",
}
BEHIND_SIZ = b"\xff\x52"  # the marker behind the sizes of the components, 3 bytes each


@pytest.fixture
def small(photo: Pixels) -> Pixels:
    return np.ascontiguousarray(photo[60:124, 180:260])


@pytest.mark.parametrize("depth", [2, 7, 9, 10, 12, 16, 38, 0x87])
@pytest.mark.parametrize("suffix", ["jp2", "j2k"])
def test_jpeg_2000_of_other_depths_is_refused(depth: int, suffix: str, small: Pixels, tmp_path: Path) -> None:
    content = bytearray(encoded(small, "JPEG2000", no_jp2=suffix == "j2k"))
    content[content.index(BEHIND_SIZ) - 9] = depth if depth & 0x80 else depth - 1
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    said = f"{depth} bits a channel, but" if 8 < depth < 0x80 else "signed or of fewer than 8 bits a channel"
    assert all(one.startswith(said) for one in refusals(path))


def test_grey_jpeg_2000_of_16_bits_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16).save(tmp_path / "a.jp2")
    assert all(said.startswith("16 bits a channel") for said in refusals(tmp_path / "a.jp2"))


@pytest.mark.parametrize("most", [1, 31, 1023, 65535])
def test_portable_maps_of_other_ranges_are_refused(most: int, tmp_path: Path) -> None:
    pixels = np.full((8, 8, 3), most, dtype=">u2" if most > 255 else np.uint8)
    (tmp_path / "a.ppm").write_bytes(b"P6 # a comment 255\n8 8\n%d\n" % most + pixels.tobytes())
    assert all(said.startswith(f"its largest value is {most}, ") for said in refusals(tmp_path / "a.ppm"))


@pytest.mark.parametrize(("depth", "data"), AVIF_OF_8_PIXELS_A_SIDE.items())
def test_avif_of_more_than_8_bits_is_refused(depth: int, data: str, tmp_path: Path) -> None:
    (tmp_path / "a.avif").write_bytes(base64.b64decode(data))
    with Image.open(tmp_path / "a.avif") as image:
        assert image.mode == "RGB", "Pillow says nothing of the depth"
    assert all(said.startswith(f"{depth} bits a channel") for said in refusals(tmp_path / "a.avif"))


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.png", "a.webp", "a.mpo", "a.avif"])
def test_several_pages_are_refused(name: str, small: Pixels, tmp_path: Path) -> None:
    first, second = Image.fromarray(small[:32, :32]), Image.fromarray(small)
    pages = [first, second] if name in ("a.tif", "a.mpo") else [second, Image.fromarray(255 - small)]
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    assert all("save the one that is meant" in said for said in refusals(tmp_path / name))


def test_a_preview_behind_a_picture_is_none_of_its_pages(small: Pixels, tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    Image.fromarray(small).save(path, "MPO", save_all=True, append_images=[Image.fromarray(small[:8, :8])])
    assert read_image(path).shape == small.shape
    assert simple_size(path) == small.shape[:2]
    tifffile.imwrite(tmp_path / "a.tif", small, photometric="rgb", subfiletype=1)
    assert all("preview" in said for said in refusals(tmp_path / "a.tif"))


METADATA: dict[str, Callable[[Pixels], bytes]] = {
    "text.png": lambda a: with_chunks(encoded(a, "PNG"), chunk(b"zTXt", b"XML\0\0" + zlib.compress(bytes(80_000_000)))),
    "broken text.png": lambda a: with_chunks(encoded(a, "PNG"), chunk(b"iTXt", b"no text")[:-1] + b"?"),
    "profile.png": lambda a: encoded(a, "PNG", icc_profile=bytes(16) + b"RGB " + bytes(2_000_000)),
    "broken profile.png": lambda a: with_chunks(encoded(a, "PNG"), chunk(b"iCCP", b"p\0\0no zlib")),
    "exif.png": lambda a: with_chunks(encoded(a, "PNG"), chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff")),
    "exif.jpg": lambda a: encoded(a, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x28\0\x12\x01"),
    "no exif.jpg": lambda a: encoded(a, "JPEG", exif=b"Exif\0\0????"),
    "xmp.jpg": lambda a: encoded(a, "JPEG", xmp=b"<x/>" * 16_000),
    "exif.webp": lambda a: encoded(a, "WEBP", lossless=True, exif=b"MM\0*\0\0\0\x08\0\x09\x01\x12\0\x03"),
    "description.tif": lambda a: encoded(a, "TIFF", description="x" * 3_000_000),
}


@pytest.mark.parametrize("name", METADATA)
def test_odd_and_huge_metadata_is_none_of_the_pixels(name: str, small: Pixels, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(METADATA[name](small))
    expected = simplejpeg.decode_jpeg(path.read_bytes()) if name.endswith("jpg") else small
    assert np.array_equal(read_image(path), expected)
    assert simple_size(path) == image_size(path) == small.shape[:2]


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_that_do_not_exist_turn_nothing(orientation: int, small: Pixels, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(small).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), small)
    assert simple_size(tmp_path / "a.png") == small.shape[:2]


@pytest.mark.parametrize(("layout", "masks"), [((5, 6, 5), (0xF800, 0x7E0, 0x1F)), ((5, 5, 5), None)])
def test_bmp_of_16_bits_a_pixel_has_8_bits_a_channel(
    layout: tuple[int, int, int], masks: tuple[int, int, int] | None, small: Pixels, tmp_path: Path
) -> None:
    levels = [small[:, :, channel].astype(int) >> (8 - bits) for channel, bits in enumerate(layout)]
    words = (levels[0] << (layout[1] + 5) | levels[1] << 5 | levels[2]).astype("<u2")[::-1].tobytes()
    extra = struct.pack("<III", *masks) if masks else b""
    height, width = small.shape[:2]
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 16, 3 if masks else 0, len(words), 0, 0, 0, 0)
    start = 54 + len(extra)
    file_header = b"BM" + struct.pack("<IHHI", start + len(words), 0, 0, start)
    (tmp_path / "a.bmp").write_bytes(file_header + header + extra + words)
    expected = [level * 255 / (2**bits - 1) for level, bits in zip(levels, layout, strict=True)]
    assert np.abs(read_image(tmp_path / "a.bmp") - np.stack(expected, axis=-1)).max() < 1
    with pytest.raises(ValueError, match="a BMP file of a kind that DALI decodes otherwise"):
        simple_size(tmp_path / "a.bmp")


@pytest.mark.parametrize("name", ["a.gif", "p.tif", "a.tga", "ycc.jp2", "a.j2k", "a.ppm", "a.avif", "one.png"])
def test_what_dali_decodes_otherwise_is_refused_where_it_decodes(name: str, small: Pixels, tmp_path: Path) -> None:
    modes = {"a.gif": "P", "p.tif": "P", "ycc.jp2": "YCbCr", "one.png": "1"}
    Image.fromarray(small).convert(modes.get(name, "RGB")).save(tmp_path / name)
    assert read_image(tmp_path / name).shape == small.shape
    with pytest.raises(ValueError, match=r"use data\.source=store, which decodes it once"):
        EncodedImages({"a": tmp_path / name})


def test_one_rank_checks_the_files_for_all(small: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are told what it has found, and open no file."""
    write_png(tmp_path / "hr/a.png", small)
    files = find_images([tmp_path / "hr"])
    found = EncodedImages(files).entries
    monkeypatch.setattr("eco_fast.utils.distributed.on_rank0", lambda _: found)
    (tmp_path / "hr/a.png").unlink()
    assert EncodedImages(files).entries == found


def test_two_images_of_one_stem_cannot_share_a_centroid(small: Pixels, tmp_path: Path) -> None:
    for name in ("hr/a.png", "hr/a.bmp", "sr/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(small).save(tmp_path / name)
    hr, sr = (EncodedImages(find_images([tmp_path / folder])) for folder in ("hr", "sr"))
    with pytest.raises(ValueError, match=r"a\.bmp and .*a\.png would have the same centroid; rename one"):
        match_centroids(hr, sr, 2)


def test_what_is_not_kept_of_colours_is_said(small: Pixels, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ifds = ((0x8769, 4, 1, struct.pack("<I", 26)), (0xA005, 4, 1, struct.pack("<I", 44)), (1, 2, 4, b"R03\0"))
    exif = b"Exif\0\0II*\0\x08\0\0\0" + b"".join(struct.pack("<HHHI4sI", 1, *one, 0) for one in ifds)
    contents = {
        "grey.png": encoded(small[:, :, 0], "PNG", icc_profile=bytes(16) + b"GRAY" + bytes(100)),
        "gamma.png": with_chunks(encoded(small, "PNG"), chunk(b"gAMA", struct.pack(">I", 100_000))),
        "camera.jpg": encoded(small, "JPEG", exif=exif),
    }
    lost = (
        "its colour profile, which is not one of RGB",
        "what gAMA say of its colours",
        "its colour space, Adobe RGB",
    )
    for (name, content), expected in zip(contents.items(), lost, strict=True):
        (tmp_path / name).write_bytes(content)
        assert read_whole(tmp_path / name).profile is None
        assert main(["downsample", str(tmp_path / name), str(tmp_path / "out.png"), "--scale", "2"]) == 0
        assert f"{tmp_path / name}: not kept: {expected}" in capsys.readouterr().out.replace("\n", " ")
