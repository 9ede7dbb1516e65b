"""A record attempt against its baseline: seconds of training until the baseline's final PSNR (docs/records.md).

    python -m bench.speedrun --run runs/speedrun
    python -m bench.speedrun mine.toml --run runs/mine --leave-one-out --who NAME --what "a rate of 0.02"

For each seed in turn it trains the baseline (Adam, real pairs alone), the attempt, and with `--leave-one-out` the
attempt without its objective, its optimizer and its precision. Validation comes at every `train.validate_every` steps,
and the clock stands still for it. The attempt's teacher and centroids are made once, first; their seconds are told
apart, and counted in a column of its own.

Keys of the command line are both the attempt's and the baseline's; what is the attempt's alone is in its recipe.
Run again, the command goes on with the trainings that are missing. DIR/speedrun.json holds every validation of every
training with the seconds until then, and the conditions; `--who` and `--what` add it to docs/evidence, and its row to
docs/records.md.
"""

import argparse
import json
import math
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eco_fast import config
from eco_fast.cli.options import Parser
from eco_fast.cli.recipe_options import add_keys
from eco_fast.config import Config
from eco_fast.config.intervals import share_of_time
from eco_fast.data.open_loader import open_loader
from eco_fast.data.sources import ImageSource
from eco_fast.evaluation.benchmarks import read_images
from eco_fast.study.confidence import format_interval, interval
from eco_fast.study.variants import seeds_of
from eco_fast.training.memory import room_beside
from eco_fast.training.run_folder import environment
from eco_fast.training.stage_clock import StageClock
from eco_fast.training.state import TrainingState
from eco_fast.training.step import TrainStep
from eco_fast.training.step_graph import choose_recorder
from eco_fast.training.training_data import obtain_centroids, open_images, train_teacher
from eco_fast.training.validation import ValidationSets, validation_pairs, validation_scores
from eco_fast.utils.device import device_name, pick_device
from eco_fast.utils.files import write_json, write_text
from eco_fast.utils.table_io import Table

DOCS = Path(__file__).parents[1] / "docs"
TRACKS = ("speedrun_edsr_small_x2", "speedrun_edsr_baseline_x2")
SHARED = ("scale", "model", "data", "train.validate_every", "train.device")
"""Keys and sections in which an attempt is like its baseline."""
CONDITIONS = ("commit", "eco_fast", "python", "platform", "packages")
Points = list[tuple[int, float, float]]
"""Of each validation: the steps done, the seconds that they took, PSNR-Y in dB."""
Trainings = Mapping[str, Sequence[Points]]
"""By name; of each seed, in their order."""


@dataclass(frozen=True)
class Standing:
    """How one recipe did over the seeds.

    Attributes:
        psnr: PSNR-Y at the end in dB, of each seed.
        whole: seconds of the whole training, of each seed.
        steps: until the first validation that reaches the target, of each seed; infinite where none does.
        seconds: the same.
    """

    psnr: Sequence[float]
    whole: Sequence[float]
    steps: Sequence[float]
    seconds: Sequence[float]


def entrants(attempt: Config, baseline: Config, *, leave_one_out: bool) -> dict[str, Config]:
    """What is trained, by name, in turn.

    Raises:
        ValueError: the two cannot be compared, or the attempt starts from more than its images.
    """
    for key in config.differences(attempt, baseline):
        if key in SHARED or key.split(".")[0] in SHARED:
            raise ValueError(f"{key}: expected the baseline's, for {', '.join(SHARED)} are those of the track")
    if attempt.model.start_from or (attempt.needs_centroids and attempt.teacher.checkpoint != "self"):
        raise ValueError("an attempt trains all that it needs: leave model.start_from and teacher.checkpoint out")
    if share_of_time(attempt.train.validate_every) is not None or not attempt.data.validation:
        raise ValueError("expected images of validation, and a number of steps as train.validate_every")
    found = {"baseline": baseline.vanilla, "attempt": attempt}
    if leave_one_out:
        precision, usual = attempt.train.precision, baseline.train.precision
        if attempt.objective.name != "vanilla":
            found[f"attempt without {attempt.objective.name}"] = attempt.vanilla
        parts = {"objective": attempt.objective, "teacher": attempt.teacher}
        found[f"attempt without {attempt.optimizer.name}"] = _in(precision, baseline.model_copy(update=parts))
        if precision != usual:
            found[f"attempt without {precision}"] = _in(usual, attempt)
    return found


def _in(precision: str, recipe: Config) -> Config:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": precision})})


def train_once(recipe: Config, hr: ImageSource, sr: ImageSource | None, sets: ValidationSets) -> Points:
    """Train from nothing to the end; the clock runs from the first weights to the last step, validations left out."""
    device, points, seconds = pick_device(recipe.train.device), Points(), 0.0
    pairs = list(validation_pairs(sets.images, recipe.scale, recipe.data, device))
    began = time.perf_counter()
    state = TrainingState(recipe, device, None, "speedrun")
    recorder, _ = choose_recorder(recipe.train, recipe.optimizer, device)
    with open_loader(recipe, hr, sr, 0, device=device, room=room_beside(state), label="speedrun") as loader:
        step = TrainStep(state, loader.planner.count, recorder=recorder)
        for batch in loader:
            step(batch)
            done = batch.step + 1
            if done % int(recipe.train.validate_every) == 0 or done == recipe.train.steps:
                state.updater.counters.accepted.item()  # wait for the device
                seconds += time.perf_counter() - began
                psnr = validation_scores(state.result, pairs, state.precision, device).psnr_y
                state.network.train()
                points.append((done, round(seconds, 3), psnr))
                began = time.perf_counter()
    return points


def train_all(attempt: Config, recipes: Mapping[str, Config], seeds: Sequence[int], folder: Path) -> dict[str, Any]:
    """Train what is missing; returns what speedrun.json holds.

    Raises:
        ValueError: the folder's trainings are of other recipes, or of another machine.
    """
    path, device = folder / "speedrun.json", pick_device(attempt.train.device)
    about = environment(attempt)
    conditions = {"hardware": device_name(device), **{name: about[name] for name in CONDITIONS}}
    texts = {name: config.dump(one) for name, one in recipes.items()}
    log: dict[str, Any] = {"recipes": {}, "trainings": {}, "starts": []}
    if path.is_file():
        log = json.loads(path.read_text(encoding="utf-8"))
    for name, text in texts.items():
        if log["recipes"].setdefault(name, text) != text:
            raise ValueError(f"{folder}: holds another {name}; choose another folder with --run")
    if any(start["hardware"] != conditions["hardware"] for start in log["starts"]):
        raise ValueError(f"{folder}: was begun on {log['starts'][0]['hardware']}; a record is of one machine")
    log["starts"].append(conditions)
    sets = ValidationSets(read_images(attempt.data.validation, attempt.scale))
    images = open_images(attempt.data, attempt.scale, folder, needs_centroids=attempt.needs_centroids)
    clock, centroids = StageClock(folder / "stages.json"), None
    if attempt.needs_centroids:
        with clock.timed("teacher"):
            teacher = train_teacher(attempt, folder / "teacher", images.hr, ValidationSets(), resume=True)
        with clock.timed("centroids"):
            centroids = obtain_centroids(attempt, folder, images, teacher)
    log["preparation"] = {name: clock.seconds.get(name, 0.0) for name in ("teacher", "centroids")}
    for seed in seeds:
        for name, recipe in recipes.items():
            done = log["trainings"].setdefault(name, {})
            if str(seed) not in done:
                sr = centroids if recipe.needs_centroids else None
                done[str(seed)] = train_once(recipe.model_copy(update={"seed": seed}), images.hr, sr, sets)
                write_json(path, log)
                steps, seconds, psnr = done[str(seed)][-1]
                print(f"{name} seed={seed}: {steps} steps, {seconds:.1f} s, {psnr:.3f} dB", flush=True)
    return log


def standings(trainings: Trainings) -> tuple[float, dict[str, Standing]]:
    """The target, the mean of the baseline's ends in dB, and how each recipe stands to it."""
    target = statistics.fmean(points[-1][2] for points in trainings["baseline"])
    found = {}
    for name, of_seeds in trainings.items():
        reached = [
            next(((steps, seconds) for steps, seconds, psnr in points if psnr >= target), (math.inf, math.inf))
            for points in of_seeds
        ]
        ends = [points[-1] for points in of_seeds]
        found[name] = Standing(
            [psnr for _, _, psnr in ends],
            [seconds for _, seconds, _ in ends],
            [steps for steps, _ in reached],
            [seconds for _, seconds in reached],
        )
    return target, found


def share_of(one: Standing, baseline: Standing, before: float = 0.0) -> float:
    """The median over the seeds of the seconds to the target, as a share of the baseline's whole training.

    `before` is what had to be done first, in seconds.
    """
    return statistics.median(
        (seconds + before) / whole for seconds, whole in zip(one.seconds, baseline.whole, strict=True)
    )


def results_table(target: float, found: Mapping[str, Standing], before: float, prepared: Sequence[str]) -> Table:
    """All results; `prepared` names those that need what took `before` seconds."""
    columns = ["", "PSNR-Y at the end (dB)", "seconds in all", "steps to the target", "seconds", "of the baseline's"]
    rows = []
    for name, one in found.items():
        late = before if name in prepared else 0.0
        cells = [name, format_interval(*interval(one.psnr), 3), f"{statistics.median(one.whole):.1f}"]
        cells += [_reached(statistics.median(one.steps), ".0f"), _reached(statistics.median(one.seconds), ".1f")]
        rows.append([*cells, *(_reached(share_of(one, found["baseline"], some), ".1%") for some in (0.0, late))])
    title = f"Medians over the seeds; the target is {target:.3f} dB, teacher and centroids took {before:.1f} s"
    return Table(title, [*columns, "with teacher and centroids"], rows)


def _reached(value: float, form: str) -> str:
    return f"{value:{form}}" if math.isfinite(value) else "not reached"


def record_cells(trainings: Trainings, log: Mapping[str, Any], who: str, what: str, name: str) -> list[str]:
    """The attempt's row in docs/records.md; `name` is that of its log in docs/evidence.

    Raises:
        ValueError: the attempt does not reach the target.
    """
    target, found = standings(trainings)
    attempt, baseline, before = found["attempt"], found["baseline"], sum(log["preparation"].values())
    end, steps = statistics.fmean(attempt.psnr), statistics.median(attempt.steps)
    if end < target or not math.isfinite(steps):
        raise ValueError(f"no record: the attempt ends at {end:.3f} dB, the target is {target:.3f} dB")
    start = log["starts"][0]
    return [
        datetime.now(UTC).date().isoformat(),
        who,
        what,
        f"{steps:.0f}",
        f"{statistics.median(attempt.seconds):.1f} s",
        f"{share_of(attempt, baseline):.1%}",
        f"{share_of(attempt, baseline, before):.1%}",
        format_interval(*interval(attempt.psnr), 3),
        f"{target:.3f}",
        start["hardware"],
        str(start["commit"])[:8],
        f"[{len(attempt.psnr)} seeds](evidence/{name})",
    ]


def with_row(page: str, track: str, cells: Sequence[str]) -> str:
    """docs/records.md with a row more, the last one of the track's table."""
    lines = page.split("\n")
    place = next(number for number, line in enumerate(lines) if line == f"## `{track}`")
    place = next(number for number in range(place, len(lines)) if lines[number].startswith("|---"))
    while lines[place].startswith("|"):
        place += 1
    row = " | ".join(cell.replace("|", "\\|") for cell in cells)
    return "\n".join([*lines[:place], f"| {row} |", *lines[place:]])


def main() -> None:
    """Run what is asked for.

    Raises:
        ValueError: it cannot be; says why.
    """
    parser = Parser(
        prog="python -m bench.speedrun",
        usage="python -m bench.speedrun [RECIPE] --run DIR [--track TRACK] [--seeds N] [--leave-one-out]\n"
        "       [--who NAME --what TEXT] [--KEY VALUE ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("recipe", nargs="?", help="the attempt's, a name or a .toml file (the track's)")
    parser.add_argument("--track", choices=TRACKS, default=TRACKS[0], help="%(default)s")
    parser.add_argument("--run", type=Path, required=True, help="folder of the trainings")
    parser.add_argument("--seeds", type=int, default=5, help="%(default)s")
    parser.add_argument("--leave-one-out", action="store_true", help="also train the attempt without each of its parts")
    parser.add_argument("--who", help="for a row in docs/records.md: whose record it is")
    parser.add_argument("--what", help="and what is new in it")
    add_keys(parser)
    given = parser.parse_args(sys.argv[1:])
    attempt = config.load(given.recipe or given.track, given.overrides)
    baseline = config.load(f"{given.track}_adam", given.overrides)
    recipes = entrants(attempt, baseline, leave_one_out=given.leave_one_out)
    seeds = seeds_of(attempt, given.seeds)
    log = train_all(attempt, recipes, seeds, given.run)
    trainings = {name: [log["trainings"][name][str(seed)] for seed in seeds] for name in recipes}
    prepared = [name for name, recipe in recipes.items() if recipe.needs_centroids]
    results_table(*standings(trainings), sum(log["preparation"].values()), prepared).show()
    if given.who and given.what:
        name = f"speedrun-{len(list((DOCS / 'evidence').glob('speedrun-*.json'))) + 1}.json"
        cells = record_cells(trainings, log, given.who, given.what, name)
        shutil.copy(given.run / "speedrun.json", DOCS / "evidence" / name)
        page = DOCS / "records.md"
        write_text(page, with_row(page.read_text(encoding="utf-8"), given.track, cells))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(f"speedrun: {error}") from error
