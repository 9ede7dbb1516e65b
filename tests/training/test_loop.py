"""Training against losses computed by hand, and what a recipe leaves in its folder."""

import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eco_fast_kernels import Rounding
from PIL import Image
from torch import Tensor

from eco_fast import config
from eco_fast.config import Config, EdsrModel, Scale
from eco_fast.data import centroid_store, decode
from eco_fast.data.images import Pixels, write_png
from eco_fast.data.objective import blend_weights_at
from eco_fast.data.prepare import prepare
from eco_fast.data.resize import downsample_image
from eco_fast.data.sampler import Sampler
from eco_fast.data.store import Store
from eco_fast.evaluation.benchmarks import read_images
from eco_fast.evaluation.evaluate import evaluate
from eco_fast.evaluation.scoring import pairs_of, score_bicubic
from eco_fast.models import Network, checkpoint_files, load_network, save_network, warm_start
from eco_fast.models.edsr import EDSR
from eco_fast.training import checkpoints, pinned
from eco_fast.training.loop import train_network
from eco_fast.training.pipeline import run_recipe
from eco_fast.training.run_folder import RunFolder
from eco_fast.training.validation import ValidationSets
from eco_fast.utils.files import sha256_of
from tests.helpers import centroids_of

PATCH, BATCH = 6, 3
STILL = 1e-30  # a learning rate below every weight's last bit


@pytest.fixture(scope="module")
def pictures(photo: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training images that a patch of every scale fits into; their sizes are no multiples of any."""
    folder = tmp_path_factory.mktemp("images")
    for index, (top, left, height, width) in enumerate([(60, 120, 53, 59), (150, 200, 71, 49), (20, 300, 55, 83)]):
        write_png(folder / "train" / f"{index}.png", photo[top : top + height, left : left + width])
    write_png(folder / "validation" / "eye.png", photo[70:111, 150:199])
    return folder


def recipe(pictures: Path, *, scale: int = 2, seed: int = 3, **changes: Any) -> Config:
    """A tiny recipe; `train__steps=5` changes one key of a section."""
    values: dict[str, Any] = {
        "scale": scale,
        "seed": seed,
        "data": {"train": (str(pictures / "train"),), "patch": PATCH},
        "model": {"features": 8, "blocks": 1},
        "teacher": {"steps": 6},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"steps": 8, "batch_size": BATCH, "log_every": 1, "compile": False, "device": "cpu"},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values.setdefault(section, {})[name] = value
    return config.validate(values, "test")


def train(recipe: Config, folder: Path) -> list[dict[str, Any]]:
    """Train the one network of a vanilla recipe; its rows."""
    with RunFolder(folder / "run", recipe, resume=False) as run:
        train_network(run, prepare(list(recipe.data.train), folder / "store"), None, ValidationSets())
    return run.rows()


def initial(recipe: Config) -> EDSR:
    assert isinstance(recipe.model, EdsrModel)
    torch.manual_seed(recipe.seed)
    return EDSR(recipe.scale, recipe.model.features, recipe.model.blocks, recipe.model.residual_scale)


def decoded(recipe: Config) -> list[Pixels]:
    """The training images as Pillow reads them, cropped to multiples of the scale."""
    images = [np.array(Image.open(path)) for path in sorted(Path(recipe.data.train[0]).iterdir())]
    return [
        image[: len(image) // recipe.scale * recipe.scale, : image.shape[1] // recipe.scale * recipe.scale]
        for image in images
    ]


def centroids(recipe: Config, teacher: Network) -> list[Pixels]:
    """The teacher's output over the LR image of every image, each in one piece."""
    made = []
    for image in decoded(recipe):
        lr = torch.from_numpy(downsample_image(image, recipe.scale, recipe.data.rounding)).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            sr = teacher(lr.contiguous(memory_format=torch.channels_last))[0].permute(1, 2, 0)
        made.append((sr * 255).round().clamp(0, 255).byte().numpy())
    return made


def loss_by_hand(recipe: Config, network: EDSR, hr: list[Pixels], sr: list[Pixels], step: int) -> float:
    """The loss of a step in float64: patches of whole downsampled images, blended as the paper's equations say."""
    scale, patch = recipe.scale, recipe.data.patch
    sizes = [(image.shape[0], image.shape[1]) for image in hr]
    plan = Sampler(sizes, scale=scale, patch=patch, batch_size=recipe.train.batch_size, seed=recipe.seed).plan(step)
    mix = blend_weights_at(recipe.objective, step, recipe.train.steps)

    def cut(image: Pixels, index: int, spacing: int) -> Tensor:
        top, left, side = plan.top[index] // spacing, plan.left[index] // spacing, scale * patch // spacing
        window = image[top : top + side, left : left + side].astype(np.float64)
        window = window[::-1] if plan.flip_rows[index] else window
        window = window[:, ::-1] if plan.flip_columns[index] else window
        window = window.transpose(1, 0, 2) if plan.transpose[index] else window
        return torch.from_numpy(window.transpose(2, 0, 1).copy())[None]

    total = 0.0
    for index, image in enumerate(plan.image):
        real, centroid = hr[image], sr[image]
        lr = [downsample_image(one, scale, recipe.data.rounding) for one in (real, centroid)]
        alpha, beta = mix.input, mix.target
        if recipe.objective.alpha_sample:
            alpha, beta = float(plan.uniform[index] < alpha), float(plan.uniform[index] < beta)
        inputs = alpha * cut(lr[0], index, scale) + (1 - alpha) * cut(lr[1], index, scale)
        target = beta * cut(real, index, 1) + (1 - beta) * cut(centroid, index, 1)
        with torch.no_grad():
            difference = 255 * network.double()(inputs / 255) - target
        kinds = {"l1": difference.abs(), "l2": difference**2, "charbonnier": (difference**2 + 0.255**2).sqrt()}
        total += float(kinds[recipe.objective.loss].mean()) / recipe.train.batch_size
    return total


OBJECTIVES: list[tuple[Scale, Rounding, dict[str, Any]]] = [
    (2, "uint8", {"objective__name": "vanilla", "objective__loss": "l2"}),
    (3, "uint8", {"objective__name": "kd"}),
    (4, "im2double", {"objective__name": "noise_free", "objective__loss": "charbonnier"}),
    (2, "uint8", {"objective__name": "eco", "objective__alpha_shift": 0.5}),
    (2, "im2double", {"objective__name": "eco", "objective__alpha": "linear"}),
    (3, "im2double", {"objective__alpha": "constant", "objective__alpha_value": 0.3}),
    (4, "uint8", {"objective__alpha": "linear", "objective__alpha_sample": True}),
    (8, "uint8", {"objective__alpha": "linear"}),
    (8, "im2double", {"objective__name": "vanilla"}),
]


@pytest.mark.parametrize(("scale", "rounding", "changes"), OBJECTIVES)
def test_every_loss_equals_a_computation_by_hand(
    scale: Scale, rounding: Rounding, changes: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    made = recipe(
        pictures, scale=scale, data__rounding=rounding, train__steps=4, optimizer__learning_rate=STILL, **changes
    )
    store, sr = prepare(list(made.data.train), tmp_path / "store"), None
    teacher = EDSR(scale, 4, 1)
    teacher.add_mean.bias.mul_(1.1)
    save_network(tmp_path / "teacher.safetensors", teacher)
    if made.needs_centroids:
        sr = Store(centroids_of(store.folder, tmp_path / "teacher.safetensors", scale, rounding=rounding, device="cpu"))
    with RunFolder(tmp_path / "run", made, resume=False) as run:
        network = train_network(run, store, sr, ValidationSets())
    start = initial(made)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in start.state_dict().items())
    expected = [loss_by_hand(made, start, decoded(made), centroids(made, teacher), step) for step in range(4)]
    assert [row["loss"] for row in run.rows()] == pytest.approx(expected, rel=1e-6)
    assert [row["alpha"] for row in run.rows()] == [
        blend_weights_at(made.objective, step, 4).target for step in range(4)
    ]
    assert len(set(expected)) == 4


def test_rows_hold_the_mean_loss_since_the_last_row(pictures: Path, tmp_path: Path) -> None:
    singles = [row["loss"] for row in train(recipe(pictures, objective__name="vanilla"), tmp_path / "singles")]
    rows = train(recipe(pictures, objective__name="vanilla", train__log_every=3), tmp_path / "means")
    assert [row["step"] for row in rows] == [3, 6, 8]
    assert [row["loss"] for row in rows] == [sum(singles[:3]) / 3, sum(singles[3:6]) / 3, sum(singles[6:]) / 2]


@pytest.fixture(scope="module")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A whole run: teacher, centroids, student, twin and table; the learning rate leaves all weights as they are."""
    made = recipe(
        pictures,
        data__validation=(str(pictures / "validation"),),
        optimizer__learning_rate=STILL,
        optimizer__schedule="cosine",
        train__baseline=True,
        train__validate_every=5,
        train__checkpoint_every=100,
    )
    folder = tmp_path_factory.mktemp("runs") / "eco"
    run_recipe(made, folder)
    return made, folder


def test_a_run_opens_store_and_teacher_once_and_a_resumed_one_hashes_no_image_and_no_network(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed: DIV2K with its centroids would be 13 GB to hash. Manifests, their tables and the run's own
    state are, and the validation images, which are read anyway."""
    made = recipe(pictures, data__validation=(str(pictures / "validation"),), train__baseline=True)
    opened: list[str] = []
    whole_store, whole_load = Store.__init__, checkpoint_files.load_network

    def open_store(store: Store, folder: Path) -> None:
        opened.append("centroids" if "centroids" in str(folder) else "store")
        whole_store(store, folder)

    def load(path: Path, device: str) -> Network:
        opened.append("teacher" if "teacher" in str(path) else "network")
        return whole_load(path, device)

    def intact(*_: Any) -> bool:
        opened.append("stored image")
        return True

    def file_hash(path: Path) -> str:
        opened.append(f"file {path.name}")
        return sha256_of(path)

    monkeypatch.setattr(Store, "__init__", open_store)
    monkeypatch.setattr(checkpoint_files, "load_network", load)
    run_recipe(made, tmp_path / "run")
    assert sorted(opened) == ["centroids", "store", "teacher"]
    opened.clear()
    monkeypatch.setattr(decode, "is_intact", intact)
    for module in (decode, centroid_store, pinned, importlib.import_module("eco_fast.data.prepare")):
        monkeypatch.setattr(module, "sha256_of", file_hash)
    run_recipe(made, tmp_path / "run", resume=True)
    assert sorted(opened) == ["centroids", "store", "teacher"]


def test_a_run_leaves_everything_that_its_folder_promises(finished: tuple[Config, Path]) -> None:
    made, folder = finished
    for run in (folder, folder / "teacher", folder / "baseline"):
        for name in ("last", "best"):
            assert load_network(run / "checkpoints" / f"{name}.safetensors", "cpu").scale == 2
            state = torch.load(run / "checkpoints" / f"{name}.state.pt", weights_only=True)
            assert (
                state["step"] == {"last": 6 if run.name == "teacher" else 8, "best": 5}[name]
            )  # no later score is above it
        assert (run / "config.toml").is_file()
        assert list(run.glob("events.*"))
    (made_by,) = (folder / "store" / "centroids").iterdir()
    teacher = folder / "teacher" / "checkpoints" / "last.safetensors"
    assert Store(made_by).attributes["teacher_sha256"] == sha256_of(teacher)
    assert config.load(str(folder / "config.toml")) == made
    environment = json.loads((folder / "environment.json").read_text())
    assert environment[0]["packages"]["torch"] == torch.__version__
    for picture in ("curves.png", "samples/validation_eye.png"):
        with Image.open(folder / picture) as image:
            assert min(image.size) > 300


def test_the_summary_scores_all_networks_on_the_test_images(finished: tuple[Config, Path], pictures: Path) -> None:
    _, folder = finished
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["scale"], summary["steps"], summary["images"]) == (2, 8, ["validation/eye.png"])
    assert list(summary["seconds"]) == ["prepare", "teacher", "centroids", "train", "baseline", "evaluate"]
    for name, run in {"teacher": folder / "teacher", "baseline": folder / "baseline", "student": folder}.items():
        source = str(pictures / "validation")
        scores = evaluate(run / "checkpoints" / "last.safetensors", [source], 2, device="cpu")
        assert summary[name] == pytest.approx(scores[source]["validation/eye.png"].as_dict(), rel=1e-12)
    assert summary["teacher"] != summary["student"] == summary["baseline"]
    assert summary["bicubic"].keys() == {"psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb"}
    assert summary["bicubic"]["psnr_y"] > 25


def test_teacher_student_and_twin_see_the_promised_samples(finished: tuple[Config, Path]) -> None:
    """The twin starts from the student's weights and sees its samples; the teacher has a random sequence of its own."""
    made, folder = finished
    hr = decoded(made)
    teacher = load_network(folder / "teacher" / "checkpoints" / "last.safetensors", "cpu")
    sr = centroids(made, teacher)
    vanilla = made.objective.model_copy(update={"name": "vanilla"})
    runs = {
        folder: made,
        folder / "baseline": made.model_copy(update={"objective": vanilla}),
        folder / "teacher": made.model_copy(
            update={"objective": vanilla, "seed": 4, "train": made.train.model_copy(update={"steps": 6})}
        ),
    }
    for run, as_trained in runs.items():
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
        start, steps = initial(as_trained), as_trained.train.steps
        assert list(losses) == list(range(1, steps + 1))
        expected = [loss_by_hand(as_trained, start, hr, sr, step) for step in range(steps)]
        assert list(losses.values()) == pytest.approx(expected, rel=1e-6), run
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "psnr_y" in row] == [5, 8]
    rates = [row["learning_rate"] for row in rows if "loss" in row]
    assert rates == pytest.approx([STILL * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)], rel=1e-12)


def test_a_given_teacher_is_used_instead_of_training_one(pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    save_network(path, EDSR(2, 4, 2))
    made = recipe(
        pictures, teacher__checkpoint=str(path), train__steps=2, data__validation=(str(pictures / "validation"),)
    )
    summary = run_recipe(made, tmp_path / "run")
    assert not (tmp_path / "run" / "teacher").exists()
    (folder,) = (tmp_path / "run" / "store" / "centroids").iterdir()
    assert Store(folder).attributes["teacher_sha256"] == sha256_of(path)
    assert "self_ensemble" not in Store(folder).attributes
    source = str(pictures / "validation")
    scores = evaluate(path, [source], 2, device="cpu")[source]["validation/eye.png"]
    assert summary["teacher"] == pytest.approx(scores.as_dict(), rel=1e-12)


@pytest.mark.parametrize(("above", "warned"), [(1e-4, 0), (-1e-4, 1), (-5.0, 1)])
def test_a_student_that_passes_its_teacher_says_so_once(
    above: float, warned: int, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = recipe(pictures, objective__name="vanilla", train__validate_every=2, optimizer__learning_rate=1e-2)
    store = prepare(list(made.data.train), tmp_path / "store")
    validation = read_images([str(pictures / "validation")], 2)
    with RunFolder(tmp_path / "alone", made, resume=False) as run:
        train_network(run, store, None, ValidationSets(validation))
    best = max(row["psnr_y"] for row in run.rows() if "psnr_y" in row)
    assert "the teacher" not in capsys.readouterr().out
    with RunFolder(tmp_path / "taught", made, resume=False) as run:
        train_network(run, store, None, ValidationSets(validation, teacher_psnr=best + above))
    assert capsys.readouterr().out.count(f"warning: passed the teacher's {best + above:.3f} dB; a teacher") == warned


def test_the_teachers_score_is_said_before_the_training(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "teacher.safetensors"
    save_network(path, EDSR(2, 4, 2))
    source = str(pictures / "validation")
    made = recipe(pictures, teacher__checkpoint=str(path), train__steps=2, data__validation=(source,))
    run_recipe(made, tmp_path / "run")
    scores = evaluate(path, [source], 2, device="cpu")[source]["validation/eye.png"]
    said = capsys.readouterr().out
    assert f"teacher: {scores.psnr_y:.3f} dB on the validation images" in said
    assert f"warning: passed the teacher's {scores.psnr_y:.3f} dB" in said, "an untrained network teaches nothing"


def test_self_ensemble_of_the_recipe_reaches_the_centroids(pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    save_network(path, EDSR(2, 4, 2))
    run_recipe(
        recipe(pictures, teacher__checkpoint=str(path), teacher__self_ensemble=True, train__steps=1), tmp_path / "run"
    )
    (folder,) = (tmp_path / "run" / "store" / "centroids").iterdir()
    assert Store(folder).attributes["self_ensemble"] is True


@pytest.mark.parametrize(
    "changes", [{"objective__name": "vanilla"}, {"objective__alpha": "constant", "objective__alpha_value": 1.0}]
)
def test_real_pairs_alone_need_no_teacher(changes: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    missing = str(tmp_path / "none.pt")
    run_recipe(recipe(pictures, teacher__checkpoint=missing, train__steps=2, **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "teacher").exists()
    assert not (tmp_path / "run" / "store" / "centroids").exists()


def test_a_teacher_of_another_scale_is_refused_before_any_work(pictures: Path, tmp_path: Path) -> None:
    save_network(tmp_path / "x3.safetensors", EDSR(3, 4, 1))
    with pytest.raises(ValueError, match=r"x3\.safetensors: a network for x3"):
        run_recipe(recipe(pictures, teacher__checkpoint=str(tmp_path / "x3.safetensors")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_image_too_small_to_score_is_refused_before_any_work(pictures: Path, photo: Pixels, tmp_path: Path) -> None:
    for scale, least in ((2, 16), (3, 18), (4, 20), (8, 32)):
        write_png(tmp_path / "eyes" / "eye.png", photo[:least, : least - 1])
        made = recipe(pictures, scale=scale, data__test=(str(tmp_path / "eyes"),))
        with pytest.raises(ValueError, match=rf"eyes/eye\.png is {least - 1}x{least} pixels.* at least {least} a side"):
            run_recipe(made, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        write_png(tmp_path / "eyes" / "eye.png", photo[:least, :least])
        pairs = pairs_of(read_images(made.data.test, scale), scale)
        assert score_bicubic(pairs, scale).keys() == {"eyes/eye.png"}


def test_a_flat_image_scores_infinitely_well_and_stays_out_of_json(pictures: Path, tmp_path: Path) -> None:
    write_png(tmp_path / "flat" / "white.png", np.full((20, 20, 3), 255, dtype=np.uint8))
    white = EDSR(2, 8, 1)
    white.add_mean.bias.fill_(1000)
    save_network(tmp_path / "x2.safetensors", white)
    made = recipe(
        pictures,
        objective__name="vanilla",
        model__start_from=str(tmp_path / "x2.safetensors"),
        data__validation=(str(tmp_path / "flat"),),
        optimizer__learning_rate=STILL,
        train__steps=2,
    )
    summary = run_recipe(made, tmp_path / "run")
    assert (summary["student"]["psnr_y"], summary["bicubic"]["psnr_y"]) == (None, None)
    (scored,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][2:]
    assert scored == {"step": 2, "psnr_y": None, "ssim_y": 1.0}


@pytest.mark.parametrize("scale", [3, 4])
def test_a_run_starts_from_the_weights_of_another_scale(scale: Scale, pictures: Path, tmp_path: Path) -> None:
    save_network(tmp_path / "x2.safetensors", EDSR(2, 8, 1))
    made = recipe(
        pictures,
        scale=scale,
        objective__name="vanilla",
        model__start_from=str(tmp_path / "x2.safetensors"),
        optimizer__learning_rate=STILL,
        train__steps=1,
    )
    (row,) = train(made, tmp_path)
    expected = initial(made)
    assert warm_start(expected, tmp_path / "x2.safetensors") == [
        f"tail.0.{scale // 4 * 2}.{kind}" for kind in ("bias", "weight")
    ]
    trained = load_network(tmp_path / "run" / "checkpoints" / "last.safetensors", "cpu").state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in expected.state_dict().items())
    assert row["loss"] == pytest.approx(loss_by_hand(made, expected, decoded(made), decoded(made), 0), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "lamb", "muon"])
def test_training_fits_a_single_patch(optimizer: str, photo: Pixels, tmp_path: Path) -> None:
    write_png(tmp_path / "one" / "train" / "patch.png", photo[80:104, 150:174])
    made = recipe(
        tmp_path / "one",
        data__patch=12,
        objective__name="vanilla",
        optimizer__name=optimizer,
        optimizer__learning_rate=1e-2,
        optimizer__schedule="cosine",
        train__steps=150,
        train__log_every=10,
    )
    losses = [row["loss"] for row in train(made, tmp_path)]
    assert losses[-1] < losses[0] / 3, losses


def test_a_run_that_only_skips_steps_stops_and_says_why(pictures: Path, tmp_path: Path) -> None:
    made = recipe(
        pictures,
        objective__name="vanilla",
        optimizer__learning_rate=1e30,
        train__steps=1000,
        train__log_every=25,
        train__checkpoint_every=50,
    )
    with pytest.raises(ValueError, match=r"the last 1\d\d steps were skipped.*lower optimizer.learning_rate"):
        train(made, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [25, 50, 75, 100, 125]
    assert rows[-1]["loss"] is None
    assert rows[-1]["skipped"] == 124


def test_a_checkpoint_keeps_what_was_then(tmp_path: Path) -> None:
    """Tensors of one memory are copied in one piece, with their layouts, and later steps do not reach the copy."""
    memory = torch.arange(40.0)
    first, second = memory.as_strided((2, 3, 2, 2), (12, 1, 6, 3), 0), memory[24:33]
    state = {"a": first, "b": [second, {"c": memory[39]}], "d": 3}
    copied = checkpoints._copy(state, {})
    wanted = [first.clone(), second.clone(), memory[39].clone()]
    memory.zero_()
    made = [copied["a"], copied["b"][0], copied["b"][1]["c"]]
    for one, expected in zip(made, wanted, strict=True):
        assert torch.equal(one, expected)
    assert copied["a"].stride() == first.stride()
    assert copied["d"] == 3
    assert len({one.untyped_storage().data_ptr() for one in made}) == 1
    torch.save(copied, tmp_path / "state.pt")
    assert torch.equal(torch.load(tmp_path / "state.pt", weights_only=True)["b"][0], wanted[1])
