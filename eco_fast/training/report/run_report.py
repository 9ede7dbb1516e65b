"""The report of one run, finished or not, from what its folder holds."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eco_fast import config
from eco_fast.config import Config
from eco_fast.config.paper import nearest, paper_scores
from eco_fast.data.noise import describe_noise
from eco_fast.training.crops import SAMPLES, read_crops
from eco_fast.training.figures import SUMMARY_ROWS
from eco_fast.training.report.charts import Chart, Series, curve, drawn
from eco_fast.training.report.elements import Html, element, section, text_table
from eco_fast.training.report.page import write_page
from eco_fast.training.report.sections import (
    Slides,
    crops_section,
    hashes_section,
    machine_section,
    nearest_in_words,
    page_head,
    recipe_text,
    skipped_section,
)
from eco_fast.training.run_folder import RECIPE, read_rows, starts_of
from eco_fast.utils.files import name_damaged
from eco_fast.utils.progress import duration_in_words

AXES = {
    "loss": "training loss (grey levels)",
    "psnr_y": "validation PSNR-Y (dB)",
    "alpha": "alpha, weight of the real pair",
    "learning_rate": "learning rate",
}


def write_run_report(folder: Path) -> Path:
    """Write RUN/report.html; returns its path.

    Raises:
        ValueError: something in the folder is damaged; names it.
    """
    recipe = config.load(str(folder / RECIPE))
    summary = _read_summary(folder)
    trainings = {"student": folder, "baseline": folder / "baseline", "teacher": folder / "teacher"}
    trainings = {name: where for name, where in trainings.items() if (where / RECIPE).is_file()}
    rows = {name: read_rows(where) for name, where in trainings.items()}
    charts, data = drawn(charts_of(rows))
    starts = [(f"start {number}", start) for number, start in enumerate(starts_of(folder), 1)]
    prefixes = {f"{where.relative_to(folder)}/".removeprefix("./"): where for where in trainings.values()}
    return write_page(
        folder,
        f"{folder.resolve().name}: eco-fast",
        [
            _head(folder, recipe, summary, rows["student"]),
            _scores(recipe, summary),
            section("Curves", charts),
            crops_section(slides_of(folder)),
            skipped_section(rows),
            section("Recipe", element("p", nearest_in_words(recipe)), *map(recipe_text, trainings.values())),
            machine_section(starts),
            hashes_section(prefixes, "summary.json", folder),
        ],
        {"charts": data},
    )


def _read_summary(folder: Path) -> dict[str, Any]:
    """What summary.json holds; nothing of a run that is not finished."""
    path = folder / "summary.json"
    with name_damaged(path):
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _head(folder: Path, recipe: Config, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Html:
    done = max((row["step"] for row in rows), default=0)
    state = "finished" if summary else "not finished"
    train, optimizer = recipe.train, recipe.optimizer
    starts = starts_of(folder)
    facts = _result(summary) | {
        "state": f"{state}, {done:,} of {train.steps:,} steps",
        "network": f"{recipe.model.name} x{recipe.scale}",
        "objective": f"{recipe.objective.name}, {recipe.objective.loss}",
        "optimizer": f"{optimizer.name}, {optimizer.learning_rate:.2e}, {optimizer.schedule}",
        "batch": f"{train.batch_size} patches of {recipe.data.patch}x{recipe.data.patch} LR pixels",
        "device": starts[-1]["device"] if starts else "unknown",
    }
    if seconds := summary.get("seconds"):
        stages = ", ".join(f"{stage} {duration_in_words(one)}" for stage, one in seconds.items())
        facts["time"] = f"{duration_in_words(sum(seconds.values()))}: {stages}"
    return page_head(folder, recipe.description, facts)


def _result(summary: Mapping[str, Any]) -> dict[str, str]:
    """The student's PSNR-Y, and how far it is above the others'."""
    psnr = {name: summary[name]["psnr_y"] for name in SUMMARY_ROWS if name in summary}
    if psnr.get("student") is None:
        return {}
    others = {name: one for name, one in psnr.items() if name != "student" and one is not None}
    gains = "".join(f", {psnr['student'] - one:+.3f} against {name}" for name, one in others.items())
    return {"PSNR-Y": f"{psnr['student']:.3f} dB{gains}"}


def _scores(recipe: Config, summary: Mapping[str, Any]) -> Html:
    """A row per network and its row of the paper, a column per set."""
    sets: Mapping[str, Mapping[str, Mapping[str, float | None]]] = summary.get("sets", {})
    if not sets:
        return section("Scores", element("p", "There are none: no images were scored, or not yet."))
    rows = [
        [name, *(_cell(sets[one][name]["psnr_y"], sets[one][name]["ssim_y"], 3) for one in sets)]
        for name in SUMMARY_ROWS
        if name in summary
    ]
    for name, own in (("baseline", recipe.vanilla), ("student", recipe)):
        closest = nearest(own) if name in summary else None
        paper = paper_scores(closest.recipe, sets) if closest else {}
        if closest and paper:
            cells = [_cell(*paper[one], 2) if one in paper else "" for one in sets]
            rows.append([f"paper, {closest.recipe.paper.row} (for the {name})", *cells])
    noise = f", LR {describe_noise(summary['noise_sigma'])}" if "noise_sigma" in summary else ""
    said = f"PSNR-Y (dB) / SSIM-Y, means over each set at x{recipe.scale}{noise}."
    return section("Scores", element("p", said), text_table(["", *sets], rows, "Scores"))


def _cell(psnr: float | None, ssim: float | None, places: int) -> str:
    assert ssim is not None, "no SSIM is infinite"
    return f"{math.inf if psnr is None else psnr:.{places}f} / {ssim:.4f}"


def charts_of(trainings: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Chart]:
    """The charts of some trainings, by name: what `draw_curves` shows, and PSNR-Y of the monitored sets."""
    monitored = {key for rows in trainings.values() for row in rows for key in row if key.startswith("psnr_y/")}
    axes = AXES | {key: f"PSNR-Y of {key.partition('/')[2]} (dB)" for key in sorted(monitored)}
    return [
        Chart(label, [Series(name, curve(rows, key), shown=name != "teacher") for name, rows in trainings.items()])
        for key, label in axes.items()
    ]


def slides_of(folder: Path) -> list[Slides]:
    """The crops of a run's student."""
    return [
        Slides(
            crop.image,
            {
                f"{panel}, {crop.psnr_y[panel]:.2f} dB" if panel in crop.psnr_y else panel: file
                for panel, file in crop.panels.items()
            },
            (1, 2),
        )
        for crop in read_crops(folder / SAMPLES)
    ]
