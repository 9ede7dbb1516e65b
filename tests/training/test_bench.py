"""`eco-fast bench`: its figures against hand-made rounds, what it times against the recipe, its files and sentences."""

import json
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eco_fast import config
from eco_fast.cli.main import main
from eco_fast.data.images import Pixels, read_image
from eco_fast.models.edsr import EDSR
from eco_fast.training.bench import cases, ways
from eco_fast.training.bench.alone import measure_case
from eco_fast.training.bench.cases import SUITE, BenchCase, make_cases
from eco_fast.training.bench.figure import draw_bench
from eco_fast.training.bench.images import SubImages, bench_images, sub_images
from eco_fast.training.bench.results import Round, changes_between, figures_of, read_bench
from eco_fast.training.bench.tables import show_changes, tables_of
from eco_fast.training.bench.timing import Spread
from eco_fast.training.step import TrainStep
from tests.helpers import complaint, wait_until, write_photos

TINY = {"data.patch": 8, "model.features": 8, "model.blocks": 1, "train.batch_size": 2, "train.compile": False}
FIXED = {"train.steps": cases.STEPS, "train.trackers": []}
PARTS = {"loader": 0.25, "input": 0.5, "network and loss": 1.0, "update": 0.25, "telemetry": 0.0}


def a_round(slower: float = 1.0, **more: Any) -> Round:
    """On a machine that is so many times slower."""
    seconds = {"whole": 2.0, "whole_in_turn": 3.0, "bare_in_turn": 2.0, "field": 5.0}
    values = {name: slower * one for name, one in seconds.items()}
    values |= {"convolution": 4e9 / slower, "matmul": 8e9 / slower, "waiting": 0.125}
    return Round(**values | {"parts": {part: slower * one for part, one in PARTS.items()}} | more)


def results(*rounds: Round, name: str = "quickstart", batch_size: int = 4, device: str = "a CPU") -> dict[str, Any]:
    case = {"name": name, "batch_size": batch_size, "flops": 1e9, "memory_gb": 1.5}
    case |= {"figures": figures_of(rounds, 1e9, batch_size), "rounds": [one._asdict() for one in rounds]}
    return {"machine": {"device": device}, "cases": [case, {"name": "broken", "failed": "out of memory"}]}


def words(text: str) -> str:
    return " ".join(text.split())


def test_figures_are_of_the_rounds_own_ratios() -> None:
    figures = figures_of([a_round(), a_round(3.0), a_round(2.0, whole=8.0)], flops=1e9, batch_size=4)
    assert figures["ms"] == (6000, 4000, 7000)
    assert figures["patches_per_second"].median == 4 / 6
    assert figures["share_of_peak"] == (0.25, 0.1875, 0.25)  # 4 GFLOP in 2 s of 8 GFLOP/s; in 8 s of 4 GFLOP/s
    assert figures["whole_over_bare"] == (1.5, 1.5, 1.5)
    assert figures["field_over_whole"] == (2.5, 1.875, 2.5)
    assert figures["waiting"].median == 0.125
    assert figures["gflops_convolution"].median == 2
    assert figures["gflops_matmul"].median == 4
    assert {name: one.median for name, one in figures.items() if name.startswith("ms_")} == {
        f"ms_{part}": 2000 * seconds for part, seconds in PARTS.items()
    }


def test_one_round_has_no_quartiles() -> None:
    assert figures_of([a_round()], 1e9, 4)["ms"] == Spread(2000, 2000, 2000)


@pytest.mark.parametrize(
    ("stages", "parts"),
    [
        (
            {"data": 1, "input": 2, "forward": 4, "network": 8, "backward": 16, "optimizer": 32, "other": 64},
            {"loader": 1, "input": 6, "network and loss": 24, "update": 32, "telemetry": 64},
        ),
        (
            {"data": 1, "input": 2, "forward": 4, "backward": 16, "optimizer": 32, "other": 64, "between": 128},
            {"loader": 1, "input, network and loss": 22, "update": 32, "telemetry": 64},
        ),
        ({"data": 1, "input": 2, "step": 4, "other": 8}, {"loader": 1, "recorded step": 6, "telemetry": 8}),
    ],
)
def test_parts_are_those_that_can_be_told_apart(stages: dict[str, float], parts: dict[str, float]) -> None:
    assert ways.step_parts(stages) == parts


def test_the_unit_is_the_machines_own_peak() -> None:
    then, now = results(a_round(), a_round(1.5), a_round()), results(a_round(2.0), a_round(3.0), a_round(2.0))
    (change,) = changes_between(then, now)
    assert (change.name, change.relative, change.is_clear) == ("quickstart", 0, False)
    (change,) = changes_between(then, results(a_round(2.0, whole=2.0)))
    assert (change.relative, change.is_clear) == (1.0, True)


@pytest.mark.parametrize("more", [{"name": "quickstart train.compile=true"}, {"batch_size": 8}])
def test_other_cases_are_not_compared(more: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    then, now = results(a_round(), **more), results(a_round(), device="a GPU")
    assert changes_between(then, now) == []
    show_changes(then, now, "bench.json")
    assert words(capsys.readouterr().out) == (
        "bench.json: has 1 of these cases not, or with another network or batch size; first quickstart "
        "another machine: a CPU then, a GPU now; shares of the peak compare, times do not"
    )


def test_tables_and_figure_show_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = results(a_round(), a_round(2.0))
    tables = tables_of(now)
    assert tables[0].rows == [
        [
            "quickstart",
            "3000 (2500 to 3500)",
            "1.5",
            "25.0% (25.0% to 25.0%)",
            "1.500 (1.500 to 1.500)",
            "2.50 (2.50 to 2.50)",
            "12.5%",
            "1.50 GB",
        ]
    ]
    assert tables[1].rows[0][1:3] == ["375 (12.5%)", "750 (25.0%)"]
    show_changes(results(a_round(whole=4.0)), now, "bench.json")
    row = "│ quickstart │ 12.5% (12.5% to 12.5%) │ 25.0% (25.0% to 25.0%) │ +100.0% │"
    assert row in words(capsys.readouterr().out)
    draw_bench(tmp_path / "alone.png", now, None)
    draw_bench(tmp_path / "both.png", now, results(a_round(whole=4.0)))
    alone_pixels, both = (read_image(tmp_path / f"{name}.png").astype(int) for name in ("alone", "both"))
    blue, orange = (31, 119, 180), (255, 127, 14)  # now, then
    right = alone_pixels.shape[1] * 3 // 4
    assert (abs(alone_pixels[:, right:] - blue).max(axis=2) < 9).any()
    assert not (abs(alone_pixels[:, right:] - orange).max(axis=2) < 9).any()
    assert (abs(both[:, right:] - orange).max(axis=2) < 9).any()


def test_a_field_that_does_not_fit_is_said_in_its_place() -> None:
    now = results(a_round(), a_round(field=None))
    assert "field_over_whole" not in now["cases"][0]["figures"]
    now["cases"][0]["field"] = "out of memory"
    assert tables_of(now)[0].rows[0][5] == "out of memory"


def test_every_combination_is_a_case() -> None:
    across = ['train.precision=["fp32", "bf16"]', "train.micro_batch=[0, 2]"]
    overrides = {"train.device": "cpu", "train.batch_size": 4}
    made = make_cases(["quickstart", "edsr_x4_eco"], overrides, across, ["channels_last", "contiguous"])
    assert len({case.name for case in made}) == len(made) == 16
    assert made[0].name == (
        "quickstart train.batch_size=4 train.precision=fp32 train.micro_batch=0 memory_format=channels_last"
    )
    assert {(case.recipe.train.precision, case.recipe.train.micro_batch, case.memory_format) for case in made} == {
        (precision, part, layout)
        for precision in ("fp32", "bf16")
        for part in (0, 2)
        for layout in ("channels_last", "contiguous")
    }
    assert {case.recipe.model.start_from for case in made} == {""}  # x4 starts from a checkpoint that is not there


def test_without_a_recipe_the_suite_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = make_cases([], {"train.device": "cpu"}, [], [])
    assert [case.name.split()[0] for case in suite] == list(SUITE)
    assert [case.recipe.train.batch_size for case in suite] == [16, 8, 4, 1]
    monkeypatch.setattr(cases, "SUITE", {"quickstart": SUITE["quickstart"]})
    (case,) = make_cases([], {"train.device": "cpu", "train.batch_size": 3}, [], [])
    assert (case.recipe.train.batch_size, case.recipe.train.compile) == (3, True)
    (case,) = make_cases(["quickstart"], {"train.device": "cpu"}, [], [])
    assert case.recipe.train == config.load("quickstart", {"train.device": "cpu", **FIXED}).train


def a_case(**more: Any) -> BenchCase:
    (case,) = make_cases(["quickstart"], {"train.device": "cpu", **TINY, **more}, [], [])
    return case


@pytest.mark.parametrize("layout", ["", "channels_last", "contiguous"])
def test_the_network_computes_in_the_format(
    layout: str, photo: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, seen = list[TrainStep](), list[bool]()

    class Kept(TrainStep):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            steps.append(self)

    monkeypatch.setattr(ways, "TrainStep", Kept)
    case = a_case(**{"data.train": [str(write_photos(tmp_path, photo, 60, 70) / "train")]})
    images = bench_images(case.recipe, tmp_path / "images")
    with ways.in_memory_format(case.recipe, layout), ExitStack() as stack:
        step = ways.whole(case.recipe, images, "cpu", tmp_path / "run", stack)
        network = steps[0].loss.network
        assert isinstance(network, EDSR)
        network.body.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
        step.work()
        weight = next(network.body.parameters())
    assert seen == [layout == "contiguous"]
    assert weight.is_contiguous() == (layout == "contiguous")
    assert EDSR.memory_format == torch.channels_last
    stages = step.watch.seconds()
    assert set(ways.step_parts(stages)) == set(PARTS)
    assert min(stages.values()) >= 0


def test_a_compiled_step_is_one_part(photo: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark at the network is no part of what is compiled; the compiler itself is not needed for that."""
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    case = a_case(**{"data.train": [str(write_photos(tmp_path, photo, 60, 70) / "train")]})
    images = bench_images(case.recipe, tmp_path / "images")
    with ExitStack() as stack:
        step = ways.whole(case.recipe, images, "cpu", tmp_path / "run", stack)
        step.work()
    assert list(ways.step_parts(step.watch.seconds())) == ["loader", "input, network and loss", "update", "telemetry"]


def test_bare_takes_the_batch_in_the_parts_of_the_step() -> None:
    recipe = a_case(**{"train.batch_size": 5}).recipe
    torch.manual_seed(0)
    whole_batch = ways.bare(recipe, "cpu")
    assert whole_batch() is None
    seen = list[int]()
    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: seen.append(len(inputs[0])) if isinstance(module, EDSR) else None
    )
    try:
        ways.bare(recipe, "cpu", [slice(0, 2), slice(2, 5)])()
    finally:
        handle.remove()
    assert seen == [2, 3]


def test_ones_own_images_are_timed(photo: Pixels, tmp_path: Path) -> None:
    folder = write_photos(tmp_path, photo, 60, 70)
    recipe = a_case(**{"data.train": [str(folder / "train")]}).recipe
    for _ in range(2):  # the second time it is all there
        images = bench_images(recipe, tmp_path / "images")
        assert [entry.name for entry in images.hr.entries] == ["train/a.png", "train/b.png"]
        assert images.sr is images.hr
    for kind in images.folders:
        assert [read_image(path).tobytes() for path in sorted(kind.iterdir())] == [
            images.hr.read(index).tobytes()
            for index in range(2)  # which are smaller than a sub-image
        ]


def test_sub_images_are_as_large_as_an_hr_patch() -> None:
    assert [image.shape for image in sub_images(3, np.random.default_rng(0), 500)] == [(500, 500, 3)] * 3
    with pytest.raises(ValueError, match="an HR patch of 9000x9000 pixels fits into no built-in photograph; name"):
        sub_images(1, np.random.default_rng(0), 9000)


def test_the_fields_patches_are_pairs(photo: Pixels, tmp_path: Path) -> None:
    folder = write_photos(tmp_path, photo, 60, 70) / "train"
    hr, lr, sr, lr_of_sr = SubImages([folder, folder], 2, 12)[1]
    assert hr.shape == (3, 24, 24)
    assert lr.shape == (3, 12, 12)
    assert torch.equal(hr, sr)
    assert torch.equal(lr, lr_of_sr)
    halves = hr.reshape(3, 12, 2, 12, 2).mean((2, 4))
    assert (halves - lr).abs().mean() < (halves - halves.mean()).abs().mean() / 2


@pytest.mark.slow
def test_a_bench_is_kept_and_compared(photo: Pixels, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command, with its processes."""
    tiny = [word for key, value in TINY.items() for word in (f"--{key}", str(value).lower())]
    folder = write_photos(tmp_path, photo, 60, 70)
    earlier = results(a_round(), name=" ".join(["quickstart", *(f"{key}={json.dumps(TINY[key])}" for key in TINY)]))
    (tmp_path / "earlier.json").write_text(json.dumps(earlier), encoding="utf-8")
    command = ["bench", "quickstart", *tiny, "--train.device", "cpu", "--data.train", str(folder / "train")]
    command += ["--rounds", "1", "--compare", str(tmp_path / "earlier.json"), "--out", str(tmp_path / "made")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"in {tmp_path / 'made'}: bench.json, bench.png" in said
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["bench.json", "bench.png"]
    (case,) = read_bench(tmp_path / "made" / "bench.json")["cases"]
    assert case["micro_batches"] == 1
    (one,) = case["rounds"]
    assert list(one["parts"]) == list(PARTS)
    assert 0 < sum(one["parts"].values()) <= one["whole"]
    assert 0 <= one["waiting"] <= 1
    assert min(one[way] for way in ("whole_in_turn", "bare_in_turn", "field", "convolution", "matmul")) > 0
    assert "exists already; name another folder" in complaint(capsys, *command)


def program(folder: Path, text: str) -> str:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("exit 3", "its process ended by exit code 3; out of memory?"),
        ("kill -9 $$", "its process ended by SIGKILL; out of memory?"),
        ("""echo '{"round": 1}'; echo '{"failed": "no room"}'""", "no room"),
    ],
)
def test_a_case_that_fails_says_why(text: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", program(tmp_path, text))
    case = a_case()
    assert measure_case(case, tmp_path, tmp_path, 1, lambda _: None) == {"name": case.name, "failed": why}


def test_an_interrupted_case_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one that its process has started."""
    text = f"""sleep 1000 & echo $! $$ > {tmp_path}/started; echo '{{"round": 1}}'; wait"""
    monkeypatch.setattr(sys, "executable", program(tmp_path, text))

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_case(a_case(), tmp_path, tmp_path, 1, interrupt)
    for process in (tmp_path / "started").read_text(encoding="utf-8").split():
        wait_until(partial(has_ended, Path("/proc", process, "stat")))


def has_ended(stat: Path) -> bool:
    """Whether a process is gone, or a zombie that nobody has asked for yet."""
    return not stat.exists() or stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"


def test_the_request_is_the_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process reads is what was asked for; out of memory there is its sentence here."""
    monkeypatch.setattr(sys, "executable", program(tmp_path, f"""printf %s "$3" > {tmp_path}/request"""))
    case = replace(a_case(**{"optimizer.betas": [0.5, 0.75]}), memory_format="contiguous")
    measure_case(case, tmp_path, tmp_path, 3, lambda _: None)
    request = json.loads((tmp_path / "request").read_text(encoding="utf-8"))
    assert config.validate(request["recipe"], "request") == case.recipe
    assert (request["name"], request["memory_format"], request["rounds"]) == (case.name, "contiguous", 3)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"cases": [{"figures": {}}]}', '{"cases": [], "machine": 3}', "\udcff"]
)
def test_what_is_no_bench_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.json").write_bytes(os.fsencode(text))
    said = complaint(capsys, "bench", "--compare", str(tmp_path / "other.json"))
    assert said == f"{tmp_path}/other.json: expected the bench.json of an earlier `eco-fast bench`, which this is not"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--rounds", "0"], "--rounds: expected at least 1, got 0"),
        (["--compare", "none.json"], "none.json: there is no such file; name the bench.json of an earlier"),
        (["quikstart"], "there is no recipe 'quikstart' (did you mean quickstart?)"),
        (["quickstart", "quickstart"], "quickstart train.batch_size=2 is asked for twice; name each recipe, key and"),
        (["--across", "train.compile"], "expected KEY=VALUE, for example train.steps=300; got 'train.compile'"),
        (["--across", "train.compile=true"], "--across takes KEY=[VALUE, ...], for example 'train.micro_batch=[4, 8]'"),
        (["--across", "train.compiled=[true]"], "edsr_baseline_x2_eco: unknown key train.compiled (did you mean"),
        (["--across", "train.graph=[true]"], "train.graph=true needs a GPU, the device is cpu"),
        (["--across", 'train.precision=["tf32"]'], "train.precision=tf32 needs a GPU of sm_80 or newer"),
        (["--across", 'data.residence=["device"]'], "data.residence=device keeps the images of a store on a GPU, but"),
        (["quickstart", "--data.train", "nowhere"], "nowhere"),
        (
            ["quickstart", "--out", "file/folder"],
            "file/folder: expected a folder or room for one, but a file is in the way",
        ),
        (["--memory-format", "nchw"], "--memory-format: expected channels_last or contiguous, got 'nchw'"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_timed(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", "nothing is started")
    (tmp_path / "file").touch()
    recipes = [] if arguments[0].startswith("-") else ["--train.batch_size", "2"]
    assert complaint(capsys, "bench", *arguments, *recipes, "--train.device", "cpu").startswith(sentence)
