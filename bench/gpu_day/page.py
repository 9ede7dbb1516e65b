"""docs/gpu.md: what a GPU was predicted to do, beside what it did.

A prediction stays as it is when its measurement comes: the page is for seeing which were wrong. `page.md` has the text,
and the predictions that no section of a GPU day measures.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.gpu_day.plan import GPUS, IMAGES, OPS, OPTIONS, RATES, RECIPES, ROOFLINE, STEPS

UNKNOWN = "not measured yet"
TEXT = Path(__file__).with_name("page.md")
Results = Mapping[str, Any]
Row = Sequence[object]


def page(results_file: Path | None) -> str:
    """The whole page, from the results of a GPU day or without.

    Raises:
        ValueError: the results are a rehearsal's.
    """
    results: Results = json.loads(results_file.read_text(encoding="utf-8")) if results_file else {}
    if results.get("rehearsal"):
        raise ValueError(f"{results_file}: a rehearsal's values mean nothing; run bench.gpu_day without --rehearse")
    ceilings = lookup([results.get("ceilings", {})], {})
    return TEXT.read_text(encoding="utf-8").format(
        conditions=conditions(results),
        rates=table(("rate", "taken", "measured"), [(name, taken, ceilings(name)) for name, taken in RATES.items()]),
        steps=steps(results),
        roofline=roofline(results),
        ops=ops(results),
        options=table(
            ("option", "us"), [(name, lookup(results.get("options", []), {"name": name})("us")) for name in OPTIONS]
        ),
        images=table(
            ("what", "predicted seconds", "measured"),
            [(what, said, lookup(results.get("images", []), key)("seconds")) for what, said, key in IMAGES],
        ),
    )


def conditions(results: Results) -> str:
    """Which machine the figures are from, and what failed there."""
    facts = results.get("facts")
    if not facts:
        return "**Nothing on this page has been measured on a GPU yet.**"
    suites = results["tests"].values()
    failed = [name for suite in suites for name in suite["failed"]]
    failed += [check["name"] for check in results["checks"] if check["ok"] is False]
    failed += [f"section {name}" for name in results["errors"]]
    return (
        f"Measured on {facts['date']} on one {facts['gpu']} (driver {facts['driver']}), torch {facts['torch']}, commit "
        f"{facts['commit']}. {sum(suite['passed'] for suite in suites)} tests passed. "
        f"Failed: {', '.join(failed) or 'nothing'}. No time for: {', '.join(results['skipped']) or 'nothing'}."
    )


def steps(results: Results) -> str:
    """Every way to make a step."""
    key = ("recipe", "batch", "launched as", "loader", "precision")
    rows = []
    for case in (*STEPS, *RECIPES):
        found = lookup(results.get("steps", []), case.key)
        times = (case.predicted_ms or "none", found("ms"), case.predicted_host_ms or "none", found("host_ms"))
        rows.append((*case.key.values(), *times, found("patches_per_s"), found("busy"), found("peak_gb")))
    times = ("predicted ms", "ms", "predicted host ms", "host ms")
    return table((*key, *times, "patches/s", "busy", "peak GB"), rows)


def roofline(results: Results) -> str:
    """The steps' bounds by arithmetic, on three kinds of GPU; measured where one of them was there."""
    gpu = results.get("facts", {}).get("gpu", "")
    rows = []
    for case, *what, predicted, bound in ROOFLINE:
        measured = lookup(results.get("steps", []), case.key)("ms")
        times = [[said, measured if name in gpu else UNKNOWN] for name, said in zip(GPUS, predicted, strict=True)]
        rows.append([what[0], case.batch, *what[1:], *times[0], *times[1], *times[2], bound])
    header = ["step", "batch", "TFLOP", "GB, compulsory", "GB, as compiled"]
    for name in GPUS:
        header += [f"{name}: ideal / as compiled", "measured"]
    return table([*header, "bound by"], rows)


def ops(results: Results) -> str:
    """Our kernels."""
    rows = []
    for case in OPS:
        found = lookup(results.get("ops", []), case.key)
        compiled = lookup(results.get("compiled_ops", []), case.key)("us") if case.channels else "none"
        said = (case.floor_us or "none", case.predicted_us or "none")
        times = (found("us"), found("share_of_copy"), found("host_us"), compiled)
        rows.append((*case.key.values(), *said, *times))
    header = ("op", "scale", "batch", "of", "crops", "channels", "floor us", "predicted us", "us")
    return table((*header, "share of the copy rate", "host us", "torch.compile's own code, us"), rows)


def lookup(rows: Iterable[Mapping[str, Any]], key: Mapping[str, Any]) -> Callable[[str], str]:
    """What was measured in the last row that has all of `key`, by its name there: three significant figures."""
    matching = [row for row in rows if key.items() <= row.items()]

    def found(name: str) -> str:
        value = matching[-1].get(name) if matching else None
        if value is None:
            return UNKNOWN
        return f"{value:,.0f}".replace(",", " ") if abs(value) >= 100 else f"{value:.3g}"

    return found


def table(header: Row, rows: Iterable[Row]) -> str:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
