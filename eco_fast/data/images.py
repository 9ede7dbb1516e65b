"""Reading images as 8-bit RGB, and writing PNG.

An image in this program is uint8 [H, W, 3] RGB, 0..255. Greyscale is replicated, palettes are expanded, transparent
pixels are composited on white, EXIF orientation is applied; colour profiles are not.
"""

import ctypes
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from eco_fast.data.image_formats import SUFFIXES_OF, all_decoders_agree, examine
from eco_fast.data.png_files import PNG_SIGNATURE, PngFile, read_png
from eco_fast.utils.files import write_atomically

Pixels = npt.NDArray[np.uint8]

EIGHT_BIT_MODES = frozenset(("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa"))
EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image of an EXIF orientation upright; other values say nothing."""

Image.MAX_IMAGE_PIXELS = None  # the user's own images: a large one is no attack
warnings.filterwarnings("ignore", module="PIL")  # of odd metadata, which says nothing about pixels
with suppress(OSError, AttributeError):  # a Pillow without TIFF
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)  # type: ignore[attr-defined]  # it raises all the same


@dataclass(frozen=True, kw_only=True)
class WholeImage:
    """All that is kept of an image file.

    Attributes:
        colours: uint8 [H, W, 3], RGB, also where they are transparent.
        opacity: uint8 [H, W], 0 for transparent; None where all is opaque.
        profile: the ICC profile of the colours, if it is one of RGB.
        lost: what else the file says about its colours, for a sentence; "" for nothing.
    """

    colours: Pixels
    opacity: Pixels | None
    profile: bytes | None
    lost: str

    def say_what_is_lost(self, path: Path) -> None:
        """Print what of the file is not kept, if anything."""
        if self.lost:
            print(f"{path}: not kept: {self.lost}", flush=True)

    def on_white(self) -> Pixels:
        """Composited on white, uint8 [H, W, 3]."""
        if self.opacity is None:
            return self.colours
        image = Image.fromarray(np.dstack([self.colours, self.opacity]))
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return np.array(Image.alpha_composite(white, image).convert("RGB"))


@dataclass(frozen=True)
class _Opened:
    """A file whose header Pillow has read."""

    image: Image.Image
    content: bytes
    png: PngFile | None

    @property
    def orientation(self) -> int:
        """Of EXIF; 1 where there is none, or none that can be read."""
        try:
            value = self.image.getexif().get(EXIF_ORIENTATION)
        except Exception:  # noqa: BLE001 - odd metadata says nothing about pixels
            return 1
        return value if value in UPRIGHT else 1

    @property
    def is_adobe_rgb(self) -> bool:
        """Whether a camera's EXIF says so, as it may without a profile."""
        try:
            return self.image.getexif().get_ifd(ExifTags.IFD.Interop).get(1) == "R03"
        except Exception:  # noqa: BLE001 - odd metadata says nothing
            return False

    def refusal(self, convert_16bit: bool | None) -> str | None:
        """Why the image is not taken, if it is not."""
        if self.png and self.png.refusal:
            return self.png.refusal
        if refusal := examine(self.image, self.content, convert_16bit=convert_16bit):
            return refusal
        mode = self.image.mode
        if mode not in EIGHT_BIT_MODES and not mode.startswith("I;16"):
            return f"colour mode {mode}, expected 8-bit RGB, greyscale or palette; convert it first"
        return None


def read_image(path: Path, *, convert_16bit: bool | None = None) -> Pixels:
    """Decode one image.

    Args:
        path: of a kind in `SUFFIXES_OF`.
        convert_16bit: keep the upper 8 of 16 bits; False: refuse, and say that `prepare` can; None: refuse.

    Returns:
        uint8 [H, W, 3], 0..255, RGB.

    Raises:
        ValueError: not an image, damaged, or of a kind that would lose information; names the file.
    """
    return read_whole(path, convert_16bit=convert_16bit).on_white()


def read_whole(path: Path, *, convert_16bit: bool | None = None) -> WholeImage:
    """Decode one image with its transparency and colour profile; as `read_image`."""
    with _failures_name(path):
        opened = _open(path)
        refusal = opened.refusal(convert_16bit)
        image = None if refusal else _decode(opened)
    if image is None:
        raise ValueError(f"{path}: {refusal}")
    return image


@contextmanager
def prefix_errors(image: str | Path) -> Iterator[None]:
    """Let a ValueError of the block name the image that it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{image}: {error}") from error


def image_size(path: Path) -> tuple[int, int]:
    """Height and width from the header alone (before EXIF orientation); raises as `read_image`."""
    with _failures_name(path), path.open("rb") as file:
        head = file.read(33)
        if head.startswith(PNG_SIGNATURE):
            width, height = struct.unpack_from(">II", head, 16)
            return height, width
        with Image.open(file, formats=_formats(path)) as image:
            return image.height, image.width


def simple_size(path: Path) -> tuple[int, int]:
    """Height and width of an image that every decoder turns into what `read_image` returns.

    Raises:
        ValueError: as `read_image`; or its transparency, orientation or colours need more than decoding.
    """
    with _failures_name(path):
        opened = _open(path)
        refusal = opened.refusal(None) or _more_than_decoding(opened)
        if refusal is None and (opened.image.format not in ("JPEG", "PNG") or opened.image.mode == "P"):
            _load(opened)  # the data of the others has been checked
        size = (opened.image.height, opened.image.width)
    if refusal:
        raise ValueError(f"{path}: {refusal}")
    return size


def write_png(path: Path, pixels: Pixels) -> None:
    """Write uint8 [H, W, 3] as PNG, atomically."""
    write_atomically(path, lambda file: Image.fromarray(pixels).save(file, format="PNG"))


def write_whole(path: Path, image: WholeImage) -> None:
    """Write an image as PNG, atomically, with its opacity and its colour profile."""
    pixels = image.colours if image.opacity is None else np.dstack([image.colours, image.opacity])
    options = {"icc_profile": image.profile} if image.profile else {}
    write_atomically(path, lambda file: Image.fromarray(pixels).save(file, format="PNG", **options))


def _more_than_decoding(opened: _Opened) -> str | None:
    image = opened.image
    if image.has_transparency_data:
        refusal = "has transparency"
    elif opened.orientation != 1:
        refusal = "is turned by its EXIF orientation"
    elif image.mode not in ("L", "P", "RGB"):
        refusal = f"has colour mode {image.mode}"
    elif not all_decoders_agree(image, opened.content):
        refusal = f"a {image.format} file of a kind that DALI decodes otherwise, or not at all"
    else:
        return None
    return f"{refusal}; convert it, or use data.source=store, which decodes it once"


def _formats(path: Path) -> list[str]:
    """Of Pillow's readers those that may open a file: TGA has no signature, and finds itself in anything."""
    return [name for name in SUFFIXES_OF if name != "TGA" or path.suffix.lower() in SUFFIXES_OF["TGA"]]


def _open(path: Path) -> _Opened:
    content = path.read_bytes()
    png = read_png(content) if content.startswith(PNG_SIGNATURE) else None
    image = Image.open(BytesIO(png.pixels if png else content), formats=_formats(path))
    return _Opened(image, content, png)


@contextmanager
def _failures_name(path: Path) -> Iterator[None]:
    """Let all that is raised inside the block become a ValueError that names the file."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: not an image, or of a kind that cannot be read") from error
    except OSError as error:
        if error.strerror:
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
        raise ValueError(f"{path}: damaged image ({error})") from error
    except MemoryError as error:
        raise ValueError(f"{path}: too large for the memory that is left") from error
    except struct.error as error:
        raise ValueError(f"{path}: damaged image (it ends too early)") from error
    except (LookupError, TypeError, AttributeError, ArithmeticError, AssertionError) as error:
        raise ValueError(f"{path}: damaged image (its parts do not fit together)") from error
    except Exception as error:  # Pillow raises a dozen types on a damaged file
        raise ValueError(f"{path}: damaged image ({str(error) or type(error).__name__})") from error


def _decode(opened: _Opened) -> WholeImage:
    image = _load(opened)
    turn = UPRIGHT.get(opened.orientation)
    colours, opacity = _channels(image if turn is None else image.transpose(turn))
    profile = opened.png.profile if opened.png else image.info.get("icc_profile")
    lost = ""
    if profile and profile[16:20] != b"RGB ":
        profile, lost = None, "its colour profile, which is not one of RGB"
    elif not profile and opened.png and opened.png.colours:
        lost = f"what {' and '.join(sorted(opened.png.colours))} say of its colours"
    elif not profile and opened.is_adobe_rgb:
        lost = "its colour space, Adobe RGB, which only EXIF names"
    return WholeImage(colours=colours, opacity=opacity, profile=profile or None, lost=lost)


def _load(opened: _Opened) -> Image.Image:
    opened.image.load()
    if opened.image.mode == "P" and opened.png:
        _check_palette(opened.image)
    return opened.image


def _check_palette(image: Image.Image) -> None:
    assert image.palette is not None
    largest, known = np.asarray(image).max(), len(image.palette.palette) // len(image.palette.mode)
    if largest >= known:
        raise ValueError(f"its palette has {known} colours, but colour {largest} is used")


def _channels(image: Image.Image) -> tuple[Pixels, Pixels | None]:
    """Colours and, unless all of it is opaque, opacity."""
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2), None
    if not image.has_transparency_data:
        return np.array(image.convert("RGB")), None
    pixels = np.asarray((image.convert("LA") if image.mode == "La" else image).convert("RGBA"))
    colours, opacity = pixels[:, :, :3], pixels[:, :, 3]
    return np.ascontiguousarray(colours), None if opacity.min() == 255 else np.ascontiguousarray(opacity)
