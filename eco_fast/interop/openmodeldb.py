"""A release's entry in OpenModelDB: the file ID.json that goes into that project's data/models.

Its fields are those of `Model` in OpenModelDB's `src/lib/schema.ts`, their limits those of `model-props.ts`.
"""

import re
from datetime import UTC, datetime
from typing import Any

from eco_fast.interop.release import Release
from eco_fast.utils.files import sha256_of

ARCH_IDS = {"edsr": "edsr", "rcan": "rcan", "swinir": "swinir", "rrdb": "esrgan"}
"""Its ids of ours."""
SIZES = {
    "edsr": "{features}nf {blocks}nb",
    "rcan": "{features}nf {groups}nrg {blocks}nrb",
    "swinir": "s{patch}w{window} {features}dim",
    "rrdb": "{features}nf {blocks}nb",
}
"""How people of the field write the sizes of networks."""
RESOURCES = {"safetensors": "pytorch", "onnx": "onnx"}
"""The types of files that it lists, with their platforms."""


def entry_of(release: Release) -> dict[str, Any]:
    """The entry, for JSON."""
    said, recipe = release.said, release.result.run
    model, train = recipe.model, recipe.train
    optional = {
        "datasetSize": release.training_images,
        "pretrainedModelG": said.pretrained.removeprefix("none"),
    }
    return {
        "name": said.name,
        "author": [user_id(author) for author in said.author],
        "license": said.license,
        "tags": list(said.tags),
        "description": said.description,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "architecture": ARCH_IDS[model.name],
        "size": SIZES[model.name].format_map(model.model_dump()).split(),
        "scale": recipe.scale,
        "inputChannels": 3,
        "outputChannels": 3,
        "resources": [_resource(release, kind, name) for kind, name in release.files if kind in RESOURCES],
        "trainingIterations": train.steps,
        "trainingBatchSize": train.batch_size,
        "trainingHRSize": recipe.data.patch * recipe.scale,
        "trainingOTF": False,  # it means random degradations, not LR made on the fly
        "dataset": release.dataset,
        **{key: value for key, value in optional.items() if value},
        "images": [{"type": "paired", "LR": release.url(lr), "SR": release.url(sr)} for lr, sr in release.samples],
    }


def model_id(release: Release) -> str:
    """The entry's id, and its file's name."""
    return f"{release.result.run.scale}x-{release.said.name}"


def user_id(author: str) -> str:
    """OpenModelDB's id of a person, made of a name as that project makes it."""
    return re.sub(r"[^a-z0-9]+", "-", author.lower()).strip("-")


def _resource(release: Release, kind: str, name: str) -> dict[str, Any]:
    path = release.folder / name
    return {
        "platform": RESOURCES[kind],
        "type": kind,
        "size": path.stat().st_size,
        "sha256": sha256_of(path),
        "urls": [release.url(name)],
    }
