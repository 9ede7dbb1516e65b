"""The runs of a comparison and their statistics: means over the seeds with 95 % intervals, and paired differences.

Missing runs are listed and excluded from the means. Differences are taken seed by seed, so that what the variants of a
seed share, initial weights and samples, cancels out.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eco_fast.config import Config
from eco_fast.study.confidence import interval
from eco_fast.study.variants import Variant, baseline_of
from eco_fast.training.run_folder import read_rows
from eco_fast.utils.files import name_damaged

Scored = dict[str, dict[str, float]]
"""By set and measure, the mean score over the images."""
StoredScores = dict[str, dict[str, float | None]]
"""The same in JSON, where an infinite score is null."""
Curve = dict[int, float]
"""PSNR-Y in dB by the number of steps done."""
LATE = 0.25  # share of the validations, the last ones, over which the fluctuation is taken


@dataclass(frozen=True)
class PlannedRun:
    """One training of a comparison.

    Attributes:
        variant: what is trained.
        seed: its seed.
        folder: its run folder.
        recipe: the variant's, with this seed and the teacher's checkpoint.
    """

    variant: Variant
    seed: int
    folder: Path
    recipe: Config

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.variant.name} seed={self.seed}"

    @property
    def scores(self) -> Path:
        """Its scores, written last."""
        return self.folder / "scores.json"

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.scores.is_file()


@dataclass(frozen=True)
class Outcome:
    """The results of a finished run.

    Attributes:
        curves: by set that was scored during training.
        last: scores of the last checkpoint.
        best: scores of the checkpoint with the best validation.
    """

    curves: Mapping[str, Curve]
    last: Scored
    best: Scored


@dataclass(frozen=True)
class Comparison:
    """The outcomes of all runs.

    Attributes:
        variants: in the order of the tables.
        seeds: of each variant.
        sets: names of the sets; the first one chose the best checkpoints.
        outcomes: by variant and seed, of the finished runs.
        teachers: scores of each variant's teacher, where it has one.
    """

    variants: Sequence[Variant]
    seeds: Sequence[int]
    sets: Sequence[str]
    outcomes: Mapping[tuple[str, int], Outcome]
    teachers: Mapping[str, Scored]

    @cached_property
    def baselines(self) -> dict[str, str]:
        """The name of each variant's baseline, or "" where it has none."""
        found = {variant.name: baseline_of(variant, self.variants) for variant in self.variants}
        return {name: baseline.name if baseline else "" for name, baseline in found.items()}

    @property
    def missing(self) -> list[str]:
        """The runs that are not finished."""
        return [
            f"{variant.name} seed={seed}"
            for seed in self.seeds
            for variant in self.variants
            if (variant.name, seed) not in self.outcomes
        ]

    def of(self, variant: str) -> dict[int, Outcome]:
        """A variant's outcomes by seed."""
        return {seed: self.outcomes[variant, seed] for seed in self.seeds if (variant, seed) in self.outcomes}

    def curves(self, variant: str, name: str) -> dict[int, Curve]:
        """A variant's curves over a set by seed; none where the set was not scored during training."""
        return {seed: one.curves[name] for seed, one in self.of(variant).items() if name in one.curves}

    def pairs(self, variant: str, name: str) -> dict[int, tuple[Curve, Curve]]:
        """By seed, a variant's curve and its baseline's, of the seeds that both have."""
        own, baseline = self.curves(variant, name), self.curves(self.baselines[variant], name)
        return {seed: (own[seed], baseline[seed]) for seed in own if seed in baseline}

    def differences(self, variant: str, name: str) -> dict[int, Curve]:
        """By seed, a variant's curve minus its baseline's at the steps that both have."""
        return {
            seed: {step: psnr - baseline[step] for step, psnr in own.items() if step in baseline}
            for seed, (own, baseline) in self.pairs(variant, name).items()
        }

    def row(self, variant: Variant, name: str) -> dict[str, Any]:
        """All statistics of a variant on a set; NaN where there are none.

        PSNR in dB, differences as variant minus baseline, each with the half width of its 95 % interval over the seeds.
        """
        outcomes, baselines = self.of(variant.name), self.of(self.baselines[variant.name])
        shared = sorted(outcomes.keys() & baselines.keys())
        row: dict[str, Any] = {"variant": variant.name, "set": name, "seeds": len(outcomes), "of": len(self.seeds)}
        for which in ("last", "best"):
            for measure in ("psnr_y", "ssim_y"):
                values = [getattr(one, which)[name][measure] for one in outcomes.values()]
                row |= _named(f"{which}_{measure}", values)
        row |= {"baseline": self.baselines[variant.name], "pairs": len(shared)}
        for which in ("last", "best"):
            own, theirs = (
                [getattr(of[seed], which)[name]["psnr_y"] for seed in shared] for of in (outcomes, baselines)
            )
            row |= _named(f"{which}_gain", [psnr - other for psnr, other in zip(own, theirs, strict=True)])
        return row | self._early(variant, name) | self._late(variant, name)

    def _early(self, variant: Variant, name: str) -> dict[str, float]:
        """The gain over the baseline in the first half of the training."""
        half, gains = variant.recipe.train.steps / 2, self.differences(variant.name, name).values()
        early = [[gain for step, gain in one.items() if step <= half] for one in gains]
        at_steps = [interval(some) for some in zip(*early, strict=True)]
        return {
            **_named("early_gain", [statistics.fmean(one) for one in early if one]),
            "early_validations": len(at_steps),
            "early_ahead": sum(mean > 0 for mean, _ in at_steps),
            "early_surely_ahead": sum(mean - width > 0 for mean, width in at_steps),
        }

    def _late(self, variant: Variant, name: str) -> dict[str, float]:
        """The first validation that reaches the baseline's last one, and how much the last ones fluctuate."""
        reached = [
            next((step for step, psnr in own.items() if psnr >= baseline[max(baseline)]), None)
            for own, baseline in self.pairs(variant.name, name).values()
        ]
        tails = [
            list(one.values())[-max(round(LATE * len(one)), 2) :] for one in self.curves(variant.name, name).values()
        ]
        return {
            "raced": len(reached),
            "reached": sum(step is not None for step in reached),
            **_named("steps_to_reach", [step for step in reached if step is not None] if None not in reached else []),
            **_named(
                "fluctuation", [statistics.stdev(tail) for tail in tails if len(tail) > 1 and math.inf not in tail]
            ),
        }


def collect(runs: Sequence[PlannedRun], sets: Sequence[str], teachers: Mapping[str, StoredScores]) -> Comparison:
    """Read what the finished runs have written; `teachers` holds scores by checkpoint."""
    variants = {run.variant.name: run.variant for run in runs}
    outcomes = {(run.variant.name, run.seed): _outcome(run, sets) for run in runs if run.finished}
    by_variant = {
        run.variant.name: _numbers(teachers[run.recipe.teacher.checkpoint])
        for run in runs
        if run.recipe.needs_centroids and run.recipe.teacher.checkpoint in teachers
    }
    return Comparison(list(variants.values()), sorted({run.seed for run in runs}), sets, outcomes, by_variant)


def _outcome(run: PlannedRun, sets: Sequence[str]) -> Outcome:
    with name_damaged(run.scores):
        scores = json.loads(run.scores.read_text(encoding="utf-8"))
        last, best = (_numbers(scores[which]) for which in ("last", "best"))
    keys = {name: f"psnr_y/{name}" for name in sets} | {sets[0]: "psnr_y"}
    rows = read_rows(run.folder)
    curves = {name: {row["step"]: _number(row[key]) for row in rows if key in row} for name, key in keys.items()}
    return Outcome({name: one for name, one in curves.items() if one}, last, best)


def _numbers(scores: StoredScores) -> Scored:
    return {name: {measure: _number(value) for measure, value in one.items()} for name, one in scores.items()}


def _number(value: float | None) -> float:
    return math.inf if value is None else value


def _named(name: str, values: Sequence[float]) -> dict[str, float]:
    mean, width = interval(values) if values else (math.nan, math.nan)
    return {name: mean, f"{name}_interval": width}
