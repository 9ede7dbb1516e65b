"""What the machine's driver says, asked of a driver that is made for the test."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from eco_fast.config import Data
from eco_fast.data.open_loader import choose_loader
from eco_fast.utils.device import cpp_compiler, cuda_of_driver, pick_device, why_not_build, why_not_dali

DRIVER = 'extern "C" int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }'
ASK = "from eco_fast.utils.device import cuda_of_driver, why_not_dali; print(cuda_of_driver(), why_not_dali('cuda:0'))"


def test_a_machine_without_a_driver_has_version_0() -> None:
    assert (cuda_of_driver() > 0) == torch.cuda.is_available()


@pytest.mark.slow
def test_an_old_driver_is_asked_for_its_version_and_named(tmp_path: Path) -> None:
    dali, compiler = pytest.importorskip("nvidia.dali"), cpp_compiler()
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    built = dali.__cuda_version__ // 1000
    version = (built - 1) * 1000 + 80
    (tmp_path / "driver.cpp").write_text(DRIVER.replace("VERSION", str(version)), encoding="utf-8")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", "libcuda.so.1", "driver.cpp"], cwd=tmp_path, check=True)
    answer = subprocess.check_output(
        [sys.executable, "-c", ASK], env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}, text=True
    )
    assert answer.startswith(f"{version} the GPU's driver is for CUDA {built - 1}, this DALI for CUDA {built}")


def test_a_gpu_without_a_c_compiler_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr("eco_fast.utils.device.why_not_build", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ValueError, match=r"neither gcc nor clang; install one \(apt install gcc\)"):
        pick_device("cuda:0")
    assert pick_device("cpu") == "cpu"
    for name in ("gcc", "clang"):
        (tmp_path / name).touch(mode=0o755)
        assert pick_device("cuda:0") == "cuda:0"
        (tmp_path / name).unlink()
    monkeypatch.setenv("CC", "/opt/bin/icx")
    assert pick_device("cuda:0") == "cuda:0"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'x.c:1:10: fatal error: Python.h: No such file' >&2; exit 1", "fatal error: Python.h: No such file"),
        ("exit 139", "exit status 139"),
        ('for last; do :; done; echo "no machine code" > "$last"', "cannot be used"),
        ("exit 0", "cannot be used"),
    ],
    ids=["no header", "a crash", "no library", "nothing made"],
)
def test_a_compiler_that_fails_is_found_out_before_it_is_needed(script: str, reason: str, tmp_path: Path) -> None:
    compiler = tmp_path / "cxx"
    compiler.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    compiler.chmod(0o755)
    assert reason in (why_not_build(str(compiler)) or "")


@pytest.mark.parametrize("wrong", ["missing", "a file", "full"])
def test_where_dali_cannot_write_its_graphs_it_is_not_taken(
    wrong: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file_size_limit: Callable[[int], None]
) -> None:
    """It would fail in the first batch, with a traceback of its own."""
    pytest.importorskip("nvidia.dali")
    assert why_not_dali("cpu") is None
    folder = tmp_path / "tmp"
    if wrong == "a file":
        folder.touch()
    elif wrong == "full":
        folder.mkdir()
        file_size_limit(1 << 16)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    said = why_not_dali("cpu") or ""
    assert said.startswith("DALI writes its graphs into the temporary folder, which cannot be written (")
    assert choose_loader(Data(), "cpu") == ("plain", f"for {said}")
    with pytest.raises(ValueError, match=r"data\.loader=dali cannot work here: .*name another one in \$TMPDIR"):
        choose_loader(Data(loader="dali"), "cpu")


def test_where_what_is_compiled_cannot_be_kept_nothing_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert "cannot be used (" in (why_not_build("any compiler") or "")
