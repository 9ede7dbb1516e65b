"""Some of the centroids are made again, by the teacher that they are said to be of."""

import random

import numpy as np

from eco_fast.data.sources import names_of
from eco_fast.inference.centroids import centroid_of
from eco_fast.inference.whole_images import largest_tile, ready, whole_images
from eco_fast.models import load_network_of_scale
from eco_fast.training.verify.audited import KeptTraining, RefutedError
from eco_fast.training.verify.evidence import Evidence
from eco_fast.utils.device import pick_device
from eco_fast.utils.progress import track

GREY_LEVELS = 1
"""How far a value may be off on another machine, where it is rounded the other way."""


def check_centroids(
    student: KeptTraining, evidence: Evidence, wanted: int | None, seed: int, *, exact: bool
) -> tuple[int, int]:
    """Make centroids again, and compare.

    Args:
        student: which was trained with them.
        evidence: a store's images, centroids and teacher.
        wanted: how many, at most; None: all.
        seed: decides which.
        exact: whether they have to be equal.

    Returns:
        How many were made, and by how many grey levels they differ at most.

    Raises:
        RefutedError: one is further off than rounding makes; names it.
    """
    assert evidence.sr is not None, "the caller's"
    assert evidence.teacher is not None, "the caller's"
    recipe, names, most = student.recipe, names_of(evidence.hr), 0
    drawn = list(range(len(names)))
    if wanted is not None and wanted < len(drawn):
        drawn = sorted(random.Random(seed).sample(drawn, wanted))  # noqa: S311 - to be drawn again by anybody
    network = ready(load_network_of_scale(evidence.teacher, recipe.scale).to(pick_device(recipe.train.device)))
    ensemble = recipe.teacher.self_ensemble
    with whole_images():
        tile = largest_tile(network)
        for index in track(drawn, "centroids"):
            made = centroid_of(network, evidence.hr.read(index), recipe.data.rounding, tile, self_ensemble=ensemble)
            off = int(np.abs(made.astype(np.int16) - evidence.sr.read(index)).max())
            if off > (0 if exact else GREY_LEVELS):
                what = f"the centroid of {names[index]} is not what the teacher makes ({off} grey levels off)"
                raise RefutedError(student.whole, what)
            most = max(most, off)
    return len(drawn), most
