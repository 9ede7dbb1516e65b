"""The command line and the recipes: what people type stays what it is."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eco_fast import config
from eco_fast.cli import main as cli
from eco_fast.config.recipe_files import recipe_names
from eco_fast.data.images import Pixels, read_image, write_png
from eco_fast.data.resize import downsample_image
from eco_fast.data.store import Store
from eco_fast.models import save_network
from eco_fast.models.edsr import EDSR
from tests.helpers import complaint


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("prepare A B --store DIR", {"sources": ["A", "B"], "store": Path("DIR"), "convert_16bit": False}),
        ("downsample A B --scale 3", {"source": Path("A"), "out": Path("B"), "scale": 3, "rounding": "uint8"}),
        ("downsample A B --scale 4 --rounding im2double", {"scale": 4, "rounding": "im2double"}),
        ("downsample A B --scale 2 --noise-sigma 7.5", {"out": Path("B"), "noise_sigma": 7.5}),
        (
            "centroids --store D --teacher C --scale 2",
            {"store": Path("D"), "teacher": Path("C"), "scale": 2, "rounding": "uint8", "device": "auto", "tile": None},
        ),
        ("train", {"recipe": None, "folder": None, "resume": False, "profile": False, "overrides": {}}),
        (
            "compare R --variant eco --variant slow optimizer.learning_rate=1e-5 --across train.batch_size=[2,4]",
            {
                "variants": [["eco"], ["slow", "optimizer.learning_rate=1e-5"]],
                "across": ["train.batch_size=[2,4]"],
                "seeds": 3,
            },
        ),
        ("train R --dry-run", {"recipe": "R", "dry_run": True, "resume": False}),
        (
            "train R --data.train A B --run D --resume --train.steps 5",
            {
                "recipe": "R",
                "folder": Path("D"),
                "resume": True,
                "overrides": {"data.train": ["A", "B"], "train.steps": 5},
            },
        ),
        (
            "evaluate C --data A B --scale 2 --json F --save-images D",
            {"checkpoint": Path("C"), "data": ["A", "B"], "json": Path("F"), "save_images": Path("D"), "sr": None},
        ),
        ("evaluate --sr A --hr B --scale 8", {"checkpoint": None, "sr": "A", "hr": "B", "scale": 8, "json": None}),
        ("upscale C A B --tile 64", {"checkpoint": Path("C"), "source": Path("A"), "out": Path("B"), "tile": 64}),
    ],
)
def test_arguments_arrive(line: str, expected: dict[str, Any]) -> None:
    parsed = vars(cli.parser().parse_args(line.split()))
    assert {key: parsed[key] for key in expected} == expected


@pytest.mark.parametrize(("arguments", "needs"), [("--help", []), ("train --help", ["pydantic"])])
def test_help_answers_at_once(arguments: str, needs: list[str]) -> None:
    heavy = ("torch", "numpy", "PIL", "pydantic", "shtab", "rich", "eco_fast_kernels")
    script = f"""
import contextlib, io, sys
from eco_fast.cli import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main.main({arguments.split()})
print([name for name in {heavy} if name in sys.modules])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    answer = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout == f"{needs}\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "the following arguments are required: COMMAND; see `eco-fast --help`"),
        ("trian", "COMMAND: expected train, compare, analyze, report, table, recipes, prepare, "),
        ("prepare", "the following arguments are required: SRC, --store; see `eco-fast prepare --help`"),
        ("prepare a --stroe s", "unknown option --stroe (did you mean --store?)"),
        ("recipes more", "unrecognized arguments: more; see `eco-fast --help`"),
        ("teach --store s --teacher t --scale 2", "command teach is called centroids now"),
        ("compare quickstart --arm slow train.steps=1", "--arm is called --variant now"),
        ("compare quickstart --set train.steps=1", "--set is gone: say --train.steps 1"),
        ("analyze targets r --out o --set scale=3", "--set is gone: say --scale 3"),
        (
            "analyze tragets r",
            "ANALYSIS: expected landscape, spectrum, noise or targets, got 'tragets' (did you mean tar",
        ),
        ("analyze spectrum r --out o --objectives eco ecco", "--objectives: expected vanilla, kd, noise_free or eco, "),
        ("upscale c a b --tile x", "--tile: invalid int value: 'x'; see `eco-fast upscale --help`"),
    ],
)
def test_a_line_that_is_none_is_refused_in_a_sentence(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert complaint(capsys, *line.split()).startswith(said)


def test_all_commands_in_a_row(photo: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_network(Path("net.safetensors"), EDSR(2, features=8, blocks=1))
    write_png(Path("hr/a.png"), photo[:40, :48])
    for line in (
        "prepare hr --store store",
        "centroids --store store --teacher net.safetensors --scale 2 --device cpu",
        "downsample hr lr --scale 2",
        "upscale net.safetensors lr sr --tile 16 --device cpu",
        "evaluate net.safetensors --data hr --scale 2 --json ours.json --save-images saved --device cpu",
        "evaluate --sr sr --hr hr --scale 2 --json given.json",
    ):
        assert cli.main(line.split()) == 0
    assert [read_image(Path(name)).shape for name in ("lr/a.png", "sr/a.png")] == [(20, 24, 3), (40, 48, 3)]
    saved, upscaled = read_image(Path("saved/hr/a.png")), read_image(Path("sr/a.png"))
    assert np.abs(saved.astype(int) - upscaled).max() <= 1  # in one tile, and in several


def test_the_rounding_reaches_the_downsampling_of_every_command(
    photo: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_network(Path("net.safetensors"), EDSR(2, features=8, blocks=1))
    write_png(Path("hr/a.png"), photo[:60, :60])
    write_png(Path("lr.png"), downsample_image(photo[:60, :60], 2, "im2double"))
    for line in (
        "upscale net.safetensors lr.png sr.png --device cpu",
        "downsample hr/a.png out.png --scale 2 --rounding im2double",
        "evaluate net.safetensors --data hr --scale 2 --rounding im2double --save-images saved --device cpu",
        "prepare hr --store store",
        "centroids --store store --teacher net.safetensors --scale 2 --rounding im2double --device cpu",
    ):
        assert cli.main(line.split()) == 0
    lr, sr = read_image(Path("lr.png")), read_image(Path("sr.png"))
    assert np.array_equal(read_image(Path("out.png")), lr)
    assert np.array_equal(read_image(Path("saved/hr/a.png")), sr)
    (made,) = Path("store/centroids").iterdir()
    assert np.array_equal(Store(made).images[0], sr)
    assert not np.array_equal(lr, downsample_image(photo[:60, :60], 2, "uint8"))


def test_16_bits_are_converted_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    deep = np.arange(0, 1 << 16, 999, dtype=np.uint16).reshape(6, 11)
    Image.fromarray(deep).save("deep.png")
    assert cli.main(["prepare", "deep.png", "--store", "store"]) == 2
    assert cli.main(["prepare", "deep.png", "--store", "store", "--convert-16bit"]) == 0
    assert np.array_equal(Store(Path("store")).images[0][:, :, 1], deep >> 8)


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_and_comes_back_from_its_own_text(name: str, tmp_path: Path) -> None:
    recipe = config.load(name)
    assert recipe.description
    (tmp_path / "again.toml").write_text(config.dump(recipe), encoding="utf-8")
    again = config.load(str(tmp_path / "again.toml"))
    assert again == recipe.model_copy(update={"paper": config.Paper()})  # a run's own file claims no row of the paper
    assert config.differences(again, recipe) == []


def test_the_quick_start_needs_nothing_but_what_is_built_in() -> None:
    data = config.load("quickstart").data
    assert all(source.startswith("builtin:") for source in (*data.train, *data.validation, *data.test))
    assert data.train


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--seed 7", 7),
        ("--scale 3", 3),
        ("--description 'two words'", "two words"),
        ("--train.steps 12", 12),
        ("--train.steps=1_200", 1200),
        ("--optimizer.learning_rate 3e-4", 3e-4),
        ("--optimizer.learning_rate .5", 0.5),
        ("--optimizer.learning_rate 1", 1.0),
        ("--objective.alpha_shift -2.5", -2.5),
        ("--objective.alpha_shift -2e-1", -0.2),
        ("--train.device cpu", "cpu"),
        ("--train.device cuda:1", "cuda:1"),
        ("--train.validate_every 2%", "2%"),
        ("--train.validate_every 300", 300),
        ("--train.graph auto", "auto"),
        ("--train.graph false", False),
        ("--train.compile false", False),
        ("--train.baseline true", True),
        ("--teacher.checkpoint a=b.pt", "a=b.pt"),
        ("--data.store ''", ""),
        ("--data.store 5", "5"),
        ("--data.store true", "true"),
        ("--data.train A 'B [c], d'", ("A", "B [c], d")),
        ("--data.train 7", ("7",)),
        ("--data.test", ()),
        ("--optimizer.betas 0.8 0.99", (0.8, 0.99)),
        ("--optimizer.milestones 5 6", (5, 6)),
        ("--objective.name kd", "kd"),
        ("--model.residual_scale 0.1", 0.1),
    ],
)
def test_an_option_sets_its_key_alone(words: str, expected: object, tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("", encoding="utf-8")
    overrides = cli.parser().parse_args(["train", *shlex.split(words)]).overrides
    plain, changed = (config.load(str(tmp_path / "empty.toml"), given) for given in ((), overrides))
    key = re.split("[ =]", words.removeprefix("--"))[0]
    value: Any = changed
    for part in key.split("."):
        value = getattr(value, part)
    assert value == expected
    assert type(value) is type(expected)
    assert set(config.differences(plain, changed)) <= {key}


def words_of(values: dict[str, Any], prefix: str = "--") -> Iterator[str]:
    """All values of a recipe as somebody would type them."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from words_of(value, f"{prefix}{name}.")
        else:
            several = value if isinstance(value, tuple) else [value]
            yield from (
                f"{prefix}{name}",
                *(str(one).lower() if isinstance(one, bool) else str(one) for one in several),
            )


@pytest.mark.parametrize("name", [*recipe_names(), "rrdb"])
def test_a_whole_recipe_can_be_typed(name: str, tmp_path: Path) -> None:
    """Every key is an option, but for [paper], which no run depends on."""
    (tmp_path / "empty.toml").write_text("", encoding="utf-8")
    recipe = config.Config(model=config.RrdbModel(unshuffle=True)) if name == "rrdb" else config.load(name)
    words = words_of(recipe.model_dump(exclude={"paper"}))
    typed = config.load(str(tmp_path / "empty.toml"), cli.parser().parse_args(["train", *words]).overrides)
    assert typed == recipe.model_copy(update={"paper": config.Paper()})


def test_another_architecture_inherits_no_key_of_the_network() -> None:
    overrides = cli.parser().parse_args(["train", "R", "--model.blocks", "3", "--model.name", "rcan"]).overrides
    assert config.load("edsr_x2_eco", overrides).model == config.RcanModel(blocks=3)
    assert config.load("rcan_x3_eco", overrides).model == config.RcanModel(
        blocks=3, start_from=config.load("rcan_x3_eco").model.start_from
    )


def test_arguments_of_a_network_of_ones_own_are_options(tmp_path: Path) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text('[model]\nname = "a:B"\narguments = { width = 3, sizes = [1, 2] }\n', encoding="utf-8")
    line = "train R --model.arguments.sizes [3,4] --model.arguments.bias=false --model.arguments.kind wide"
    overrides = cli.parser().parse_args(line.split()).overrides
    arguments: dict[str, Any] = {"width": 3, "sizes": (3, 4), "bias": False, "kind": "wide"}
    assert config.load(str(recipe), overrides).model == config.OwnModel(name="a:B", arguments=arguments)
    other = cli.parser().parse_args(["train", "R", "--model.name", "c:D", "--model.arguments.rate", "0.5"]).overrides
    assert config.load(str(recipe), other).model == config.OwnModel(name="c:D", arguments={"rate": 0.5})
    assert config.load("edsr_x2_eco", other).model == config.OwnModel(name="c:D", arguments={"rate": 0.5})


def test_a_later_override_wins_over_an_earlier_one_and_over_the_file() -> None:
    recipe = config.load("quickstart", ["train.batch_size=5", "train.batch_size=7", "model.blocks=2"])
    assert isinstance(recipe.model, config.EdsrModel)
    assert (recipe.train.batch_size, recipe.model.blocks, recipe.model.features) == (7, 2, 32)
    assert config.differences(config.load("quickstart"), recipe) == ["model.blocks", "train.batch_size"]


def test_a_recipe_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config.load("quickstart").train.steps = 3  # type: ignore[misc]


def test_a_resumed_run_takes_its_recipe_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = config.load("quickstart", ["train.steps=3"])
    (tmp_path / "config.toml").write_text(config.dump(given), encoding="utf-8")
    seen: list[tuple[config.Config, Path, bool]] = []
    monkeypatch.setattr(
        "eco_fast.training.pipeline.run_recipe",
        lambda recipe, folder, *, resume, **_: seen.append((recipe, folder, resume)),
    )
    run = ["train", "--run", str(tmp_path)]
    assert cli.main([*run, "--resume"]) == 0
    assert cli.main([*run, "--resume", "--train.batch_size", "9"]) == 0
    assert cli.main(run) == 0
    assert cli.main(["train", "edsr_x2_eco", "--run", str(tmp_path / "new"), "--resume"]) == 0
    assert cli.main(["train"]) == 0
    changed = config.load("quickstart", ["train.steps=3", "train.batch_size=9"])
    quickstart = config.load("quickstart")
    assert seen == [
        (given, tmp_path, True),
        (changed, tmp_path, True),
        (quickstart, tmp_path, False),
        (config.load("edsr_x2_eco"), tmp_path / "new", True),
        (quickstart, Path("runs/quickstart"), False),
    ]
