"""The shipped recipes: each says what it is, fits the paper, trains, and starts from where the authors started."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from eco_fast import config
from eco_fast.cli import main as cli
from eco_fast.config import Config, Score, recipe_files
from eco_fast.config.recipe_files import recipe_names
from eco_fast.data.images import Pixels
from eco_fast.models import build, save_network, warm_start
from eco_fast.training.state import TrainingState
from eco_fast.training.step import TrainStep
from tests.helpers import plain_loader

SETS = ("set5", "set14", "b100", "urban100", "manga109")
ARMS = ("ECO", "vanilla")
TABLE_1 = {f"Table 1, {network} x{scale}, {arm}" for network in ("EDSR", "RCAN") for scale in (2, 3, 4) for arm in ARMS}
TABLE_2 = {f"Table 2 ({part}), {arm}" for part in "abcd" for arm in ARMS} | {"Table 2 (d), ECO*"}
EVERY_RECIPE = pytest.mark.parametrize("name", recipe_names())


def start_of(recipe: Config) -> str:
    """Name of the recipe whose run this one starts from."""
    found = re.fullmatch(r"runs/(\w+)/checkpoints/last\.safetensors", recipe.model.start_from)
    assert found, recipe.model.start_from
    return found[1]


# --- what they say ---


def test_every_row_of_the_tables_has_its_recipe_and_scores() -> None:
    rows = {config.load(name).paper.row: config.load(name).paper for name in recipe_names()}
    assert rows.keys() >= TABLE_1 | TABLE_2
    for row in TABLE_1 | TABLE_2:
        scores = [getattr(rows[row], key) for key in SETS]
        missing = [key for key, score in zip(SETS, scores, strict=True) if not score]
        assert missing == ([] if row in TABLE_1 else ["b100"])  # the paper's Table 2 has no BSD100
        assert all(20 < psnr < 40 and 0.5 < ssim < 1 for psnr, ssim in filter(None, scores))


def test_scores_are_ordered_as_the_paper_claims() -> None:
    """ECO is above vanilla on the mean, and a larger scale is worse on every set: a slip of a digit would show."""
    papers = {config.load(name).paper.row: config.load(name).paper for name in recipe_names()}

    def psnr(row: str) -> list[float]:
        scores: list[Score | None] = [getattr(papers[row], key) for key in SETS]
        return [score[0] for score in scores if score]

    for row in TABLE_1 | TABLE_2:
        if row.endswith("ECO"):
            assert sum(psnr(row)) > sum(psnr(row.replace("ECO", "vanilla"))), row
    for row in TABLE_1:
        if "x2" in row:
            triples = zip(*(psnr(row.replace("x2", f"x{scale}")) for scale in (2, 3, 4)), strict=True)
            assert all(two > three > four for two, three, four in triples), row


@EVERY_RECIPE
def test_its_name_tells_what_it_does(name: str) -> None:
    recipe = config.load(name)
    if name == "quickstart" or name.startswith("speedrun"):
        return
    assert f"_x{recipe.scale}_" in name
    assert recipe.objective.name in name
    assert name.startswith({"edsr": "edsr", "rcan": "rcan", "swinir": "swinir_small"}[recipe.model.name])
    assert not isinstance(recipe.model, config.OwnModel)
    assert ("baseline" in name) == (recipe.model.name == "edsr" and recipe.model.features == 64)
    assert ("noisy" in name) == (recipe.data.noise_sigma > 0)
    assert ("_l2_" in name) == (recipe.objective.loss == "l2")
    assert recipe.data.patch == 48
    if "batch" in name:
        assert f"batch{recipe.train.batch_size}_" in name
    if recipe.paper.row.startswith("Table 1") and not (recipe.model.name == "rcan" and recipe.scale == 4):
        rate = 3.2e-3 if "double_rate" in name else 1.6e-3
        assert (recipe.optimizer.name, recipe.optimizer.learning_rate) == ("lamb", rate)
        assert (recipe.train.batch_size, recipe.train.steps, recipe.optimizer.schedule) == (128, 125_000, "cosine")


@pytest.mark.parametrize("track", ["speedrun_edsr_small_x2", "speedrun_edsr_baseline_x2"])
def test_the_recipes_of_a_speedrun_differ_in_optimizer_precision_and_length(track: str) -> None:
    muon, adam, lamb = (config.load(f"{track}{end}") for end in ("", "_adam", "_lamb"))
    assert [one.optimizer.name for one in (muon, adam, lamb)] == ["muon", "adam", "lamb"]
    assert len({one.objective.name for one in (muon, adam, lamb)}) == 1
    assert adam.train == lamb.train
    assert 2 * muon.train.steps < adam.train.steps
    assert 3 * muon.train.steps <= muon.teacher.steps or not muon.needs_centroids, "a weaker teacher does harm"
    for other in (adam, lamb):
        differs = {key for key in config.differences(muon, other) if not key.startswith("optimizer.")}
        assert differs - {"train.precision"} == {"description", "train.steps"}


def test_rcan_x4_is_the_papers_exception() -> None:
    for arm in ("eco", "vanilla"):
        recipe = config.load(f"rcan_x4_{arm}")
        assert (recipe.optimizer.name, recipe.train.batch_size, recipe.train.steps) == ("adam", 16, 1_000_000)
        assert (recipe.optimizer.schedule, recipe.optimizer.step_size) == ("step", 200_000)


@pytest.mark.parametrize("name", [name for name in recipe_names() if "_eco" in name])
def test_the_arms_of_a_row_differ_in_their_objective_alone(name: str) -> None:
    if name == "edsr_baseline_x8_eco_short":  # ECO* is compared with the vanilla of five times its steps
        differs = config.differences(config.load("edsr_baseline_x8_eco"), config.load(name))
        assert set(differs) == {"description", "train.steps", "optimizer.step_size"}
        return
    eco, vanilla = config.load(name), config.load(name.replace("_eco", "_vanilla"))
    allowed = {"description", "objective.name"} | ({"model.start_from"} if eco.scale in (3, 4) else set())
    assert set(config.differences(eco, vanilla)) == allowed


def test_the_command_lists_every_recipe_with_its_scores(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in recipe_names():
        (line,) = (line for line in lines if f" {name} " in line)
        paper = config.load(name).paper
        assert paper.row in line
        assert all(f"{score[0]:.2f}" in line for key in SETS if (score := getattr(paper, key)))


# --- what they train ---

FEWER_BLOCKS = {"edsr": ["model.blocks=4"], "rcan": ["model.groups=2", "model.blocks=2"], "swinir": []}


@pytest.mark.slow
@EVERY_RECIPE
def test_it_trains_two_steps(name: str, photo: Pixels) -> None:
    """At batch 2 on small windows, of fewer blocks: the losses are finite, and the weights move."""
    patch = 16 if name.startswith("swinir") else 8
    small = ["train.batch_size=2", "train.steps=2", f"data.patch={patch}", "train.compile=false", "train.device=cpu"]
    small += FEWER_BLOCKS[config.load(name).model.name]
    recipe = config.load(name, [*small, "model.start_from=", "optimizer.warmup_steps=0"])
    sr = photo[::-1].copy()  # any other image of the same size is a centroid that has a loss
    torch.manual_seed(0)
    state = TrainingState(recipe, "cpu", None, name)
    step = TrainStep(state, 2)
    before = {key: value.clone() for key, value in state.network.state_dict().items()}
    with plain_loader(recipe, [photo], [sr] if recipe.needs_centroids else None) as loader:
        losses = [float(step(batch)) for batch in loader]
    assert not state.updater.counters.skipped
    assert len(losses) == 2
    assert all(0 < loss < math.inf for loss in losses)
    moved = [key for key, value in state.network.state_dict().items() if not torch.equal(value, before[key])]
    assert all(value.isfinite().all() for value in state.network.state_dict().values())
    assert len(moved) > 0.8 * len(before)  # not the mean's, nor a layer of RCAN's attention whose few units are all off


# --- where they start ---


FROM_X2 = [name for name in recipe_names() if recipe_files.read(name).get("model", {}).get("start_from")]


def test_x3_and_x4_of_the_large_networks_start_from_x2_and_no_other_recipe_does() -> None:
    assert set(FROM_X2) == {name for name in recipe_names() if re.search("_x[34]_", name)}


@pytest.mark.parametrize("name", FROM_X2)
def test_it_starts_from_x2_of_the_same_arm(name: str) -> None:
    recipe = config.load(name)
    first = config.load(start_of(recipe))
    assert start_of(recipe) == re.sub("_x[34]_", "_x2_", name)
    assert first.scale == 2
    assert first.objective == recipe.objective
    assert first.model == recipe.model.model_copy(update={"start_from": ""})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edsr_x3_eco", "edsr_x4_eco", "rcan_x3_eco", "rcan_x4_eco"])
def test_a_warm_start_copies_what_the_authors_copy(name: str, tmp_path: Path) -> None:
    recipe = config.load(name)
    first = config.load(start_of(recipe))
    torch.manual_seed(1)
    x2, network = build(first.model, 2), build(recipe.model, recipe.scale)
    fresh = {key: value.clone() for key, value in network.state_dict().items()}
    save_network(tmp_path / "x2.safetensors", x2)
    kept = warm_start(network, tmp_path / "x2.safetensors")
    layer = {3: "tail.0.0", 4: "tail.0.2"}[recipe.scale]
    assert kept == [f"{layer}.bias", f"{layer}.weight"]
    started, given = network.state_dict(), x2.state_dict()
    assert all(torch.equal(started[key], fresh[key] if key in kept else given[key]) for key in started)
    assert {"head.0.weight", "tail.1.weight"} <= given.keys() - kept


# --- extends ---


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_recipe_overrides_key_by_key(here: Path) -> None:
    (here / "sub").mkdir()
    write(
        here,
        base='extends = "edsr_x2_eco"\ndescription = "base"\n[train]\nbatch_size = 5\nsteps = 7\n[paper]\nrow = "x"',
    )
    write(here / "sub", mine='extends = "../base.toml"\nscale = 3\n[train]\nsteps = 9\n[optimizer]\nbetas = [0.5, 0.6]')
    mine = config.load("sub/mine.toml", ["train.log_every=2"])
    expected = config.load(
        "edsr_x2_eco",
        ["scale=3", "train.batch_size=5", "train.steps=9", "optimizer.betas=[0.5, 0.6]", "train.log_every=2"],
    )
    assert config.differences(mine, expected) == ["description"]
    assert (mine.description, mine.paper) == ("", config.Paper())  # what a recipe says of itself is not inherited
    assert "extends" not in config.dump(mine)


@pytest.mark.parametrize("model", ['name = "rcan"', 'name = "rcan"\nblocks = 3'])
def test_another_architecture_inherits_no_keys_of_the_network(model: str, here: Path) -> None:
    write(here, mine=f'extends = "edsr_x2_eco"\n[model]\n{model}')
    blocks = 3 if "blocks" in model else 20
    assert config.load("mine.toml").model == config.RcanModel(blocks=blocks)
    write(here, mine='extends = "edsr_x2_eco"\n[model]\nname = "edsr"\nblocks = 3')
    assert config.load("mine.toml").model == config.EdsrModel(features=256, blocks=3, residual_scale=0.1)
    write(here, base="[model]\nblocks = 5", mine='extends = "base.toml"\n[model]\nname = "edsr"\nfeatures = 8')
    assert config.load("mine.toml").model == config.EdsrModel(features=8, blocks=5)


WRONG: dict[str, dict[str, Any]] = {
    "a.toml: extends itself: a.toml -> b.toml -> c.toml -> a.toml\n": {
        "a": 'extends = "b.toml"', "b": 'extends = "c.toml"', "c": 'extends = "a.toml"',
    },
    "a.toml: extends itself: a.toml -> b.toml -> b.toml\n": {"a": 'extends = "b.toml"', "b": 'extends = "b.toml"'},
    "a.toml: extends edsr_x2_eko: there is no recipe 'edsr_x2_eko' (did you mean edsr_x2_eco?)": {
        "a": 'extends = "edsr_x2_eko"',
    },
    "a.toml: extends b.toml: b.toml: there is no such file": {"a": 'extends = "b.toml"'},
    "b.toml: extends c.toml: c.toml: not valid TOML": {
        "a": 'extends = "b.toml"', "b": 'extends = "c.toml"', "c": "x =",
    },
    "a.toml: extends: expected the name of a recipe or a .toml file, got 3": {"a": "extends = 3"},
    "a.toml: unknown key train.stps (did you mean train.steps?)": {
        "a": 'extends = "b.toml"', "b": "[train]\nstps = 1",
    },
    "a.toml: unknown key paper.set15 (did you mean paper.set": {"a": "[paper]\nset15 = [30.0, 0.9]"},
    "a.toml: paper.set5: input should be an array": {"a": "[paper]\nset5 = 30.0"},
}  # fmt: skip


@pytest.mark.parametrize("said", WRONG)
def test_extensions_that_cannot_work(said: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here, **WRONG[said])
    assert cli.main(["train", "a.toml"]) == 2
    assert capsys.readouterr().err.startswith(f"eco-fast: {said}")


def test_a_missing_start_is_refused_before_any_work(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "edsr_x3_eco", "--data.train", "builtin:train"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("eco-fast: runs/edsr_x2_eco/checkpoints/last.safetensors: there is no such checkpoint")
    assert not any(here.iterdir())
