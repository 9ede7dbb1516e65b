"""`eco-fast report`: the page of a comparison, from the files in its folder; or of a run."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from eco_fast import config
from eco_fast.config import Config
from eco_fast.config.paper import nearest, paper_scores
from eco_fast.study.comparison_report import seed_bands
from eco_fast.training.crops import SAMPLES, StoredCrop, read_crops
from eco_fast.training.report.charts import Chart, Point, Series, drawn
from eco_fast.training.report.elements import Html, element, section, text_table
from eco_fast.training.report.page import write_page
from eco_fast.training.report.run_report import write_run_report
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
from eco_fast.utils.table_io import read_markdown

TABLE = "table.md"
MOST_BYTES = 1_500_000  # of the crops of a page

Records = Sequence[Mapping[str, str]]
"""Rows of a CSV file."""


def write_report(folder: Path) -> Path:
    """Write report.html into the folder of a run or of a comparison; returns its path.

    Raises:
        ValueError: it is neither, or something in it is damaged; names it.
    """
    if (folder / RECIPE).is_file():
        return write_run_report(folder)
    if (folder / TABLE).is_file():
        return write_comparison_page(folder)
    raise ValueError(
        f"{folder}: expected a run or a comparison, but it holds neither {RECIPE} nor {TABLE}; name one, such as "
        "runs/mine"
    )


def write_comparison_page(folder: Path) -> Path:
    """Write report.html of a comparison; returns its path.

    Raises:
        ValueError: something in the folder is damaged; names it.
    """
    records = _read_csv(folder / "table.csv")
    with name_damaged(folder / "table.csv"):
        names, sets = (list(dict.fromkeys(row[key] for row in records)) for key in ("variant", "set"))
    variants = {name: sorted((folder / "runs" / name).glob(f"seed=*/{RECIPE}")) for name in names}
    runs = {name: [path.parent for path in paths] for name, paths in variants.items() if paths}
    every = [run for some in runs.values() for run in some]
    trained = [*every, *(path.parent for path in sorted(folder.glob(f"teachers/*/{RECIPE}")))]
    recipes = {name: config.load(str(some[0] / RECIPE)) for name, some in runs.items()}
    with name_damaged(folder / "curves.csv"):
        charts, data = drawn(curves_over_seeds(_read_csv(folder / "curves.csv"), _read_csv(folder / "differences.csv")))
    labels = {where: where.relative_to(folder).as_posix() for where in trained}
    return write_page(
        folder,
        f"{folder.resolve().name}: eco-fast",
        [
            _head(folder, runs, recipes),
            _tables(folder, sets, recipes),
            section("Curves", charts),
            crops_section(slides_over_variants(runs)),
            skipped_section({label: read_rows(where) for where, label in labels.items()}),
            _recipes(runs, recipes),
            machine_section([(label, start) for where, label in labels.items() for start in starts_of(where)]),
            hashes_section({f"{label}/": where for where, label in labels.items()}, "scores.json", folder),
        ],
        {"charts": data},
    )


def _read_csv(path: Path) -> Records:
    with name_damaged(path), path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _head(folder: Path, runs: Mapping[str, Sequence[Path]], recipes: Mapping[str, Config]) -> Html:
    first = next(iter(recipes.values()), Config())
    facts = {
        "comparison": f"{len(runs)} variants, {sum(map(len, runs.values()))} runs",
        "network": f"{first.model.name} x{first.scale}",
        "training": f"{first.train.steps:,} steps of {first.train.batch_size} patches",
    }
    return page_head(folder, first.description, facts)


def _tables(folder: Path, sets: Sequence[str], recipes: Mapping[str, Config]) -> Html:
    """The comparison's own tables, what is missing in them, and the paper's rows of the variants."""
    text = (folder / TABLE).read_text(encoding="utf-8")
    parts: list[Html] = []
    for one in read_markdown(text):
        parts += [element("p", one.title), text_table(one.columns, one.rows, one.title)]
    parts += [element("p", line) for line in text.split("\n") if line.startswith("missing: ")]
    rows = []
    for name, recipe in recipes.items():
        closest = nearest(recipe)
        if closest and (scores := paper_scores(closest.recipe, sets)):
            cells = ("{:.2f} / {:.4f}".format(*scores[one]) if one in scores else "" for one in sets)
            rows.append([name, closest.recipe.paper.row, *cells])
    if rows:
        parts += [element("p", "The paper's PSNR-Y (dB) / SSIM-Y."), text_table(["", "row", *sets], rows, "The paper")]
    return section("Scores", *parts)


def curves_over_seeds(curves: Records, differences: Records) -> list[Chart]:
    """For each set PSNR-Y of the variants over the steps, and minus their baselines': means and 95 % intervals."""
    values: dict[str, dict[str, dict[str, dict[int, float]]]] = {}  # by set, variant, seed and step
    for row in curves:
        if row["psnr_y"]:
            seeds = values.setdefault(row["set"], {}).setdefault(row["variant"], {})
            seeds.setdefault(row["seed"], {})[int(row["step"])] = float(row["psnr_y"])
    charts = []
    for name, variants in values.items():
        means = [
            Series(variant, [_point(step, *band) for step, band in seed_bands(seeds).items()])
            for variant, seeds in variants.items()
        ]
        gains: dict[str, list[Point]] = {variant: [] for variant in variants}  # the same colours
        for row in differences:
            if row["set"] == name and row["mean"]:
                width = float(row["interval"]) if row["interval"] else math.nan
                gains[row["variant"]].append(_point(int(row["step"]), float(row["mean"]), width))
        charts.append(Chart(f"PSNR-Y of {name} (dB): mean over the seeds, 95 % interval", means))
        charts.append(Chart(f"{name}: minus vanilla (dB)", [Series(*one) for one in gains.items()]))
    return charts


def _point(step: int, mean: float, width: float) -> Point:
    width = 0.0 if math.isnan(width) else width
    return step, mean, mean - width, mean + width


def slides_over_variants(runs: Mapping[str, Sequence[Path]]) -> list[Slides]:
    """The crops of the first run of each variant, as many images as the page has room for."""
    crops = {
        name: {crop.image: crop for crop in found}
        for name, some in runs.items()
        if (found := next(filter(None, (read_crops(run / SAMPLES) for run in some)), []))
    }
    slides, left = [], MOST_BYTES
    for image in next(iter(crops.values()), {}):
        panels = dict(_panels({name: of[image] for name, of in crops.items() if image in of}))
        left -= sum(file.stat().st_size for file in panels.values())
        if left < 0:
            break
        slides.append(Slides(image, panels, (2, len(panels) - 2)))
    return slides


def _panels(crops: Mapping[str, StoredCrop]) -> Iterator[tuple[str, Path]]:
    first = next(iter(crops.values()))
    yield "LR", first.panels["LR"]
    yield f"bicubic, {first.psnr_y['bicubic']:.2f} dB", first.panels["bicubic"]
    for name, crop in crops.items():
        yield f"{name}, {crop.psnr_y['SR']:.2f} dB", crop.panels["SR"]
    yield "HR", first.panels["HR"]


def _recipes(runs: Mapping[str, Sequence[Path]], recipes: Mapping[str, Config]) -> Html:
    items: list[Html] = []
    for name, recipe in recipes.items():
        items += [element("h3", name), element("p", nearest_in_words(recipe)), recipe_text(runs[name][0])]
    return section("Recipes", *items)
