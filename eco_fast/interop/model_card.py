"""A release's model card: README.md in Hugging Face's format, with the scores in its `model-index`.

The fields are those of huggingface_hub's `ModelCardData` and `EvalResult`.
"""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from eco_fast.config import RrdbModel
from eco_fast.data.noise import describe_noise
from eco_fast.interop.openmodeldb import model_id
from eco_fast.interop.release import Release
from eco_fast.utils.files import sha256_of, size_in_words
from eco_fast.utils.table_io import Table

COLUMNS = {"bicubic": "bicubic", "teacher": "its teacher", "baseline": "trained on real pairs alone"}
"""What a run scores beside its student."""
HUB_LICENSES = frozenset(
    (
        *("afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear"),
        *("bsl-1.0", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0"),
        *("cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0"),
        *("cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "ecl-2.0", "epl-1.0", "epl-2.0"),
        *("eupl-1.1", "eupl-1.2", "gpl-2.0", "gpl-3.0", "isc", "lgpl-2.1", "lgpl-3.0", "mit", "mpl-2.0", "ms-pl"),
        *("ncsa", "odbl", "ofl-1.1", "osl-3.0", "pddl", "postgresql", "unlicense", "wtfpl", "zlib"),
    )
)
"""The hub's own names; https://huggingface.co/docs/hub/repositories-licenses."""
PAPER = (
    "The method is that of Lee and Heo, *Noise-free Optimization in Early Training Steps for Image Super-Resolution*, "
    "AAAI 2024."
)
CERTIFICATE = "certificate.json"
CERTIFIED = f"`{CERTIFICATE}` says which parts of the training `eco-fast verify` has repeated, to the same result."
GROWTH = 32  # channels: what spandrel expects of RRDB


def card_of(release: Release) -> str:
    """The text of README.md."""
    said = release.said
    blocks = [
        "\n".join(["---", *_yaml(_metadata(release)), "---"]),
        f"# {model_id(release)}",
        said.description,
        f"By {', '.join(said.author)}. Licence: {said.license}.",
        _scores(release).markdown().rstrip(),
        "## Use",
        *_use(release),
        "## Training",
        _training(release).markdown().rstrip(),
        "![Loss, PSNR-Y, alpha and learning rate over the steps](curves.png)",
        "`recipe.toml` has every key, `environment.json` the versions and the machine.",
        *([CERTIFIED] if (release.folder / CERTIFICATE).is_file() else []),
        *([PAPER] if release.result.run.needs_centroids else []),
        "## Samples",
        *(f"![LR]({quote(lr)}) ![SR]({quote(sr)})" for lr, sr in release.samples),
        "## Files",
        _files(release).markdown().rstrip(),
    ]
    return "\n\n".join(blocks) + "\n"


def _metadata(release: Release) -> dict[str, Any]:
    said, recipe = release.said, release.result.run
    spdx = said.license.lower()
    license_ = next((name for name in (spdx, spdx.removesuffix("-only")) if name in HUB_LICENSES), "other")
    return {
        "license": license_,
        **({"license_name": spdx} if license_ == "other" else {}),
        "library_name": "eco-fast",
        "pipeline_tag": "image-to-image",
        "tags": ["super-resolution", "image-super-resolution", recipe.model.name, f"x{recipe.scale}"],
        "model-index": [{"name": model_id(release), "results": list(_results(release))}],
    }


def _results(release: Release) -> Iterator[dict[str, Any]]:
    recipe = release.result.run
    noise = f", noise of sigma {recipe.data.noise_sigma:g}" if recipe.data.noise_sigma else ""
    for name, networks in _sets(release).items():
        scores = {"psnr": ("PSNR-Y", networks["student"]["psnr_y"]), "ssim": ("SSIM-Y", networks["student"]["ssim_y"])}
        yield {
            "task": {"type": "image-to-image", "name": "Image super-resolution"},
            "dataset": {"type": name.lower(), "name": f"{name} x{recipe.scale}, bicubic{noise}"},
            "metrics": [
                {"type": kind, "name": title, "value": round(value, 4)}
                for kind, (title, value) in scores.items()
                if value is not None  # the PSNR of identical images
            ],
        }


def _sets(release: Release) -> Any:
    assert release.result.sets is not None, "only finished runs are released"
    return release.result.sets


def _scores(release: Release) -> Table:
    recipe, sets = release.result.run, _sets(release)
    title = "PSNR-Y (dB) / SSIM-Y; LR images are made by MATLAB's bicubic downsampling"
    if recipe.data.noise_sigma:
        title += f", {describe_noise(recipe.data.noise_sigma)}"
    columns = {"student": "this network", **COLUMNS}
    present = [network for network in columns if all(network in scores for scores in sets.values())]
    rows = [[name, *(_cell(scores[network]) for network in present)] for name, scores in sets.items()]
    return Table(title, ["set", *(columns[network] for network in present)], rows)


def _cell(scores: dict[str, float | None]) -> str:
    psnr = scores["psnr_y"]
    return f"{'inf' if psnr is None else f'{psnr:.3f}'} / {scores['ssim_y']:.4f}"


def _use(release: Release) -> Iterator[str]:
    recipe, scale = release.result.run, release.result.run.scale
    weights = next(name for kind, name in release.files if kind == "safetensors")
    yield f"```bash\neco-fast upscale {weights} holiday.jpg holiday_x{scale}.png\n```"
    if recipe.model.name == "edsr":
        yield f"`{weights}` also opens in spandrel, after `eco_fast.interop.spandrel.install()`."
    elif not isinstance(recipe.model, RrdbModel) or recipe.model.growth == GROWTH:
        yield f"`{weights}` also opens in spandrel, and in the programs that are built on it."
    sigma = recipe.data.noise_sigma
    noise = f" of images with Gaussian noise of sigma {sigma:g}" if sigma else ""
    yield f"The network has learnt to undo bicubic downsampling{noise}, not JPEG compression or blur."


def _training(release: Release) -> Table:
    recipe = release.result.run
    train, optimizer = recipe.train, recipe.optimizer
    sizes = [f"{key}={value}" for key, value in recipe.model.model_dump(exclude={"name", "start_from"}).items()]
    images = f" ({release.training_images} images)" if release.training_images else ""
    before = release.said.pretrained
    rows = {
        "network": f"{recipe.model.name} x{recipe.scale}: {', '.join(sizes)}",
        "training images": f"{release.dataset}{images}",
        "started from": {"": "scratch", "none": "another network"}.get(before, before),
        "objective": f"{recipe.objective.name}, {recipe.objective.loss}",
        "optimizer": f"{optimizer.name}, learning rate {optimizer.learning_rate:g}, {optimizer.schedule}",
        "length": f"{train.steps} steps of {train.batch_size} HR patches of {recipe.data.patch * recipe.scale} pixels",
        "seed": str(recipe.seed),
    }
    return Table(recipe.description.rstrip(".") or "As its recipe says", ["", ""], list(map(list, rows.items())))


def _files(release: Release) -> Table:
    paths = [(kind, release.folder / name) for kind, name in release.files]
    rows = [[path.name, kind, size_in_words(path.stat().st_size), sha256_of(path)] for kind, path in paths]
    return Table("`SHA256SUMS` has the hashes of all files of the release", ["file", "format", "size", "SHA-256"], rows)


def _yaml(value: Any, indent: str = "") -> Iterator[str]:
    """Nested dictionaries and lists as YAML; its scalars may be written as JSON has them."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        label = f"{indent}{key}:" if isinstance(value, dict) else f"{indent}-"
        if isinstance(item, dict | list):
            first, *others = _yaml(item, f"{indent}  ")
            inline = isinstance(value, list)  # "- key: value"
            yield f"{label} {first.lstrip()}" if inline else f"{label}\n{first}"
            yield from others
        else:
            yield f"{label} {json.dumps(item, ensure_ascii=False)}"
