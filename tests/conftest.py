"""Shared fixtures: small real photographs, the benchmark images where a machine has them, and where kernels run."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

from eco_fast.images import Pixels, builtin_images, read_image

torch.set_num_threads(1)  # networks and images this small only lose by a second thread

SHARED = Path(__file__).parents[2] / "shared" / "data"

collect_ignore_glob = [] if find_spec("triton") else ["test_fused_*.py", "test_compile_report.py"]


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(42)
    np.random.seed(42)  # noqa: NPY002 - libraries under test may read the global state


@pytest.fixture(scope="session")
def device() -> str:
    """Where the kernels run: on a GPU, else in Triton's interpreter."""
    if torch.cuda.is_available():
        return "cuda"
    from triton.knobs import runtime

    if not runtime.interpret:
        pytest.fail("without a GPU the kernels need Triton's interpreter: set TRITON_INTERPRET=1 before it is imported")
    return "cpu"


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory that nobody has written is NaN, or the largest whole number: an element left out shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    assert torch.empty(3).isnan().all()
    assert torch.zeros(1).new_empty(3, dtype=torch.bfloat16).isnan().all()
    assert torch.empty_like(torch.zeros(3, dtype=torch.float16)).isnan().all()
    assert torch.empty(3, dtype=torch.uint8).tolist() == [255, 255, 255]
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Benchmark images that may not be redistributed: tests that need them are skipped where they are absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the benchmark images (Set5, Set14, ...) in ../shared/data")
    return SHARED


@pytest.fixture(scope="session")
def photo() -> Pixels:
    """A real photograph: uint8 [300, 451, 3]."""
    return read_image(dict(builtin_images("test"))["builtin/chelsea.png"])
