"""The files of a comparison: tables, curves, and the numbers of both.

table.csv         one row for each variant and set, with everything `Comparison.row` knows
table.md          what is printed
curves.csv        PSNR-Y of each run at each validation
differences.csv   variant minus baseline at each validation: mean over the seeds and half width of the 95 % interval
curves.png        PSNR-Y over the steps: all, the first half, and minus the baseline; with 95 % intervals
tuning.csv        of `--tune`: the scores of all values that were tried
teachers.png      gain over the baseline against the teacher's lead over it, where there are several teachers
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from eco_fast.study.comparison import Comparison, Curve, Scored
from eco_fast.study.confidence import draw_band, format_interval, interval
from eco_fast.study.tuning import Pick, tuning_table, write_tuning
from eco_fast.training.figures import save_figure
from eco_fast.utils.files import write_text
from eco_fast.utils.table_io import Table, write_csv


def write_comparison(folder: Path, comparison: Comparison, picks: Sequence[Pick] = ()) -> None:
    """Write all files; `picks` is what tuning found."""
    rows = [comparison.row(variant, name) for name in comparison.sets for variant in comparison.variants]
    write_csv(folder / "table.csv", rows)
    missing = "".join(f"missing: {name}\n" for name in comparison.missing)
    write_text(folder / "table.md", "\n".join([*(table.markdown() for table in _tables(comparison, picks)), missing]))
    if picks:
        write_tuning(folder, picks)
    curves = [
        {"set": name, "variant": variant.name, "seed": seed, "step": step, "psnr_y": psnr}
        for name in comparison.sets
        for variant in comparison.variants
        for seed, curve in comparison.curves(variant.name, name).items()
        for step, psnr in curve.items()
    ]
    write_csv(folder / "curves.csv", curves)
    differences = [
        {
            "set": name,
            "variant": variant.name,
            "baseline": comparison.baselines[variant.name],
            "step": step,
            "mean": mean,
            "interval": width,
            "seeds": len(one),
        }
        for name in comparison.sets
        for variant in comparison.variants
        for one in (comparison.differences(variant.name, name),)
        for step, (mean, width) in seed_bands(one).items()
    ]
    write_csv(folder / "differences.csv", differences)
    draw_comparison(folder / "curves.png", comparison)
    if len({str(sorted(scores.items())) for scores in comparison.teachers.values()}) > 1:
        draw_teachers(folder / "teachers.png", comparison, rows)


def show_comparison(folder: Path, comparison: Comparison, picks: Sequence[Pick] = ()) -> None:
    """Print the tables, and what is missing."""
    for table in _tables(comparison, picks):
        table.show()
    for name in comparison.missing:
        print(f"missing: {name}")
    print(f"tables, curves and their numbers: {folder}")


def draw_comparison(path: Path, comparison: Comparison) -> None:
    """A row of panels for each set that was scored during training."""
    variants = comparison.variants
    sets = [name for name in comparison.sets if any(comparison.curves(one.name, name) for one in variants)]
    figure = Figure(figsize=(12, 0.6 + 3.4 * max(len(sets), 1)), layout="constrained")
    for name, (whole, early, gain) in zip(sets, figure.subplots(max(len(sets), 1), 3, squeeze=False), strict=False):
        for number, variant in enumerate(variants):
            curves, half = comparison.curves(variant.name, name), variant.recipe.train.steps / 2
            first = {seed: {step: psnr for step, psnr in one.items() if step <= half} for seed, one in curves.items()}
            for axes, curve in ((whole, curves), (early, first), (gain, comparison.differences(variant.name, name))):
                if band := seed_bands(curve):
                    draw_band(axes, list(band), list(band.values()), variant.name, f"C{number}")
        whole.set(title=f"{name}: whole training", ylabel="PSNR-Y (dB)")
        early.set(title=f"{name}: first half", ylabel="PSNR-Y (dB)")
        gain.set(title=f"{name}: variant minus vanilla", ylabel="difference in PSNR-Y (dB)")
        gain.axhline(0, color="grey", linewidth=1)
        for axes in (whole, early, gain):
            axes.set_xlabel("step")
            axes.grid(alpha=0.3)
        if whole.lines:
            whole.legend(fontsize="small")
    save_figure(figure, path)


def draw_teachers(path: Path, comparison: Comparison, rows: Sequence[Mapping[str, Any]]) -> None:
    """Gain of each variant, early and at the end, against how far its teacher is ahead of the baseline's end."""
    figure = Figure(figsize=(5.2 * len(comparison.sets), 7), layout="constrained")
    panels = figure.subplots(2, len(comparison.sets), squeeze=False)
    for column, name in zip(panels.T, comparison.sets, strict=True):
        points = teacher_points(comparison, [row for row in rows if row["set"] == name])
        for axes, key, label in ((column[0], "early_gain", "first half"), (column[1], "last_gain", "end")):
            for number, objective in enumerate(dict.fromkeys(point["objective"] for point in points)):
                some = [point for point in points if point["objective"] == objective]
                some.sort(key=lambda point: point["lead"])
                x, y, width = ([point[one] for point in some] for one in ("lead", key, f"{key}_interval"))
                axes.errorbar(x, y, yerr=width, label=objective, color=f"C{number + 1}", marker="o", capsize=3)
            axes.axhline(0, color="grey", linewidth=1)
            axes.axvline(0, color="grey", linewidth=1)
            axes.set(title=f"{name}: {label}", ylabel="variant minus vanilla, PSNR-Y (dB)")
            axes.set_xlabel("teacher minus vanilla's end, PSNR-Y (dB)")
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")
    save_figure(figure, path)


def teacher_points(comparison: Comparison, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The gains of each variant with a teacher and a baseline, and its teacher's lead over the baseline's end in dB."""
    ends = {row["variant"]: row["last_psnr_y"] for row in rows}
    recipes = {variant.name: variant.recipe for variant in comparison.variants}
    return [
        {
            **row,
            "objective": recipes[row["variant"]].objective.name,
            "lead": comparison.teachers[row["variant"]][row["set"]]["psnr_y"] - ends[row["baseline"]],
        }
        for row in rows
        if row["variant"] in comparison.teachers and row["pairs"]
    ]


def _tables(comparison: Comparison, picks: Sequence[Pick]) -> list[Table]:
    """A table of each set, and one of the tuning."""
    tables = []
    for name in comparison.sets:
        variants = [_cells(comparison.row(variant, name)) for variant in comparison.variants]
        blank, teachers = dict.fromkeys(variants[0], ""), []
        for label, scores in _teachers(comparison):
            psnr, ssim = f"{scores[name]['psnr_y']:.3f}", f"{scores[name]['ssim_y']:.4f}"
            teachers.append(blank | {"variant": label, "last PSNR-Y": psnr, "last SSIM-Y": ssim})
        title = f"{name}: mean over the seeds and 95 % interval; PSNR in dB"
        tables.append(Table(title, list(blank), [list(row.values()) for row in [*teachers, *variants]]))
    return [*tables, tuning_table(picks)] if picks else tables


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    """A row of `Comparison` for people, by column."""
    return {
        "variant": row["variant"],
        "runs": f"{row['seeds']} of {row['of']}" + (" missing" if row["seeds"] < row["of"] else ""),
        "last PSNR-Y": _cell(row, "last_psnr_y", 3),
        "last SSIM-Y": _cell(row, "last_ssim_y", 4),
        "best PSNR-Y": _cell(row, "best_psnr_y", 3),
        "best SSIM-Y": _cell(row, "best_ssim_y", 4),
        "last - vanilla": _cell(row, "last_gain", 3, "+"),
        "first half - vanilla": _cell(row, "early_gain", 3, "+"),
        "ahead early": f"{row['early_ahead']} of {row['early_validations']}" if row["early_validations"] else "",
        "steps to vanilla's end": _reached(row),
        "std late": format_interval(row["fluctuation"], math.nan, 3),
    }


def _teachers(comparison: Comparison) -> list[tuple[str, Scored]]:
    """The teachers, each once, named after the variants that they serve."""
    served: dict[str, list[str]] = {}
    for variant, scores in comparison.teachers.items():
        served.setdefault(str(scores), []).append(variant)
    labels = ["teacher"] if len(served) == 1 else [f"teacher of {_common_end(names)}" for names in served.values()]
    teachers = [comparison.teachers[names[0]] for names in served.values()]
    return list(zip(labels, teachers, strict=True))


def _common_end(names: Sequence[str]) -> str:
    """What the names of all variants end with after an underscore (steps=4000), or the first one."""
    end = os.path.commonprefix([name[::-1] for name in names])[::-1]  # noqa: RUF071 - of characters is what is meant
    return end.partition("_")[2] or names[0]


def _cell(row: Mapping[str, Any], key: str, places: int, sign: str = "") -> str:
    return format_interval(row[key], row[f"{key}_interval"], places, sign)


def _reached(row: Mapping[str, Any]) -> str:
    if not row["raced"]:
        return ""
    if row["reached"] < row["raced"]:
        return f"{row['reached']} of {row['raced']} reach it"
    return _cell(row, "steps_to_reach", 0)


def seed_bands(curves: Mapping[Any, Curve]) -> dict[int, tuple[float, float]]:
    """Mean and half width of the interval over some curves, those of the seeds, at the steps that all have."""
    steps = sorted(set.intersection(*(set(curve) for curve in curves.values()))) if curves else []
    return {step: interval([curve[step] for curve in curves.values()]) for step in steps}
