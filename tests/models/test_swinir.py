"""SwinIR against spandrel's, its published sizes, every way to load it, and its attention against float64."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from eco_fast.config import Config, SwinirModel, Train, validate
from eco_fast.data.batch import BatchPlanner
from eco_fast.models import build, compile_blocks, load_network, save_network, warm_start
from eco_fast.models.cpu import build as cpu_build
from eco_fast.models.cpu import window_attention as attention
from eco_fast.models.cpu.window_attention import cut, join
from eco_fast.models.swin_blocks import SwinBlock, shift_mask
from eco_fast.models.swinir import SwinIR
from eco_fast.training.profiling import training_flops

MEDIUM: dict[str, Any] = {}
LIGHT: dict[str, Any] = {"features": 60, "depths": (6,) * 4, "heads": (6,) * 4}
DIRECT = {**LIGHT, "upsampler": "pixelshuffledirect"}
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")  # which spandrel calls
TINY: dict[str, Any] = {"features": 24, "depths": (2, 2), "heads": (2, 3), "patch": 24}


@pytest.mark.parametrize(
    ("sizes", "scale", "parameters"),
    [
        (MEDIUM, 2, 11_752_487),
        (MEDIUM, 3, 11_937_127),
        (MEDIUM, 4, 11_900_199),
        (MEDIUM, 8, 12_047_911),
        (DIRECT, 2, 910_152),
        (DIRECT, 3, 918_267),
        (DIRECT, 4, 929_628),
        (LIGHT, 2, 1_087_727),
        (LIGHT, 3, 1_272_367),
        (LIGHT, 4, 1_235_439),
    ],
)
def test_published_sizes(sizes: dict[str, Any], scale: int, parameters: int) -> None:
    with torch.device("meta"):
        network = build(SwinirModel(**sizes), scale)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize(
    "sizes",
    [{**TINY, "depths": (2, 3)}, {**TINY, "upsampler": "pixelshuffledirect"}, {**TINY, "window": 4, "mlp_ratio": 1.5}],
    ids=["pixelshuffle", "direct", "windows of 4"],
)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_equals_spandrels(sizes: dict[str, Any], scale: int, spandrel: Any) -> None:
    network = rough(SwinIR(scale, **sizes)).eval()
    other = spandrel.ModelLoader().load_from_state_dict(copy.deepcopy(network.state_dict())).eval()
    assert other.architecture.id == "SwinIR"
    for size in ((24, 24), (16, 40), (13, 21), (30, 17)):
        lr = torch.rand(2, 3, *size)
        with torch.inference_mode():
            torch.testing.assert_close(network(lr), other.model(lr), rtol=0, atol=1e-5)


def test_gradients_equal_spandrels(spandrel: Any) -> None:
    network = rough(SwinIR(2, **TINY))
    other = spandrel.ModelLoader().load_from_state_dict(copy.deepcopy(network.state_dict())).model
    other.eval().requires_grad_(requires_grad=True)
    lr = torch.rand(2, 3, 24, 24)
    for one in (network, other):
        one(lr).square().mean().backward()
    theirs = dict(other.named_parameters())
    for name, parameter in network.named_parameters():
        scale = theirs[name].grad.abs().max().item()
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("upsampler", ["pixelshuffle", "pixelshuffledirect"])
@pytest.mark.parametrize("wrapper", ["params", "params_ema", ""])
def test_files_load(upsampler: str, wrapper: str, tmp_path: Path) -> None:
    """With the masks that the authors' files have, without any, and ours."""
    network, lr = rough(SwinIR(3, **TINY, upsampler=upsampler, drop_path=0.25)), torch.rand(1, 3, 9, 24)
    state = network.state_dict()
    torch.save({wrapper: state} if wrapper else state, tmp_path / "official.pth")
    bare = {key: value for key, value in state.items() if not key.endswith(("attn_mask", "relative_position_index"))}
    torch.save({wrapper: bare} if wrapper else bare, tmp_path / "bare.pth")
    save_network(tmp_path / "own.safetensors", network)
    for name in ("official.pth", "bare.pth", "own.safetensors"):
        loaded = load_network(tmp_path / name, "cpu")
        assert isinstance(loaded, SwinIR)
        torch.testing.assert_close(loaded(lr), network(lr), rtol=0, atol=0)
    assert load_network(tmp_path / "own.safetensors", "cpu").hyperparameters == network.hyperparameters
    assert load_network(tmp_path / "official.pth", "cpu").hyperparameters["patch"] == 24


def test_an_incomplete_file_is_refused_by_the_name_of_what_is_missing(tmp_path: Path) -> None:
    state = SwinIR(2, **TINY).state_dict()
    del state["layers.1.residual_group.blocks.0.attn.qkv.bias"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(
        ValueError, match=r"part\.pth: not a complete SWINIR checkpoint, layers\.1.*qkv\.bias is missing"
    ):
        load_network(tmp_path / "part.pth", "cpu")


@pytest.mark.parametrize(
    ("scale", "upsampler", "fresh"),
    [(3, "pixelshuffle", "upsample.0"), (4, "pixelshuffle", "upsample.2"), (4, "pixelshuffledirect", "upsample.0")],
)
def test_warm_start_copies_all_but_the_upsampler(scale: int, upsampler: str, fresh: str, tmp_path: Path) -> None:
    """Also from a file whose masks are those of other patches."""
    save_network(tmp_path / "x2.safetensors", SwinIR(2, **{**TINY, "patch": 16}, upsampler=upsampler))
    kept = warm_start(SwinIR(scale, **TINY, upsampler=upsampler), tmp_path / "x2.safetensors")
    assert kept == [f"{fresh}.bias", f"{fresh}.weight"]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"heads": (5, 6)}, "heads must divide the 24 features"),
        ({"heads": (6,)}, "2 depths, 1 heads"),
        ({"window": 7}, "must be even, got 7"),
        ({"patch": 20}, "several windows of 8, got 20"),
        ({"scale": 8, "upsampler": "pixelshuffledirect"}, r"has scales \(2, 3, 4\), got 8"),
    ],
)
def test_sizes_that_do_not_fit_together(sizes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        SwinIR(**{"scale": 2, **TINY, **sizes})


@pytest.mark.slow
@pytest.mark.parametrize("drops", [False, True], ids=["whole", "stochastic depth"])
def test_compiled_blocks_without_breaks_are_as_exact_as_eager(
    drops: bool, compiled_is_as_exact_as_eager: Callable[..., None]
) -> None:
    """Loss and gradients, against float64; a graph for each kind of layer."""
    network, lr = rough(SwinIR(2, **TINY)), torch.rand(2, 3, 24, 24)
    draws = torch.rand(2, 8) if drops else None
    compiled_is_as_exact_as_eager(  # the heads of the two layers differ too
        network, lr, draws, compile_it=compile_blocks, graphs=2, slack=1e-5
    )


@pytest.mark.slow
def test_compiled_whole_without_breaks() -> None:
    network, lr = rough(SwinIR(2, **{**TINY, "depths": (2,), "heads": (2,)})), torch.rand(1, 3, 24, 24)
    torch.compiler.reset()
    whole = torch.compile(network, fullgraph=True, dynamic=False)
    torch.testing.assert_close(whole(lr), network(lr), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("window", "shift"), [(8, 0), (8, 4), (4, 2), (7, 0), (7, 3)])
@pytest.mark.parametrize("size", [10, 30])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_as_exact_as_torchs(window: int, shift: int, size: int, masked: bool) -> None:
    assert cpu_build.available("window_attention", WINDOW=window, SIZE=size), "the tests need a C++ compiler"
    tokens, heads, height, width = window**2, 2, 2 * window, 3 * window
    qkv, bias = torch.randn(2, height, width, 3 * heads * size), torch.randn(heads, tokens, tokens)
    mask = -100.0 * (torch.rand(6, tokens, tokens) < 0.3) if masked else None
    upstream = torch.randn(2, height, width, heads * size)
    within = torch.arange(tokens)
    places = torch.stack(  # of each window's tokens in the image, by the definition
        [
            (top * window + within // window + shift) % height * width
            + (left * window + within % window + shift) % width
            for top, left in itertools.product(range(2), range(3))
        ]
    )

    def of(attend: Any, dtype: torch.dtype) -> list[Tensor]:
        inputs = [qkv.to(dtype).requires_grad_(), bias.to(dtype).requires_grad_()]
        out = attend(*inputs, None if mask is None else mask.to(dtype), window, shift)
        return [out, *torch.autograd.grad(out, inputs, upstream.to(dtype))]

    def by_the_formula(qkv: Tensor, bias: Tensor, mask: Tensor | None, *_: int) -> Tensor:
        q, k, v = qkv.flatten(1, 2)[:, places].unflatten(3, (3, heads, size)).permute(3, 0, 1, 4, 2, 5)
        scores = q @ k.mT / size**0.5 + bias
        scores = scores if mask is None else scores + mask[:, None]
        attended = (scores.softmax(-1) @ v).transpose(2, 3).flatten(3)  # [2, windows, tokens, C]
        out = torch.zeros(2, height * width, heads * size, dtype=qkv.dtype)
        return out.index_copy(1, places.flatten(), attended.flatten(1, 2)).view(upstream.shape)

    exact, plain = of(by_the_formula, torch.float64), of(by_the_formula, torch.float32)
    for ours in (of(attention.attend, torch.float32), of(attention.attend_by_torch, torch.float32)):
        for our, their, right in zip(ours, plain, exact, strict=True):
            assert (our - right).norm() <= 2 * (their - right).norm()
    torch.testing.assert_close(of(attention.attend, torch.float64), exact, rtol=0, atol=1e-12)


def test_attention_takes_outputs_in_the_layout_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory-efficient kernel that GPUs take returns [B, H, T, D] in memory ordered as [B, T, H, D]."""
    qkv, bias = torch.randn(2, 16, 24, 180), torch.randn(6, 64, 64)
    mask = torch.randn(6, 64, 64)  # of an image's six windows, which then count as heads
    expected = attention.attend_by_torch(qkv, bias, mask, 8, 4)
    plain = functional.scaled_dot_product_attention

    def as_on_a_gpu(*inputs: Any, **options: Any) -> Tensor:
        return plain(*inputs, **options).transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", as_on_a_gpu)
    assert torch.equal(attention.attend_by_torch(qkv, bias, mask, 8, 4), expected)


def test_attention_gives_the_same_bits_on_any_number_of_threads() -> None:
    qkv, bias = torch.randn(2, 32, 40, 60, requires_grad=True), torch.randn(2, 64, 64, requires_grad=True)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        out = attention.attend(qkv, bias, None, 8, 4)
        results.append([out, *torch.autograd.grad(out.square().sum(), (qkv, bias))])
    torch.set_num_threads(threads)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)


def test_attention_hands_a_bad_number_on() -> None:
    qkv = torch.randn(2, 8, 8, 60)
    qkv[1, 3, 5, 7] = float("nan")
    out = attention.attend(qkv, torch.zeros(2, 64, 64), None, 8, 0)
    assert out[0].isfinite().all()
    assert out[1].isnan().any()


def test_sixteen_bits_stay_close() -> None:
    network, lr = rough(SwinIR(2, **TINY)), torch.rand(1, 3, 24, 24)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            out = network(lr)
        assert (out - network(lr)).abs().mean() < 0.02


def test_the_shifts_mask_is_that_of_the_parts_that_the_shift_brings_together() -> None:
    """Two tokens of a window may see each other if they were neighbours before the shift, or across no border."""
    place = torch.arange(24 * 16).view(1, 24, 16, 1)
    windows = cut(place.roll((-4, -4), (1, 2)), 8).flatten(1)
    rows, columns = windows // 16, windows % 16
    together = ((rows[:, :, None] - rows[:, None]).abs() < 8) & ((columns[:, :, None] - columns[:, None]).abs() < 8)
    assert torch.equal(shift_mask(24, 16, 8, 4) == 0, together)
    assert torch.equal(join(cut(place, 8), place.shape), place)


def test_stochastic_depth_leaves_out_branches_and_keeps_the_mean() -> None:
    network = rough(SwinIR(2, **TINY, drop_path=0.5)).double()
    lr = torch.rand(1, 3, 24, 24, dtype=torch.float64)
    all_in, all_out = torch.zeros(1, 8), torch.full((1, 8), 0.999)
    factors = [1 / (1 - 0.5 * block / 3) for block in range(4)]

    amplified = copy.deepcopy(network)  # a branch is linear in the layer that ends it
    blocks = [block for block in amplified.modules() if isinstance(block, SwinBlock)]
    for block, factor in zip(blocks, factors, strict=True):
        scale_layer(block.attn.proj, factor)
        scale_layer(block.mlp.fc2, factor)
    torch.testing.assert_close(network(lr, all_in), amplified(lr))

    for block in blocks[1:]:  # the first is never left out
        scale_layer(block.attn.proj, 0)
        scale_layer(block.mlp.fc2, 0)
    torch.testing.assert_close(network(lr, all_out), amplified(lr))


def drop_path(planner: BatchPlanner, step: int) -> Any:
    return planner.conditions(planner.plan(step)).drop_path_uniforms


def test_draws_are_a_function_of_the_seed_the_step_and_the_sample() -> None:
    config = Config(model=SwinirModel(**TINY), train=Train(batch_size=6))
    sizes = [(200, 200)]
    whole = drop_path(BatchPlanner(config, sizes), 5)
    assert whole is not None
    assert whole.shape == (6, 8)
    parts = [drop_path(BatchPlanner(config, sizes, rank, 2), 5) for rank in (0, 1)]
    assert torch.equal(torch.cat([part for part in parts if part is not None]), whole)
    other = drop_path(BatchPlanner(config, sizes), 6)
    assert other is not None
    assert not torch.equal(whole, other)
    sampler = BatchPlanner(config, sizes).sampler
    many = np.concatenate([sampler.drop_path_uniforms(step, 0, 1000) for step in range(100)])
    assert many.min() >= 0
    assert many.max() < 1
    assert abs(many.mean() - 0.5) < 0.005  # five standard errors
    assert drop_path(BatchPlanner(Config(model=SwinirModel(**TINY, drop_path=0)), sizes), 0) is None


def test_work_is_counted_without_memory() -> None:
    """Multiply-adds of linear layers, convolutions and attention, three times two each."""
    network = SwinIR(2, **TINY)
    tokens, features = 24 * 24, 24
    per_token = 4 * features * (3 + 1 + 2 + 2) * features + 4 * 2 * 64 * features  # qkv, proj, MLP; two products
    convolutions = 9 * (3 * features + 3 * features**2 + features * 64 + 64 * 256 + 4 * 64 * 3)
    padded = 4 * 2 * 64 * (32 - features)  # the heads of 12 and 8 channels are of 16 and 8 for the kernel
    expected = 6 * tokens * (per_token + convolutions)
    assert expected <= training_flops(network, 24) <= expected + 6 * tokens * padded


def test_a_recipe_names_its_keys() -> None:
    values = {"model": {"name": "swinir", "features": 60, "depths": [2, 2], "heads": [6, 6]}}
    model = validate(values, "recipe").model
    assert isinstance(model, SwinirModel)
    assert (model.drop_path_branches, model.window, model.patch) == (8, 8, 48)
    with pytest.raises(ValueError, match=r"unknown key model\.head \(did you mean model\.heads\?\)"):
        validate({"model": {"name": "swinir", "head": [6]}}, "recipe")


def rough(network: SwinIR) -> SwinIR:
    """Weights larger than fresh ones: a position bias, say, that shows."""
    for parameter in network.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return network


def scale_layer(layer: nn.Linear, factor: float) -> None:
    layer.weight.data *= factor
    layer.bias.data *= factor
