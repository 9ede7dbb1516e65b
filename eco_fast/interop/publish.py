"""`eco-fast publish`: a finished run as a folder that is ready for release.

SCALEx_NAME.safetensors   the weights, and beside them what was exported
README.md                 the model card; see `model_card.py`
SCALEx-NAME.json          the entry in OpenModelDB; see `openmodeldb.py`
recipe.toml environment.json curves.png *_LR.png *_SR.png
certificate.json          of `eco-fast verify`, where one lies beside the run
SHA256SUMS                of all of them
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eco_fast import config
from eco_fast.config import Config, OwnModel
from eco_fast.data.images import Pixels, write_png
from eco_fast.data.output_paths import flat_stems
from eco_fast.data.resize import to_pixels
from eco_fast.evaluation.benchmarks import read_images, set_name
from eco_fast.evaluation.scoring import image_pair
from eco_fast.inference.tiling import upscale_tiled
from eco_fast.inference.whole_images import largest_tile, ready, whole_images
from eco_fast.interop.export import export
from eco_fast.interop.model_card import CERTIFICATE, card_of
from eco_fast.interop.openmodeldb import entry_of, model_id
from eco_fast.interop.release import Declaration, Release
from eco_fast.models import METADATA, Network, load_network, read_state, save_network
from eco_fast.models.edsr import as_others_read_it
from eco_fast.study.run_results import Result, read_results
from eco_fast.training.checkpoints import weights_path
from eco_fast.training.figures import draw_curves
from eco_fast.training.run_folder import CHECKPOINTS, PINNED, RECIPE, read_rows
from eco_fast.training.verify.certificate import fitting_certificate
from eco_fast.utils.files import name_damaged, new_folder, sha256_of, write_json, write_text

MOST_SAMPLES = 4  # images at most


def publish(
    run: Path,
    out: Path,
    said: Declaration,
    *,
    formats: Sequence[str] = (),
    precisions: Sequence[str] = ("fp32",),
    samples: Sequence[str] = (),
    tile: int | None = None,
    device: str = "auto",
) -> list[Path]:
    """Write a run's last weights with all that a release needs; the folder is there whole, or not at all.

    Args:
        run: folder of a finished run, which may be one of a comparison.
        out: the release's folder, which must not exist.
        said: what the run does not know.
        formats: what else to export: onnx, ncnn, openvino.
        precisions: of what is exported: fp32, fp16, bf16.
        samples: HR images or folders to show, the first `MOST_SAMPLES` images; none: those that the run was scored on.
        tile: LR pixels a side of a tile; None: as many as a GPU's memory takes, the network's own on a CPU.
        device: where the samples are made: "auto", "cpu", "cuda", ...

    Returns:
        The files.

    Raises:
        ValueError: the run is not finished, has no scores or cannot be shown; something is not said; the certificate
            beside the run is of something else; or the folder exists: one sentence.
    """
    result = _finished(run)
    recipe = result.run
    said = said.checked(run, recipe)
    network = as_others_read_it(_trained_network(run, recipe, device))
    images = _shown(samples, recipe)
    environment, curves, training_images = _environment(run), _curves(run), _training_images(run)
    certificate = fitting_certificate(run)
    with new_folder(out) as folder:
        weights = folder / f"{recipe.scale}x_{said.name}.safetensors"
        save_network(weights, network, step=recipe.train.steps, objective=recipe.objective.name)
        files = [("safetensors", weights.name), *_exported(weights, said.name, formats, precisions)]
        write_text(folder / "recipe.toml", config.dump(_without_places(recipe)))
        write_json(folder / "environment.json", environment)
        draw_curves(folder / "curves.png", curves)
        if certificate is not None:
            shutil.copyfile(certificate, folder / CERTIFICATE)
        release = Release(
            said=said,
            result=result,
            folder=folder,
            files=files,
            samples=list(_write_samples(folder, network, images, recipe, tile)),
            training_images=training_images,
        )
        write_json(folder / f"{model_id(release)}.json", entry_of(release))
        write_text(folder / "README.md", card_of(release))
        names = sorted(path.name for path in folder.iterdir())
        write_text(folder / "SHA256SUMS", "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names))
    return sorted(out.iterdir())


def _finished(run: Path) -> Result:
    """The student of a finished run that was scored."""
    if not (run / RECIPE).is_file() and (parts := sorted(run.glob(f"runs/**/{RECIPE}"))):
        raise ValueError(f"{run}: a comparison; publish one of its runs, such as {parts[0].parent}")
    result = read_results([run])[0]
    if result.sets is None:
        raise ValueError(f"{run}: not finished; `eco-fast train --run {run} --resume` goes on")
    if isinstance(result.run.model, OwnModel):
        raise ValueError(  # noqa: TRY004 - the user's input
            f"{run}: its network is a class of your own, {result.run.model.name}, which other programs do not know; "
            "publish checkpoint and class together by hand"
        )
    return result


def _trained_network(run: Path, recipe: Config, device: str) -> Network:
    path = weights_path(run / CHECKPOINTS, "last")
    network = load_network(path, device)
    with name_damaged(path):
        step = int(json.loads(read_state(path)[1][METADATA])["step"])
    if step != recipe.train.steps:
        raise ValueError(
            f"{path}: of step {step}, but the run's scores are of step {recipe.train.steps}; "
            f"`eco-fast train --run {run} --resume` brings it to its end"
        )
    return network


def _shown(samples: Sequence[str], recipe: Config) -> Mapping[str, Pixels]:
    data = recipe.data
    try:
        return read_images(samples or data.test or data.validation, recipe.scale)
    except ValueError as error:
        raise ValueError(f"{error} (to be shown, as the run was scored on it; --samples names others)") from error


def _exported(weights: Path, name: str, formats: Sequence[str], precisions: Sequence[str]) -> Iterator[tuple[str, str]]:
    if formats:
        for one in export(weights, weights.parent, formats=formats, precisions=precisions, name=name):
            yield from ((one.format, path.name) for path in one.paths)


def _without_places(recipe: Config) -> Config:
    """The recipe with names in place of this machine's folders and files."""
    names: dict[str, Any] = {
        key: tuple(map(set_name, getattr(recipe.data, key))) for key in ("train", "validation", "monitor", "test")
    }
    names |= {key: set_name(getattr(recipe.data, key)) for key in ("store", "centroids")}
    data = recipe.data.model_copy(update=names)
    teacher = recipe.teacher.model_copy(update={"checkpoint": Path(recipe.teacher.checkpoint).name})
    model = recipe.model.model_copy(update={"start_from": Path(recipe.model.start_from).name})
    return recipe.model_copy(update={"data": data, "teacher": teacher, "model": model})


def _environment(run: Path) -> list[dict[str, Any]]:
    """The conditions of each start; commands and changes name this machine's folders, and are left out."""
    path = run / "environment.json"
    with name_damaged(path):
        starts: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return [{key: start[key] for key in start if key not in ("command", "changed")} for start in starts]


def _curves(run: Path) -> dict[str, list[dict[str, Any]]]:
    runs = {"student": run, "baseline": run / "baseline"}
    return {name: rows for name, folder in runs.items() if (rows := read_rows(folder))}


def _write_samples(
    folder: Path, network: Network, images: Mapping[str, Pixels], recipe: Config, tile: int | None
) -> Iterator[tuple[str, str]]:
    """LR (with its first noise) and SR of the first images, as files."""
    stems, device = flat_stems(images), next(network.parameters()).device
    data = recipe.data
    for name, hr in list(images.items())[:MOST_SAMPLES]:
        pair = image_pair(hr, recipe.scale, data.rounding, noise_sigma=data.noise_sigma, draws=1, device=device)
        with whole_images():
            sr = upscale_tiled(ready(network), pair.lr[0], tile=tile or largest_tile(network))
        names = f"{stems[name]}_LR.png", f"{stems[name]}_SR.png"
        for file, pixels in zip(names, (pair.lr[0], sr), strict=True):
            write_png(folder / file, to_pixels(pixels))
        yield names


def _training_images(run: Path) -> int | None:
    """How many, by what the run has noted at its start."""
    path = run / PINNED
    if not path.is_file():
        return None
    with name_damaged(path):
        return len(json.loads(path.read_text(encoding="utf-8")).get("training images", ())) or None
