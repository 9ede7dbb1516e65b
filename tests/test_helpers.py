"""The comparison that other tests rely on."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers import assert_equal_fields


class Inner(NamedTuple):
    hr: Tensor | None
    alpha: float = 0.5


@dataclass(frozen=True)
class Outer:
    step: int
    inner: Inner
    order: Any


def outer(*, step: int = 3, hr: Tensor | None = None, alpha: float = 0.5, order: Any = (0, 1, 2)) -> Outer:
    return Outer(step, Inner(torch.tensor([1, 2]) if hr is None else hr, alpha), np.array(order))


def test_equal_fields_pass() -> None:
    assert_equal_fields(outer(), outer())
    assert_equal_fields(Inner(None), Inner(None))


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (outer(step=4), "step"),
        (outer(hr=torch.tensor([1, 3])), "inner hr"),
        (outer(hr=torch.tensor([1.0, 2.0])), "inner hr"),
        (outer(hr=torch.tensor([[1, 2]])), "inner hr"),
        (Outer(3, Inner(None), np.arange(3)), "inner hr"),
        (outer(alpha=0.25), "inner alpha"),
        (outer(order=(2, 1, 0)), "order"),
    ],
)
def test_another_field_is_named(other: Outer, name: str) -> None:
    for pair in ((outer(), other), (other, outer())):
        with pytest.raises(AssertionError, match=name):
            assert_equal_fields(*pair)
