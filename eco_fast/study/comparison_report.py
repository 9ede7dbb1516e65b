"""What a comparison shows, as files beside each other: tables, curves, and the numbers of both.

table.csv         one row for each arm and set, with everything `Comparison.row` knows
table.md          what is printed
curves.csv        PSNR-Y of each run at each validation
differences.csv   arm minus baseline at each validation: mean over the seeds and half width of the 95 % interval
curves.png        PSNR-Y over the steps: all, the first half, and minus the baseline; with 95 % intervals
teachers.png      gain over the baseline against the teacher's lead over it, where there are several teachers
"""

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from eco_fast.study.comparison import Comparison, Curve, Scored
from eco_fast.study.confidence import interval
from eco_fast.training.figures import save_figure
from eco_fast.utils.files import write_text
from eco_fast.utils.table_io import WIDTH, print_table, write_csv

CELLS = (
    ("last_psnr_y", 3),
    ("last_ssim_y", 4),
    ("best_psnr_y", 3),
    ("best_ssim_y", 4),
    ("last_gain", 3),
    ("early_gain", 3),
)


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write all files."""
    rows = [comparison.row(arm, name) for name in comparison.sets for arm in comparison.arms]
    write_csv(folder / "table.csv", rows)
    write_text(folder / "table.md", _markdown(comparison))
    curves = [
        {"set": name, "arm": arm.name, "seed": seed, "step": step, "psnr_y": psnr}
        for name in comparison.sets
        for arm in comparison.arms
        for seed, curve in comparison.curves(arm.name, name).items()
        for step, psnr in curve.items()
    ]
    write_csv(folder / "curves.csv", curves)
    differences = [
        {"set": name, "arm": arm.name, "baseline": comparison.baselines[arm.name], "step": step, **values}
        for name in comparison.sets
        for arm in comparison.arms
        for step, values in _band(comparison.paired(arm.name, name)).items()
    ]
    write_csv(folder / "differences.csv", differences)
    draw_curves(folder / "curves.png", comparison)
    if len({str(sorted(scores.items())) for scores in comparison.teachers.values()}) > 1:
        draw_teachers(folder / "teachers.png", comparison, rows)


def show_comparison(folder: Path, comparison: Comparison) -> None:
    """Print the tables, and what is missing."""
    for table in _tables(comparison):
        print_table(table)
    for name in comparison.missing:
        print(f"missing: {name}")
    print(f"tables, curves and their numbers: {folder}")


def draw_curves(path: Path, comparison: Comparison) -> None:
    """A row of panels for each set that was scored during training."""
    sets = [name for name in comparison.sets if any(comparison.curves(arm.name, name) for arm in comparison.arms)]
    figure = Figure(figsize=(12, 0.6 + 3.4 * max(len(sets), 1)), layout="constrained")
    for name, (whole, early, gain) in zip(sets, figure.subplots(max(len(sets), 1), 3, squeeze=False), strict=False):
        for number, arm in enumerate(comparison.arms):
            curves, half = comparison.curves(arm.name, name), arm.recipe.train.steps / 2
            first = {seed: {step: psnr for step, psnr in one.items() if step <= half} for seed, one in curves.items()}
            for axes, curve in ((whole, curves), (early, first), (gain, comparison.paired(arm.name, name))):
                _draw_band(axes, _band(curve), arm.name, f"C{number}")
        whole.set(title=f"{name}: whole training", ylabel="PSNR-Y (dB)")
        early.set(title=f"{name}: first half", ylabel="PSNR-Y (dB)")
        gain.set(title=f"{name}: arm minus vanilla", ylabel="difference in PSNR-Y (dB)")
        gain.axhline(0, color="grey", linewidth=1)
        for axes in (whole, early, gain):
            axes.set_xlabel("step")
            axes.grid(alpha=0.3)
        if whole.lines:
            whole.legend(fontsize="small")
    save_figure(figure, path)


def draw_teachers(path: Path, comparison: Comparison, rows: Sequence[Mapping[str, Any]]) -> None:
    """Gain of each arm, early and at the end, against how far its teacher is ahead of the baseline's end."""
    figure = Figure(figsize=(5.2 * len(comparison.sets), 7), layout="constrained")
    panels = figure.subplots(2, len(comparison.sets), squeeze=False)
    for column, name in zip(panels.T, comparison.sets, strict=True):
        points = teacher_points(comparison, [row for row in rows if row["set"] == name])
        for axes, key, label in ((column[0], "early_gain", "first half"), (column[1], "last_gain", "end")):
            for number, objective in enumerate(dict.fromkeys(point["objective"] for point in points)):
                some = sorted(
                    (point for point in points if point["objective"] == objective), key=lambda one: one["lead"]
                )
                x, y, width = ([point[one] for point in some] for one in ("lead", key, f"{key}_interval"))
                axes.errorbar(x, y, yerr=width, label=objective, color=f"C{number + 1}", marker="o", capsize=3)
            axes.axhline(0, color="grey", linewidth=1)
            axes.axvline(0, color="grey", linewidth=1)
            axes.set(title=f"{name}: {label}", ylabel="arm minus vanilla, PSNR-Y (dB)")
            axes.set_xlabel("teacher minus vanilla's end, PSNR-Y (dB)")
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")
    save_figure(figure, path)


def teacher_points(comparison: Comparison, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each arm with a teacher and a baseline its gains, and the teacher's lead over the baseline's end in dB."""
    ends = {row["arm"]: row["last_psnr_y"] for row in rows}
    recipes = {arm.name: arm.recipe for arm in comparison.arms}
    return [
        {
            **row,
            "objective": recipes[row["arm"]].objective.name,
            "lead": comparison.teachers[row["arm"]][row["set"]]["psnr_y"] - ends[row["baseline"]],
        }
        for row in rows
        if row["arm"] in comparison.teachers and row["pairs"]
    ]


def _tables(comparison: Comparison) -> list[Table]:
    tables = []
    for name in comparison.sets:
        table = Table(
            "arm",
            "runs",
            "last PSNR-Y",
            "last SSIM-Y",
            "best PSNR-Y",
            "best SSIM-Y",
            "last - vanilla",
            "first half - vanilla",
            "ahead early",
            "steps to vanilla's end",
            "std late",
            title=f"{name}: mean over the seeds and 95 % interval; PSNR in dB",
        )
        for scores in _teachers(comparison):
            table.add_row(scores[0], "", _plain(scores[1][name]["psnr_y"], 3), _plain(scores[1][name]["ssim_y"], 4))
        for arm in comparison.arms:
            row = comparison.row(arm, name)
            table.add_row(
                arm.name,
                f"{row['seeds']} of {row['of']}" + (" missing" if row["seeds"] < row["of"] else ""),
                *(_cell(row, key, places) for key, places in CELLS),
                f"{row['early_ahead']} of {row['early_validations']}" if row["early_validations"] else "",
                _reached(row),
                _plain(row["fluctuation"], 3),
            )
        tables.append(table)
    return tables


def _teachers(comparison: Comparison) -> list[tuple[str, Scored]]:
    """The teachers, each once, by the arms that they serve."""
    arms: dict[str, list[str]] = {}
    scores: dict[str, Scored] = {}
    for arm, one in comparison.teachers.items():
        arms.setdefault(str(one), []).append(arm)
        scores[str(one)] = one
    if len(arms) == 1:
        return [("teacher", one) for one in scores.values()]
    return [(f"teacher of {_common_end(names)}", scores[key]) for key, names in arms.items()]


def _common_end(names: Sequence[str]) -> str:
    """What the names of all arms end with after an underscore (steps=4000), or the first one."""
    end = os.path.commonprefix([name[::-1] for name in names])[::-1]  # noqa: RUF071 - of characters is what is meant
    return end.partition("_")[2] or names[0]


def _markdown(comparison: Comparison) -> str:
    """The tables, and what is missing."""
    file = io.StringIO()
    console = Console(file=file, width=10 * WIDTH)
    for table in _tables(comparison):
        table.box = box.MARKDOWN
        console.print(table)
        console.print()
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    return "\n".join(line.strip() for line in [*lines, *(f"missing: {name}" for name in comparison.missing)]) + "\n"


def _cell(row: Mapping[str, Any], key: str, places: int) -> str:
    width = row[f"{key}_interval"]
    sign = "+" if key.endswith("gain") else ""
    text = _plain(row[key], places, sign)
    return text if math.isnan(width) else f"{text} ± {width:.{places}f}"


def _plain(value: float | None, places: int, sign: str = "") -> str:
    value = math.inf if value is None else value
    return "" if math.isnan(value) else f"{value:{sign}.{places}f}"


def _reached(row: Mapping[str, Any]) -> str:
    if not row["raced"]:
        return ""
    if row["reached"] < row["raced"]:
        return f"{row['reached']} of {row['raced']} reach it"
    return _cell(row, "steps_to_reach", 0)


def _band(curves: Mapping[int, Curve]) -> dict[int, dict[str, float]]:
    """Mean and half width of the interval over the seeds, at the steps that all have."""
    steps = sorted(set.intersection(*(set(curve) for curve in curves.values()))) if curves else []
    band = {}
    for step in steps:
        mean, width = interval([curve[step] for curve in curves.values()])
        band[step] = {"mean": mean, "interval": width, "seeds": len(curves)}
    return band


def _draw_band(axes: Axes, band: Mapping[int, Mapping[str, float]], label: str, color: str) -> None:
    if not band:
        return
    mean = [values["mean"] for values in band.values()]
    width = [0.0 if math.isnan(values["interval"]) else values["interval"] for values in band.values()]
    axes.plot(list(band), mean, label=label, color=color, marker="." if len(band) < 20 else None)
    low, high = ([m + sign * w for m, w in zip(mean, width, strict=True)] for sign in (-1, 1))
    axes.fill_between(list(band), low, high, color=color, alpha=0.2)
