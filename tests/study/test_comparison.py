"""The statistics of a comparison, against numbers by hand and tabulated quantiles."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from eco_fast import config
from eco_fast.study.comparison import Comparison, Outcome, PlannedRun, Scored, collect
from eco_fast.study.comparison_report import teacher_points, write_comparison
from eco_fast.study.confidence import interval
from eco_fast.study.variants import make_variants
from eco_fast.utils.files import write_json

T_95 = {
    2: 12.706205,
    3: 4.302653,
    5: 2.776445,
}  # Student's t at 0.975 for n - 1 degrees of freedom, from printed tables
STEPS = (100, 200, 300, 400)
SEEDS = (2, 3, 4)


@pytest.mark.parametrize("count", sorted(T_95))
def test_the_interval_is_students(count: int) -> None:
    values = np.random.default_rng(count).normal(30, 2, count).tolist()
    mean, width = interval(values)
    assert mean == pytest.approx(np.mean(values))
    assert width == pytest.approx(T_95[count] * np.std(values, ddof=1) / math.sqrt(count), rel=1e-5)


def test_the_interval_holds_the_truth_in_95_of_100_cases() -> None:
    draws = np.random.default_rng(0).normal(7, 3, (4000, 4))
    held = [abs(mean - 7) <= width for mean, width in (interval(row.tolist()) for row in draws)]
    assert np.mean(held) == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 4000))


def test_one_value_has_no_interval() -> None:
    mean, width = interval([3.0])
    assert mean == 3
    assert math.isnan(width)


def outcome(curve: list[float], best: float | None = None) -> Outcome:
    def scored(psnr: float) -> Scored:
        return {"Kodak24": {"psnr_y": psnr, "ssim_y": psnr / 100}}

    curves = {"Kodak24": dict(zip(STEPS, curve, strict=True))}
    return Outcome(curves, scored(curve[-1]), scored(max(curve) if best is None else best))


def comparison(missing: tuple[tuple[str, int], ...] = ()) -> Comparison:
    """Vanilla ends at 33 + seed / 10; eco is 0.5, 0.6, 0.7 dB ahead early and 0.1 behind at the end."""
    base = config.load("quickstart", ["train.steps=400"])
    outcomes = {}
    for seed in SEEDS:
        vanilla = [30 + seed / 10, 31 + seed / 10, 32 + seed / 10, 33 + seed / 10]
        lead = 0.3 + seed / 10
        outcomes["vanilla", seed] = outcome(vanilla)
        outcomes["eco", seed] = outcome([vanilla[0] + lead, vanilla[1] + lead, vanilla[2] + 1.5, vanilla[3] - 0.1])
    for key in missing:
        del outcomes[key]
    teachers: dict[str, Scored] = {"eco": {"Kodak24": {"psnr_y": 34.3, "ssim_y": 0.9}}}
    variants = make_variants(base, [("vanilla",), ("eco",)], [])
    return Comparison(variants, SEEDS, ["Kodak24"], outcomes, teachers)


def test_means_paired_differences_and_steps_to_reach() -> None:
    one = comparison()
    row = one.row(one.variants[1], "Kodak24")
    assert (row["seeds"], row["of"], row["pairs"], row["baseline"]) == (3, 3, 3, "vanilla")
    assert row["last_psnr_y"] == pytest.approx(33.2)
    assert row["last_psnr_y_interval"] == pytest.approx(T_95[3] * 0.1 / math.sqrt(3), rel=1e-5)
    assert row["last_gain"] == pytest.approx(-0.1)
    assert row["last_gain_interval"] == pytest.approx(0, abs=1e-9), "the seeds' common course cancels out"
    assert row["best_psnr_y"] == pytest.approx(33.8)
    assert row["early_gain"] == pytest.approx(0.6)
    assert row["early_gain_interval"] == pytest.approx(T_95[3] * 0.1 / math.sqrt(3), rel=1e-5)
    assert (row["early_validations"], row["early_ahead"], row["early_surely_ahead"]) == (2, 2, 2)
    assert (row["raced"], row["reached"], row["steps_to_reach"]) == (3, 3, 300)
    assert row["fluctuation"] == pytest.approx(np.std([33.7, 33.1], ddof=1))
    vanilla = one.row(one.variants[0], "Kodak24")
    assert vanilla["baseline"] == ""
    assert math.isnan(vanilla["last_gain"])


def test_a_missing_run_is_named_and_in_no_mean(tmp_path: Path) -> None:
    one = comparison(missing=(("eco", 3), ("vanilla", 4)))
    assert one.missing == ["eco seed=3", "vanilla seed=4"]
    row = one.row(one.variants[1], "Kodak24")
    assert (row["seeds"], row["of"], row["pairs"]) == (2, 3, 1)
    assert row["last_psnr_y"] == pytest.approx((33.1 + 33.3) / 2)
    assert row["early_gain"] == pytest.approx(0.5)
    assert math.isnan(row["early_gain_interval"])
    write_comparison(tmp_path, one)
    table = (tmp_path / "table.md").read_text()
    assert "| eco | 2 of 3 missing |" in table
    assert "missing: eco seed=3\nmissing: vanilla seed=4\n" in table


def test_a_score_of_null_is_infinite(tmp_path: Path) -> None:
    (variant,) = make_variants(config.load("quickstart"), [("vanilla",)], [])
    scores = {"Kodak24": {"psnr_y": None, "ssim_y": 1.0}}
    write_json(tmp_path / "scores.json", {"last": scores, "best": scores})
    (tmp_path / "metrics.jsonl").write_text('{"step": 100, "psnr_y": 30.0}\n{"step": 200, "psnr_y": null}\n')
    found = collect([PlannedRun(variant, 2, tmp_path, variant.recipe)], ["Kodak24"], {})
    assert found.curves("vanilla", "Kodak24") == {2: {100: 30.0, 200: math.inf}}
    row = found.row(variant, "Kodak24")
    assert (row["last_psnr_y"], row["last_ssim_y"], row["best_psnr_y"]) == (math.inf, 1.0, math.inf)
    assert math.isnan(row["fluctuation"]), "of infinite scores there is none"


def test_a_variant_without_any_run_is_shown_as_missing(tmp_path: Path) -> None:
    one = comparison(missing=tuple(("eco", seed) for seed in SEEDS))
    row = one.row(one.variants[1], "Kodak24")
    assert row["seeds"] == row["pairs"] == 0
    assert math.isnan(row["last_psnr_y"])
    write_comparison(tmp_path, one)
    assert "| eco | 0 of 3 missing |" in (tmp_path / "table.md").read_text()


def test_files_hold_what_the_plots_show(tmp_path: Path) -> None:
    one = comparison()
    write_comparison(tmp_path, one)
    curves, differences, table = (
        list(csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines()))
        for name in ("curves", "differences", "table")
    )
    assert len(curves) == 2 * 3 * 4
    assert {"set": "Kodak24", "variant": "vanilla", "seed": "3", "step": "200", "psnr_y": "31.3"} in curves
    assert [round(float(row["mean"]), 6) for row in differences] == [0.6, 0.6, 1.5, -0.1]
    assert {row["seeds"] for row in differences} == {"3"}
    (eco,) = (row for row in table if row["variant"] == "eco")
    assert float(eco["early_gain"]) == pytest.approx(0.6)
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert not (tmp_path / "teachers.png").exists()


def test_a_teachers_lead_is_over_the_end_of_vanilla() -> None:
    one = comparison()
    (point,) = teacher_points(one, [one.row(variant, "Kodak24") for variant in one.variants])
    assert point["objective"] == "eco"
    assert point["lead"] == pytest.approx(34.3 - 33.3)


def test_teachers_are_named_by_what_their_variants_have_in_common(tmp_path: Path) -> None:
    base = config.load("quickstart", ["train.steps=400"])
    variants = make_variants(base, [("vanilla",), ("kd",), ("eco",)], ["teacher=[{steps=300}, {steps=900}]"])
    outcomes = {(variant.name, 2): outcome([30.0, 31.0, 32.0, 33.0]) for variant in variants}
    teachers: dict[str, Scored] = {
        variant.name: {"Kodak24": {"psnr_y": variant.recipe.teacher.steps / 10, "ssim_y": 0.9}}
        for variant in variants[1:]
    }
    write_comparison(tmp_path, Comparison(variants, [2], ["Kodak24"], outcomes, teachers))
    table = (tmp_path / "table.md").read_text()
    assert "| teacher of steps=300 |  | 30.000 | 0.9000 |" in table
    assert "| teacher of steps=900 |  | 90.000 | 0.9000 |" in table
    assert (tmp_path / "teachers.png").stat().st_size > 10_000
