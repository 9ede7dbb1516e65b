"""A network of one's own, of a module that only the import path knows: trained, resumed, and used by new processes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eco_fast import config
from eco_fast.cli.main import main
from eco_fast.data.images import Pixels, read_image, write_png
from eco_fast.inference.upscale import super_resolve
from eco_fast.models import Network, build, load_network, save_network, warm_start
from eco_fast.training.checkpoints import Checkpoints
from eco_fast.training.pipeline import run_recipe
from tests.helpers import complaint

SOURCE = """
from collections import OrderedDict
import torch
from torch import nn
from eco_fast import Network

class Tiny(Network):
    halo = 2

    def __init__(self, scale: int, features: int = 4, sizes: tuple[int, ...] = (3, 3), bias: bool = True) -> None:
        super().__init__(scale)
        widths = (3, *[features] * (len(sizes) - 1), 3 * scale**2)
        pairs = zip(widths[:-1], widths[1:], sizes, strict=True)
        convolutions = [nn.Conv2d(i, o, k, padding=k // 2, bias=bias) for i, o, k in pairs]
        # all weights are below `net`, which other people's files have as a wrapper
        self.net = nn.Sequential(OrderedDict((f"conv{n}", one) for n, one in enumerate(convolutions)))
        self.shuffle = nn.PixelShuffle(scale)

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        return self.shuffle(self.net(lr)) + nn.functional.interpolate(lr, scale_factor=self.scale)

class Abstract(Network):
    def forward(self, lr): return lr

class Still(Abstract):
    halo = 0

class Plain(nn.Module): pass
value = 3
"""
MODEL = {"name": "my_networks:Tiny", "arguments": {"features": 5, "sizes": [3, 1, 3], "bias": False}}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the module, which is on the import path."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "my_networks.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "modules" / "broken.py").write_text("raise RuntimeError('no licence')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    for name in ("my_networks", "broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path / "modules"


@pytest.fixture
def network(module: Path) -> Network:
    assert module.is_dir()
    return build(config.validate({"model": MODEL}, "test").model, 3)


def test_a_recipe_builds_it_with_its_arguments(network: Network) -> None:
    shapes = [tuple(weight.shape) for weight in network.parameters()]
    assert shapes == [(5, 3, 3, 3), (5, 5, 1, 1), (27, 5, 3, 3)]
    assert network.scale == 3


def test_a_checkpoint_brings_it_back(network: Network, tmp_path: Path, photo: Pixels) -> None:
    save_network(tmp_path / "net.safetensors", network, step=7)
    loaded = load_network(tmp_path / "net.safetensors", "cpu")
    assert type(loaded) is type(network)
    assert (loaded.architecture, loaded.hyperparameters) == (network.architecture, network.hyperparameters)
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in network.state_dict().items())
    lr = photo[:30, :41]
    assert np.array_equal(super_resolve(loaded, lr, tile=8), super_resolve(network, lr))  # its halo is right


@pytest.mark.slow
def test_it_is_trained_resumed_and_used_by_new_processes(
    module: Path, tmp_path: Path, photo: Pixels, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_png(tmp_path / "HR" / "a.png", photo[50:98, 100:148])
    text = f"""
        scale = 2
        [data]
        train = ["{tmp_path / "HR"}"]
        validation = ["{tmp_path / "HR"}"]
        patch = 12
        loader = "plain"
        [model]
        name = "my_networks:Tiny"
        arguments = {{ features = 5, sizes = [3, 1, 3], bias = false }}
        [teacher]
        steps = 2
        [train]
        steps = 4
        batch_size = 2
        checkpoint_every = 2
        compile = false
        device = "cpu"
    """
    (tmp_path / "own.toml").write_text(text, encoding="utf-8")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    recipe = config.load(str(tmp_path / "own.toml"))
    run_recipe(recipe, whole)
    assert config.load(str(whole / "config.toml")) == recipe

    save = Checkpoints.save

    def dies(checkpoints: Checkpoints, *state: Any, **options: Any) -> None:
        save(checkpoints, *state, **options)
        checkpoints.wait()
        if checkpoints.folder.parent == halves:
            raise RuntimeError("died")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", dies)
        with pytest.raises(RuntimeError, match="died"):
            run_recipe(recipe, halves)
    path = os.pathsep.join([str(module), os.environ["PYTHONPATH"]])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "eco_fast", "train", "--run", str(halves), "--resume"]
    subprocess.run(command, env=environment, check=True)
    last = halves / "checkpoints" / "last.safetensors"
    assert last.read_bytes() == (whole / "checkpoints" / "last.safetensors").read_bytes()

    monkeypatch.delitem(sys.modules, "my_networks")
    assert main(["upscale", str(last), str(tmp_path / "HR"), str(tmp_path / "SR")]) == 0
    expected = super_resolve(load_network(last, "cpu"), photo[50:98, 100:148])
    assert np.array_equal(read_image(tmp_path / "SR" / "a.png"), expected)

    monkeypatch.delitem(sys.modules, "my_networks")
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one != str(module)])
    assert complaint(capsys, "upscale", str(last), str(tmp_path / "HR"), str(tmp_path / "SR")) == (
        f"{last}: my_networks:Tiny: there is no module my_networks to import; install it, or add its folder to "
        "PYTHONPATH"
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere:Tiny", "there is no module nowhere to import; install it, or add its folder to PYTHONPATH"),
        ("nowhere.nets:Tiny", "there is no module nowhere to import; install it, or add its folder to PYTHONPATH"),
        ("my_networks:Tinny", "expected a class that extends eco_fast.Network, got None"),
        ("my_networks:value", "expected a class that extends eco_fast.Network, got 3"),
        ("my_networks:Plain", "expected a class that extends eco_fast.Network, got <class 'my_networks.Plain'>"),
        ("my_networks:Abstract", "the class lacks halo; see eco_fast.Network"),
        ("broken:Tiny", "importing broken failed (RuntimeError: no licence)"),
        ("os:system", "expected a class that extends eco_fast.Network, got <built-in function system>"),
    ],
)
@pytest.mark.usefixtures("module")
def test_what_cannot_be_used_is_one_sentence(
    name: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.toml").write_text(f'[model]\nname = "{name}"', encoding="utf-8")
    for more in ([], ["--dry-run"]):
        said = complaint(capsys, "train", str(tmp_path / "own.toml"), "--run", str(tmp_path / "run"), *more)
        assert said == f"{name}: {reason}"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"featurs": 3}, "got an unexpected keyword argument 'featurs'"),
        ({"scale": 3}, "multiple values for argument 'scale'"),
    ],
)
@pytest.mark.usefixtures("module")
def test_arguments_that_the_class_does_not_take_are_named(arguments: dict[str, int], reason: str) -> None:
    recipe = config.validate({"model": {"name": "my_networks:Tiny", "arguments": arguments}}, "test")
    with pytest.raises(ValueError, match=rf"my_networks:Tiny: the class takes \(scale: int, .*: {reason}"):
        build(recipe.model, 2)


@pytest.mark.parametrize(
    ("model", "complains"),
    [
        ({"name": "a:b:c"}, "model.name: "),
        ({"name": "a:"}, "model.name: "),
        ({"name": "edssr"}, "model.name: the architecture is one of edsr, rcan, swinir, rrdb, module:Class, got"),
        ({"name": "a:B", "features": 3}, "unknown key model.features"),
        ({"name": "a:B", "arguments": 3}, "model.arguments: input should be "),
        ({"name": "a:B", "arguments": {"x": {"y": 1}}}, "model.arguments.x"),
    ],
)
def test_a_section_that_is_wrong_is_one_sentence(model: dict[str, object], complains: str) -> None:
    with pytest.raises(ValueError, match="test: ") as caught:
        config.validate({"model": model}, "test")
    assert str(caught.value).startswith(f"test: {complains}")


def test_a_checkpoint_of_other_weights_is_refused(network: Network, tmp_path: Path) -> None:
    network.hyperparameters = {"arguments": {**network.hyperparameters["arguments"], "features": 6}}
    save_network(tmp_path / "net.safetensors", network)
    with pytest.raises(
        ValueError, match=r"net\.safetensors: not a proper my_networks:Tiny checkpoint, net\.conv0\.weight"
    ):
        load_network(tmp_path / "net.safetensors", "cpu")


def test_it_starts_from_another_scale_if_it_names_the_weights_that_depend_on_it(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_network(tmp_path / "x3.safetensors", network)
    x2 = build(config.validate({"model": MODEL}, "test").model, 2)
    with pytest.raises(ValueError, match=r"net\.conv2\.weight does not match"):
        warm_start(x2, tmp_path / "x3.safetensors")
    monkeypatch.setattr(type(x2), "scale_dependent_keys", ("net.conv2.",))
    assert warm_start(x2, tmp_path / "x3.safetensors") == ["net.conv2.weight"]
    assert torch.equal(x2.state_dict()["net.conv1.weight"], network.state_dict()["net.conv1.weight"])


@pytest.mark.usefixtures("module")
def test_an_output_of_another_size_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.toml").write_text('scale = 4\n[model]\nname = "my_networks:Still"', encoding="utf-8")
    for more in ([], ["--dry-run"]):
        said = complaint(capsys, "train", str(tmp_path / "own.toml"), "--run", str(tmp_path / "run"), *more)
        assert said == (
            "my_networks:Still: makes [1, 3, 48, 48] of an LR patch [1, 3, 48, 48] at x4; expected [1, 3, 192, 192]"
        )
