"""What the rounds say, how it is kept, and what an earlier day said.

The unit of a comparison is the machine's own peak, the better of a convolution and a matrix product in the precision of
the case, measured in the same rounds: a share of it is the same figure on a machine that is slower today.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from eco_fast.training.bench.timing import Spread, ratios, spread

RESULTS = "bench.json"
UNIT = "share_of_peak"


class Round(NamedTuple):
    """One round: seconds of a step, unless it is said otherwise."""

    whole: float
    """Of steps that follow each other."""
    whole_in_turn: float
    """Step by step in turn with the bare network."""
    bare_in_turn: float
    field: float | None
    convolution: float
    """FLOP/s."""
    matmul: float
    """FLOP/s."""
    waiting: float
    """Share of the time that steps which follow each other wait for the loader."""
    parts: Mapping[str, float]


def figures_of(rounds: Sequence[Round], flops: float, batch_size: int) -> dict[str, Spread]:
    """Every figure over the rounds.

    Args:
        rounds: at least one.
        flops: floating-point operations of one patch's forward and backward pass.
        batch_size: patches of a step.

    Returns:
        ms, patches_per_second, share_of_peak, waiting, whole_over_bare (step by step in turn), field_over_whole,
        gflops_convolution, gflops_matmul, and ms_PART of each part.
    """
    whole = [one.whole for one in rounds]
    best = [max(one.convolution, one.matmul) for one in rounds]
    figures = {
        "ms": [1e3 * seconds for seconds in whole],
        "patches_per_second": [batch_size / seconds for seconds in whole],
        UNIT: ratios([flops * batch_size / seconds for seconds in whole], best),
        "waiting": [one.waiting for one in rounds],
        "whole_over_bare": ratios([one.whole_in_turn for one in rounds], [one.bare_in_turn for one in rounds]),
        "gflops_convolution": [one.convolution / 1e9 for one in rounds],
        "gflops_matmul": [one.matmul / 1e9 for one in rounds],
        **{f"ms_{part}": [1e3 * one.parts[part] for one in rounds] for part in rounds[0].parts},
    }
    against = [one.field / one.whole for one in rounds if one.field is not None]
    if len(against) == len(rounds):
        figures["field_over_whole"] = against
    return {name: spread(values) for name, values in figures.items()}


@dataclass(frozen=True)
class Change:
    """A case, then and now."""

    name: str
    then: Spread
    """Share of the peak."""
    now: Spread
    relative: float
    """By how much a step is faster now, in the unit: 0.05 is 5 % more patches in the time."""

    @property
    def is_clear(self) -> bool:
        """Whether the quartiles of the two do not meet."""
        return self.then.lower > self.now.upper or self.now.lower > self.then.upper


def read_bench(path: Path) -> dict[str, Any]:
    """The results in a file.

    Raises:
        ValueError: it holds none; names it.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; name the {RESULTS} of an earlier `eco-fast bench`")
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for case in measured(results):
            case["figures"] = {name: Spread(*map(float, values)) for name, values in case["figures"].items()}
            _key(case), case["figures"][UNIT]
        str(results["machine"]["device"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: expected the {RESULTS} of an earlier `eco-fast bench`, which this is not") from error
    return results


def changes_between(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The cases that both have: of the same name, batch size and work."""
    before = {_key(case): case["figures"][UNIT] for case in measured(then)}
    changes = []
    for case in measured(now):
        if (key := _key(case)) in before:
            now_is = case["figures"][UNIT]
            changes.append(Change(case["name"], before[key], now_is, now_is.median / before[key].median - 1))
    return changes


def measured(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Without those that failed."""
    return [case for case in results["cases"] if "figures" in case]


def _key(case: Mapping[str, Any]) -> tuple[str, int, int]:
    return str(case["name"]), int(case["batch_size"]), int(case["flops"])
