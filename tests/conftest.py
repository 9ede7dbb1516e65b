"""Shared fixtures: small real photographs, and the benchmark images where a machine has them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from eco_fast.images import Pixels, builtin_images, read_image

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(42)
    np.random.seed(42)  # noqa: NPY002 - libraries under test may read the global state


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
