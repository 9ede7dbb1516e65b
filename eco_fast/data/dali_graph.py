"""The graph that DALI runs, on the CPU or on a GPU.

store   crops cut from the arrays ------------------------------------+--> flips, transposition --> hr or sr
files   bytes --decoders.image_slice--> the crop, without what lies --+
beyond the image --slice(reflect)--> whole crops              +--> D (`data.downsample = "dali"`) --> LR
"""

from collections.abc import Callable, Sequence
from typing import Any

from eco_fast_kernels import crop_side, margin_of
from nvidia.dali import fn, math, types
from nvidia.dali.pipeline import pipeline_def

Inputs = list[Any]
"""One array or list per input of the graph, each with a value per sample."""


@pipeline_def(enable_conditionals=True)
def crop_graph(
    inputs_at: Callable[[int], Inputs],
    *,
    encoded: Sequence[bool],
    device: str,
    scale: int,
    patch: int,
    rounding: str | None,
) -> tuple[Any, ...]:
    """The crops of each source, then, with a rounding, their LR images.

    Args:
        inputs_at: from an index, counted from 0, to the orientations, int32 [N, 3], and for each source its crops
            (uint8 [N, side, side, 3]), or files, start, shape and offset of what `_decode` takes.
        encoded: for each source, whether it is files.
        device: "cpu" or "gpu".
        scale: of the recipe.
        patch: side of an LR patch.
        rounding: of D, which DALI then does.
    """
    layouts = [""]
    for is_encoded in encoded:
        layouts += ["", "", "", ""] if is_encoded else ["HWC"]
    inputs = list(fn.external_source(inputs_at, num_outputs=len(layouts), layout=layouts))
    orientation = inputs.pop(0)
    crops = []
    for is_encoded in encoded:
        if is_encoded:
            files, start, shape, offset = (inputs.pop(0) for _ in range(4))
            crops.append(_decode(files, start, shape, offset, crop_side(scale, patch), device))
        else:
            crop = inputs.pop(0)
            crops.append(crop.gpu() if device == "gpu" else crop)
    images = crops if rounding is None else crops + [_downsample(one, scale, patch, rounding) for one in crops]
    return tuple(_orient(image, orientation[0], orientation[1], orientation[2]) for image in images)


def _decode(files: Any, start: Any, shape: Any, offset: Any, side: int, device: str) -> Any:
    """Crops of encoded files: the part inside the image is decoded, and mirrored where the crop sticks out."""
    decoded = fn.decoders.image_slice(
        files,
        start=start,
        shape=shape,
        axes=[0, 1],
        adjust_orientation=False,  # what is turned has been refused; odd EXIF may be read otherwise here
        device="mixed" if device == "gpu" else "cpu",
    )
    return fn.slice(decoded, start=offset, shape=[side, side], axes=[0, 1], out_of_bounds_policy="reflect")


def _orient(image: Any, rows: Any, columns: Any, swapped: Any) -> Any:
    image = fn.flip(image, vertical=rows, horizontal=columns)
    if swapped:
        image = fn.transpose(image, perm=[1, 0, 2], transpose_layout=False)
    return image


def _downsample(crop: Any, scale: int, patch: int, rounding: str) -> Any:
    """D of crops with a margin; MATLAB rounds 8-bit images after the rows too."""
    side, low, high = crop_side(scale, patch), margin_of(scale), scale * patch + margin_of(scale)
    if rounding == "uint8":
        rows = _round(_shrink(crop, [patch, side], [low, 0], [high, side]))
        return _round(_shrink(rows, [patch, patch], [0, low], [patch, high]))
    return _round(_shrink(crop, [patch, patch], [low, low], [high, high]))


def _shrink(crop: Any, size: list[int], start: list[int], end: list[int]) -> Any:
    """Bicubic from `start..end` to `size`, not rounded; DALI clamps at borders, so what is around has to be there."""
    return fn.resize(
        crop,
        size=size,
        roi_start=start,
        roi_end=end,
        interp_type=types.DALIInterpType.INTERP_CUBIC,
        antialias=True,
        dtype=types.DALIDataType.FLOAT,
    )


def _round(image: Any) -> Any:
    """Half up, as MATLAB: DALI's own conversion takes ties to even."""
    return fn.cast(math.floor(image + 0.5), dtype=types.DALIDataType.UINT8)
