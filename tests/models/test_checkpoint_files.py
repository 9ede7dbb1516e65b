"""EDSR against an independent transcription, its published sizes and file layout, and every way to load it."""

import itertools
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.serialization import get_crc32_options, set_crc32_options

from eco_fast.config import EdsrModel
from eco_fast.models import (
    build,
    load_network,
    load_network_of_scale,
    read_state,
    save_network,
    warm_start,
)
from eco_fast.models.edsr import EDSR
from eco_fast.models.network import SubPixelConvolution

SCALES = (2, 3, 4, 8)
BASELINE, LARGE = (64, 16, 1.0), (256, 32, 0.1)  # features, blocks, residual scale
State = dict[str, Tensor]


def transcription(state: State, lr: Tensor, scale: int, residual_scale: float) -> Tensor:
    """EDSR as its paper and EDSR-PyTorch's `edsr.py` say, on 0..1 images, with the mean as 1x1 convolutions."""

    def conv(x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    identity = torch.eye(3, dtype=lr.dtype)[:, :, None, None]
    mean = (255 * torch.tensor([0.4488, 0.4371, 0.4040], dtype=torch.float32)).to(lr.dtype)  # rounded as in the files
    blocks = sum(name.endswith(".body.0.weight") for name in state)
    head = x = conv(F.conv2d(lr * 255, identity, -mean), "head.0")
    for index in range(blocks):
        x = x + residual_scale * conv(F.relu(conv(x, f"body.{index}.body.0")), f"body.{index}.body.2")
    x = conv(x, f"body.{blocks}") + head
    for index, factor in {2: [(0, 2)], 3: [(0, 3)], 4: [(0, 2), (2, 2)], 8: [(0, 2), (2, 2), (4, 2)]}[scale]:
        x = conv(x, f"tail.0.{index}")
        count, channels, height, width = x.shape
        x = x.view(count, channels // factor**2, factor, factor, height, width)
        x = x.permute(0, 1, 4, 2, 5, 3).reshape(count, channels // factor**2, factor * height, factor * width)
    return F.conv2d(conv(x, "tail.1"), identity, mean) / 255


def keys_of(blocks: int, scale: int) -> list[str]:
    """EDSR-PyTorch's state-dict keys, in its order."""
    body = [f"body.{index}.body.{layer}" for index in range(blocks) for layer in (0, 2)]
    tail = [f"tail.0.{layer}" for layer in {2: (0,), 3: (0,), 4: (0, 2), 8: (0, 2, 4)}[scale]]
    layers = ["sub_mean", "add_mean", "head.0", *body, f"body.{blocks}", *tail, "tail.1"]
    return [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def state() -> State:
    """Weights of a small x2 network, as EDSR-PyTorch would save them."""
    return EDSR(2, 8, 3).state_dict()


@pytest.mark.parametrize(
    ("sizes", "scale", "parameters", "tensors"),
    [
        (BASELINE, 2, 1_369_859, 76),
        (BASELINE, 3, 1_554_499, 76),
        (BASELINE, 4, 1_517_571, 78),
        (BASELINE, 8, 1_665_283, 80),
        (LARGE, 2, 40_729_603, 140),
        (LARGE, 3, 43_680_003, 140),
        (LARGE, 4, 43_089_923, 142),
        (LARGE, 8, 45_450_243, 144),
    ],
)
def test_published_sizes_and_keys(
    sizes: tuple[int, int, float], scale: int, parameters: int, tensors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Conv2d, "reset_parameters", lambda _: None)  # only sizes matter: leave the memory untouched
    features, blocks, residual_scale = sizes
    network = build(EdsrModel(features=features, blocks=blocks, residual_scale=residual_scale), scale)
    assert sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad) == parameters
    assert list(network.state_dict()) == keys_of(blocks, scale)
    assert len(network.state_dict()) == tensors


@pytest.mark.parametrize("residual_scale", [1.0, 0.1])
@pytest.mark.parametrize("scale", SCALES)
def test_forward_pass_equals_the_transcription(scale: int, residual_scale: float) -> None:
    network = EDSR(scale, 6, 3, residual_scale).double()
    lr = torch.rand(2, 3, 9, 7, dtype=torch.float64)
    expected = transcription(network.state_dict(), lr, scale, residual_scale)
    assert network(lr).shape == (2, 3, scale * 9, scale * 7)
    torch.testing.assert_close(network(lr), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("blocks", [1, 3])
def test_halo_is_the_radius_of_the_receptive_field(scale: int, blocks: int) -> None:
    network = EDSR(scale, 2, blocks).double()
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.25)  # all positive: no influence can cancel, and no ReLU closes
    centre = network.halo + 2
    lr = torch.full((1, 3, 2 * centre + 1, 2 * centre + 1), 2.0, dtype=torch.float64, requires_grad=True)
    own_place = slice(centre * scale, (centre + 1) * scale)
    network(lr)[:, :, own_place, own_place].sum().backward()
    assert lr.grad is not None
    seen = (lr.grad[0].sum(0) > 0).nonzero() - centre
    assert int(seen.abs().max()) == network.halo


@pytest.mark.parametrize("name", ["edsr.pt", "edsr.pth", "edsr.pth.tar", "edsr.safetensors"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_plain_files_load(name: str, prefix: str, state: State, tmp_path: Path) -> None:
    content = {prefix + key: value for key, value in state.items()}
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    network = load_network(path, "cpu")
    assert same(network.state_dict(), state)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_wrapped_files_load_and_averaged_weights_come_first(state: State, tmp_path: Path) -> None:
    other = EDSR(2, 8, 3).state_dict()
    contents: list[dict[str, object]] = [
        {"params": state},
        {"params_ema": state},
        {
            "iteration": 5,
            "state_dict": {f"module.{key}": value for key, value in state.items()},
            "optimizer": {"lr": 1},
        },
        {"params": other, "params_ema": state},
    ]
    for content in contents:
        torch.save(content, tmp_path / "wrapped.pth")
        assert same(load_network(tmp_path / "wrapped.pth", "cpu").state_dict(), state)


@pytest.mark.parametrize(("scale", "blocks", "features"), [(2, 1, 4), (3, 2, 5), (4, 3, 6), (8, 11, 2)])
def test_sizes_are_recognised_from_the_keys_alone(scale: int, blocks: int, features: int, tmp_path: Path) -> None:
    torch.save(EDSR(scale, features, blocks).state_dict(), tmp_path / "edsr.pt")
    network = load_network(tmp_path / "edsr.pt", "cpu")
    assert network.scale == scale
    assert network.hyperparameters == {"features": features, "blocks": blocks, "residual_scale": 1.0}


def test_residual_scale_is_a_tenth_for_the_large_network(tmp_path: Path) -> None:
    state = EDSR(2, 256, 1).state_dict()
    torch.save(state, tmp_path / "edsr_x2.pt")
    lr = torch.rand(1, 3, 6, 6)
    expected = transcription(state, lr, 2, 0.1)
    torch.testing.assert_close(load_network(tmp_path / "edsr_x2.pt", "cpu")(lr), expected, rtol=0, atol=1e-5)


def test_saved_networks_come_back_bit_for_bit(tmp_path: Path) -> None:
    network = EDSR(3, 8, 2, residual_scale=0.35).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    path = tmp_path / "own.safetensors"
    save_network(path, network, step=7)
    loaded = load_network(path, "cpu")
    assert same(loaded.state_dict(), network.state_dict())
    assert (loaded.scale, loaded.hyperparameters) == (3, network.hyperparameters)
    lr = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(loaded.double()(lr), network.double()(lr), rtol=0, atol=1e-13)
    _, metadata = read_state(path)
    sizes = {"architecture": "edsr", "scale": 3, "features": 8, "blocks": 2, "residual_scale": 0.35}
    assert {key: json.loads(value) for key, value in metadata.items()} == {"eco_fast": {**sizes, "step": 7}}


def test_equal_networks_make_equal_files(tmp_path: Path) -> None:
    network = EDSR(2, 4, 1)
    for index in range(6):
        save_network(tmp_path / f"{index}.safetensors", network, step=7)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_half_precision_weights_are_widened(state: State, tmp_path: Path) -> None:
    torch.save({key: value.half() for key, value in state.items()}, tmp_path / "half.pt")
    loaded = load_network(tmp_path / "half.pt", "cpu").state_dict()
    assert all(value.dtype == torch.float32 for value in loaded.values())
    assert torch.equal(loaded["body.1.body.2.weight"], state["body.1.body.2.weight"].half().float())


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def replaced(name: str, value: Tensor) -> Callable[[State], State]:
    return lambda state: {**state, name: value}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("body.1.body.2.bias"), "body.1.body.2.bias"),
        (without("body.1.body.0.weight"), "body.1.body.0.weight"),
        (without("tail.1.bias"), "tail.1.bias"),
        (without("head.0.weight"), "not a checkpoint of a known network"),
        (without("add_mean.weight"), "add_mean.weight"),
        (replaced("body.3.body.2.weight", torch.zeros(1)), "body.3.body.2.weight"),
        (replaced("tail.0.1.weight", torch.zeros(1)), "tail.0"),
        (replaced("body.0.body.0.weight", torch.zeros(8, 8, 5, 5)), "body.0.body.0.weight"),
        (replaced("sub_mean.bias", torch.zeros(4)), "sub_mean.bias"),
        (replaced("sub_mean.weight", 2 * torch.eye(3).view(3, 3, 1, 1)), "sub_mean.weight"),
        (replaced("add_mean.weight", torch.eye(3)), "add_mean.weight"),
        (replaced("head.0.weight", torch.tensor(8.0)), "not a checkpoint of a known network"),
        (replaced("tail.0.0.weight", torch.tensor(8.0)), "not a checkpoint of a known network"),
        (lambda _: {}, "holds no weights"),
    ],
)
def test_files_of_other_networks_are_refused_by_name(
    change: Callable[[State], State], said: str, state: State, tmp_path: Path
) -> None:
    path = tmp_path / "other.pt"
    torch.save(change(state), path)
    with pytest.raises(ValueError, match=said) as refusal:
        load_network(path, "cpu")
    assert str(path) in str(refusal.value)


class Runs:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_file_that_would_run_code_is_refused_and_does_not_run_it(state: State, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    torch.save({**state, "extra": Runs(ran)}, tmp_path / "code.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Runs(ran)))
    for name in ("code.pt", "pickle.pt"):
        with pytest.raises(ValueError, match=name):
            load_network(tmp_path / name, "cpu")
    assert not ran.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_and_missing_files_are_refused_by_name(suffix: str, state: State, tmp_path: Path) -> None:
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"damaged{suffix}"
    save_file(state, whole) if suffix == ".safetensors" else torch.save(state, whole)
    for content in (b"", b"not a checkpoint", whole.read_bytes()[:-1000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            load_network(path, "cpu")
    path.unlink()
    with pytest.raises(ValueError, match=f"damaged{suffix}: there is no such checkpoint"):
        load_network(path, "cpu")


@pytest.mark.parametrize("sums", [True, False])
def test_the_checksums_of_torchs_files_count_where_they_are_written(sums: bool, state: State, tmp_path: Path) -> None:
    """torch.load reads wrong bits as weights: nothing in the file tells but the checksums of a zip's parts."""
    path, key = tmp_path / "a.pt", "head.0.weight"
    before = get_crc32_options()
    try:
        set_crc32_options(sums)
        torch.save(state, path)
    finally:
        set_crc32_options(before)
    assert torch.equal(load_network(path).state_dict()[key], state[key])
    content = bytearray(path.read_bytes())
    at = content.index(state[key].numpy().tobytes())
    content[at] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path)[key], state[key])
    if sums:
        with pytest.raises(ValueError, match=r"a\.pt: damaged, or not a checkpoint"):
            load_network(path)
    else:
        load_network(path)


def test_a_network_of_another_scale_is_refused(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "x2.pt")
    assert load_network_of_scale(tmp_path / "x2.pt", 2).scale == 2
    with pytest.raises(ValueError, match=r"x2\.pt: a network for x2, but x4"):
        load_network_of_scale(tmp_path / "x2.pt", 4)


@pytest.mark.parametrize(
    ("scale", "fresh"), [(2, []), (3, ["tail.0.0"]), (4, ["tail.0.2"]), (8, ["tail.0.2", "tail.0.4"])]
)
def test_warm_start_copies_what_fits_and_leaves_the_rest_fresh(
    scale: int, fresh: list[str], state: State, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "x2.pt")
    network = EDSR(scale, 8, 3)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    kept = warm_start(network, tmp_path / "x2.pt")
    assert kept == sorted(f"{layer}.{kind}" for layer in fresh for kind in ("bias", "weight"))
    after = network.state_dict()
    assert {"head.0.weight", "body.3.bias", "tail.1.weight"}.isdisjoint(kept)
    for key, value in after.items():
        assert torch.equal(value, before[key] if key in kept else state[key]), key


@pytest.mark.parametrize("sizes", [(8, 2), (8, 4), (6, 3)], ids=["fewer blocks", "more blocks", "other features"])
def test_warm_start_refuses_another_network_and_leaves_it_as_it_was(
    sizes: tuple[int, int], state: State, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "x2.pt")
    network = EDSR(4, *sizes)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"x2\.pt: cannot start this network"):
        warm_start(network, tmp_path / "x2.pt")
    assert same(network.state_dict(), before)


def test_fresh_weights_depend_on_the_seed_alone() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build(EdsrModel(features=4, blocks=1), 2).state_dict())
    assert [same(*pair) for pair in itertools.combinations(states, 2)] == [True, False, False]


@pytest.mark.parametrize("factor", [2, 3])
def test_sub_pixel_convolution_is_a_convolution_and_a_pixel_shuffle(factor: int) -> None:
    """In the values, in every gradient, and in the keys of a checkpoint; channels_last comes out on every device."""
    torch.manual_seed(0)
    ours = SubPixelConvolution(7, 5, factor).double()
    plain = nn.Sequential(nn.Conv2d(7, 5 * factor**2, 3, padding=1), nn.PixelShuffle(factor)).double()
    assert nn.Sequential(ours).state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(nn.Sequential(ours).state_dict())
    x = torch.rand(2, 7, 4, 6, dtype=torch.float64)
    results = []
    for network in (ours, plain):
        image = x.clone().requires_grad_()
        out = network(image)
        (out * torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)).sum().backward()
        results.append([out, image.grad, *(parameter.grad for parameter in network.parameters())])
    assert results[0][0].shape == (2, 5, 4 * factor, 6 * factor)
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    for one in (results[0][0], ours.to("meta")(x.to("meta"))):
        assert one.is_contiguous(memory_format=torch.channels_last)
