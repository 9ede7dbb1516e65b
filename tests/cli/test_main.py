"""The command line and the recipes: what people type stays what it is."""

import argparse
import os
import re
import shlex
import subprocess
import sys
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

# Every argument of every command. A change here is a change for everybody's scripts.
SURFACE = {
    "prepare": {"SRC...", "--store DIR!", "--convert-16bit", "--verify"},
    "downsample": {"SRC", "OUT", "--scale {2,3,4,8}!", "--rounding {uint8,im2double} = uint8", "--noise-sigma S"},
    "centroids": {
        "--store DIR!",
        "--teacher CHECKPOINT!",
        "--scale {2,3,4,8}!",
        "--rounding {uint8,im2double} = uint8",
        "--device DEVICE = auto",
        "--tile N",
        "--self-ensemble",
        "--verify",
    },
    "train": {"[RECIPE]", "--run DIR", "--resume", "--dry-run", "--profile", "--set KEY=VALUE... = []"},
    "compare": {
        "RECIPE",
        "--run DIR",
        "--variant NAME [KEY=VALUE]... = []",
        "--across KEY=[...]... = []",
        "--seeds N = 3",
        "--set KEY=VALUE... = []",
    },
    "analyze landscape": {"RUN...", "--out DIR!", "--lengths FIRST LAST COUNT = (0.5, 4, 8)", "--batches N = 1"},
    "analyze spectrum": {
        "RUN...",
        "--out DIR!",
        "--checkpoint NAME|STEP = last",
        "--batches N = 16",
        "--objectives {vanilla,kd,noise_free,eco}...",
    },
    "analyze noise": {"RUN", "[SRC...]", "--out DIR!"},
    "analyze targets": {
        "RUN|RECIPE",
        "[SRC...]",
        "--out DIR!",
        "--alphas ALPHA... = (0, 0.25, 0.5, 0.75, 1)",
        "--set KEY=VALUE... = []",
    },
    "recipes": set(),
    "evaluate": {
        "[CHECKPOINT]",
        "--data HR_DIR...",
        "--sr SR_DIR",
        "--hr HR_DIR",
        "--scale {2,3,4,8}!",
        "--rounding {uint8,im2double} = uint8",
        "--noise-sigma S",
        "--json FILE",
        "--save-images DIR",
        "--device DEVICE = auto",
        "--tile N",
    },
    "table": {"RUN...", "--out DIR"},
    "upscale": {"CHECKPOINT", "SRC", "OUT", "--device DEVICE = auto", "--tile N"},
}
README = Path(__file__).parents[2] / "README.md"


def commands() -> dict[str, argparse.ArgumentParser]:
    """Every command, and every analysis."""
    top = parsers_of(cli.parser())
    analyses = {f"analyze {name}": parser for name, parser in parsers_of(top.pop("analyze")).items()}
    return {**top, **analyses}


def parsers_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    told = [action.dest for action in subparsers._choices_actions]  # a command that is called otherwise now is not
    return {name: subparsers.choices[name] for name in told}


def spelled(action: argparse.Action) -> str:
    """An argument as the table above writes it."""
    name = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper())
    if isinstance(name, tuple):
        name = " ".join(name if action.nargs == len(name) else (name[0], *(f"[{more}]" for more in name[1:])))
    repeated = action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction)
    value = "" if action.nargs == 0 else f"{name}{'...' if repeated else ''}"
    if not action.option_strings:
        return f"[{value}]" if action.nargs in ("?", "*") else value
    option = " ".join([*action.option_strings, value]).strip() + ("!" if action.required else "")
    return option if action.default in (None, False) else f"{option} = {action.default}"


def test_the_command_line_is_what_it_was() -> None:
    surface = {
        name: {
            spelled(action) for action in command._actions if action.dest != "help" and action.help != argparse.SUPPRESS
        }
        for name, command in commands().items()
    }
    assert surface == SURFACE


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
        ("train", {"recipe": None, "folder": None, "resume": False, "profile": False, "overrides": []}),
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
            "train R --run D --resume --set a=1 --set b=2",
            {"recipe": "R", "folder": Path("D"), "resume": True, "overrides": ["a=1", "b=2"]},
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


@pytest.mark.parametrize("name", SURFACE)
def test_every_command_explains_itself_with_an_example_that_works(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*name.split(), "--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    summary, _, example = said.partition("example:\n")
    assert name in summary
    program, *arguments = shlex.split(example)
    assert program == "eco-fast"
    parsed = cli.parser().parse_args(arguments)
    assert [parsed.command, *([parsed.analysis] if "analysis" in parsed else [])] == name.split()
    assert all(action.help for action in commands()[name]._actions)


def test_an_option_of_old_is_refused_with_its_new_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compare", "quickstart", "--arm", "slow", "optimizer.learning_rate=1e-5"])
    assert stopped.value.code == 2
    assert "error: argument --arm: is called --variant now" in capsys.readouterr().err


def test_a_command_of_old_is_refused_with_its_new_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["teach", "--store", "store", "--teacher", "net.pth", "--scale", "2"]) == 2
    assert capsys.readouterr().err == "eco-fast: teach is called centroids now\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    said = capsys.readouterr().out
    assert all(re.search(rf"^    {name}\s+\w", said, re.MULTILINE) for name in parsers_of(cli.parser()))


def test_help_answers_at_once() -> None:
    heavy = ("torch", "numpy", "PIL", "pydantic", "rich", "eco_fast_kernels")
    script = f"""
import sys
from eco_fast.cli import main
main.parser().format_help()
print([name for name in {heavy} if name in sys.modules])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    answer = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


def test_a_command_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["trian"], ["prepare"], ["train", "--stp", "3"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 2
        assert "error: " in capsys.readouterr().err


def test_the_readmes_commands_parse() -> None:
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL))
    lines = [line.partition("eco-fast ") for line in blocks.replace("\\\n", " ").splitlines()]
    given = [shlex.split(arguments, comments=True) for _, found, arguments in lines if found]
    assert len(given) >= 4
    for arguments in given:
        parsed = cli.parser().parse_args(arguments)
        if parsed.command == "train":
            config.load(parsed.recipe or "quickstart", parsed.overrides)


def test_the_readme_names_every_command() -> None:
    text = README.read_text(encoding="utf-8")
    assert [name for name in SURFACE if f"eco-fast {name}" not in text] == []


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
    ("override", "expected"),
    [
        ("seed=7", 7),
        ("train.steps=12", 12),
        ("optimizer.learning_rate=3e-4", 3e-4),
        ("optimizer.learning_rate=1", 1.0),
        ("train.device=cpu", "cpu"),
        ("train.device='cuda:1'", "cuda:1"),
        ("teacher.checkpoint=a=b.pt", "a=b.pt"),
        ("data.store=", ""),
        ('data.train=["A", "B"]', ("A", "B")),
        ("data.test=[]", ()),
        ("optimizer.betas=[0.8, 0.99]", (0.8, 0.99)),
        ("train.compile=false", False),
        ("train.baseline=true", True),
        ("objective.name=kd", "kd"),
        ("train={steps = 5, batch_size = 3}", config.Train(steps=5, batch_size=3)),
    ],
)
def test_an_override_sets_its_key_alone(override: str, expected: object, tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("", encoding="utf-8")
    plain, changed = (config.load(str(tmp_path / "empty.toml"), given) for given in ([], [override]))
    key = override.partition("=")[0]
    value: Any = changed
    for part in key.split("."):
        value = getattr(value, part)
    assert value == expected
    assert type(value) is type(expected)
    assert all(name == key or name.startswith(f"{key}.") for name in config.differences(plain, changed))


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
    assert cli.main([*run, "--resume", "--set", "train.batch_size=9"]) == 0
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
