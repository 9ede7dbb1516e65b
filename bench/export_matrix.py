"""`python -m bench.export_matrix [NETWORK ...]`: every network, scale, format and precision exported and verified.

The networks have the published sizes and fresh weights, but for the last convolution, which is fitted by least squares
so that the output is an image: the upscaled photograph. Each network's results go into docs/export-matrix.csv and the
table of docs/export.md when it is done, in place of its earlier ones; --missing goes on where it stopped.
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from eco_fast.data.folders import builtin_images
from eco_fast.data.images import read_image
from eco_fast.data.resize import downsample_image
from eco_fast.interop.export import export
from eco_fast.interop.export.formats import FORMATS, why_not
from eco_fast.models import Network, save_network
from eco_fast.models.edsr import EDSR
from eco_fast.models.rcan import RCAN
from eco_fast.models.rrdb import RRDB
from eco_fast.models.swinir import SwinIR
from eco_fast.utils.files import write_text
from eco_fast.utils.table_io import Table, write_csv

RESULTS = Path(__file__).parents[1] / "docs" / "export-matrix.csv"
PAGE = RESULTS.with_name("export.md")
LARGEST_SIDE = 64  # LR pixels a side of the photograph that the last convolution is fitted to
WINDOW = 16  # what the side is a multiple of, so that no network pads
RIDGE = 1.0  # of the mean square of its inputs' variations
NETWORKS: dict[str, tuple[tuple[int, ...], Callable[[int], Network]]] = {
    "EDSR-baseline": ((2, 3, 4, 8), EDSR),
    "SwinIR-S": ((2, 3, 4), lambda scale: SwinIR(scale, 60, (6,) * 4, (6,) * 4, upsampler="pixelshuffledirect")),
    "SwinIR-small": ((2, 3, 4, 8), lambda scale: SwinIR(scale, 60, (6,) * 4, (6,) * 4)),
    "RCAN": ((2, 3, 4, 8), RCAN),
    "RRDB": ((2, 4, 8), RRDB),
    "RRDB, unshuffled": ((2,), lambda scale: RRDB(scale, unshuffle=True)),
    "SwinIR-M": ((2, 3, 4, 8), lambda scale: SwinIR(scale, patch=64)),
    "EDSR": ((2, 3, 4, 8), lambda scale: EDSR(scale, 256, 32, 0.1)),
}
REFUSED = "refused"


@torch.no_grad()
def fit_to_images(network: Network) -> None:
    """Give the last convolution the weights that make a photograph of its downsampled copy, by least squares.

    It is one of an eighth of the contrast. The weights are kept small, as those of trained networks are: 16 bits would
    show in sums of large numbers that nearly cancel.
    """
    scale, path = network.scale, dict(builtin_images("test"))["builtin/coffee.png"]
    photo = read_image(path)
    side = scale * min(LARGEST_SIDE, photo.shape[0] // scale // WINDOW * WINDOW)
    top = min(100, photo.shape[0] - side)
    hr = photo[top : top + side, -side:]
    lr, wanted = (torch.tensor(image).permute(2, 0, 1)[None] / 255 for image in (downsample_image(hr, scale), hr))
    *_, last = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    assert last.bias is not None
    seen: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    last.weight.zero_()
    last.bias.zero_()
    missing = (7 + 2 * wanted) / 16 - network.eval()(lr)  # of a network that adds the mean of all images itself
    hook.remove()
    if last.out_channels != 3:  # a pixel shuffle follows
        missing = functional.pixel_unshuffle(missing, scale)
    target = missing[0].flatten(1).double() * (255 if isinstance(network, EDSR | RCAN) else 1)
    patches = functional.unfold(seen[0], 3, padding=1)[0].double()
    means, levels = patches.mean(1, keepdim=True), target.mean(1, keepdim=True)
    square = (patches - means) @ (patches - means).T
    square.diagonal().add_(RIDGE * square.diagonal().mean())
    solution = torch.linalg.solve(square, (patches - means) @ (target - levels).T).T
    last.weight.copy_(solution.reshape(last.weight.shape))
    last.bias.copy_((levels - solution @ means)[:, 0])


def export_all(name: str, scale: int) -> list[dict[str, object]]:
    """All files of one network; of one that is not as it should be the reason is printed."""
    torch.manual_seed(0)
    network = NETWORKS[name][1](scale).eval()
    fit_to_images(network)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "matrix.safetensors")
        save_network(path, network)
        for kind in FORMATS:
            for precision in _precisions(network, kind):
                row: dict[str, object] = {"network": name, "scale": scale, "format": kind, "precision": precision}
                try:
                    (made,) = export(path, folder, formats=(kind,), precisions=(precision,))
                    row["MB"] = round(made.bytes / 1e6, 1)
                    row["grey levels"] = f"{made.difference.levels:.2g}"
                    row["relative"] = f"{made.difference.relative:.1e}"
                except ValueError as error:
                    print(f"{name} x{scale}: {error}", flush=True)
                    row |= {"MB": "", "grey levels": REFUSED, "relative": ""}
                rows.append(row)
    return rows


def _precisions(network: Network, kind: str) -> tuple[str, ...]:
    return tuple(one for one in FORMATS[kind].precisions if why_not(network, kind, one) is None)


def known_results() -> list[dict[str, object]]:
    """What the file holds."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return [dict(row) for row in csv.DictReader(file)]


def markdown() -> str:
    """One row for each network and scale, one column for each format and precision: the worst pixel in grey levels."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in known_results():
        line = cells.setdefault((str(row["network"]), str(row["scale"])), {})
        line[f"{row['format']} {row['precision']}"] = str(row["grey levels"])
    columns = [f"{kind} {precision}" for kind, form in FORMATS.items() for precision in form.precisions]
    order = [(name, str(scale)) for name, (scales, _) in NETWORKS.items() for scale in scales]
    known = [place for place in order if place in cells]
    rows = [[name, f"x{scale}", *(cells[name, scale].get(one, "-") for one in columns)] for name, scale in known]
    return Table("Worst pixel in grey levels", ("network", "scale", *columns), rows).markdown()


def record(rows: list[dict[str, object]]) -> None:
    """Write the file, and the table of the page."""
    before = markdown()
    write_csv(RESULTS, rows)
    write_text(PAGE, PAGE.read_text(encoding="utf-8").replace(before, markdown()))


def main() -> int:
    """Export; returns how many files were refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)}; all", metavar="NETWORK")
    parser.add_argument("--scale", type=int, nargs="*", help="these scales alone")
    parser.add_argument("--missing", action="store_true", help="those alone that have no results yet")
    args = parser.parse_args()
    failed = 0
    for name in args.networks or NETWORKS:
        for scale in NETWORKS[name][0]:
            here = [row for row in known_results() if (row["network"], row["scale"]) == (name, str(scale))]
            if scale not in (args.scale or [scale]) or (here and args.missing):
                continue
            rows = export_all(name, scale)
            failed += sum(row["grey levels"] == REFUSED for row in rows)
            others = [row for row in known_results() if (row["network"], row["scale"]) != (name, str(scale))]
            record([*others, *rows])
    return failed


if __name__ == "__main__":
    sys.exit(main())
