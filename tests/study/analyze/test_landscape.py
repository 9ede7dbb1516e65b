"""Walking along the gradient, against closed forms; and runs opened again, against what the trainings have logged."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from eco_fast import config
from eco_fast.cli.main import main
from eco_fast.data.prepare import prepare
from eco_fast.study.analyze.gradient_walk import measure
from eco_fast.study.analyze.landscape import BatchLoss, begin, distance_of_step, landscape
from eco_fast.study.analyze.runs import open_run, recipe_at
from eco_fast.training.run_folder import RECIPE, read_rows
from eco_fast.training.state import TrainingState

pytestmark = pytest.mark.slow

Array = npt.NDArray[np.float64]
LENGTHS = [0.1, 0.4, 0.7]


def test_a_quadratic_bends_as_its_matrix_says() -> None:
    random = np.random.default_rng(0)
    root, x = random.normal(size=(5, 5)), random.normal(size=5)
    a = root @ root.T
    matrix = torch.from_numpy(a)
    found = measure(lambda p: ((p @ matrix @ p / 2).item(), matrix @ p), torch.from_numpy(x), LENGTHS)
    g = a @ x
    norm, bend = np.linalg.norm(g), np.linalg.norm(a @ g)
    there = [x - t * g / norm for t in LENGTHS]
    assert found.loss == pytest.approx(x @ a @ x / 2)
    assert found.gradient_norm == pytest.approx(norm)
    assert found.distances == pytest.approx(LENGTHS)
    assert found.losses == pytest.approx([p @ a @ p / 2 for p in there])
    assert found.differences == pytest.approx([t * bend / norm for t in LENGTHS])
    assert found.figures == pytest.approx(
        {
            "lowest_loss": min(p @ a @ p / 2 for p in there),
            "highest_loss": max(p @ a @ p / 2 for p in there),
            "gradient_difference": LENGTHS[-1] * bend / norm,
            "smoothness": bend / norm,
        }
    )


def two_layers(point: Array, x: Array, y: Array) -> tuple[float, Array]:
    """Half the squared error of y = B A x and its gradient, by hand; the point is A [3, 4], then B [2, 3]."""
    a, b = point[:12].reshape(3, 4), point[12:].reshape(2, 3)
    error = b @ a @ x - y
    return float((error**2).sum() / 2), np.concatenate([(b.T @ error @ x.T).ravel(), (error @ (a @ x).T).ravel()])


def test_a_linear_network_of_two_layers_is_measured_as_its_formula_says() -> None:
    random = np.random.default_rng(1)
    point, x, y = random.normal(size=18), random.normal(size=(4, 6)), random.normal(size=(2, 6))

    def of_torch(p: Tensor) -> tuple[float, Tensor]:
        weights = p.detach().requires_grad_()
        error = weights[12:].view(2, 3) @ weights[:12].view(3, 4) @ torch.from_numpy(x) - torch.from_numpy(y)
        loss = error.square().sum() / 2
        return loss.item(), torch.autograd.grad(loss, weights)[0]

    found = measure(of_torch, torch.from_numpy(point), LENGTHS)
    loss, g = two_layers(point, x, y)
    walked = [two_layers(point - t * g / np.linalg.norm(g), x, y) for t in LENGTHS]
    changes = [float(np.linalg.norm(other - g)) for _, other in walked]
    slopes = [change / t for change, t in zip(changes, LENGTHS, strict=True)]
    assert slopes.index(max(slopes)) != len(LENGTHS) - 1, "else the largest difference would do for both"
    assert found.loss == pytest.approx(loss)
    assert found.losses == pytest.approx([value for value, _ in walked])
    assert found.differences == pytest.approx(changes)
    figures = {"gradient_difference": max(changes), "smoothness": max(slopes)}
    figures |= {"lowest_loss": min(value for value, _ in walked), "highest_loss": max(value for value, _ in walked)}
    assert found.figures == pytest.approx(figures)


@pytest.mark.parametrize(
    ("gradient", "lengths", "said"),
    [
        (0.0, [1.0], "gradient's norm is 0.0"),
        (np.nan, [1.0], "gradient's norm is nan"),
        (np.inf, [1.0], "gradient's norm is inf"),
        (1.0, [1e-12], "a length of 1e-12 is lost"),
        (1.0, [1.0, 1e-12, 2.0], "a length of 1e-12 is lost"),
    ],
)
def test_a_walk_without_direction_or_distance_is_refused(gradient: float, lengths: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        measure(lambda p: (1.0, torch.full_like(p, gradient)), torch.ones(3), lengths)


@pytest.mark.parametrize("name", ["vanilla-2", "noise_free-1", "eco-1"])
def test_the_steps_of_a_run_are_had_again(name: str, kept_runs: Path) -> None:
    run = open_run(kept_runs / name)
    assert run.kept_steps() == [0, 1, 2, 3, 4]
    torch.manual_seed(9)
    weights = [TrainingState(run.config, "cpu", None, "").network.state_dict()]
    weights += [load_file(kept_runs / name / "checkpoints" / f"step-{step:08d}.safetensors") for step in (1, 2, 3, 4)]
    logged = [row["loss"] for row in read_rows(run.folder)]
    for step in range(4):
        loss, _ = begin(run, step, 1)
        assert loss(loss.point)[0] == pytest.approx(logged[step], rel=1e-5)
        moved = sum(float((weights[step + 1][key] - weights[step][key]).square().sum()) for key in weights[0]) ** 0.5
        assert distance_of_step(run, step) == pytest.approx(moved, rel=1e-4)


def test_parts_and_batches_are_one_mean(kept_runs: Path) -> None:
    run = open_run(kept_runs / "eco-1")
    network, _ = run.training(2)
    recipe = recipe_at(run.config, 2)
    batches = run.batches(recipe, 2, 2)
    assert [float(batch.target_alpha) for batch in batches] == [0.5, 0.5], "the step's alpha, for all of them"
    parts = recipe.model_copy(update={"train": recipe.train.model_copy(update={"micro_batch": 2})})
    both, cut = BatchLoss(network, recipe, batches), BatchLoss(network, parts, batches)
    singles = [BatchLoss(network, recipe, [batch])(both.point) for batch in batches]
    assert len(cut.parts) == 4
    assert singles[0][0] != pytest.approx(singles[1][0], rel=1e-3)
    for loss, gradient in (both(both.point), cut(both.point)):
        assert loss == pytest.approx((singles[0][0] + singles[1][0]) / 2)
        torch.testing.assert_close(gradient, (singles[0][1] + singles[1][1]) / 2, rtol=1e-4, atol=1e-5)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_command_compares_objectives_seed_by_seed(kept_runs: Path, tmp_path: Path) -> None:
    names = ("noise_free-1", "vanilla-2", "vanilla-1", "noise_free-2")
    runs = [str(kept_runs / name) for name in names]
    assert main(["analyze", "landscape", *runs, "--out", str(tmp_path), "--lengths", "0.5", "2", "4"]) == 0
    rows = read_csv(tmp_path / "landscape.csv")
    assert len(rows) == 4 * 4 * 4  # runs, steps, lengths: no step begins at the end
    for step in range(4):
        unit = np.mean([distance_of_step(open_run(Path(run)), step) for run in runs])
        went = [float(row["distance"]) for row in rows if row["step"] == str(step)]
        assert went == pytest.approx([unit * multiple for multiple in (0.5, 1, 1.5, 2)] * 4, rel=1e-4)

    def largest(objective: str, seed: int) -> float:
        chosen = [row for row in rows if (row["objective"], row["seed"], row["step"]) == (objective, str(seed), "3")]
        return max(float(row["smoothness"]) for row in chosen)

    summary = json.loads((tmp_path / "landscape.json").read_text())
    assert list(summary["objectives"]) == ["vanilla", "noise_free"]
    one, two = largest("vanilla", 1), largest("vanilla", 2)
    student = 12.7062  # for two values, 97.5 %
    expected = {"mean": (one + two) / 2, "interval": student * abs(one - two) / 2}
    assert summary["objectives"]["vanilla"]["steps"]["3"]["smoothness"] == pytest.approx(expected, rel=1e-4)
    first, second = largest("noise_free", 1) - one, largest("noise_free", 2) - two
    expected = {"mean": (first + second) / 2, "interval": student * abs(first - second) / 2}
    assert summary["differences"]["noise_free - vanilla"]["steps"]["3"]["smoothness"] == pytest.approx(
        expected, rel=1e-4
    )
    with Image.open(tmp_path / "landscape.png") as image:
        assert image.size == (1200, 408)


def test_a_single_seed_has_no_interval(kept_runs: Path, tmp_path: Path) -> None:
    landscape([kept_runs / "eco-1"], tmp_path, (1, 1, 1), 1)
    summary = json.loads((tmp_path / "landscape.json").read_text())
    rows = read_csv(tmp_path / "landscape.csv")
    assert summary["differences"] == {}
    steps = summary["objectives"]["eco"]["steps"]
    assert [band["interval"] for figures in steps.values() for band in figures.values()] == [None] * 4 * 6
    slopes = [float(row["smoothness"]) for row in rows]
    assert steps["mean"]["smoothness"]["mean"] == pytest.approx(np.mean(slopes))
    assert steps["largest"]["smoothness"]["mean"] == pytest.approx(max(slopes))


def changed(run: Path, folder: Path, **values: Any) -> Path:
    """A copy of a run with another recipe."""
    shutil.copytree(run, folder)
    recipe = config.load(str(run / RECIPE), [f"{key.replace('__', '.')}={value}" for key, value in values.items()])
    (folder / RECIPE).write_text(config.dump(recipe))
    return folder


def test_runs_that_cannot_be_used_are_refused_in_a_sentence(
    kept_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = kept_runs / "vanilla-1", kept_runs / "noise_free-1"
    fewer = prepare([str(kept_runs / "train" / "0.png")], tmp_path / "fewer")
    none_kept = changed(run, tmp_path / "none_kept")
    stateless = changed(run, tmp_path / "stateless")
    for path in (none_kept / "checkpoints").glob("step-*"):
        path.unlink()
    (stateless / "checkpoints" / "step-00000002.state.pt").unlink()
    refused = {
        "expected a run folder": [tmp_path],
        "--train.keep_checkpoints N": [none_kept],
        "the training state beside the weights is missing": [stateless],
        "its scale is not that of": [run, changed(other, tmp_path / "x4", scale=4)],
        "its model.features is not that of": [run, changed(other, tmp_path / "wide", model__features=16)],
        "other images than": [run, changed(other, tmp_path / "images", data__store=fewer.folder)],
        "its objective is residual": [run, changed(other, tmp_path / "residual", objective__name="residual")],
        "the same objective vanilla and seed 1": [run, changed(run, tmp_path / "twice")],
        "eco-fast centroids --store": [changed(other, tmp_path / "untaught", teacher__self_ensemble="true")],
        "named after their teacher": [changed(other, tmp_path / "teacherless", teacher__checkpoint="self")],
        "data.downsample=dali": [changed(other, tmp_path / "dali", data__downsample="dali")],
    }
    for said, runs in refused.items():
        assert main(["analyze", "landscape", *map(str, runs), "--out", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err
    for lengths in ("0 1 3", "2 1 3", "1 2 0", "1 2 2.5", "1 2 inf", "nan 2 3"):
        assert main(["analyze", "landscape", str(run), "--out", str(tmp_path), "--lengths", *lengths.split()]) == 2
        assert f"--lengths {lengths} " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_spike_has_a_distance_too(kept_runs: Path, tmp_path: Path) -> None:
    run = kept_runs / "vanilla-1"
    spiked = changed(run, tmp_path / "spiked", optimizer__spike_factor=1e-9)
    assert distance_of_step(open_run(spiked), 2) == distance_of_step(open_run(run), 2)
