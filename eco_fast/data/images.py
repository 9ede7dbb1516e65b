"""Reading images as 8-bit RGB, finding them, and writing PNG.

An image in this program is uint8 [H, W, 3] RGB, 0..255. Greyscale is replicated, palettes are expanded, transparent
pixels are composited on white, EXIF orientation is applied.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from eco_fast.utils.files import write_atomically

Pixels = npt.NDArray[np.uint8]

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".jp2"))
UNSIGNED_16BIT = r"(I|LA|RGBA?);16[BLN]?"  # Pillow's names of the layouts whose upper halves it, or we, can take
EXIF_ORIENTATION = 0x0112
EIGHT_BIT_MODES = frozenset(("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa"))

# Photographs in scikit-image's wheel, split so that no image (nor its stereo twin) is on two sides.
BUILTIN = {
    "train": (
        "motorcycle_left.png",
        "motorcycle_right.png",
        "rocket.jpg",
        "ihc.png",
        "retina.jpg",
        "hubble_deep_field.jpg",
        "brick.png",
        "grass.png",
        "gravel.png",
        "coins.png",
        "moon.png",
    ),
    "validation": ("camera.png",),
    "test": ("astronaut.png", "chelsea.png", "coffee.png"),
}

Image.MAX_IMAGE_PIXELS = None  # the user's own images: a large one is no attack


def read_image(path: Path, *, convert_16bit: bool = False) -> Pixels:
    """Decode one image.

    Args:
        path: any format that Pillow reads.
        convert_16bit: keep the upper 8 of 16 bits instead of refusing.

    Returns:
        uint8 [H, W, 3], 0..255, RGB.

    Raises:
        ValueError: not an image, damaged, or of a kind that would lose information; names the file.
    """
    with _opened(path) as image:
        refusal = _refusal(image, convert_16bit=convert_16bit)
        pixels = None if refusal else _to_rgb(ImageOps.exif_transpose(image))
    if pixels is None:
        raise ValueError(f"{path}: {refusal}")
    return pixels


@contextmanager
def prefix_errors(image: str | Path) -> Iterator[None]:
    """Let a ValueError of the block name the image that it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{image}: {error}") from error


def image_size(path: Path) -> tuple[int, int]:
    """Height and width from the header alone (before EXIF orientation); raises as `read_image`."""
    with _opened(path) as image:
        return image.height, image.width


def simple_size(path: Path) -> tuple[int, int]:
    """Height and width of an image that every decoder turns into what `read_image` returns.

    Raises:
        ValueError: as `read_image`; or its transparency, orientation or colours need more than decoding.
    """
    with _opened(path) as image:
        refusal = _refusal(image, convert_16bit=False)
        if refusal is None and image.has_transparency_data:
            refusal = "has transparency"
        elif refusal is None and image.getexif().get(EXIF_ORIENTATION, 1) != 1:
            refusal = "is turned by its EXIF orientation"
        elif refusal is None and image.mode not in ("L", "P", "RGB"):
            refusal = f"has colour mode {image.mode}"
        size = (image.height, image.width)
    if refusal:
        raise ValueError(f"{path}: {refusal}; convert it, or use data.source=store, which decodes it once")
    return size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; all that Pillow raises inside the block becomes a ValueError that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow warns where a file is damaged but partly readable
            with Image.open(path) as image:
                yield image
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: not an image, or of a kind that cannot be read") from error
    except (FileNotFoundError, PermissionError) as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # Pillow raises a dozen types on a damaged file
        raise ValueError(f"{path}: damaged image ({str(error) or type(error).__name__})") from error


def write_png(path: Path, pixels: Pixels) -> None:
    """Write uint8 [H, W, 3] as PNG, atomically."""
    write_atomically(path, lambda file: Image.fromarray(pixels).save(file, format="PNG"))


def find_images(sources: Sequence[str | Path]) -> dict[str, Path]:
    """All images in folders (with their sub-folders), single files and built-in sets, in a fixed order.

    Hidden files and folders are left out.

    Returns:
        A mapping from names ("FOLDER/sub/file.png") to paths.

    Raises:
        ValueError: a source is missing or empty, or two images have the same name.
    """
    found: dict[str, Path] = {}
    for source in sources:
        for name, path in _find_in(str(source)):
            if name in found and found[name] != path:
                raise ValueError(f"{path} and {found[name]} would both be called {name}; rename one of their folders")
            found[name] = path
    return found


def _find_in(source: str) -> list[tuple[str, Path]]:
    if source.startswith("builtin:"):
        return builtin_images(source.removeprefix("builtin:"))
    path = Path(source)
    if path.is_file():
        return [(f"{path.resolve().parent.name}/{path.name}", path)]
    if not path.is_dir():
        raise ValueError(f"{source}: there is no such file or folder")
    root = path.resolve().name
    found = [
        (f"{root}/{file.relative_to(path).as_posix()}", file)
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in SUFFIXES and not _is_hidden(file.relative_to(path)) and file.is_file()
    ]
    if not found:
        raise ValueError(f"{source}: holds no images ({', '.join(sorted(SUFFIXES))})")
    return found


def builtin_images(group: str) -> list[tuple[str, Path]]:
    """The built-in photographs of a group: train, validation or test."""
    if group not in BUILTIN:
        raise ValueError(f"builtin:{group}: the built-in sets are {', '.join('builtin:' + name for name in BUILTIN)}")
    package = find_spec("skimage")
    assert package is not None, "scikit-image is a dependency"  # an invariant of the installation
    assert package.origin is not None
    folder = Path(package.origin).parent / "data"
    return [(f"builtin/{name}", folder / name) for name in BUILTIN[group]]


def _is_hidden(path: Path) -> bool:
    """Whether the file or a folder around it is hidden, as thumbnails and editors' copies are."""
    return any(part.startswith(".") for part in path.parts)


def _refusal(image: Image.Image, *, convert_16bit: bool) -> str | None:
    # Pillow decodes 16-bit colour to 8 bits in silence: only the file's own layout tells.
    bits = image.tag_v2.get(258, (8,)) if hasattr(image, "tag_v2") else ()  # TIFF's BitsPerSample
    tiles = [tile.args[0] if isinstance(tile.args, tuple) else tile.args for tile in getattr(image, "tile", ())]
    if 16 in bits or any("16" in str(layout) for layout in tiles):
        if not convert_16bit:
            return (
                "16 bits a channel, but eco-fast works on 8; `eco-fast prepare --convert-16bit` keeps the upper 8 bits"
            )
        if not all(re.fullmatch(UNSIGNED_16BIT, str(layout)) for layout in tiles):
            return "16 bits a channel, signed or plane after plane, which eco-fast cannot convert; convert it first"
    elif image.mode not in EIGHT_BIT_MODES:
        return f"colour mode {image.mode}, expected 8-bit RGB, greyscale or palette; convert it first"
    return None


def _to_rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.array(image.convert("RGB"))
