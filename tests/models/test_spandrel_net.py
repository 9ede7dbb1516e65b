"""Networks of spandrel's: loaded from their weights, run on images of any size, and used as teachers."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eco_fast.cli.main import main
from eco_fast.data.images import Pixels, write_png
from eco_fast.data.prepare import prepare
from eco_fast.data.store import Store
from eco_fast.inference.upscale import super_resolve
from eco_fast.models import load_network, load_network_of_scale, spandrel_net
from eco_fast.models.spandrel_net import Foreign
from tests.helpers import centroids_of

pytestmark = [
    pytest.mark.usefixtures("spandrel"),
    pytest.mark.filterwarnings("ignore:torch.meshgrid", "ignore:Initializing zero-element"),  # spandrel's
]


@pytest.fixture
def compact(tmp_path: Path) -> Path:
    """SRVGGNetCompact x2: what it adds to nearest-neighbour upscaling is little, with fresh weights made smaller."""
    network = compact_network(num_feat=8, num_conv=2, upscale=2)
    for parameter in network.parameters():
        parameter.data *= 0.5
    torch.save({"params": network.state_dict()}, tmp_path / "compact.pth")
    return tmp_path / "compact.pth"


def compact_network(**options: Any) -> Any:
    module = importlib.import_module("spandrel.architectures.Compact.__arch.SRVGG")
    return module.SRVGGNetCompact(**options)


def direct(spandrel: Any, path: Path) -> Any:
    """The same weights as spandrel runs them."""
    return spandrel.ModelLoader().load_from_state_dict(torch.load(path, weights_only=True)["params"])


def test_it_is_spandrels_network(compact: Path, spandrel: Any) -> None:
    network, other = load_network(compact, "cpu"), direct(spandrel, compact)
    assert isinstance(network, Foreign)
    assert (network.scale, network.peak, network.training) == (2, 1, False)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    for size in ((16, 16), (7, 31), (1, 1)):
        lr = torch.rand(1, 3, *size)
        torch.testing.assert_close(network(lr).clamp(0, 1), other(lr), rtol=0, atol=1e-6)


def test_sizes_that_it_cannot_take_are_made_larger(spandrel: Any) -> None:
    """DAT wants at least 16 pixels a side; ours are reflect_pad to that, and the output is cut."""
    network = spandrel.architectures.DAT.DAT(
        img_size=16, embed_dim=32, split_size=[8, 8], depth=[2], num_heads=[2], expansion_factor=2, upscale=2,
        resi_connection="1conv", upsampler="pixelshuffledirect",
    )  # fmt: skip
    loaded = Foreign(spandrel.ModelLoader().load_from_state_dict(network.state_dict())).eval()
    lr = torch.rand(1, 3, 9, 20)
    with torch.inference_mode():
        out = loaded(lr)
        assert out.shape == (1, 3, 18, 40)
        torch.testing.assert_close(out.clamp(0, 1), loaded.descriptor(lr), rtol=0, atol=1e-5)


def test_a_network_of_0_to_255_is_told_by_its_output(compact: Path) -> None:
    """A bias of 128 means nothing to one of 0..255, and that it is far off to one of 0..1."""
    state = torch.load(compact, weights_only=True)["params"]
    last = max(int(key.split(".")[1]) for key in state)
    state[f"body.{last}.bias"] += 2  # of 255 grey levels, or of 1
    torch.save(state, compact)
    network = load_network(compact, "cpu")
    assert isinstance(network, Foreign)
    assert network.peak == 255
    assert spandrel_net.from_bicubic(network) < 0.05


def test_an_untrained_network_is_refused(compact: Path) -> None:
    state = torch.load(compact, weights_only=True)["params"]
    last = max(int(key.split(".")[1]) for key in state)
    state[f"body.{last}.bias"] += 500
    torch.save(state, compact)
    with pytest.raises(
        ValueError, match=r"compact\.pth: cannot be used: a .*Compact.* whose output is .* from bicubic"
    ):
        load_network(compact, "cpu")


def test_networks_for_other_ends_are_refused(tmp_path: Path) -> None:
    for name, options in {"same": {"upscale": 1}, "grey": {"num_in_ch": 1, "num_out_ch": 1, "upscale": 2}}.items():
        network = compact_network(num_feat=8, num_conv=2, **options)
        torch.save(network.state_dict(), tmp_path / f"{name}.pth")
        with pytest.raises(ValueError, match=rf"{name}\.pth: cannot be used: .*one that upscales colour"):
            load_network(tmp_path / f"{name}.pth", "cpu")


def test_another_scale_is_refused(compact: Path) -> None:
    with pytest.raises(ValueError, match=r"compact\.pth: a network for x2, but x4 is asked for"):
        load_network_of_scale(compact, 4)


def test_it_teaches(compact: Path, tmp_path: Path, photo: Pixels) -> None:
    """And evaluates and upscales."""
    write_png(tmp_path / "hr" / "a.png", photo[:60, :84])
    assert main(["prepare", str(tmp_path / "hr"), "--store", str(tmp_path / "store")]) == 0
    out = centroids_of(tmp_path / "store", compact, 2, device="cpu")
    centroid = Store(out).images[0]
    assert centroid.shape == (60, 84, 3)
    assert np.abs(centroid.astype(int) - photo[:60, :84]).mean() < 12  # not far from what it upscales
    assert main(["evaluate", str(compact), "--data", str(tmp_path / "hr"), "--scale", "2", "--device", "cpu"]) == 0
    network = load_network(compact, "cpu")
    lr = photo[:50, :70]
    whole = super_resolve(network, lr, tile=200)
    assert np.array_equal(super_resolve(network, lr, tile=20), whole)  # its halo covers what so few convolutions see


def test_a_teacher_that_does_not_upscale_is_warned_of(
    compact: Path, tmp_path: Path, photo: Pixels, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that is near enough to bicubic to be loaded; said when it is about to work, and only then."""
    state = torch.load(compact, weights_only=True)["params"]
    last = max(int(key.split(".")[1]) for key in state)
    for value in state.values():
        value.zero_()  # what is left is its shortcut, the nearest neighbour
    torch.save(state, compact)
    write_png(tmp_path / "hr" / "a.png", photo[:60, :84])
    prepare([str(tmp_path / "hr")], tmp_path / "store")
    centroids_of(tmp_path / "store", compact, 2, device="cpu")
    assert "warning" not in capsys.readouterr().out
    state[f"body.{last}.bias"] += 0.06
    torch.save(state, compact)
    centroids_of(tmp_path / "store", compact, 2, device="cpu")
    said = capsys.readouterr().out
    assert "compact.pth: its output, downsampled again, differs from its input by 15." in said
    centroids_of(tmp_path / "store", compact, 2, device="cpu")
    assert "warning" not in capsys.readouterr().out


def test_without_spandrel_it_says_what_to_install(compact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)  # as if it were not there
    with pytest.raises(ValueError, match=r"or forty more with pip install 'eco-fast\[teachers\]'\); its first"):
        load_network(compact, "cpu")
