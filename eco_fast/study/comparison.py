"""The runs of a comparison and what they show: means over the seeds with 95 % intervals, and paired differences.

A run that is not finished is missing: it is named, and no mean is taken over it. Differences are taken seed by seed, so
that what the arms of a seed have in common, initial weights and samples, cancels out.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eco_fast.config import Config
from eco_fast.study.confidence import interval
from eco_fast.study.variants import Arm, baseline_of
from eco_fast.training.run_folder import read_rows

Scored = dict[str, dict[str, float | None]]
"""By set, the mean scores over its pictures by name; a PSNR of None means identical pictures."""
Curve = dict[int, float]
"""PSNR-Y in dB by the number of steps done."""
LATE = 0.25  # share of the validations over whose end PSNR's fluctuation is taken


@dataclass(frozen=True)
class Run:
    """One training of a comparison.

    Attributes:
        arm: whose it is.
        seed: its.
        folder: its run folder.
        recipe: the whole recipe.
    """

    arm: Arm
    seed: int
    folder: Path
    recipe: Config

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.arm.name} seed={self.seed}"

    @property
    def scores(self) -> Path:
        """Written when everything else is."""
        return self.folder / "scores.json"

    @property
    def finished(self) -> bool:
        """Whether nothing is left to be done."""
        return self.scores.is_file()


@dataclass(frozen=True)
class Outcome:
    """What a finished run has shown.

    Attributes:
        curves: of each set that was scored during training.
        last: scores of the last checkpoint.
        best: of the one with the best validation.
    """

    curves: Mapping[str, Curve]
    last: Scored
    best: Scored


class Comparison:
    """The outcomes of all runs.

    Args:
        arms: in the order of the tables.
        seeds: of each arm.
        sets: names of the sets; the first one chose the best checkpoints.
        outcomes: by arm and seed, of the finished runs.
        teachers: scores of each arm's teacher, where it has one.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        seeds: Sequence[int],
        sets: Sequence[str],
        outcomes: Mapping[tuple[str, int], Outcome],
        teachers: Mapping[str, Scored],
    ) -> None:
        self.arms, self.seeds, self.sets, self.outcomes, self.teachers = arms, seeds, sets, outcomes, teachers
        self.baselines = {arm.name: base.name if (base := baseline_of(arm, arms)) else None for arm in arms}

    @property
    def missing(self) -> list[str]:
        """The runs that are not finished."""
        return [
            f"{arm.name} seed={seed}"
            for seed in self.seeds
            for arm in self.arms
            if (arm.name, seed) not in self.outcomes
        ]

    def of(self, arm: str) -> dict[int, Outcome]:
        """An arm's outcomes by seed."""
        return {seed: self.outcomes[arm, seed] for seed in self.seeds if (arm, seed) in self.outcomes}

    def curves(self, arm: str, name: str) -> dict[int, Curve]:
        """An arm's curves over a set by seed; none where the set was not scored during training."""
        return {seed: one.curves[name] for seed, one in self.of(arm).items() if name in one.curves}

    def paired(self, arm: str, name: str) -> dict[int, Curve]:
        """By seed, an arm's curve minus its baseline's at the steps that both have."""
        baseline = self.baselines[arm]
        if baseline is None:
            return {}
        theirs = self.curves(baseline, name)
        return {
            seed: {step: psnr - theirs[seed][step] for step, psnr in curve.items() if step in theirs[seed]}
            for seed, curve in self.curves(arm, name).items()
            if seed in theirs
        }

    def row(self, arm: Arm, name: str) -> dict[str, Any]:
        """Everything that is said of an arm on a set; NaN where there is nothing to say.

        PSNR in dB, differences as arm minus baseline, each with the half width of its 95 % interval over the seeds.
        """
        outcomes, baseline = self.of(arm.name), self.baselines[arm.name]
        row: dict[str, Any] = {"arm": arm.name, "set": name, "seeds": len(outcomes), "of": len(self.seeds)}
        for which in ("last", "best"):
            for measure in ("psnr_y", "ssim_y"):
                values = [_number(getattr(one, which)[name][measure]) for one in outcomes.values()]
                row |= _named(f"{which}_{measure}", values)
        others = self.of(baseline) if baseline else {}
        shared = outcomes.keys() & others.keys()
        row["baseline"], row["pairs"] = baseline, len(shared)
        for which in ("last", "best"):
            gains = [
                _number(getattr(outcomes[seed], which)[name]["psnr_y"])
                - _number(getattr(others[seed], which)[name]["psnr_y"])
                for seed in sorted(shared)
            ]
            row |= _named(f"{which}_gain", gains)
        half = arm.recipe.train.steps / 2
        early = [[gain for step, gain in one.items() if step <= half] for one in self.paired(arm.name, name).values()]
        row |= _named("early_gain", [statistics.fmean(gains) for gains in early if gains])
        at_steps = [interval(gains) for gains in zip(*early, strict=True)]
        row["early_validations"] = len(at_steps)
        row["early_ahead"] = sum(mean > 0 for mean, _ in at_steps)
        row["early_surely_ahead"] = sum(mean - width > 0 for mean, width in at_steps)
        reached = [
            next((step for step, psnr in curve.items() if psnr >= _last(theirs)), None)
            for curve, theirs in self._with_baseline(arm.name, name)
        ]
        row["raced"], row["reached"] = len(reached), sum(step is not None for step in reached)
        row |= _named("steps_to_reach", [step for step in reached if step is not None] if None not in reached else [])
        tails = [_tail(curve) for curve in self.curves(arm.name, name).values()]
        row |= _named("fluctuation", [statistics.stdev(tail) for tail in tails if len(tail) > 1])
        return row

    def _with_baseline(self, arm: str, name: str) -> list[tuple[Curve, Curve]]:
        baseline = self.baselines[arm]
        theirs = self.curves(baseline, name) if baseline else {}
        return [(curve, theirs[seed]) for seed, curve in self.curves(arm, name).items() if seed in theirs]


def collect(runs: Sequence[Run], sets: Sequence[str], teachers: Mapping[str, Scored]) -> Comparison:
    """Read what the finished runs have written; `teachers` holds scores by checkpoint."""
    arms = {run.arm.name: run.arm for run in runs}
    outcomes = {(run.arm.name, run.seed): _outcome(run, sets) for run in runs if run.finished}
    taught = {
        run.arm.name: teachers[run.recipe.teacher.checkpoint]
        for run in runs
        if run.recipe.needs_centroids and run.recipe.teacher.checkpoint in teachers
    }
    return Comparison(list(arms.values()), sorted({run.seed for run in runs}), sets, outcomes, taught)


def _outcome(run: Run, sets: Sequence[str]) -> Outcome:
    scores = json.loads(run.scores.read_text(encoding="utf-8"))
    rows = read_rows(run.folder)
    curves: dict[str, Curve] = {}
    for name in sets:
        key = "psnr_y" if name == sets[0] else f"psnr_y/{name}"
        if curve := {row["step"]: _number(row[key]) for row in rows if key in row}:
            curves[name] = curve
    return Outcome(curves, scores["last"], scores["best"])


def _number(value: float | None) -> float:
    """A score from JSON."""
    return math.inf if value is None else value


def _named(name: str, values: Sequence[float]) -> dict[str, float]:
    mean, width = interval(values) if values else (math.nan, math.nan)
    return {name: mean, f"{name}_interval": width}


def _last(curve: Curve) -> float:
    return curve[max(curve)]


def _tail(curve: Curve) -> list[float]:
    """The values of the last validations."""
    return list(curve.values())[-max(round(LATE * len(curve)), 2) :]
