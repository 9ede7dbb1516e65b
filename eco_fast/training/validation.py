"""Validation: what a network is scored on while it is trained, and what is reported of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from eco_fast.data.images import Pixels
from eco_fast.evaluation.benchmarks import BenchmarkSets
from eco_fast.evaluation.evaluate import json_safe, score_network
from eco_fast.evaluation.metrics import average
from eco_fast.training.state import TrainingState
from eco_fast.training.telemetry import Telemetry

RULE_OF_THUMB = "a teacher helps only if it scores above what the student reaches without it"  # docs/evidence.md


@dataclass(frozen=True)
class ValidationSets:
    """What a network is scored on while it is trained."""

    images: Mapping[str, Pixels] = field(default_factory=dict)
    """HR images by name; they choose best.safetensors."""
    monitored: BenchmarkSets = field(default_factory=dict)
    """Further sets, which are scored with them and choose nothing."""
    teacher_psnr: float = math.inf
    """PSNR-Y of the centroids' teacher over `images`, in dB."""


def run_validation(state: TrainingState, sets: ValidationSets, telemetry: Telemetry, done: int) -> bool:
    """Score the validation images and the monitored sets, and report; whether the former's scores are the best."""
    data = state.config.data
    row: dict[str, float | None] = {}
    said = f"step {done}/{state.config.train.steps}"
    for name, images in {**sets.monitored, "": sets.images}.items():
        scored = score_network(
            state.result, images, data.rounding, noise_sigma=data.noise_sigma, draws=1, device=state.device
        )
        scores = average(list(scored.values()))
        suffix = f"/{name}" if name else ""
        row |= {f"{measure}{suffix}": json_safe(scores)[measure] for measure in ("psnr_y", "ssim_y")}
        said += f"  {name or 'validation'} {scores.psnr_y:.3f} dB  {scores.ssim_y:.4f}"
    state.network.train()
    telemetry.write(done, row)
    telemetry.say(said)
    before, state.best = state.best, max(scores.psnr_y, state.best)
    if before < sets.teacher_psnr <= state.best:
        telemetry.say(f"warning: passed the teacher's {sets.teacher_psnr:.3f} dB; {RULE_OF_THUMB}")
    return state.best > before
