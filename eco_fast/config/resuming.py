"""Which keys of a recipe may differ when a run is resumed, and what that means; all others decide the result.

What the paths lead to is pinned by its content (`training/pinned.py`): it may lie elsewhere.
"""

import json
from collections.abc import Mapping
from typing import Any

from eco_fast.config.loading import differences
from eco_fast.config.schema import Config

NOTHING = "no sample and no weight changes"
ROUNDING = "the same result up to rounding"
PLACE = "what lies there must be the same"
REPORTS = "other steps are reported, and kept"
COURSE = "the training takes another course from here on"

MAY_DIFFER: Mapping[str, str] = {
    "description": NOTHING,
    "data.loader": NOTHING,
    "data.residence": NOTHING,
    "data.prefetch": NOTHING,
    "train.timeout": NOTHING,
    "train.trackers": NOTHING,
    "train.price_per_hour": NOTHING,
    "train.graph": NOTHING,
    "train.baseline": NOTHING,
    "train.micro_batch": ROUNDING,
    "train.compile": ROUNDING,
    "train.device": ROUNDING,
    "train.deterministic": ROUNDING,
    "train.log_every": REPORTS,
    "train.validate_every": REPORTS,
    "train.checkpoint_every": REPORTS,
    "train.keep_checkpoints": REPORTS,
    "data.train": PLACE,
    "data.store": PLACE,
    "data.validation": PLACE,
    "data.monitor": PLACE,
    "data.centroids": PLACE,
    "teacher.checkpoint": PLACE,
    "model.start_from": PLACE,
    "data.test": "the final table is of these images",
    "optimizer.learning_rate": COURSE,
    "optimizer.adam_learning_rate": COURSE,
    "optimizer.clip_value": COURSE,
    "optimizer.spike_factor": COURSE,
}
SAME_RESULT = frozenset(key for key, meaning in MAY_DIFFER.items() if meaning not in (COURSE, REPORTS))
"""Keys that change no weight and no row of metrics.jsonl, up to rounding."""


def differing(saved: Config, now: Config, *, same_course: bool = False) -> tuple[list[str], list[str]]:
    """What is to be said of resuming a saved recipe as another one.

    Args:
        saved: the run's.
        now: as it is to be resumed.
        same_course: refuse also what a person may change on the way.

    Returns:
        The keys that would make another run of it; and a line for each other key that differs.
    """
    refused, lines = [], []
    before, after = (one.model_dump(mode="json") for one in (saved, now))
    for key in differences(saved, now):
        meaning = MAY_DIFFER.get(key)
        if meaning is None or (same_course and meaning == COURSE):
            refused.append(key)
        else:
            lines.append(f"{key} was {_value(before, key)} and is {_value(after, key)} now: {meaning}")
    return refused, lines


def _value(values: Any, key: str) -> str:
    for part in key.split("."):
        values = values[part]
    return json.dumps(values)
