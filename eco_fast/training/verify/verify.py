"""`eco-fast verify`: the audit of a run, step by step, and its certificate."""

import os
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eco_fast.training.run_folder import environment
from eco_fast.training.signals import stops_cleanly
from eco_fast.training.verify.audited import KeptTraining, RefutedError, draw, trainings_of
from eco_fast.training.verify.centroids import check_centroids
from eco_fast.training.verify.certificate import (
    PROVEN,
    REFUTED,
    certificate_path,
    read_certificate,
    recipe_digest,
    write_certificate,
)
from eco_fast.training.verify.evidence import Evidence, open_evidence
from eco_fast.training.verify.networks import check_networks, check_released
from eco_fast.training.verify.repetition import Repeated, repeat, threads_of, why_not_to_the_bit
from eco_fast.training.verify.tolerance import STATED
from eco_fast.utils.lasting import lasting_output

SEEDS = 2**32


def verify(
    run: Path,
    *,
    stretches: int | None = 20,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    released: Sequence[Path] = (),
    out: Path | None = None,
) -> bool:
    """Audit a run folder, which is not changed, and write a certificate of it.

    Args:
        run: the run folder, which may be one of a comparison's; no process trains in it.
        stretches: how many to make again, at most; None: all.
        seed: decides which; None: drawn now.
        overrides: other values of keys that change no result, such as where the images lie now.
        released: files that have to hold the run's last or best weights.
        out: the certificate; None: beside the run folder.

    Returns:
        Whether the run's networks are what its recipe makes, as far as it was made again.

    Raises:
        ValueError: not a run folder, or one in use; images are missing; the certificate cannot be written there.
    """
    out = checked_out(out or certificate_path(run))
    seed = random.SystemRandom().randrange(SEEDS) if seed is None else seed
    facts: dict[str, Any] = {"result": PROVEN, "reason": None}
    facts["choice"] = {"seed": seed, "stretches": stretches or "all"}
    with lasting_output(), stops_cleanly():
        try:
            audit(run, stretches, seed, overrides or {}, released, facts)
        except RefutedError as error:
            facts |= {"result": REFUTED, "reason": str(error)}
    write_certificate(out, facts)
    print(f"{run}: {': '.join(filter(None, (facts['result'], facts['reason'])))}", flush=True)
    print(f"certificate: {out}", flush=True)
    return facts["reason"] is None


def checked_out(out: Path) -> Path:
    """Where a certificate can be written.

    Raises:
        ValueError: the folder cannot be written, or something else lies there.
    """
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"{out}: the certificate cannot be written there; name another place with --out")
    if out.exists():
        try:
            read_certificate(out)
        except (ValueError, OSError) as error:
            raise ValueError(f"{out}: exists, and is no certificate; name another place with --out") from error
    return out


def audit(
    run: Path,
    wanted: int | None,
    seed: int,
    overrides: Mapping[str, Any],
    released: Sequence[Path],
    facts: dict[str, Any],
) -> None:
    """Check what needs no step, then make the stretches again; `facts` grows by what was found, also until it fails.

    Raises:
        RefutedError: the first thing that is not what the recipe makes.
        ValueError: as `verify`.
    """
    trainings = trainings_of(run, overrides)
    student, drawn = trainings[-1], draw(trainings, wanted, seed)
    with threads_of(student):
        total = sum(training.last for training in trainings)
        steps = sum(one.steps for one in drawn)
        every = sum(len(training.stretches()) for training in trainings)
        choice = f"{len(drawn)} of {every} stretches, of --choice {seed}"
        print(f"{student.folder}: repeats {steps} of {total} steps, {choice}", flush=True)
        facts |= {"recipe": recipe_digest(student.recipe), "conditions": conditions(student)}
        networks = [check_networks(training) for training in trainings]
        facts["networks"] = networks[-1] | check_released(released, student)
        evidence = open_evidence(student)
        facts["data"] = evidence.digests()
        facts |= repeat_centroids(student, evidence, wanted, seed)
        facts |= {"steps": {"repeated": 0, "of": total}, "stretches": {"repeated": [], "of": every}}
        with tempfile.TemporaryDirectory() as name:
            for stretch in drawn:
                note(repeat(stretch, evidence, list(overrides), Path(name, "run")), facts)


def repeat_centroids(
    student: KeptTraining, evidence: Evidence, wanted: int | None, seed: int
) -> dict[str, dict[str, int]]:
    """Make as many centroids again as stretches, where the run's are a teacher's; returns what to note of that."""
    if evidence.sr is None or evidence.teacher is None:
        return {}
    exact = not why_not_to_the_bit(student.whole, student.recipe, student.recipe)
    made, off = check_centroids(student, evidence, wanted, seed, exact=exact)
    print(f"centroids: {made} of {len(evidence.hr.entries)} repeated, up to {off} grey levels off", flush=True)
    return {"centroids": {"repeated": made, "of": len(evidence.hr.entries), "grey_levels_off": off}}


def note(repeated: Repeated, facts: dict[str, Any]) -> None:
    """Say that a stretch came out as it was, and add it to the facts."""
    stretch, distance = repeated.stretch, repeated.distance
    said = "equal to the bit"
    if distance:
        said = f"equal up to rounding, the weights {distance:.2g} of their way apart ({STATED['weights']} are allowed)"
        facts["tolerance"] = STATED
    print(f"{stretch}: {said}", flush=True)
    facts["steps"]["repeated"] += stretch.steps
    facts["stretches"]["repeated"].append(
        {"training": stretch.training.label, "begin": stretch.begin, "end": stretch.end, "distance": distance}
    )


def conditions(student: KeptTraining) -> dict[str, Any]:
    """Versions and machine, without what tells of the user's folders."""
    return {key: value for key, value in environment(student.recipe).items() if key != "command"}
