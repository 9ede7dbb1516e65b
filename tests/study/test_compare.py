"""Comparisons of real, tiny runs: equal terms, interruptions, several processes."""

import base64
import contextlib
import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from eco_fast import config
from eco_fast.cli.main import main
from eco_fast.config import Config
from eco_fast.data.images import Pixels, write_png
from eco_fast.data.open_loader import open_loader
from eco_fast.data.store import Store
from eco_fast.study.compare import carry_out, compare
from eco_fast.study.comparison import PlannedRun
from eco_fast.training.crops import read_crops
from eco_fast.training.run_folder import RunFolder, read_rows
from eco_fast.training.state import TrainingState
from eco_fast.utils.files import write_json
from eco_fast.utils.locks import file_lock

pytestmark = pytest.mark.slow

VARIANTS = [("vanilla",), ("eco",)]
HERE = Path("c")
"""Runs name their stores and teachers as seen from where they run."""


class Stopped(BaseException):
    """As sudden as a kill: nothing catches it."""


@pytest.fixture(scope="module")
def base(photo: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("images")
    write_png(folder / "train" / "eyes.png", photo[60:113, 120:179])
    write_png(folder / "eye" / "HR" / "a.png", photo[70:98, 150:180])
    write_png(folder / "fur" / "b.png", photo[150:191, 200:249])
    values: dict[str, Any] = {
        "data": {
            "train": [str(folder / "train")],
            "validation": [str(folder / "eye" / "HR")],
            "monitor": [str(folder / "fur")],
            "patch": 6,
        },
        "model": {"features": 8, "blocks": 1},
        "teacher": {"steps": 9},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"steps": 6, "batch_size": 2, "log_every": 3, "validate_every": 2, "compile": False, "device": "cpu"},
    }
    return config.validate(values, "test")


@pytest.fixture(scope="module")
def finished(base: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(folder):
        compare(base, VARIANTS, [], 2, HERE)
    return folder / HERE


def runs_of(folder: Path) -> list[Path]:
    return sorted((folder / "runs").glob("*/*"))


def test_every_run_is_scored_on_every_set_and_has_its_curves(finished: Path) -> None:
    assert [str(run.relative_to(finished / "runs")) for run in runs_of(finished)] == [
        "eco/seed=2",
        "eco/seed=3",
        "vanilla/seed=2",
        "vanilla/seed=3",
    ]
    for run in runs_of(finished):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        validations = [row for row in rows if "psnr_y" in row]
        assert [row["step"] for row in validations] == [2, 4, 6]
        scores = json.loads((run / "scores.json").read_text())
        assert set(scores["last"]) == set(scores["best"]) == {"eye", "fur"}
        assert scores["last"]["eye"]["psnr_y"] == validations[-1]["psnr_y"]
        assert scores["last"]["fur"]["psnr_y"] == validations[-1]["psnr_y/fur"]
        assert scores["best"]["eye"]["psnr_y"] == max(row["psnr_y"] for row in validations), "the first set chooses"
    assert (finished / "teachers" / "steps=9" / "checkpoints" / "last.safetensors").is_file()


def test_the_page_holds_tables_curves_and_crops_of_every_variant(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    for line in (finished / "table.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and "variant" not in line:
            assert all(f">{html.escape(cell.strip())}<" in page for cell in line.strip("|").split("|"))
    charts = json.loads(page.partition('id="data">')[2].partition("</script>")[0])["charts"]
    assert [chart["label"].split()[0] for chart in charts] == ["PSNR-Y", "eye:", "PSNR-Y", "fur:"]
    for index, name in ((0, "psnr_y"), (2, "psnr_y/fur")):
        for series in charts[index]["series"]:
            rows = [read_rows(finished / "runs" / series["name"] / f"seed={seed}") for seed in (2, 3)]
            both = [[row[name] for row in one if name in row] for one in rows]
            assert [point[:2] for point in series["points"]] == [
                [step, pytest.approx((first + second) / 2, rel=1e-5)]
                for step, first, second in zip((2, 4, 6), *both, strict=True)
            ]
    assert [(one["name"], one["colour"]) for one in charts[1]["series"]] == [("eco", 1)], "as in the chart beside it"
    for image in read_crops(finished / "runs" / "eco" / "seed=2" / "samples"):
        for file in image.panels.values():
            assert base64.b64encode(file.read_bytes()).decode() in page
    labels = re.findall(r"<option[^>]*>([a-zA-Z]+)", page)
    assert labels[:5] == ["LR", "bicubic", "vanilla", "eco", "HR"]


def test_the_command_makes_the_same_page(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = finished / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert main(["report", str(finished)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert page.read_bytes() == before


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "another": (lambda folder: write_png(folder / "eyes.png", np.full((53, 59, 3), 9, np.uint8)), "is another"),
    "new": (
        lambda folder: shutil.copy(folder / "eyes.png", folder / "ears.png"),
        r"ears\.png is new \(1 then, 2 now\)",
    ),
    "renamed": (lambda folder: (folder / "eyes.png").rename(folder / "ears.png"), r"ears\.png is new"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_comparison_does_not_go_on_with_other_images(
    change: str, base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any training they may still change; and afterwards they are refused before the store is touched."""
    alter, words = CHANGES[change]
    shutil.copytree(Path(base.data.train[0]), tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    shutil.copy("set/eyes.png", "set/more.png")
    made = base.model_copy(update={"data": base.data.model_copy(update={"train": ("set",)})})
    with monkeypatch.context() as patch:
        patch.setattr("eco_fast.study.compare.open_images", stop)
        with pytest.raises(Stopped):
            compare(made, [("vanilla",)], [], 1, HERE)
    Path("set/more.png").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("eco_fast.study.compare.carry_out", stop)
        with pytest.raises(Stopped):
            compare(made, [("eco",)], [], 1, HERE)  # its teacher is trained
    manifest = (HERE / "store" / "manifest.json").read_bytes()
    alter(Path("set"))
    with pytest.raises(ValueError, match=f"the (names of the )?training images have changed since .*{words}"):
        compare(made, [("eco",)], [], 1, HERE)
    if change != "another":
        assert (HERE / "store" / "manifest.json").read_bytes() == manifest


def stop(*_: object, **__: object) -> None:
    raise Stopped


def test_variants_of_a_seed_share_initial_weights_and_samples(finished: Path) -> None:
    """What the trainer really begins with and reads, and the fingerprint that is kept of it."""

    def begins(run: Path) -> tuple[list[Tensor], list[list[Tensor]], dict[str, str]]:
        recipe = config.load(str(run / "config.toml"))
        store = finished.parent / recipe.data.store
        weights = TrainingState(recipe, "cpu", None, "test").network.state_dict()
        hr = Store(store)
        samples = []
        with open_loader(recipe, hr, hr, 0, device="cpu", room=0, label="test") as loader:
            for batch in loader:
                one = batch.samples
                crops = one.hr if one.hr is not None else one.sr  # of the same images here
                assert crops is not None
                samples.append([crops.clone(), one.transposed.clone()])
        return list(weights.values()), samples, json.loads((run / "scores.json").read_text())["fingerprint"]

    eco2, eco3, vanilla2, vanilla3 = (begins(run) for run in runs_of(finished))
    for first, second in ((eco2, vanilla2), (eco3, vanilla3)):
        torch.testing.assert_close(first[:2], second[:2], rtol=0, atol=0)
        assert first[2] == second[2]
    assert not all(torch.equal(first, second) for first, second in zip(eco2[0], eco3[0], strict=True))
    assert not torch.equal(eco2[1][0][0], eco3[1][0][0])
    assert all(eco2[2][key] != eco3[2][key] for key in ("initial_weights", "samples"))


@pytest.mark.parametrize("event", [2, 5, 9])
def test_a_comparison_killed_in_the_middle_and_run_again_gives_the_same_table(
    base: Config, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event: int
) -> None:
    shutil.copytree(finished, tmp_path / "c")
    for run in runs_of(tmp_path / "c")[1:]:
        shutil.rmtree(run)
    stop_at(event, monkeypatch)
    with contextlib.chdir(tmp_path), pytest.raises(Stopped):
        compare(base, VARIANTS, [], 2, HERE)
    monkeypatch.undo()
    with contextlib.chdir(tmp_path):
        compare(base, VARIANTS, [], 2, HERE)
    for name in ("table.csv", "table.md", "curves.csv", "differences.csv"):
        assert (tmp_path / "c" / name).read_bytes() == (finished / name).read_bytes()


def stop_at(event: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop before so many-th row that a run writes, or score that is kept."""
    count = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count > event:
                raise Stopped
            return function(*arguments, **named)

        return called

    monkeypatch.setattr("eco_fast.training.run_folder.RunFolder.append", counted(RunFolder.append))
    monkeypatch.setattr("eco_fast.study.compare.write_json", counted(write_json))


def test_a_run_of_another_process_is_left_to_it(
    base: Config, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "runs" / "eco" / "seed=3")
    with contextlib.chdir(tmp_path), file_lock(HERE / "locks" / "eco seed=3"):
        compare(base, VARIANTS, [], 2, HERE)
    assert "eco seed=3: another process is running it" in capsys.readouterr().out
    assert "missing: eco seed=3" in (tmp_path / "c" / "table.md").read_text()
    assert not (tmp_path / "c" / "runs" / "eco" / "seed=3").exists()


def test_a_run_that_fails_is_missing_and_the_others_are_done(
    base: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base.toml").write_text(config.dump(base))
    variants = [
        "--variant",
        "bad",
        "optimizer.learning_rate=1e30",
        "train.log_every=1",
        "train.steps=200",
        "--variant",
        "vanilla",
    ]
    code = main(["compare", str(tmp_path / "base.toml"), "--run", str(tmp_path / "c"), "--seeds", "1", *variants])
    captured = capsys.readouterr()
    assert code == 2
    assert (
        "1 of 2 runs failed, and are missing in the tables; bad seed=2: the last 100 steps were skipped" in captured.err
    )
    assert "missing: bad seed=2" in captured.out
    assert "| vanilla | 1 of 1" in (tmp_path / "c" / "table.md").read_text()


def test_a_folder_of_another_comparison_is_refused(base: Config, finished: Path) -> None:
    longer = base.model_copy(update={"train": base.train.model_copy(update={"steps": 8})})
    with contextlib.chdir(finished.parent), pytest.raises(ValueError, match=r"holds a run with another train.steps"):
        compare(longer, VARIANTS, [], 2, HERE)


RATES = "optimizer.learning_rate=[1e-30, 1e-3]"
"""With the first one nothing is learnt, the second one is the recipe's own."""
TRIAL = "vanilla_learning_rate=1e-30"


@pytest.fixture(scope="module")
def tuned(base: Config, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same comparison, tuned."""
    folder = tmp_path_factory.mktemp("tuned")
    shutil.copytree(finished, folder / HERE)
    with contextlib.chdir(folder):
        compare(base, VARIANTS, [], 2, HERE, [RATES])
    return folder / HERE


def test_runs_that_are_scored_have_the_values_that_other_seeds_picked(tuned: Path, finished: Path) -> None:
    trials = sorted(path.relative_to(tuned / "tuning").as_posix() for path in (tuned / "tuning").glob("*/*"))
    rates = ("0.001", "1e-30")
    assert trials == [f"{name}_learning_rate={rate}/seed=1000" for name in ("eco", "vanilla") for rate in rates]
    for name in ("eco", "vanilla"):
        trial = json.loads((tuned / "tuning" / f"{name}_learning_rate=0.001/seed=1000/scores.json").read_text())
        assert set(trial["last"]) == {"eye"}, "the validation alone"
        for seed in ("seed=2", "seed=3"):
            scores = tuned / "runs" / f"{name}_learning_rate=0.001" / seed / "scores.json"
            assert scores.read_bytes() == (finished / "runs" / name / seed / "scores.json").read_bytes()
    assert not [*(tuned / "runs").glob("*1e-30*")]
    table, page = ((tuned / name).read_text(encoding="utf-8") for name in ("table.md", "report.html"))
    assert "| eco_learning_rate=0.001 | 2 of 2 |" in table
    assert "| learning_rate=0.001 | largest learning_rate |" in table
    assert ">largest learning_rate<" in page
    assert len((tuned / "tuning.csv").read_text().splitlines()) == 5


def noted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that are begun from now on."""
    names: list[str] = []

    def note(run: PlannedRun, *rest: Any) -> None:
        names.append(run.name)
        carry_out(run, *rest)

    monkeypatch.setattr("eco_fast.study.compare.carry_out", note)
    return names


def test_tuning_goes_on_after_a_kill_and_tries_values_that_are_new(
    base: Config, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tuned, tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "tuning" / TRIAL)
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        with pytest.raises(Stopped):
            compare(base, VARIANTS, [], 2, HERE, [RATES])
    began = noted(monkeypatch)
    compare(base, VARIANTS, [], 2, HERE, [RATES])
    assert began == [f"{TRIAL} seed=1000"]
    for name in ("tuning.csv", "table.csv"):
        assert (tmp_path / "c" / name).read_bytes() == (tuned / name).read_bytes()
    began.clear()
    compare(base, VARIANTS, [], 2, HERE, ["optimizer.learning_rate=[1e-3, 1e-30, 1e-20]"])
    assert began == ["vanilla_learning_rate=1e-20 seed=1000", "eco_learning_rate=1e-20 seed=1000"]


@pytest.mark.parametrize("dies", [False, True])
def test_values_are_picked_once_another_process_has_done_its_runs(
    dies: bool, base: Config, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tuned, tmp_path / "c")
    done = tmp_path / "c" / "tuning" / TRIAL
    aside = done.rename(tmp_path / "aside")
    monkeypatch.chdir(tmp_path)
    began = noted(monkeypatch)
    with contextlib.ExitStack() as other:
        other.enter_context(file_lock(HERE / "locks" / f"{TRIAL} seed=1000"))

        def end(_: float) -> None:
            """What happens while it is waited for."""
            if not dies:
                aside.rename(done)
            other.close()

        monkeypatch.setattr("eco_fast.utils.locks.time.sleep", end)
        compare(base, VARIANTS, [], 2, HERE, [RATES])
    assert began == [f"{TRIAL} seed=1000"] * dies
    assert (tmp_path / "c" / "tuning.csv").read_bytes() == (tuned / "tuning.csv").read_bytes()


def test_a_comparison_without_validation_is_refused(base: Config, tmp_path: Path) -> None:
    without = base.model_copy(update={"data": base.data.model_copy(update={"validation": ()})})
    with pytest.raises(ValueError, match="a comparison needs validation images"):
        compare(without, VARIANTS, [], 2, tmp_path)
