"""Whole pictures beside what the teacher of a run makes of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eco_fast.analyze.runs import Run
from eco_fast.bicubic import downsample_image, read_cropped
from eco_fast.images import Pixels, find_images
from eco_fast.models import load_network_of_scale
from eco_fast.progress import progress
from eco_fast.tiles import super_resolve

AT_MOST = 4  # pictures that are taken where none are named


@dataclass(frozen=True)
class Taught:
    """A picture and its centroid.

    Attributes:
        name: a file name without its suffix, for the files of the results.
        hr: uint8 [H, W, 3], a multiple of the scale.
        lr: D(hr).
        sr: the centroid, as large as `hr`.
    """

    name: str
    hr: Pixels
    lr: Pixels
    sr: Pixels


def taught(run: Run, sources: Sequence[str], label: str) -> Iterator[Taught]:
    """Pictures with the outputs of a run's teacher.

    Args:
        run: says which teacher.
        sources: folders or files; none for the first of the run's own: its test, validation or training pictures.
        label: of the progress bar.

    Raises:
        ValueError: the teacher or the pictures are missing or bad; names them.
    """
    data, scale = run.config.data, run.config.scale
    found = find_images(sources or data.test or data.validation or data.train)
    if not sources:
        found = dict(list(found.items())[:AT_MOST])
    device = run.device
    teacher = load_network_of_scale(run.teacher, scale).to(device)
    for name, path in progress(found.items(), label):
        hr = read_cropped(path, scale)
        lr = downsample_image(hr, scale, data.rounding)
        ensemble = run.config.teacher.self_ensemble
        sr = super_resolve(teacher, lr, device=device, self_ensemble=ensemble)
        yield Taught(Path(name).with_suffix("").as_posix().replace("/", "_"), hr, lr, sr)
