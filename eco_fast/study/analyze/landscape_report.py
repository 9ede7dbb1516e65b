"""The files of `eco-fast analyze landscape`.

landscape.csv     one row for each run, step and length, with all measurements: losses on the 0..255 scale, distances
                  and gradients as l2 norms over the weights
landscape.json    by objective and step, means over the seeds with 95 % intervals; and the differences between the
                  objectives, taken seed by seed
landscape.png     range of the losses, gradient difference and effective beta-smoothness over the steps
"""

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from eco_fast.data.objective import blend_weights_at
from eco_fast.study.analyze.gradient_walk import FIGURES, Measures
from eco_fast.study.analyze.runs import Run
from eco_fast.study.confidence import draw_band, interval
from eco_fast.training.figures import save_figure
from eco_fast.utils.files import write_json
from eco_fast.utils.table_io import Table, write_csv

Curves = Mapping[int, Mapping[tuple[str, str], float]]
"""By seed, then by step and figure (see `FIGURES`); the steps end with "mean" and "largest", over all of them."""
OVERALL: dict[str, Callable[[Sequence[float]], float]] = {"mean": statistics.fmean, "largest": max}


@dataclass(frozen=True)
class StepLandscape:
    """The landscape of a run at one step.

    Attributes:
        run: the run.
        step: steps done.
        unit: l2 distance of a step.
        multiples: the lengths in this unit, [K].
        measures: at these lengths.
    """

    run: Run
    step: int
    unit: float
    multiples: Sequence[float]
    measures: Measures


def write_landscape(folder: Path, found: Sequence[StepLandscape]) -> None:
    """Write all files."""
    write_csv(folder / "landscape.csv", [row for one in found for row in _rows(one)])
    curves = curves_of(found)
    write_json(
        folder / "landscape.json",
        {
            "multiples": list(found[0].multiples),
            "unit": {str(one.step): one.unit for one in found},
            "objectives": {name: _summary(one) for name, one in curves.items()},
            "differences": {name: _summary(one) for name, one in landscape_differences(curves).items()},
        },
    )
    draw_landscape(folder / "landscape.png", curves, found[0].run.config.objective.loss)


def show_landscape(folder: Path, found: Sequence[StepLandscape]) -> None:
    """Print the means over the steps, and where the rest is."""
    curves = curves_of(found)
    columns = ("", "seeds", "lowest loss", "highest loss", "gradient difference", "beta-smoothness", "largest beta")
    rows = []
    for name, one in {**curves, **landscape_differences(curves)}.items():
        band = bands(one)
        cells = [_cell(*band["mean", figure]) for figure in FIGURES] + [_cell(*band["largest", "smoothness"])]
        rows.append([name, str(len(one)), *cells])
    Table("mean over the steps, mean over the seeds, and 95 % interval", columns, rows).show()
    print(f"numbers and plot: {folder}")


def curves_of(found: Sequence[StepLandscape]) -> dict[str, Curves]:
    """By objective, each seed's figures."""
    curves: dict[str, dict[int, dict[tuple[str, str], float]]] = {}
    for one in found:
        values = curves.setdefault(one.run.objective, {}).setdefault(one.run.config.seed, {})
        values |= {(str(one.step), figure): value for figure, value in one.measures.figures.items()}
    for by_seed in curves.values():
        for values in by_seed.values():
            series = {figure: [value for (_, name), value in values.items() if name == figure] for figure in FIGURES}
            values |= {(name, figure): over(series[figure]) for name, over in OVERALL.items() for figure in FIGURES}
    return dict(curves)


def landscape_differences(curves: Mapping[str, Curves]) -> dict[str, Curves]:
    """For each two objectives the later minus the earlier one, at the seeds that both have."""
    return {
        f"{second} - {first}": {
            seed: {key: value - curves[first][seed][key] for key, value in values.items()}
            for seed, values in curves[second].items()
            if seed in curves[first]
        }
        for first, second in itertools.combinations(curves, 2)
        if curves[first].keys() & curves[second].keys()
    }


def bands(curves: Curves) -> dict[tuple[str, str], tuple[float, float]]:
    """By step and figure, the mean over the seeds, and the half width of its 95 % interval (`interval`)."""
    return {key: interval([values[key] for values in curves.values()]) for key in next(iter(curves.values()))}


def draw_landscape(path: Path, curves: Mapping[str, Curves], loss: str) -> None:
    """Three panels: the range of the losses as a band, and two curves with intervals."""
    unit = "squared grey levels" if loss == "l2" else "grey levels"
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    ranges, *others = figure.subplots(1, 3)
    for number, (objective, one) in enumerate(curves.items()):
        band = bands(one)
        names = [step for step, figure in band if figure == FIGURES[0] and step not in OVERALL]
        steps = [int(name) for name in names]
        low, high = ([band[name, key][0] for name in names] for key in ("lowest_loss", "highest_loss"))
        ranges.fill_between(steps, low, high, color=f"C{number}", alpha=0.35, label=objective)
        for axes, key in zip(others, ("gradient_difference", "smoothness"), strict=True):
            draw_band(axes, steps, [band[step, key] for step in names], objective, f"C{number}")
    ranges.set(title="loss along the gradient", ylabel=f"lowest to highest loss\n({unit})")
    others[0].set(title="gradient difference", ylabel=f"largest $|g(x') - g(x)|$\n({unit} per unit of weight)")
    others[1].set(
        title="effective $\\beta$-smoothness", ylabel=f"largest $|g(x') - g(x)| / |x' - x|$\n({unit} / weight²)"
    )
    for axes in figure.axes:
        axes.set_xlabel("training step")
        axes.grid(alpha=0.3)
    for axes in others:
        axes.set_yscale("log")
    ranges.legend(fontsize="small")
    save_figure(figure, path)


def _rows(found: StepLandscape) -> list[dict[str, Any]]:
    config, measures = found.run.config, found.measures
    same = {
        "run": found.run.folder,
        "objective": found.run.objective,
        "seed": config.seed,
        "step": found.step,
        "alpha": blend_weights_at(config.objective, found.step, config.train.steps).target,
        "loss": measures.loss,
        "gradient_norm": measures.gradient_norm,
        "step_distance": found.unit,
    }
    return [
        {
            **same,
            "multiple": multiple,
            "distance": distance,
            "loss_there": loss,
            "gradient_difference": difference,
            "smoothness": difference / distance,
        }
        for multiple, distance, loss, difference in zip(
            found.multiples, measures.distances, measures.losses, measures.differences, strict=True
        )
    ]


def _summary(curves: Curves) -> dict[str, Any]:
    """For JSON, which knows no NaN."""
    steps: dict[str, dict[str, dict[str, float | None]]] = {}
    for (step, figure), (mean, width) in bands(curves).items():
        steps.setdefault(step, {})[figure] = {"mean": mean, "interval": None if math.isnan(width) else width}
    return {"seeds": list(curves), "steps": steps}


def _cell(mean: float, width: float) -> str:
    return f"{mean:.4g}" + ("" if math.isnan(width) else f" ± {width:.2g}")
