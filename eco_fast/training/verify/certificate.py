"""The certificate of an audit: what was made again, of what, where, and what came of it. It is no signature."""

import hashlib
import json
from pathlib import Path
from typing import Any

from eco_fast import config
from eco_fast.config import Config
from eco_fast.config.resuming import SAME_RESULT
from eco_fast.training.checkpoints import weights_path
from eco_fast.training.run_folder import CHECKPOINTS, RECIPE
from eco_fast.utils.content_hash import content_hash
from eco_fast.utils.files import sha256_of, write_json

FORMAT_OF_CERTIFICATES = 1
PROVEN, REFUTED = "proven", "refuted"


def certificate_path(run: Path) -> Path:
    """Beside a run folder, which no audit changes."""
    run = run.absolute()
    return run.with_name(f"{run.name}.certificate.json")


def recipe_digest(recipe: Config) -> str:
    """SHA-256 of the keys that decide a run's result: not where things lie, and not what changes no weight."""
    deciding = {key: value for key, value in sorted(config.flat(recipe).items()) if key not in SAME_RESULT}
    return content_hash(deciding)


def write_certificate(path: Path, facts: dict[str, Any]) -> None:
    """Write what was found, and the hash of it."""
    whole = {"eco_fast_certificate": FORMAT_OF_CERTIFICATES, **facts}
    write_json(path, {**whole, "sha256": _hash(whole)})


def read_certificate(path: Path) -> dict[str, Any]:
    """A certificate.

    Raises:
        ValueError: it is none, of another format, or not as it was written.
    """
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        hashed, version = facts.pop("sha256"), facts["eco_fast_certificate"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a certificate of eco-fast verify") from error
    if version != FORMAT_OF_CERTIFICATES:
        raise ValueError(f"{path}: certificate format {version}, this version reads {FORMAT_OF_CERTIFICATES}")
    if hashed != _hash(facts):
        raise ValueError(f"{path}: not as eco-fast verify wrote it, its hash is another one; verify the run again")
    return facts


def fitting_certificate(run: Path) -> Path | None:
    """The certificate beside a run, or None where there is none.

    Raises:
        ValueError: it is no certificate, refutes the run, or is of another network or recipe than the run holds now.
    """
    path = certificate_path(run)
    if not path.is_file():
        return None
    facts, again = read_certificate(path), f"`eco-fast verify {run}` writes it anew, or move it away"
    if facts["result"] != PROVEN:
        raise ValueError(f"{path}: it says that the run is {facts['result']} ({facts['reason']}); {again}")
    if facts["networks"]["last"]["sha256"] != sha256_of(weights_path(run / CHECKPOINTS, "last")):
        raise ValueError(f"{path}: of other weights than the run's last ones now; {again}")
    if facts["recipe"] != recipe_digest(config.load(str(run / RECIPE))):
        raise ValueError(f"{path}: of another recipe than the run's now; {again}")
    return path


def _hash(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
