"""The C++ on a machine that has compiled nothing yet, that cannot keep what it compiles, or that cannot compile it."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eco_fast.models.cpu import build, linear, window_attention

pytestmark = pytest.mark.slow

FORK: Any = multiprocessing.get_context("fork")
COMPILER = """#!/bin/sh
case "$*" in *-shared*) echo compiled >> {log};; esac
{refusal}
exec g++ "$@"
"""
REFUSALS = {
    "OpenMP": """case "$*" in *-fopenmp*) echo "error: unsupported option '-fopenmp'" >&2; exit 1;; esac""",
    "header": 'case "$*" in *-shared*) echo "fatal error: cmath: No such file or directory" >&2; exit 1;; esac',
    "processor": 'case "$*" in *-march=native*) echo "error: unknown target CPU" >&2; exit 1;; esac',
}


class Machine:
    """A machine that has compiled nothing yet, and whose compiler counts how often it compiles."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log, self.compiler, self.cache = folder / "log", folder / "c++", folder / "cache"
        self.refuse("")
        monkeypatch.setenv("CXX", str(self.compiler))
        monkeypatch.setenv("XDG_CACHE_HOME", str(self.cache))
        monkeypatch.setattr(build, "SAID", set())
        build.library.cache_clear()

    def refuse(self, refusal: str) -> None:
        self.compiler.write_text(COMPILER.format(log=self.log, refusal=refusal))
        self.compiler.chmod(0o755)

    @property
    def compilations(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def start(self, count: int) -> None:
        """So many processes at once, each of which needs the compiled functions."""
        barrier = FORK.Barrier(count)
        processes = [FORK.Process(target=need, args=(barrier,)) for _ in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * count


def need(barrier: Any) -> None:
    barrier.wait()
    assert build.available("linear")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    yield Machine(tmp_path, monkeypatch)
    build.library.cache_clear()  # the next test finds its own machine again


def check_linear() -> None:
    """Values and gradients against torch's."""
    layer, tokens = nn.Linear(20, 7), torch.randn(1, 8, 16, 20, requires_grad=True)
    pairs = (
        [out, *torch.autograd.grad(out.square().sum(), (tokens, layer.weight, layer.bias))]
        for out in (linear.linear(layer, tokens), layer(tokens))
    )
    for our, their in zip(*pairs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)


def check_both() -> None:
    """A linear layer with the attention behind it, likewise."""
    layer, tokens = nn.Linear(20, 60), torch.randn(1, 8, 16, 20, requires_grad=True)
    bias, mask = torch.randn(2, 64, 64, requires_grad=True), -100.0 * (torch.rand(2, 64, 64) < 0.3)

    def of(qkv: Tensor, attend: Any) -> list[Tensor]:
        out = attend(qkv, bias, mask, 8, 4)
        return [out, *torch.autograd.grad(out.square().sum(), (tokens, layer.weight, layer.bias, bias))]

    ours = of(linear.linear(layer, tokens), window_attention.attend)
    for our, their in zip(ours, of(layer(tokens), window_attention.attend_by_torch), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)


def test_eight_processes_on_an_empty_cache_compile_once(machine: Machine) -> None:
    machine.start(8)
    assert machine.compilations == 1
    machine.start(2)
    assert machine.compilations == 1
    machine.refuse("\n")  # the same compiler, unless it says otherwise
    machine.start(1)
    assert machine.compilations == 1
    machine.refuse('set -- -DANOTHER "$@"')
    machine.start(1)
    assert machine.compilations == 2


@pytest.mark.parametrize("refusal", REFUSALS)
def test_torch_takes_over_from_a_compiler_that_refuses(
    machine: Machine, refusal: str, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.refuse(REFUSALS[refusal])
    check_both()
    sentence = capsys.readouterr().out
    assert sentence.count("\n") == 1
    assert sentence.startswith("eco-fast's own C++ is not used, so torch takes over")
    assert str(machine.compiler) in sentence
    assert "error: " in sentence
    assert not build.available("linear")


def test_torch_takes_over_without_a_compiler(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", str(machine.cache / "none"))
    monkeypatch.setenv("PATH", "")
    check_both()
    sentence = capsys.readouterr().out
    assert sentence.count("\n") == 1
    assert "no C++ compiler was found" in sentence


@pytest.mark.parametrize("trouble", ["", "eco-fast", "damaged"])
def test_each_process_compiles_where_nothing_can_be_kept(
    machine: Machine, trouble: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if trouble == "damaged":
        machine.start(1)
        (kept,) = machine.cache.glob("*/*.so")
        kept.write_bytes(b"cut off")
    else:
        (machine.cache / trouble).parent.mkdir(exist_ok=True)
        (machine.cache / trouble).touch()  # a file in the folder's place: root may write into every folder
    check_linear()
    assert build.available("linear")
    sentence = capsys.readouterr().out
    assert sentence.count("\n") == 1
    assert sentence.startswith("each process compiles eco-fast's own C++ anew")
    assert str(machine.cache) in sentence
