"""`eco-fast compare --tune`: the values with which each variant is compared, picked on the validation images.

Every variant is trained with each of the values, by seeds of their own, and takes those whose last checkpoints score
best on average.

DIR/tuning/VARIANT_KEY=VALUE/seed=S/    a run folder, as those in DIR/runs/
DIR/tuning.csv                          one row for each variant and value
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eco_fast.study.comparison import PlannedRun
from eco_fast.study.confidence import format_interval, interval
from eco_fast.study.variants import Variant
from eco_fast.utils.files import name_damaged
from eco_fast.utils.table_io import Table, write_csv


@dataclass(frozen=True)
class Pick:
    """What tuning found for a variant.

    Attributes:
        variant: as it was asked for.
        tried: it with each of the values.
        scores: PSNR-Y in dB on the validation images by seed, for each of `tried`; none where a run of it failed.
        picked: the one of `tried` with the best mean.
    """

    variant: Variant
    tried: Sequence[Variant]
    scores: Sequence[Sequence[float]]
    picked: Variant

    @property
    def ends(self) -> dict[str, str]:
        """By key, "smallest" or "largest" where the picked number is the one of those tried."""
        found = {}
        for key, value in self.picked.tuned.items():
            values = [one.tuned[key] for one in self.tried]
            if isinstance(value, int | float) and not isinstance(value, bool) and value in (min(values), max(values)):
                found[key] = "smallest" if value == min(values) else "largest"
        return found

    def label(self, one: Variant) -> str:
        """What tells one of `tried` from the others: "learning_rate=0.001"."""
        return one.name.removeprefix(f"{self.variant.name}_")


def pick(variant: Variant, tried: Sequence[Variant], runs: Sequence[PlannedRun], validation: str) -> Pick:
    """Choose a variant's values; the first of equals.

    Args:
        variant: as it was asked for.
        tried: it with each of the values.
        runs: those of tuning, of this and of other variants.
        validation: the set that decides.

    Raises:
        ValueError: no value was trained to its end.
    """
    scores = [_scores([run for run in runs if run.variant == one], validation) for one in tried]
    if not any(scores):
        raise ValueError(
            f"variant {variant.name!r}: none of the values of --tune could be trained to the end; name other values"
        )
    best = max((number for number, some in enumerate(scores) if some), key=lambda one: statistics.fmean(scores[one]))
    return Pick(variant, tried, scores, tried[best])


def _scores(runs: Sequence[PlannedRun], validation: str) -> list[float]:
    if not all(run.finished for run in runs):
        return []
    scores = []
    for run in runs:
        with name_damaged(run.scores):
            scores.append(float(json.loads(run.scores.read_text(encoding="utf-8"))["last"][validation]["psnr_y"]))
    return scores


def describe_pick(found: Pick) -> str:
    """One line for people."""
    line = f"tuned: {found.variant.name}: {found.label(found.picked)}"
    ends = [f"the {end} {key} tried: name a {_beyond(end)} one too" for key, end in found.ends.items()]
    return "; ".join([line, *ends])


def _beyond(end: str) -> str:
    return end.replace("est", "er")


def tuning_table(picks: Sequence[Pick]) -> Table:
    """The scores of all values, a row for each variant."""
    labels = list(dict.fromkeys(found.label(one) for found in picks for one in found.tried))
    rows = []
    for found in picks:
        cells = {found.label(one): _cell(some) for one, some in zip(found.tried, found.scores, strict=True)}
        ends = ", ".join(f"{end} {key.rpartition('.')[2]}" for key, end in found.ends.items())
        rows.append([found.variant.name, *(cells[one] for one in labels), found.label(found.picked), ends])
    title = "Tuning: PSNR-Y of the validation images (dB), mean over seeds that are not scored and 95 % interval"
    return Table(title, ["variant", *labels, "picked", "at the end of what was tried"], rows)


def _cell(scores: Sequence[float]) -> str:
    return format_interval(*interval(scores), 3) if scores else "failed"


def write_tuning(folder: Path, picks: Sequence[Pick]) -> None:
    """Write all scores for programs: one row for each variant and value, PSNR-Y in dB, empty where a run failed."""
    rows: list[Mapping[str, Any]] = []
    for found in picks:
        for one, some in zip(found.tried, found.scores, strict=True):
            mean, width = interval(some) if some else (None, None)
            which = {"variant": found.variant.name, **one.tuned, "picked": one == found.picked}
            end = " ".join(found.ends.values()) if one == found.picked else ""
            rows.append({**which, "end": end, "seeds": len(some), "psnr_y": mean, "interval": width})
    write_csv(folder / "tuning.csv", rows)
