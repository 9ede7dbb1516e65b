"""A release: whole or not at all, read by those that it is for, and saying nothing that nobody said."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from eco_fast_kernels import imresize
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import EvalResult

from eco_fast import config
from eco_fast.cli.main import main
from eco_fast.data.images import Pixels, read_image, write_png
from eco_fast.data.resize import to_pixels, to_tensor
from eco_fast.inference.upscale import super_resolve
from eco_fast.interop.model_card import card_of
from eco_fast.interop.openmodeldb import entry_of, model_id, user_id
from eco_fast.interop.publish import publish
from eco_fast.interop.release import Declaration, Release
from eco_fast.models import load_network, read_state, save_network
from eco_fast.models.edsr import EDSR, as_others_read_it
from eco_fast.study.run_results import Result
from eco_fast.training.pipeline import run_recipe
from eco_fast.training.verify.verify import verify
from eco_fast.utils.content_hash import content_hash
from eco_fast.utils.files import new_folder
from tests.helpers import complaint

SCHEMA = json.loads((Path(__file__).parent / "openmodeldb.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
SAID = Declaration(
    name="Photo",
    author=("Jane Doe", "J. O'Neill"),
    license="cc-by-4.0",
    description="Upscales **clean** photographs.\n\nNo anime.",
    url="https://huggingface.co/jane-doe/2x-Photo/resolve/main/",
    tags=("photo", "general-upscaler"),
)
SCORES = {"psnr_y": 31.23456, "ssim_y": 0.91239}


def options(said: Declaration) -> list[str]:
    """The declaration as it is typed."""
    words = []
    for key, value in vars(said).items():
        if value:
            words += [f"--{key}", *([value] if isinstance(value, str) else value)]
    return words


@pytest.fixture(scope="module")
def finished(photo: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps over two training images, scored on the sets Set5 and BSD100."""
    folder = tmp_path_factory.mktemp("finished")
    for name, top in {"mine/a": 50, "mine/b": 120, "Set5/HR/c t": 90, "Set5/HR/d": 100, "BSD100/e": 150}.items():
        write_png(folder / f"{name}.png", photo[top : top + 40, 100:148])
    values: dict[str, Any] = {
        "data": {"train": (str(folder / "mine"),), "test": (str(folder / "Set5/HR"), str(folder / "BSD100"))},
        "model": {"features": 8, "blocks": 1},
        "objective": {"name": "vanilla"},
        "train": {"steps": 2, "batch_size": 3, "compile": False, "device": "cpu"},
    }
    values["data"]["patch"] = 8
    run_recipe(config.validate(values, "test"), folder / "run")
    return folder


@pytest.fixture(scope="module")
def published(finished: Path) -> Path:
    """Its release, by the command."""
    out = finished / "new" / "release"
    assert main(["publish", str(finished / "run"), "--out", str(out), *options(SAID)]) == 0
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of its run folder, to be damaged."""
    shutil.copytree(finished / "run", tmp_path / "run", ignore=shutil.ignore_patterns("store"))
    return tmp_path / "run"


def change_recipe(run: Path, **sections: dict[str, Any]) -> None:
    values = config.load(str(run / "config.toml")).model_dump()
    changed = {**values, **{name: {**values[name], **section} for name, section in sections.items()}}
    (run / "config.toml").write_text(config.dump(config.validate(changed, "test")), encoding="utf-8")


def test_a_release_holds_what_the_run_made(finished: Path, published: Path) -> None:
    out = published
    images = {f"{stem}_{kind}.png" for stem in ("HR_c t", "HR_d", "BSD100_e") for kind in ("LR", "SR")}
    texts = {"README.md", "2x-Photo.json", "recipe.toml", "environment.json", "SHA256SUMS"}
    assert {path.name for path in out.iterdir()} == {*images, *texts, "2x_Photo.safetensors", "curves.png"}
    assert [path.name for path in out.parent.iterdir()] == ["release"]
    trained, _ = read_state(finished / "run" / "checkpoints" / "last.safetensors")
    weights, _ = read_state(out / "2x_Photo.safetensors")
    assert trained.keys() == weights.keys()
    assert all(torch.equal(trained[key], weights[key]) for key in trained)
    network = load_network(out / "2x_Photo.safetensors", "cpu")
    for stem, source in {"HR_c t": "Set5/HR/c t", "HR_d": "Set5/HR/d", "BSD100_e": "BSD100/e"}.items():
        lr = to_pixels(imresize(to_tensor(read_image(finished / f"{source}.png"))[None], 2)[0])
        assert np.array_equal(read_image(out / f"{stem}_LR.png"), lr)
        assert np.array_equal(read_image(out / f"{stem}_SR.png"), super_resolve(network, lr))
    (start,) = json.loads((out / "environment.json").read_text(encoding="utf-8"))
    (kept,) = json.loads((finished / "run" / "environment.json").read_text(encoding="utf-8"))
    assert start == {key: value for key, value in kept.items() if key not in ("command", "changed")}
    for text in texts:  # of this machine's folders, and of its user, nobody needs to know
        assert str(finished) not in (out / text).read_text(encoding="utf-8")


def test_the_hashes_are_those_of_the_files(published: Path) -> None:
    lines = (published / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    hashes = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    assert hashes.keys() == {path.name for path in published.iterdir()} - {"SHA256SUMS"}
    for name, digest in hashes.items():
        assert hashlib.sha256((published / name).read_bytes()).hexdigest() == digest


def test_the_certificate_beside_a_run_goes_along_where_it_fits(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    assert verify(tmp_path / "run")
    made = tmp_path / "run.certificate.json"
    publish(tmp_path / "run", tmp_path / "release", SAID, samples=[str(finished / "Set5/HR")])
    assert (tmp_path / "release" / "certificate.json").read_bytes() == made.read_bytes()
    assert "certificate.json" in (tmp_path / "release" / "SHA256SUMS").read_text(encoding="utf-8")
    assert "`certificate.json` says which parts" in (tmp_path / "release" / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in made.read_text(encoding="utf-8")
    weights, _ = read_state(tmp_path / "release" / "2x_Photo.safetensors")
    facts = json.loads(made.read_text(encoding="utf-8"))
    assert facts["networks"]["last"]["weights"] == content_hash(dict(sorted(weights.items())))
    assert verify(tmp_path / "run", released=[tmp_path / "release" / "2x_Photo.safetensors"])
    change_recipe(tmp_path / "run", optimizer={"epsilon": 1e-7})
    with pytest.raises(ValueError, match=r"run\.certificate\.json: of another recipe than the run's now; `eco-f"):
        publish(tmp_path / "run", tmp_path / "second", SAID)
    assert not (tmp_path / "second").exists()


def test_the_recipe_differs_in_places_alone(finished: Path, published: Path) -> None:
    recipe = config.load(str(published / "recipe.toml"))
    assert set(config.differences(recipe, config.load(str(finished / "run" / "config.toml")))) == {
        "data.train",
        "data.test",
    }
    assert (recipe.data.train, recipe.data.test) == (("mine",), ("Set5", "BSD100"))


def test_the_entry_is_one_of_openmodeldb(published: Path) -> None:
    entry = json.loads((published / "2x-Photo.json").read_text(encoding="utf-8"))
    VALIDATOR.validate(entry)
    weights = (published / "2x_Photo.safetensors").read_bytes()
    base = "https://huggingface.co/jane-doe/2x-Photo/resolve/main"
    del entry["date"]
    assert entry == {
        "name": "Photo",
        "author": ["jane-doe", "j-o-neill"],
        "license": "CC-BY-4.0",
        "tags": ["photo", "general-upscaler"],
        "description": SAID.description,
        "architecture": "edsr",
        "size": ["8nf", "1nb"],
        "scale": 2,
        "inputChannels": 3,
        "outputChannels": 3,
        "resources": [
            {
                "platform": "pytorch",
                "type": "safetensors",
                "size": len(weights),
                "sha256": hashlib.sha256(weights).hexdigest(),
                "urls": [f"{base}/2x_Photo.safetensors"],
            }
        ],
        "trainingIterations": 2,
        "trainingBatchSize": 3,
        "trainingHRSize": 16,
        "trainingOTF": False,
        "dataset": "mine",
        "datasetSize": 2,
        "images": [
            {"type": "paired", "LR": f"{base}/{stem}_LR.png", "SR": f"{base}/{stem}_SR.png"}
            for stem in ("HR_c%20t", "HR_d", "BSD100_e")
        ],
    }


def canonical_model_id(name: str) -> str:
    """`canonicalizeModelId` of OpenModelDB's `schema-util.ts`, by which its validation compares ids."""
    name = re.sub(r"[^a-z0-9]+", "-", name.strip(), flags=re.IGNORECASE).strip("-")
    name = re.sub(r"^(\d+)x-(?:\1x-?|x\1)", r"\1x-", name, flags=re.IGNORECASE)
    return re.sub(r"^((\d+)x.*?)-(?:x\2|\2x)$", r"\1", name, flags=re.IGNORECASE)


@pytest.fixture
def release(tmp_path: Path) -> Callable[..., Release]:
    """Makes a release of an imagined run: `release(said, sections of its recipe...)`."""

    def make(said: Declaration = SAID, scale: int = 2, scores: Any = SCORES, **sections: dict[str, Any]) -> Release:
        values = {"scale": scale, "data": {"train": ("DIV2K_train_HR", "Flickr2K")}, **sections}
        recipe = config.validate(values, "test")
        (tmp_path / "x.safetensors").write_bytes(b"weights")
        return Release(
            said=said.checked(tmp_path, recipe),
            result=Result(tmp_path, recipe, "student", {"Set5": {"bicubic": SCORES, "student": scores}}),
            folder=tmp_path,
            files=[("safetensors", "x.safetensors"), ("onnx", "x.safetensors"), ("ncnn", "x.safetensors")],
            samples=[],
            training_images=None,
        )

    return make


@pytest.mark.parametrize("model", ["edsr", "rcan", "swinir", "rrdb"])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_entries_of_all_networks(model: str, scale: int, release: Callable[..., Release]) -> None:
    one = release(scale=scale, model={"name": model})
    entry = entry_of(one)
    VALIDATOR.validate(entry)
    assert entry["dataset"] == "DIV2K_train_HR, Flickr2K"
    assert [resource["type"] for resource in entry["resources"]] == ["safetensors", "onnx"]  # it lists no others
    assert model_id(one) == canonical_model_id(model_id(one)) == f"{scale}x-Photo"


def test_what_a_run_started_from_is_said(release: Callable[..., Release]) -> None:
    model = {"name": "edsr", "start_from": "x2.safetensors"}
    for given, kept in {"2x-Photo": "2x-Photo", "none": None}.items():
        entry = entry_of(release(replace(SAID, pretrained=given), scale=4, model=model))
        VALIDATOR.validate(entry)
        assert entry.get("pretrainedModelG") == kept
    with pytest.raises(ValueError, match=r"a release says what no run knows; add --pretrained$"):
        release(scale=4, model=model)


@pytest.mark.parametrize("name", ["Jane Doe", "  -a.b_c--D9-"])
def test_ids_of_people(name: str) -> None:
    jsonschema.Draft7Validator(SCHEMA["definitions"]["user"]).validate(user_id(name))
    assert (user_id("Jane Doe"), user_id("  -a.b_c--D9-")) == ("jane-doe", "a-b-c-d9")


def test_the_model_card_has_the_runs_scores(finished: Path, published: Path) -> None:
    card = ModelCard.load(published / "README.md")
    data: Any = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == ("cc-by-4.0", "eco-fast", "image-to-image")
    assert (data.model_name, data.tags[-2:]) == ("2x-Photo", ["edsr", "x2"])
    scores = json.loads((finished / "run" / "summary.json").read_text(encoding="utf-8"))["sets"]
    assert data.eval_results == [
        EvalResult(
            task_type="image-to-image",
            task_name="Image super-resolution",
            dataset_type=name.lower(),
            dataset_name=f"{name} x2, bicubic",
            metric_type=kind,
            metric_name=title,
            metric_value=round(scores[name]["student"][key], 4),
        )
        for name in ("Set5", "BSD100")
        for kind, title, key in (("psnr", "PSNR-Y", "psnr_y"), ("ssim", "SSIM-Y", "ssim_y"))
    ]
    shown = {name: f"{one['psnr_y']:.3f} / {one['ssim_y']:.4f}" for name, one in scores["Set5"].items()}
    assert f"| Set5 | {shown['student']} | {shown['bicubic']} |" in card.text
    assert SAID.description in card.text
    for link in re.findall(r"\]\(([^)]+)\)", card.text):
        assert (published / link.replace("%20", " ")).is_file()


def test_a_card_of_odd_values(release: Callable[..., Release]) -> None:
    """Identical images, noise, a licence that the hub has no name for, a name that is a boolean in YAML."""
    said = replace(SAID, name="Yes", license="MIT OR LicenseRef-mine")
    card = ModelCard(card_of(release(said, scores={"psnr_y": None, "ssim_y": 1e-6}, data={"noise_sigma": 7.5})))
    data: Any = card.data
    assert (data.model_name, data.license, data.license_name) == ("2x-Yes", "other", "mit or licenseref-mine")
    assert [(one.metric_type, one.metric_value) for one in data.eval_results] == [("ssim", 0.0)]
    assert data.eval_results[0].dataset_name == "Set5 x2, bicubic, noise of sigma 7.5"
    assert "| Set5 | inf / 0.0000 | 31.235 / 0.9124 |" in card.text
    gpl: Any = ModelCard(card_of(release(replace(said, license="gpl-3.0-only")))).data
    assert gpl.license == "gpl-3.0"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"name": "edsr"}, "`x.safetensors` also opens in spandrel, after `eco_fast.interop.spandrel.install()`."),
        ({"name": "rcan"}, "`x.safetensors` also opens in spandrel, and in the programs that are built on it."),
        ({"name": "rrdb"}, "`x.safetensors` also opens in spandrel, and in the programs that are built on it."),
        ({"name": "rrdb", "growth": 16}, None),  # spandrel takes 32 for granted
    ],
)
def test_a_card_names_programs_that_open_it(
    model: dict[str, Any], said: str | None, release: Callable[..., Release]
) -> None:
    text = card_of(release(model=model))
    assert said in text if said else "spandrel" not in text


def test_an_unusual_residual_scale_goes_into_the_weights(run: Path, tmp_path: Path) -> None:
    """It leaves no trace in them, and whoever opens the file must guess it."""
    network = EDSR(2, 8, 1, residual_scale=0.25).eval()
    save_network(run / "checkpoints" / "last.safetensors", network, step=2)
    publish(run, tmp_path / "release", SAID)
    published = load_network(tmp_path / "release" / "2x_Photo.safetensors", "cpu")
    large = EDSR(2, 256, 1, residual_scale=1.0).eval()
    lr = torch.rand(1, 3, 9, 9)
    for trained, equal, usual in ((network, published, 1.0), (large, as_others_read_it(large), 0.1)):
        bare = EDSR.from_state_dict(equal.state_dict(), {})
        assert bare is not None
        bare.load_state_dict(equal.state_dict())
        assert bare.hyperparameters["residual_scale"] == usual
        torch.testing.assert_close(bare(lr), trained(lr), rtol=0, atol=1e-6)


def test_a_run_of_a_comparison(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = json.loads((run / "summary.json").read_text(encoding="utf-8"))["sets"]
    part = run.rename(tmp_path / "seed=0")
    (part / "summary.json").unlink()
    (part / "scores.json").write_text(json.dumps({"last": {name: one["student"] for name, one in sets.items()}}))
    publish(part, tmp_path / "release", SAID)
    assert "| set | this network |\n" in (tmp_path / "release" / "README.md").read_text(encoding="utf-8")
    whole = tmp_path / "compared"
    (whole / "runs" / "eco").mkdir(parents=True)
    part.rename(whole / "runs" / "eco" / "seed=0")
    said = complaint(capsys, "publish", str(whole), "--out", str(tmp_path / "other"), *options(SAID))
    assert said == f"{whole}: a comparison; publish one of its runs, such as {whole}/runs/eco/seed=0"


@pytest.mark.slow
def test_exported_files_are_released(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "publish",
        str(finished / "run"),
        "--out",
        str(tmp_path / "release"),
        *options(SAID),
        "--to",
        "onnx",
        "ncnn",
    ]
    refused = complaint(capsys, *arguments, "--precision", "bf16")
    assert "ncnn" in refused
    assert list(tmp_path.iterdir()) == []
    assert main(arguments) == 0
    entry = json.loads((tmp_path / "release" / "2x-Photo.json").read_text(encoding="utf-8"))
    VALIDATOR.validate(entry)
    weights, onnx = entry["resources"]  # OpenModelDB lists no file of ncnn's
    content = (tmp_path / "release" / "2x_Photo_fp32_op17.onnx").read_bytes()
    assert (weights["type"], onnx["type"], onnx["platform"], onnx["size"]) == (
        "safetensors",
        "onnx",
        "onnx",
        len(content),
    )
    assert onnx["sha256"] == hashlib.sha256(content).hexdigest()
    card = (tmp_path / "release" / "README.md").read_text(encoding="utf-8")
    for name in ("2x_Photo_fp32_op17.onnx", "2x_Photo_fp32.param", "2x_Photo_fp32.bin"):
        assert f"| {name} |" in card
        assert f"  {name}\n" in (tmp_path / "release" / "SHA256SUMS").read_text(encoding="utf-8")


def test_other_samples(finished: Path, tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_recipe(run, data={"test": (str(tmp_path / "gone" / "HR"),)})
    arguments = ["publish", str(run), "--out", str(tmp_path / "release"), *options(SAID)]
    said = complaint(capsys, *arguments)
    assert said.startswith(f"{tmp_path}/gone/HR: there is no such file or folder (to be shown, as the run was scored ")
    assert main([*arguments, "--samples", str(finished / "mine" / "a.png")]) == 0
    assert {path.name for path in (tmp_path / "release").glob("*_SR.png")} == {"mine_a_SR.png"}


def test_what_is_not_said_is_named_in_one_sentence(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_recipe(run, model={"start_from": "x2.safetensors"})
    arguments = ["publish", str(run), "--out", str(run.parent / "release")]
    every = "--name, --author, --license, --description, --url, --tags, --pretrained"
    assert complaint(capsys, *arguments) == f"{run}: a release says what no run knows; add {every}"
    some = options(replace(SAID, license="", description=" "))
    assert complaint(capsys, *arguments, *some).endswith("; add --license, --description, --pretrained")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "my net"}, "--name: expected letters and digits, with single hyphens between them, got 'my net'"),
        ({"name": "../x"}, "--name: expected letters and digits"),
        ({"name": "Photo-x2"}, "--name: expected a name without the scale, which is added to it, got 'Photo-x2'"),
        ({"name": "2X-Photo"}, "--name: expected a name without the scale"),
        ({"author": ("Jane", "…")}, "--author: expected a name with letters from A to Z or digits in it, got '…'"),
        ({"license": "mine"}, "--license: expected one SPDX identifier, such as Apache-2.0, or several with OR, got "),
        (
            {"license": "MIT AND Apache-2.0"},
            "--license: OpenModelDB takes one SPDX identifier, such as Apache-2.0, or ",
        ),
        ({"url": "example.org"}, "--url: expected an address that begins with https://, got 'example.org'"),
        ({"tags": ("Photo",)}, "--tags: expected tags of OpenModelDB, such as photo or general-upscaler, got 'Photo'"),
        ({"pretrained": "2x-Photo"}, "--pretrained: {run} started from scratch, not from 2x-Photo; leave it out"),
        ({"pretrained": "x2.pt"}, "--pretrained: expected an id of OpenModelDB, such as 2x-Photo, or none, got "),
    ],
)
def test_what_is_said_wrongly(
    changes: dict[str, Any], expected: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options(replace(SAID, **changes))
    said = complaint(capsys, "publish", str(finished / "run"), "--out", str(tmp_path / "release"), *given)
    assert said.startswith(expected.format(run=finished / "run"))
    assert list(tmp_path.iterdir()) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def older(run: Path) -> None:
    save_network(run / "checkpoints" / "last.safetensors", EDSR(2, 8, 1), step=1)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no run": (lambda run: (run / "config.toml").unlink(), "run: expected a run folder, but it holds no config.toml"),
    "not finished": (lambda run: (run / "summary.json").unlink(), "run: not finished; `eco-fast train --run "),
    "no scores": (
        lambda run: change_recipe(run, data={"test": ()}),
        "run: its recipe names no images to score (data.test), so it has no scores; `eco-fast train --run ",
    ),
    "residual": (
        lambda run: change_recipe(run, objective={"name": "residual"}),
        "run: its objective is residual, whose network makes no SR images; leave it out",
    ),
    "own network": (
        lambda run: change_recipe(run, model={"name": "a:B"}),
        "run: its network is a class of your own, a:B, which other programs do not know; ",
    ),
    "no weights": (
        lambda run: (run / "checkpoints" / "last.safetensors").unlink(),
        "run/checkpoints/last.safetensors: there is no such checkpoint",
    ),
    "damaged weights": (
        lambda run: cut(run / "checkpoints" / "last.safetensors"),
        "run/checkpoints/last.safetensors: damaged or not a safetensors file",
    ),
    "other weights": (older, "run/checkpoints/last.safetensors: of step 1, but the run's scores are of step 2; "),
    "damaged summary": (lambda run: cut(run / "summary.json"), "run/summary.json: "),
    "damaged environment": (lambda run: cut(run / "environment.json"), "run/environment.json: damaged; restore it"),
    "damaged pins": (lambda run: cut(run / "pinned.json"), "run/pinned.json: damaged; restore it"),
    "damaged metrics": (
        lambda run: (run / "metrics.jsonl").write_text("{\n{}\n", encoding="utf-8"),
        "run/metrics.jsonl: damaged; restore it",
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_runs_that_cannot_be_published(
    reason: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, expected = REFUSED[reason]
    if reason == "own network":
        text = config.dump(config.load(str(run / "config.toml"))).partition("[model]")[0]
        (run / "config.toml").write_text(f'{text}[model]\nname = "a:B"\n', encoding="utf-8")
    else:
        spoil(run)
    said = complaint(capsys, "publish", str(run), "--out", str(tmp_path / "release"), *options(SAID))
    assert said.startswith(f"{tmp_path}/{expected}")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_exists_stays_as_it_is(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("folder", "file", "link"):
        said = complaint(capsys, "publish", str(finished / "run"), "--out", str(tmp_path / name), *options(SAID))
        assert said == f"{tmp_path / name}: exists already; choose another folder, or move it away"
    said = complaint(capsys, "publish", str(finished / "run"), "--out", str(tmp_path / "file/sub"), *options(SAID))
    assert said == f"{tmp_path}/file: expected a folder or room for one, but a file is in the way"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link"]
    assert list((tmp_path / "folder").iterdir()) == []


@pytest.mark.parametrize("size", [9_000, 30_000])
def test_a_full_disk_leaves_nothing(
    size: int,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    file_size_limit: Callable[[int], None],
) -> None:
    """Full before the weights are written, or before the curves."""
    file_size_limit(size)
    said = complaint(capsys, "publish", str(finished / "run"), "--out", str(tmp_path / "release"), *options(SAID))
    name = "2x_Photo.safetensors" if size < 19_000 else "curves.png"
    assert said == f"{tmp_path}/release/{name}: cannot be read or written (File too large)"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_a_dead_process_of_the_same_number_left_is_not_in_the_way(tmp_path: Path) -> None:
    with new_folder(tmp_path / "release") as half:
        (half / "half").write_text("x", encoding="utf-8")
    (tmp_path / "release").rename(half)
    with new_folder(tmp_path / "release") as folder:
        (folder / "whole").write_text("x", encoding="utf-8")
    assert [path.name for path in (tmp_path / "release").iterdir()] == ["whole"]
    assert list(tmp_path.iterdir()) == [tmp_path / "release"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the disk has gone")])
def test_an_interrupted_folder_leaves_nothing(error: BaseException, tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_folder(tmp_path / "release") as folder:
            (folder / "half").write_text("x", encoding="utf-8")
            raise error

    with pytest.raises(type(error)) as raised:
        interrupted()
    assert raised.value is error
    assert list(tmp_path.iterdir()) == []
