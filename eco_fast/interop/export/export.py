"""`eco-fast export`: every file is run by its own runtime beside torch before it gets its name."""

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from eco_fast.interop.export.formats import FORMATS, planned_files
from eco_fast.interop.export.planned_file import PlannedFile
from eco_fast.interop.export.verification import MOST_LEVELS, MOST_RELATIVE, Difference, Reference
from eco_fast.models import METADATA, Network, load_network, read_state
from eco_fast.models.onnx_network import OnnxNetwork
from eco_fast.models.spandrel_net import Foreign
from eco_fast.utils.device import device_name
from eco_fast.utils.files import require_space, size_in_words, write_text
from eco_fast.utils.optional import optional
from eco_fast.utils.progress import track
from eco_fast.utils.table_io import Table

COLUMNS = ("file", "size", "LR pixels/s here", "worst pixel, grey levels", "of the largest value")


@dataclass(frozen=True)
class ExportedFile:
    """A file that does what its network does."""

    paths: tuple[Path, ...]
    """The file, and what belongs to it."""
    format: str
    """onnx, ncnn, openvino or safetensors."""
    precision: str
    """fp32, fp16 or bf16."""
    difference: Difference
    """From torch in float32."""

    @property
    def bytes(self) -> int:
        """Of all its paths."""
        return sum(path.stat().st_size for path in self.paths)


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    formats: Sequence[str] = ("onnx",),
    precisions: Sequence[str] = ("fp32",),
    opset: int | None = None,
    name: str | None = None,
    io: str = "fp32",
    input_name: str = "input",
) -> list[ExportedFile]:
    """Write a network as files of other runtimes, verify each, and print a table, which is written beside each too.

    Args:
        checkpoint: of a network that eco-fast trains.
        out: folder of the files; made if need be.
        formats: of onnx, ncnn, openvino and safetensors.
        precisions: of fp32, fp16 and bf16.
        opset: of ONNX, 17, 20 or 22; None: 17, and 22 for bf16.
        name: what follows the scale in the files' names; None: the run folder's name, or the checkpoint's.
        io: dtype of the input and output of ONNX files: "fp32", or "same" as the precision.
        input_name: of the graph's input.

    Raises:
        ValueError: a checkpoint that is no SR network, a combination that there is not, a library that is missing; or
            files that failed, which are named and not kept.
    """
    path, folder = Path(checkpoint), Path(out)
    network = _network(path)
    files = list(planned_files(network, list(formats), list(precisions), opset, io, input_name))
    for one in dict.fromkeys(formats):
        for module in FORMATS[one].needs:
            optional(module, f"export --to {one}", "export")
    stem = _stem(path, network.scale, name)
    size = sum(weight.numel() * 4 for weight in network.state_dict().values())
    require_space(folder, (len(files) + 1) * size, "export")
    reference = Reference(network)
    done, failed = [], []
    for kind, planned in track(files, description="export"):
        try:
            done.append(_export_one(kind, planned, folder, stem, reference))
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - the converters raise all sorts
            reason = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
            failed.append(f"{_file_name(kind, planned, stem)} as {kind}: {' '.join(reason.split())[:300]}")
    if done:
        _table(done, f"{stem} on {device_name('cpu')}, torch {torch.__version__}").show()
    if failed:
        raise ValueError("; ".join(failed))
    return done


def _network(path: Path) -> Network:
    network = load_network(path, "cpu")
    if isinstance(network, Foreign | OnnxNetwork):
        what = f"one that eco-fast trains, got {network.architecture}"
        raise ValueError(f"{path}: expected the checkpoint of a network, {what}")  # noqa: TRY004 - the user's input
    facts = json.loads(read_state(path)[1].get(METADATA, "{}"))
    if facts.get("objective") == "residual":
        raise ValueError(
            f"{path}: its objective is residual, so what it makes are residuals and no images; export another one"
        )
    return network


def _stem(path: Path, scale: int, name: str | None) -> str:
    """2x_NAME."""
    if name is not None and not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"--name: expected letters, digits, '_', '-' and '.', got {name!r}")
    own = path.parent.parent.name if path.parent.name == "checkpoints" else path.stem
    own = re.sub(r"[^\w.-]+", "-", own)
    return f"{scale}x_{name or re.sub(rf'^{scale}x[-_]', '', own, flags=re.IGNORECASE)}"


def _file_name(kind: str, planned: PlannedFile, stem: str) -> str:
    opset = f"_op{planned.opset}" if kind == "onnx" else FORMATS[kind].suffix
    return f"{stem}_{planned.precision}{opset}"


def _export_one(kind: str, planned: PlannedFile, folder: Path, stem: str, reference: Reference) -> ExportedFile:
    """Write a file beside its place, compare it, and put it there.

    Raises:
        ValueError: it is too far off.
    """
    form, name = FORMATS[kind], _file_name(kind, planned, stem)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-", ignore_cleanup_errors=True) as beside:
        written = form.write(planned, Path(beside, name))
        timed = (kind, planned.precision) != ("onnx", "bf16")
        difference = reference.compare(form.run(planned, written), timed=timed)
        if not difference.allowed(planned.precision):
            limit = f"{MOST_RELATIVE:g} of that value" if planned.precision == "fp32" else f"{MOST_LEVELS} levels"
            raise ValueError(
                f"not kept, its worst pixel is {difference.levels:.3g} grey levels off, {difference.relative:.2g} of "
                f"the largest value; less than {limit} is allowed"
            )
        paths = tuple(one.replace(folder / one.name) for one in written)
    made = ExportedFile(paths, kind, planned.precision, difference)
    title = f"{name} in {_runtime(kind)} against torch {torch.__version__} in float32, on {device_name('cpu')}"
    write_text(folder / f"{name}.{kind}.md", _table([made], title).markdown())
    return made


def _runtime(kind: str) -> str:
    """What has run the file."""
    *_, name = ("", *FORMATS[kind].needs)
    return f"{name} {version(name)}" if name else "load_network"


def _table(files: Sequence[ExportedFile], title: str) -> Table:
    rows = []
    for one in files:
        speed = one.difference.pixels_per_second
        names = " + ".join([one.paths[0].name, *(path.suffix for path in one.paths[1:])])
        cells = (size_in_words(one.bytes), "-" if speed is None else f"{speed:.3g}")
        rows.append([names, *cells, f"{one.difference.levels:.4f}", f"{one.difference.relative:.1e}"])
    return Table(title, COLUMNS, rows)
