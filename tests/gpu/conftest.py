"""The tests of this folder need a GPU that computes: elsewhere they are skipped."""

from typing import Any

import pytest
import torch

from eco_fast import config
from eco_fast.config import Config
from eco_fast.data.images import Pixels


@pytest.fixture(scope="session", autouse=True)
def _computing_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if torch.arange(100, device="cuda").sum().item() != 4950:
        pytest.skip("this GPU computes nothing")


@pytest.fixture(scope="session")
def hr(photo: Pixels) -> list[Pixels]:
    """Two crops of a photograph, of odd sizes."""
    return [photo[20:181, 40:211], photo[100:231, 200:401]]


@pytest.fixture(scope="session")
def sr(photo: Pixels) -> list[Pixels]:
    """What stands for their centroids: other crops, cropped to even sizes as centroids are."""
    return [photo[60:220, 100:270], photo[40:170, 220:420]]


def recipe(**changes: Any) -> Config:
    """A small EDSR on a GPU, to be repeated to the bit; `section__key` changes one value."""
    values: dict[str, Any] = {
        "data": {"patch": 16},
        "model": {"features": 16, "blocks": 2},
        "optimizer": {"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 5, "clip_value": 0.1},
        "train": {"steps": 30, "batch_size": 4, "precision": "fp32", "device": "cuda:0"},
    }
    values["train"] |= {"deterministic": True, "compile": False}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            values.setdefault(section, {})[name] = value
        else:
            values[section] = value
    return config.validate(values, "test")
