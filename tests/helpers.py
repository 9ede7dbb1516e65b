"""What several test modules share."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from eco_fast.cli.main import main
from eco_fast.data.images import Pixels


def assert_equal_fields(first: object, second: object, where: str = "") -> None:
    """Two NamedTuples or dataclasses are equal field by field: tensors and arrays in shape, dtype and every value."""
    assert type(first) is type(second), where
    fields, others = fields_of(first), fields_of(second)
    assert fields.keys() == others.keys(), where
    for name, value in fields.items():
        place, other = f"{where} {name}".lstrip(), others[name]
        if isinstance(value, Tensor | np.ndarray):
            assert type(value) is type(other), place
            assert (value.dtype, value.shape) == (other.dtype, other.shape), place
            assert np.array_equal(value, other), place
        elif fields_of(value):
            assert_equal_fields(value, other, place)
        else:
            assert value == other, place


def fields_of(value: Any) -> Mapping[str, Any]:
    """Names and values of a NamedTuple or dataclass, nothing of anything else."""
    if hasattr(value, "_asdict"):
        return dict(value._asdict())
    return vars(value) if hasattr(value, "__dataclass_fields__") else {}


def oriented(pixels: Pixels, *, flip_rows: bool, flip_columns: bool, transpose: bool) -> Pixels:
    """An image [H, W, 3] as a crop's plan turns it: flips first, then the transposition."""
    pixels = np.flip(pixels, axis=0) if flip_rows else pixels
    pixels = np.flip(pixels, axis=1) if flip_columns else pixels
    return np.swapaxes(pixels, 0, 1) if transpose else pixels


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence that a command of eco-fast ends with, exit code 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("eco-fast: "), said
    assert said.count("\n") == 1, said
    return said.removeprefix("eco-fast: ").rstrip()
