"""How often something happens that costs time: every so many steps, or as often as a share of the time allows."""

import re
from typing import Any

from pydantic_core import PydanticCustomError

SHARE = r"\d+(\.\d+)?%"
INTERVAL = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": f"^{SHARE}$"}]}
"""What an interval can be, as JSON schema."""


def share_of_time(interval: int | str) -> float | None:
    """The share that an interval such as "2%" stands for, 0.02; None for a number of steps."""
    return None if isinstance(interval, int) else float(interval.removesuffix("%")) / 100


def check_interval(value: Any) -> Any:
    """Refuse what is neither a number of steps nor a share of the time, as pydantic's validators do."""
    if isinstance(value, str):
        good = re.fullmatch(SHARE, value) is not None and 0 < (share_of_time(value) or 0) <= 1
    else:
        good = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not good:
        raise PydanticCustomError(
            "interval", 'input should be a number of steps from 1, or a share of the time up to 100%, such as "2%"'
        )
    return value


def check_patches(value: Any) -> Any:
    """Refuse what is neither a number of patches nor "auto", as pydantic's validators do."""
    if value != "auto" and not (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        raise PydanticCustomError("patches", 'input should be a number of patches from 0, or "auto"')
    return value
