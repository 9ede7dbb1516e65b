"""The files of a run's networks, and of a release's, against the training states that they are from."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eco_fast.models import METADATA, build, description, load_network, read_state
from eco_fast.models.edsr import as_others_read_it
from eco_fast.training.checkpoints import state_path, weights_path
from eco_fast.training.verify.audited import KeptTraining, RefutedError, Stretch, read_kept, recipe_of, refuting_damage
from eco_fast.utils.content_hash import content_hash
from eco_fast.utils.files import sha256_of


def check_networks(training: KeptTraining) -> dict[str, dict[str, int | str]]:
    """Compare the files of the last and the best weights with their states.

    Returns:
        Their steps and hashes, by name: "sha256" of the file, "weights" of what it holds.

    Raises:
        RefutedError: one of them holds something else; names the first weight.
        ValueError: the last weights are missing.
    """
    found: dict[str, dict[str, int | str]] = {}
    for stretch in training.stretches():
        for name in training.states[stretch.end]:
            path = weights_path(training.checkpoints, name)
            if name in ("last", "best") and (name == "last" or path.is_file()):
                state = read_kept(state_path(training.checkpoints, name), stretch)
                found[name] = {"step": stretch.end, **check_network(path, stretch, state)}
    return found


def check_network(path: Path, stretch: Stretch, state: Mapping[str, Any]) -> dict[str, str]:
    """Compare a file of weights with a state; returns and raises as `check_networks`."""
    recipe = recipe_of(state)
    facts = {"step": int(state["step"]), "objective": recipe.objective.name}
    weights, metadata = read_weights(path, stretch)
    if wrong := differing_weight(weights, state.get("averaged", state["network"])):
        raise RefutedError(stretch, f"{wrong} of {path.name} is not that of the training state")
    if json.loads(metadata[METADATA]) != json.loads(description(build(recipe.model, recipe.scale), **facts)[METADATA]):
        raise RefutedError(stretch, f"{path.name} says of its weights what the training state does not")
    return digests_of(path, weights)


def check_released(paths: Sequence[Path], training: KeptTraining) -> dict[str, dict[str, str]]:
    """Compare files that were published with a run's last and best weights, as they are or in a release's form.

    Returns:
        Their hashes, as `check_networks`.

    Raises:
        RefutedError: one of them is neither; names the first weight that is not the last checkpoint's.
    """
    found: dict[str, dict[str, str]] = {}
    whole = training.stretches()[-1]
    networks = [path for name in ("last", "best") if (path := weights_path(training.checkpoints, name)).is_file()]
    for path in paths:
        weights, _ = read_weights(path, whole)
        wrong = [
            differing_weight(weights, form.state_dict())
            for network in (load_network(one, "cpu") for one in networks)
            for form in (as_others_read_it(network), network)
        ]
        if all(wrong):
            raise RefutedError(whole, f"{wrong[0]} of {path.name} is not that of the last checkpoint, nor of the best")
        found[path.name] = digests_of(path, weights)
    return found


def read_weights(path: Path, stretch: Stretch) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What a file of weights holds, and its metadata.

    Raises:
        RefutedError: it is damaged.
        ValueError: it is missing.
    """
    with refuting_damage(path, stretch):
        return read_state(path)


def differing_weight(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> str:
    """The first weight that is not the same, to the bit; nothing where all are."""
    for key in {**others, **weights}:
        if key not in weights or key not in others or not torch.equal(weights[key], others[key].cpu()):
            return key
    return ""


def digests_of(path: Path, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Of a file, and of the weights in it whatever their order."""
    return {"sha256": sha256_of(path), "weights": content_hash(dict(sorted(weights.items())))}
