"""Bad input: one sentence on stderr that names the file or the key, and exit code 2."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from eco_fast import config
from eco_fast.cli.main import main
from eco_fast.data.images import Pixels
from eco_fast.models import save_network
from eco_fast.models.edsr import EDSR
from tests.helpers import complaint

TINY = """
[data]
patch = 8
[model]
features = 8
blocks = 1
[teacher]
steps = 2
[train]
steps = 2
batch_size = 2
device = "cpu"
compile = false
"""


@pytest.fixture(scope="module")
def things(photo: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good and bad things in it."""
    folder = tmp_path_factory.mktemp("things")
    with contextlib.chdir(folder):
        make_things(photo)
    return folder


def make_things(photo: Pixels) -> None:
    for name, (height, width) in {"hr/a.png": (40, 48), "hr/b.png": (36, 36), "sr/a.png": (40, 44)}.items():
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(photo[100 : 100 + height, 150 : 150 + width]).save(name)
    for name in ("empty", "cut", "text", "dot"):
        Path(name).mkdir()
    Path("cut/cut.png").write_bytes(Path("hr/a.png").read_bytes()[:900])
    Path("text/text.png").write_text("I am a text", encoding="utf-8")
    Image.fromarray(photo[:15, :90]).save("dot/small.png")
    Image.fromarray(np.zeros((2, 2), dtype=np.uint16)).save("deep.png")
    Path("file").write_text("a file, where a folder is needed", encoding="utf-8")
    Path("tiny.toml").write_text(TINY, encoding="utf-8")
    torch.manual_seed(0)
    for scale in (2, 3):
        save_network(Path(f"x{scale}.safetensors"), EDSR(scale, features=8, blocks=1))
    other = {"layer.weight": torch.zeros(3, 3), "layer.bias": torch.zeros(3)}
    torch.save(other, "other.pt")
    save_file(other, "other.safetensors")
    part = EDSR(2, features=8, blocks=1).state_dict()
    torch.save({**part, "extra.weight": torch.zeros(1)}, "more.pt")
    torch.save({**part, "note": Payload()}, "code.pth")
    torch.save({**part, "note": Payload()}, "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(EDSR(2, features=8, blocks=1), "module.pth")
    del part["body.0.body.2.bias"]
    torch.save(part, "part.pt")
    for name in ("page.pth", "page.safetensors"):
        Path(name).write_text("\n<!DOCTYPE html><html><body>Not found</body></html>", encoding="utf-8")
    for name in ("garbage.pt", "garbage.safetensors"):
        Path(name).write_bytes(b"garbage " * 20)
    Path("cut.safetensors").write_bytes(Path("x2.safetensors").read_bytes()[:5000])


@pytest.fixture
def here(things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of these things as the current folder."""
    shutil.copytree(things, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def train(*options: str) -> list[str]:
    return ["train", "tiny.toml", "--run", "run", *(word for option in options for word in f"--{option}".split(" "))]


IMAGES = {
    "gone": "gone: there is no such file or folder",
    "empty": "empty: holds no images",
    "cut": "cut/cut.png: damaged image (",
    "text": "text/text.png: not an image",
    "deep.png": "deep.png: 16 bits a channel, but eco-fast works on 8; ",
}
COMMANDS = {
    "prepare": ["prepare", "hr", "{source}", "--store", "store"],
    "evaluate": ["evaluate", "x2.safetensors", "--data", "{source}", "--scale", "2", "--device", "cpu"],
    "evaluate --sr": ["evaluate", "--sr", "{source}", "--hr", "{source}", "--scale", "2"],
    "upscale": ["upscale", "x2.safetensors", "{source}", "out", "--device", "cpu"],
    "downsample": ["downsample", "{source}", "out", "--scale", "2"],
    "train": train("data.train {source}"),
    "train, validation": train("data.train hr", "data.validation {source}"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("source", IMAGES)
@pytest.mark.usefixtures("here")
def test_images_that_cannot_be_used(command: str, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, *(word.format(source=source) for word in COMMANDS[command]))
    assert said.startswith(IMAGES[source])
    helps = source == "deep.png" and command in ("prepare", "train")
    assert ("`eco-fast prepare --convert-16bit`" in said) == helps


PROOF = "the-payload-has-run"


class Payload:
    """What a pickle can do to whoever loads it."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {PROOF}",)


CHECKPOINTS = {
    "gone.safetensors": "gone.safetensors: there is no such checkpoint",
    "garbage.safetensors": "garbage.safetensors: damaged or not a safetensors file",
    "garbage.pt": "garbage.pt: damaged, or not a checkpoint of plain weights",
    "cut.safetensors": "cut.safetensors: damaged or not a safetensors file",
    "other.pt": "other.pt: not a checkpoint of a known network (EDSR, RCAN, SWINIR, RRDB, or one that spandrel knows)",
    "other.safetensors": "other.safetensors: not a checkpoint of a known network (EDSR, RCAN, SWINIR, RRDB, or one ",
    "more.pt": "more.pt: more than EDSR weights, extra.weight is unknown",
    "code.pth": "code.pth: holds code besides weights (posix.system), which eco-fast never runs; expected plain ",
    "legacy.pth": "legacy.pth: holds code besides weights (posix.system), which eco-fast never runs; expected plain ",
    "module.pth": "module.pth: holds code besides weights (eco_fast.models.edsr.EDSR), which eco-fast never runs; ",
    "page.pth": "page.pth: a web page, not a checkpoint; download the file that the page links to",
    "page.safetensors": "page.safetensors: a web page, not a checkpoint; download the file that the page links to",
    "part.pt": "part.pt: not a complete EDSR checkpoint, body.0.body.2.bias is missing",
    "x3.safetensors": "x3.safetensors: a network for x3, but x2 is asked for",
}


@pytest.mark.parametrize(
    ("command", "checkpoint"),
    [(command, checkpoint) for command in ("centroids", "evaluate", "train") for checkpoint in CHECKPOINTS]
    + [("upscale", checkpoint) for checkpoint in list(CHECKPOINTS)[:-1]],  # which takes the network's own scale
)
@pytest.mark.usefixtures("here")
def test_checkpoints_that_cannot_be_used(command: str, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {
        "centroids": ["centroids", "--store", "store", "--teacher", checkpoint, "--scale", "2", "--device", "cpu"],
        "evaluate": ["evaluate", checkpoint, "--data", "hr", "--scale", "2", "--device", "cpu"],
        "upscale": ["upscale", checkpoint, "hr", "out", "--device", "cpu"],
        "train": train("data.train hr", f"teacher.checkpoint {checkpoint}"),
    }
    main(["prepare", "hr", "--store", "store"])
    assert complaint(capsys, *arguments[command]).startswith(CHECKPOINTS[checkpoint])
    assert not Path("run").exists()  # refused before any work
    assert not Path(PROOF).exists()


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("train.step 3", "unknown option --train.step (did you mean --train.steps?)"),
        ("train.step=3", "unknown option --train.step (did you mean --train.steps?)"),
        ("trian.steps 3", "unknown option --trian.steps (did you mean --train.steps?)"),
        ("train.batch-size 3", "unknown option --train.batch-size (did you mean --train.batch_size?)"),
        ("batch 3", "unknown option --batch (did you mean --train.batch_size?)"),
        ("epochs 3", "unknown option --epochs (see `eco-fast train --help`)"),
        ("resum", "unknown option --resum (did you mean --resume?)"),
        ("train.learning_rate 1", "unknown option --train.learning_rate (did you mean --optimizer.learning_rate?)"),
        ("train.batch 3", "--train.batch is called --train.batch_size now"),
        ("train.batch=3", "--train.batch is called --train.batch_size now"),
        ("data.watch x", "--data.watch is called --data.monitor now"),
        ("data.small_images skip", "--data.small_images is called --data.on_small_image now"),
        ("data.source packed", "--data.source packed is called store now"),
        ("data.source encoded", "--data.source encoded is called files now"),
        ("train.vanilla_twin true", "--train.vanilla_twin is called --train.baseline now"),
        ("optimizer.halve_every 5", "--optimizer.halve_every is called --optimizer.step_size now"),
        ("optimizer.halve_at 5", "--optimizer.halve_at is called --optimizer.milestones now"),
        ("paper.row x", "--paper.row is no option: [paper] is what the file of a recipe says of itself"),
        ("train.steps abc", "--train.steps: input should be a valid integer, got 'abc'"),
        ("train.steps 1e3", "--train.steps: input should be a valid integer, got '1e3'"),
        ("train.steps 0", "--train.steps: input should be greater than or equal to 1, got 0"),
        ("train.steps", "--train.steps: expected one argument; see `eco-fast train --help`"),
        ("train.compile 1", "--train.compile: expected true or false, got '1'; see `eco-fast train --help`"),
        ("train.compile", "--train.compile: expected one argument; see `eco-fast train --help`"),
        ("train.graph on", "--train.graph: expected auto, true or false, got 'on'"),
        (
            "train.validate_every 200%",
            "--train.validate_every: input should be a number of steps from 1, or a share of ",
        ),
        ("optimizer.betas 0.9", "--optimizer.betas: expected 2 arguments; "),
        ("optimizer.milestones 5 x", "--optimizer.milestones: input should be a valid integer, got 'x'"),
        ("data.train a --data.train b", "--data.train: given twice; put all its values behind one --data.train"),
        (
            "data.train d\udce9",
            "--data.train: d\\udce9 is not UTF-8, as recipes are; rename the folder or file, or name ",
        ),
        (
            "objective.name ecco",
            "--objective.name: expected vanilla, kd, noise_free, eco or residual, got 'ecco' (did ",
        ),
        ("objective.alpha_shift nan", "--objective.alpha_shift: input should be a finite number, got nan"),
        ("seed 99999999999999999999", "--seed: input should be less than"),
        ("scale 5", "--scale: expected 2, 3, 4 or 8, got '5'"),
        (
            "model.name vgg",
            "--model.name: the architecture is one of edsr, rcan, swinir, rrdb, module:Class, ",
        ),
        ("model.arguments 5", "unknown option --model.arguments (did you mean --model.arguments.KEY?)"),
        ("model.argument.x 5", "unknown option --model.argument.x (did you mean --model.arguments.KEY?)"),
        ("model.arguments.x {y=1}", "--model.arguments.x: input should be "),
        ("model.arguments.x 5", "tiny.toml: unknown key model.arguments; the keys of model are start_from, name, "),
        ("model.groups 0", "--model.groups: input should be greater than or equal to 1, got 0"),
        ("model.groups 2", "tiny.toml: unknown key model.groups; the keys of model are start_from, name, features, "),
        ("model.name rcan --model.residual_scale 2", "tiny.toml: unknown key model.residual_scale; the keys of model "),
        ("set train.steps=5", "--set is gone: say --train.steps 5"),
        ("set=train.steps=5", "--set is gone: say --train.steps 5"),
        ("set train.device='cpu'", "--set is gone: say --train.device cpu"),
        ('set data.train=["A","B"]', "--set is gone: say --data.train A B"),
        ("set data.test=[]", "--set is gone: say --data.test"),
        ("set train.compile=false", "--set is gone: say --train.compile false"),
        ("set train.batch=5", "--set is gone: say --train.batch_size 5"),
        ("set train={steps=5}", "--set is gone: every key is an option, for example --train.steps 300"),
        ("set =5", "--set is gone: every key is an option, for example --train.steps 300"),
        ("set steps", "--set is gone: every key is an option, for example --train.steps 300"),
        ("set", "--set is gone: every key is an option, for example --train.steps 300"),
    ],
)
@pytest.mark.usefixtures("here")
def test_options_that_are_wrong(option: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, *train(option))
    assert said.startswith(expected)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.step=3", "unknown key train.step (did you mean train.steps?)"),
        ("trian.steps=3", "unknown key trian (did you mean train?)"),
        ("train.batch=3", "train.batch is called train.batch_size now"),
        ("data.source=packed", "data.source=packed is called data.source=store now"),
        ("optimizer.lr=1", "unknown key optimizer.lr; the keys of optimizer are name, backend, learning_rate, "),
        ("train.compile=1", "train.compile: input should be true or false, got 1"),
        ("data.train=hr", "data.train: input should be an array, such as"),
        ("data.train=[1]", "data.train.0: input should be a valid string, got 1"),
        ("train=5", "train: input should be a section with keys of its own, got 5"),
        ("objective.name=ecco", "objective.name: input should be 'vanilla', 'kd', 'noise_free', 'eco' or 'residual', "),
        ("steps", "expected KEY=VALUE, for example train.steps=300; got 'steps'"),
        ("=5", "expected KEY=VALUE"),
        ("scale.x=5", "scale: input should be 2, 3, 4 or 8, got {'x': 5}"),
    ],
)
def test_overrides_that_are_wrong(override: str, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        config.load("quickstart", [override])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[train]\nsteps = ", "bad.toml: not valid TOML: "),
        (b"description = '\xff'", "bad.toml: not valid TOML: "),
        (b"[train]\nstps = 3", "bad.toml: unknown key train.stps (did you mean train.steps?)"),
        (b"scale = 5", "bad.toml: scale: input should be 2, 3, 4 or 8, got 5"),
        (b"scale = " + b"[" * 100_000, "bad.toml: not valid TOML: "),
        (b".".join([b"x"] * 5000) + b" = 1", "bad.toml: sections within sections"),
        (b'"a\\nb" = 1', "bad.toml: unknown key a\\nb; the keys"),
        (b"k" * 9000 + b" = 1", "bad.toml: unknown key kkk"),
        (b"seed = " + b"9" * 400, "bad.toml: seed: "),
        (b"scale = 2\nscale = 2", "bad.toml: not valid TOML: "),
        (b"scale = 2\0", "bad.toml: not valid TOML: "),
        ("scale = 2".encode("utf-16-be"), "bad.toml: not valid TOML: "),
    ],
)
@pytest.mark.usefixtures("here")
def test_recipe_files_that_are_wrong(content: bytes, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.toml").write_bytes(content)
    said = complaint(capsys, "train", "bad.toml")
    assert said.startswith(expected)
    assert len(said) < 600


@pytest.mark.usefixtures("here")
def test_recipes_that_do_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, "train", "quikstart")
    assert said.startswith("there is no recipe 'quikstart' (did you mean quickstart?); `eco-fast recipes` lists ")
    assert complaint(capsys, "train", "gone.toml") == "gone.toml: there is no such file"


@pytest.mark.parametrize("command", ["centroids --store s --teacher t", "evaluate c --data d", "downsample a b"])
def test_scales_that_do_not_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, *command.split(), "--scale", "5")
    assert said.startswith("--scale: expected 2, 3, 4 or 8, got '5'; see `eco-fast ")


@pytest.mark.usefixtures("here")
def test_an_image_smaller_than_a_patch(capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, *train("data.train hr dot"))
    assert said.startswith("dot/small.png is 90x15 pixels, smaller than an HR patch of 16x16 (1 such images); ")
    said = complaint(capsys, *train("data.train dot", "data.on_small_image skip"))
    assert said.startswith("run/store: ")


@pytest.mark.usefixtures("here")
def test_sizes_that_do_not_match(capsys: pytest.CaptureFixture[str]) -> None:
    Path("hr/b.png").unlink()
    said = complaint(capsys, "evaluate", "--sr", "sr", "--hr", "hr", "--scale", "2")
    assert said.startswith("sr/a.png: SR is 44x40 but HR is 48x40 pixels; they must have the same size")


@pytest.mark.parametrize(
    "given", [[], ["--sr", "sr"], ["x2.safetensors"], ["x2.safetensors", "--data", "hr", "--sr", "sr", "--hr", "hr"]]
)
@pytest.mark.usefixtures("here")
def test_evaluate_wants_a_checkpoint_or_images(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, "evaluate", "--scale", "2", *given)
    assert said == "evaluate takes either CHECKPOINT with --data HR_DIR, or --sr SR_DIR with --hr HR_DIR"


@pytest.mark.parametrize(
    "option", ["--save-images D", "--noise-sigma 5", "--rounding im2double", "--device cpu", "--tile 9"]
)
def test_images_that_exist_take_no_option_of_a_checkpoint(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, "evaluate", "--sr", "sr", "--hr", "hr", "--scale", "2", *option.split())
    assert said == f"{option.split(maxsplit=1)[0]} goes with CHECKPOINT: the images of --sr exist already"


@pytest.mark.usefixtures("here")
def test_devices_and_tiles_that_do_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    upscale = ("upscale", "x2.safetensors", "hr", "out")
    assert complaint(capsys, *upscale, "--tile", "0") == "--tile: expected at least 1 pixel, got 0"
    assert "expected auto, cpu, cuda or cuda:N, got 'tpux'" in complaint(capsys, *upscale, "--device", "tpux")
    assert complaint(capsys, *train("train.device cuda:99")).startswith("train.device: cuda:99 is asked for, but ")


@pytest.mark.usefixtures("here")
def test_a_store_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("gone", "hr"):
        said = complaint(capsys, "centroids", "--store", folder, "--teacher", "x2.safetensors", "--scale", "2")
        assert said == f"{folder}: not a store (no manifest.json)"


@pytest.mark.usefixtures("here")
def test_training_without_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert complaint(capsys, *train()).startswith(
        "data.train is empty: name your HR images, for example --data.train DIV2K_HR"
    )
    assert complaint(capsys, *train("data.store gone")).startswith("gone: not a store")


@pytest.mark.usefixtures("here")
def test_a_taken_run_folder_and_another_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    given = ("data.train hr", "teacher.checkpoint x2.safetensors")
    assert main(train(*given)) == 0
    checkpoint = Path("run/checkpoints/last.safetensors").read_bytes()
    said = complaint(capsys, *train(*given))
    assert said.startswith("run: already holds a run; continue it with --resume, or choose another folder with --run")
    for other in ("optimizer.weight_decay 3e-4", "train.steps 3"):
        expected = f"run: holds a run with another {other.partition(' ')[0]}; resume with the same recipe"
        assert complaint(capsys, *train(*given, other), "--resume").startswith(expected)
        assert complaint(capsys, "train", "--run", "run", "--resume", *f"--{other}".split()).startswith(expected)
    assert Path("run/checkpoints/last.safetensors").read_bytes() == checkpoint
    assert main(["train", "--run", "run", "--resume", "--train.steps", "2"]) == 0


@pytest.mark.usefixtures("here")
def test_a_folder_that_holds_something_else(capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, "train", "tiny.toml", "--run", "hr", "--data.train", "hr")
    assert said.startswith("hr: not empty and not a run; choose another folder with --run")


@pytest.mark.parametrize("out", ["file", "file/sub"])
@pytest.mark.parametrize("command", ["prepare", "train", "upscale", "downsample", "evaluate"])
@pytest.mark.usefixtures("here")
def test_outputs_that_cannot_be_written(command: str, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {
        "prepare": ["prepare", "hr", "--store", out],
        "train": ["train", "tiny.toml", "--run", out, "--data.train", "hr"],
        "upscale": ["upscale", "x2.safetensors", "hr", out, "--device", "cpu"],
        "downsample": ["downsample", "hr", out, "--scale", "2"],
        "evaluate": ["evaluate", "--sr", "hr", "--hr", "hr", "--scale", "2", "--json", f"{out}/scores.json"],
    }
    said = complaint(capsys, *arguments[command])
    assert said.startswith(out)
    assert "folder" in said
    assert Path("file").read_text(encoding="utf-8") == "a file, where a folder is needed"


@pytest.mark.parametrize("arguments", [["prepare", "hr", "--store"], ["train", "tiny.toml", "--run"]])
@pytest.mark.usefixtures("here")
def test_a_folder_that_the_system_refuses(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, *arguments, "/proc/eco-fast")
    assert said.startswith("/proc")
    assert "cannot be read or written (" in said


@pytest.mark.usefixtures("here")
def test_a_name_with_a_line_break_breaks_no_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a\nb.png").write_bytes(b"no image")
    said = complaint(capsys, "prepare", "a\nb.png", "--store", "store")
    assert said.startswith(r"a\nb.png: ")


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_who_names_a_folder_for_caches_that_cannot_be_written() -> None:
    """torch makes it when it is imported."""
    code = "import sys; from eco_fast.cli.main import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["train", "tiny.toml", "--run", "run", "--train.compile", "true", "--data.train", "hr"]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": "/proc/caches"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("eco-fast: /proc/caches")
    assert done.stderr.endswith("; let $TORCHINDUCTOR_CACHE_DIR name a folder that can be written\n")
