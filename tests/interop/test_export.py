"""Exported files against the networks that they are of: each in its own runtime, by the tests' own calls of it."""

import copy
import io
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bench.export_matrix import PAGE, markdown
from eco_fast import load_network, super_resolve
from eco_fast.cli.main import main
from eco_fast.data.images import Pixels, read_image, write_png
from eco_fast.interop.export import ExportedFile, export
from eco_fast.interop.export.plain import PlainNetwork
from eco_fast.interop.export.rounding import rounded_model
from eco_fast.models import Network, save_network
from eco_fast.models.edsr import EDSR
from eco_fast.models.onnx_network import onnx_session
from eco_fast.models.rcan import RCAN, AttentionBlock
from eco_fast.models.rrdb import RRDB
from eco_fast.models.swinir import SwinIR
from tests.helpers import complaint

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

SWINIR: dict[str, Any] = {"features": 12, "depths": (2,), "heads": (2,), "patch": 16}
FAMILIES: dict[str, Callable[[], Network]] = {
    "edsr": lambda: EDSR(3, 8, 2),
    "rcan": lambda: RCAN(2, 8, 1, 2, 4),
    "swinir": lambda: SwinIR(2, **SWINIR, window=4),
    "swinir direct": lambda: SwinIR(3, **SWINIR, upsampler="pixelshuffledirect"),
    "rrdb": lambda: RRDB(4, 8, 1, 4),
    "rrdb unshuffled": lambda: RRDB(2, 8, 1, 4, unshuffle=True),
}
SIZES = [(1, 13, 9), (3, 8, 16), (2, 5, 21), (1, 1, 1), (1, 2, 30)]
ESRGAN = {"body": "RRDB_trunk", "conv_body": "trunk_conv", "conv_hr": "HRconv"}
ESRGAN |= {f"conv_up{index}": f"upconv{index}" for index in (1, 2)}


def as_published(name: str, state: Mapping[str, Tensor]) -> Any:
    """The weights as the authors' files hold them: EDSR-PyTorch's, RCAN's, SwinIR's, ESRGAN's and Real-ESRGAN's."""
    if name == "rrdb":
        parts = {key: key.split(".") for key in state}
        names = {key: ".".join([ESRGAN.get(first, first), *rest]) for key, (first, *rest) in parts.items()}
        return {names[key].replace("rdb", "RDB"): value for key, value in state.items()}
    if name in ("edsr", "rcan"):
        return dict(state)
    return {"params_ema" if name == "rrdb unshuffled" else "params": dict(state)}


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    """With fresh weights, and an output of little contrast, of which 16 bits take a part."""
    torch.manual_seed(1)
    made = {name: make().eval() for name, make in FAMILIES.items()}
    for network in made.values():
        *_, last = (module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
        last.weight.data /= 4
    return made


@pytest.fixture(scope="module")
def checkpoints(networks: dict[str, Network], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, network in networks.items():
        torch.save(as_published(name, network.state_dict()), folder / f"{name}.pth")
    return folder


@pytest.fixture(scope="module")
def exported(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExportedFile]:
    """The ONNX file of each family in float32, and of two in 16 bits."""
    out = tmp_path_factory.mktemp("exported")
    files = {name: export(checkpoints / f"{name}.pth", out)[0] for name in FAMILIES}
    for name in ("edsr", "swinir"):
        for one in export(checkpoints / f"{name}.pth", out, precisions=("fp16", "bf16")):
            files[f"{name} {one.precision}"] = one
    return files


def run(path: Path, lr: Tensor) -> Tensor:
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["output"], {"input": lr.numpy()})[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_plain_form_is_the_network(name: str, networks: dict[str, Network]) -> None:
    network = networks[name]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for precision, error in (("fp32", 2e-6), ("fp16", 5e-3), ("bf16", 3e-2)):
        plain = PlainNetwork(network, precision)
        for count, height, width in SIZES:
            lr = torch.rand(count, 3, height, width)
            with torch.inference_mode():
                torch.testing.assert_close(plain(lr), network(lr), rtol=0, atol=error)
    after = network.state_dict()
    assert all(value.dtype == after[key].dtype and torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_an_onnx_file_is_valid_and_takes_any_size(
    name: str, networks: dict[str, Network], exported: dict[str, ExportedFile]
) -> None:
    (path,) = exported[name].paths
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 17)]
    assert path.name == f"{networks[name].scale}x_{name.replace(' ', '-')}_fp32_op17.onnx"
    ends = (*model.graph.input, *model.graph.output)
    assert [one.name for one in ends] == ["input", "output"]
    assert [[dim.dim_value for dim in one.type.tensor_type.shape.dim][1] for one in ends] == [3, 3]
    for count, height, width in SIZES:
        lr = torch.rand(count, 3, height, width)
        with torch.inference_mode():
            torch.testing.assert_close(run(path, lr), networks[name](lr), rtol=0, atol=2e-6)
        torch.testing.assert_close(run(path, lr[:1]), run(path, lr)[:1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["edsr", "swinir"])
@pytest.mark.parametrize(("precision", "kind", "opset"), [("fp16", "FLOAT16", 17), ("bf16", "BFLOAT16", 22)])
def test_16_bits_are_in_the_graph_itself(
    name: str, precision: str, kind: str, opset: int, exported: dict[str, ExportedFile]
) -> None:
    """TensorRT's and DirectML's strong types: casts in the graph, and weights of 16 bits but at its ends."""
    (path,) = exported[f"{name} {precision}"].paths
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", opset)]
    assert path.name.endswith(f"_{precision}_op{opset}.onnx")
    assert [one.type.tensor_type.elem_type for one in (*model.graph.input, *model.graph.output)] == [1, 1]
    types = {weight.name: weight.data_type for weight in model.graph.initializer}
    short = onnx.TensorProto.DataType.Value(kind)
    convolutions = [types[node.input[1]] for node in model.graph.node if node.op_type == "Conv"]
    wide = 1 if precision == "fp16" else 2
    assert convolutions.count(onnx.TensorProto.FLOAT) == wide
    assert convolutions.count(short) == len(convolutions) - wide
    assert convolutions[0] == onnx.TensorProto.FLOAT
    if name == "swinir":
        products = [node for node in model.graph.node if node.op_type == "MatMul"]
        assert {types[one] for node in products for one in node.input if one in types} == {short}


def test_input_and_output_take_the_precision_and_a_name(checkpoints: Path, tmp_path: Path) -> None:
    options = ["--precision", "fp16", "--io", "same", "--input-name", "data", "--opset", "20", "--name", "Mine"]
    assert main(["export", str(checkpoints / "edsr.pth"), *options, "--out", str(tmp_path)]) == 0
    model = onnx.load(tmp_path / "3x_Mine_fp16_op20.onnx")
    ends = (*model.graph.input, *model.graph.output)
    assert [(one.name, one.type.tensor_type.elem_type) for one in ends] == [("data", 10), ("output", 10)]


def test_safetensors_hold_the_weights_rounded_once(
    networks: dict[str, Network], checkpoints: Path, tmp_path: Path
) -> None:
    made = export(checkpoints / "swinir.pth", tmp_path, formats=["safetensors"], precisions=["fp32", "fp16"])
    whole, half = (load_network(one.paths[0], "cpu").state_dict() for one in made)
    for key, weight in networks["swinir"].named_parameters():
        assert torch.equal(whole[key], weight)
        assert torch.equal(half[key], weight.half().float())
    assert [one.difference.levels == 0 for one in made] == [True, False]
    assert made[1].bytes < 0.8 * made[0].bytes


def run_in_ncnn(made: ExportedFile, lr: Tensor, input_name: str) -> Tensor:
    ncnn = pytest.importorskip("ncnn")
    net = ncnn.Net()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    assert [net.load_param(str(made.paths[0])), net.load_model(str(made.paths[1]))] == [0, 0]
    mat = ncnn.Mat(lr.shape[3], lr.shape[2], 3)
    np.array(mat, copy=False)[...] = lr[0].numpy()
    extractor = net.create_extractor()
    extractor.input(input_name, mat)
    failed, sr = extractor.extract("output")
    assert not failed
    return torch.from_numpy(np.array(sr))[None]


def test_ncnn_files_run_in_ncnn(networks: dict[str, Network], checkpoints: Path, tmp_path: Path) -> None:
    pytest.importorskip("pnnx")
    (made,) = export(checkpoints / "rcan.pth", tmp_path, formats=["ncnn"], input_name="data")
    assert [path.name for path in made.paths] == ["2x_rcan_fp32.param", "2x_rcan_fp32.bin"]
    for height, width in ((9, 14), (23, 8)):
        lr = torch.rand(1, 3, height, width)
        with torch.inference_mode():
            expected = networks["rcan"](lr)
        torch.testing.assert_close(run_in_ncnn(made, lr, "data"), expected, rtol=0, atol=1e-5)


def test_halves_in_ncnn_files_are_the_nearest(networks: dict[str, Network], tmp_path: Path) -> None:
    """Also the small ones, which pnnx makes zero."""
    pytest.importorskip("pnnx")
    network, lr = copy.deepcopy(networks["rcan"]), torch.rand(1, 3, 9, 14)
    for body in (module.body for module in network.modules() if isinstance(module, AttentionBlock)):
        for weight in body[0].parameters():
            weight.data /= 2000  # to about 1e-5
        body[2].get_parameter("weight").data *= 2000
    torch.save(network.state_dict(), tmp_path / "small.pth")
    (made,) = export(tmp_path / "small.pth", tmp_path, formats=["ncnn"], precisions=["fp16"])
    for weight in network.parameters():
        if weight.ndim > 1:
            weight.data = weight.data.half().float()
    with torch.inference_mode():
        torch.testing.assert_close(run_in_ncnn(made, lr, "input"), network(lr), rtol=0, atol=1e-5)


def test_openvino_files_run_in_openvino(networks: dict[str, Network], checkpoints: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    made = export(checkpoints / "swinir.pth", tmp_path, formats=["openvino"], precisions=["fp32", "fp16"])
    assert made[1].paths[1].stat().st_size < 0.7 * made[0].paths[1].stat().st_size
    model = openvino.Core().compile_model(made[0].paths[0], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    lr = torch.rand(3, 3, 7, 13)
    with torch.inference_mode():
        np.testing.assert_allclose(model({"input": lr.numpy()})["output"], networks["swinir"](lr), rtol=0, atol=2e-6)


def test_each_table_lies_beside_its_file(exported: dict[str, ExportedFile]) -> None:
    (path,) = exported["edsr"].paths
    title, _, header, _, row = path.with_name(f"{path.name}.md").read_text(encoding="utf-8").splitlines()
    assert title.startswith(
        f"{path.stem} in onnxruntime {runtime.__version__} against torch {torch.__version__} in float32, on "
    )
    assert header.count("|") == row.count("|") == 6
    assert path.name in row


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_rounding_is_a_gpus() -> None:
    """Sums that are exact in float32, so that the one rounding at their end is known; and an overflow."""
    weights = torch.randint(-60, 60, (4, 3, 1, 1)).float()
    convolution = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1, bias=False), torch.nn.Conv2d(4, 1, 1, bias=False))
    first, second = convolution
    first.weight.data, second.weight.data = weights, torch.tensor([1.0, 2.0, 4.0, 8.0]).view(1, 4, 1, 1)
    images = torch.randint(0, 200, (1, 3, 5, 5)).float()

    class Halved(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = convolution.half()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x.half())
            return y.float()

    file = io.BytesIO()
    torch.onnx.export(Halved(), (images,), file, dynamo=False, input_names=["x"], opset_version=17)  # type: ignore[arg-type]
    model = rounded_model(onnx.load_from_string(file.getvalue()))
    session = onnx_session(model.SerializeToString(), optimised=False)
    (made,) = session.run(None, {"x": images.numpy()})
    products = np.einsum("oi,ihw->ohw", weights[:, :, 0, 0].numpy(), images[0].numpy()).astype(np.float16)
    exact = np.einsum("o,ohw->hw", [1.0, 2.0, 4.0, 8.0], products.astype(np.float64))
    with np.errstate(over="ignore"):
        expected = exact.astype(np.float16)
    assert np.isinf(expected).any()
    assert np.isfinite(expected).any()
    assert np.array_equal(made[0, 0], expected.astype(np.float32))


def test_a_file_that_is_off_is_not_kept_but_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network whose inner values are too large for float16, and no CPU's onnxruntime would show it."""
    network = EDSR(2, 8, 2)
    state = network.state_dict()
    for key, factor in {"0.weight": 1e4, "0.bias": 1e4, "2.weight": 1e-4}.items():
        state[f"body.0.body.{key}"] *= factor
    save_network(tmp_path / "large.safetensors", network)
    arguments = ("--precision", "fp32", "fp16", "--out", str(tmp_path / "out"))
    said = complaint(capsys, "export", str(tmp_path / "large.safetensors"), *arguments)
    assert said.startswith("2x_large_fp16_op17 as onnx: not kept, its worst pixel is nan grey levels off")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["2x_large_fp32_op17.onnx", "2x_large_fp32_op17.onnx.md"]


def test_upscale_takes_the_file_as_it_takes_the_checkpoint(
    checkpoints: Path, exported: dict[str, ExportedFile], photo: Pixels, tmp_path: Path
) -> None:
    opacity = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (30, 1))[:, :, None]
    Image.fromarray(np.concatenate([photo[50:80, 100:140], opacity], axis=2)).save(tmp_path / "in.png")
    for network in (checkpoints / "swinir.pth", exported["swinir"].paths[0]):
        out = tmp_path / f"{network.suffix}.png"
        assert main(["upscale", str(network), str(tmp_path / "in.png"), str(out), "--tile", "16"]) == 0
    torchs, onnxs = (np.asarray(Image.open(tmp_path / f"{suffix}.png")).astype(int) for suffix in (".pth", ".onnx"))
    assert torchs.shape == (60, 80, 4)
    assert np.array_equal(torchs[:, :, 3], onnxs[:, :, 3])
    assert abs(torchs - onnxs).max() <= 1  # two roundings of nearly the same value
    assert (torchs != onnxs).mean() < 1e-3


def test_the_files_network_is_one_for_python(exported: dict[str, ExportedFile], photo: Pixels) -> None:
    network = load_network(exported["edsr fp16"].paths[0])
    assert (network.scale, network.grid, network.halo) == (3, 1, EDSR(3, 8, 2).halo)
    sr = super_resolve(network, photo[:20, :33])
    assert sr.shape == (60, 99, 3)
    assert sr.dtype == np.uint8


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    save_network(tmp_path / "tiny.safetensors", EDSR(2, 8, 1))
    return tmp_path / "tiny.safetensors"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "tflite"], "--to: expected onnx, ncnn, openvino, safetensors, got 'tflite'"),
        (["--precision", "int8"], "--precision: expected fp32, fp16, bf16, got 'int8'"),
        (["--opset", "9"], "--opset: expected 17, 20, 22, got 9"),
        (["--io", "half"], "--io: expected fp32 or same, got 'half'"),
        (["--precision", "bf16", "--opset", "17"], "bf16 ONNX needs --opset 22"),
        (["--precision", "bf16", "--io", "same"], "bf16 input and output would round the images"),
        (["--to", "onnx", "ncnn", "--precision", "fp16", "bf16"], "ncnn files have fp32 or fp16, not bf16"),
        (["--name", "../mine"], "--name: expected letters"),
        (["--input-name", "output"], "--input-name: expected a name such as input or data, got 'output'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_there_is_not_is_refused_before_anything_is_written(
    arguments: list[str], said: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tiny.parent / "out"
    assert complaint(capsys, "export", str(tiny), *arguments, "--out", str(out)).startswith(said)
    assert not out.exists()


def test_networks_that_make_no_images_or_fit_no_format(
    checkpoints: Path,
    tiny: Path,
    kept_runs: Path,
    exported: dict[str, ExportedFile],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tiny.parent
    save_network(folder / "residual.safetensors", EDSR(2, 8, 1), step=3, objective="residual")
    state = EDSR(2, 8, 1).state_dict()
    state["tail.1.bias"][1] = torch.nan
    torch.save(state, folder / "nan.pt")
    refused = {
        folder / "residual.safetensors": "its objective is residual",
        folder / "nan.pt": "holds values that are not finite",
        exported["edsr"].paths[0]: "expected the checkpoint of a network",
        folder / "none.pt": "there is no such checkpoint",
    }
    for path, said in refused.items():
        assert said in complaint(capsys, "export", str(path), "--out", str(folder / "out"))
    said = complaint(capsys, "export", str(checkpoints / "swinir.pth"), "--to", "ncnn", "--out", str(folder / "out"))
    assert said == "ncnn cannot pad an image to a multiple of 4 pixels, as this swinir does; take onnx or openvino"
    assert not (folder / "out").exists()
    with Path(kept_runs, "eco-1/checkpoints/last.safetensors").open("rb") as file:  # what runs say of themselves
        length = int.from_bytes(file.read(8), "little")
        metadata = json.loads(file.read(length))["__metadata__"]
    assert json.loads(metadata["eco_fast"])["objective"] == "eco"


def test_a_library_that_is_missing_is_named_with_its_command(
    tiny: Path, exported: dict[str, ExportedFile], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    out = tiny.parent / "out"
    said = complaint(capsys, "export", str(tiny), "--out", str(out))
    assert said == "export --to onnx needs onnxruntime, which is not installed; pip install 'eco-fast[export]'"
    assert not out.exists()
    path = exported["edsr"].paths[0]
    said = complaint(capsys, "upscale", str(path), str(tiny), str(out))
    assert said == f"{path}: an ONNX file needs onnxruntime, which is not installed; pip install 'eco-fast[export]'"


def test_a_full_disk_leaves_nothing_half_written(
    tiny: Path, file_size_limit: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tiny.parent / "out"
    file_size_limit(3000)
    for kind in ("onnx", "safetensors"):
        assert "cannot be read or written" in complaint(capsys, "export", str(tiny), "--to", kind, "--out", str(out))
        assert list(out.iterdir()) == []


def test_onnx_files_that_are_not_ours(
    exported: dict[str, ExportedFile], photo: Pixels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_png(tmp_path / "in.png", photo[:20, :20])
    whole = exported["edsr"].paths[0]
    model = onnx.load(whole)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    (tmp_path / "cut.onnx").write_bytes(whole.read_bytes()[:700])
    refused = {
        tmp_path / "other.onnx": "expected a file of `eco-fast export --to onnx`",
        tmp_path / "cut.onnx": "damaged, or not an ONNX file",
        tmp_path / "none.onnx": "there is no such checkpoint",
        exported["edsr bf16"].paths[0]: "onnxruntime has not all of its operators for CPUs, as in bf16",
    }
    for path, said in refused.items():
        told = complaint(capsys, "upscale", str(path), str(tmp_path / "in.png"), str(tmp_path / "out.png"))
        assert told.startswith(f"{path}: {said}")
    arguments = ("upscale", str(whole), str(tmp_path / "in.png"), str(tmp_path / "out.png"), "--device", "cuda")
    assert "ONNX files run on the CPU here" in complaint(capsys, *arguments)
    assert not (tmp_path / "out.png").exists()
    assert main([*arguments[:-2]]) == 0
    assert read_image(tmp_path / "out.png").shape == (60, 60, 3)


def test_the_table_of_the_page_is_the_last_matrix() -> None:
    assert markdown() in PAGE.read_text(encoding="utf-8")
