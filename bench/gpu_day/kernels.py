"""Our own kernels: how long each takes on the device, against a copy of the bytes that it has to move.

python -m bench.gpu_day.kernels     runs each once, for a profiler to look at
"""

from collections.abc import Callable

import torch
from eco_fast_kernels import (
    Orientation,
    PlanColumn,
    blended_loss,
    crop_side,
    cut_crops,
    downsample_blend,
    empty_crops,
    margin_of,
    move_crops,
)
from eco_fast_kernels.fused import add_norm as fused_norm
from eco_fast_kernels.fused import bias_gelu as fused_gelu
from eco_fast_kernels.fused import blended_loss as fused_loss
from eco_fast_kernels.fused import channel_attention as fused_channels
from eco_fast_kernels.fused import channel_attention_backward as fused_channels_backward
from eco_fast_kernels.fused import column_sums as fused_sums
from eco_fast_kernels.fused import cut_crops as fused_crops
from eco_fast_kernels.fused import decide_step as fused_decision
from eco_fast_kernels.fused import downsample_blend as fused_blend
from eco_fast_kernels.fused import epilogues as fused_epilogues
from eco_fast_kernels.fused import lamb_step as fused_lamb
from eco_fast_kernels.fused import window_attention as fused_attention
from eco_fast_kernels.fused import window_attention_backward as fused_attention_backward
from torch import Tensor

from bench import compulsory
from bench.gpu_day.day import DEVICE, Day
from bench.gpu_day.plan import OPS, OpCase
from bench.gpu_day.timing import graph_seconds, host_seconds
from bench.network_op_work import network_op_work
from eco_fast import config
from eco_fast.config import EdsrModel, Model, Optimizer, RcanModel
from eco_fast.models import build
from eco_fast.training.optim.optimizer_step import OptimizerStep
from eco_fast.training.profiling import Work

PATCH = 48
NETWORKS: dict[str, Model] = {
    "edsr-baseline": EdsrModel(),
    "edsr": EdsrModel(features=256, blocks=32, residual_scale=0.1),
    "rcan": RcanModel(),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MOST_COPIES = 200
OF_NETWORKS = (fused_epilogues, fused_channels, fused_channels_backward)
MODULES = (
    fused_crops,
    fused_blend,
    fused_loss,
    fused_decision,
    fused_lamb,
    fused_norm,
    fused_gelu,
    fused_sums,
    fused_attention,
    fused_attention_backward,
    *OF_NETWORKS,
)
Op = tuple[Callable[[], Work], float]
"""What makes the op with inputs of its own, and the bytes that it has to move."""


def measure_kernels(day: Day) -> None:
    """Every op in the order of `plan.OPS`; then registers and spills of what was launched."""
    copy_rate = day.results["ceilings"].get("copy_gb_per_s")
    for case in OPS:
        name = " ".join(map(str, case.key.values()))
        if not day.has_time(name, 2):
            continue
        make, moved = op_of(case)
        works = [make() for _ in range(2 if day.rehearse else copies_beyond_the_caches(moved))]
        seconds = graph_seconds(works)
        rate = moved / seconds / 1e9
        day.add(
            "ops",
            **case.key,
            us=1e6 * seconds,
            gb_per_s=rate,
            share_of_copy=copy_rate and rate / copy_rate,
            floor_us=case.floor_us,
            predicted_us=case.predicted_us,
            host_us=1e6 * host_seconds(works[0]),
        )
        del works
    day.results["loaded_kernels"] = loaded_kernels()


def measure_compiled(day: Day) -> None:
    """What the compiler makes of the networks' formulas in plain torch, timed as the ops are."""
    for case in OPS:
        name = f"{case.op} {case.layout}, compiled"
        if not case.channels or not day.has_time(name, 8):
            continue
        _, moved = op_of(case)
        copies = range(2 if day.rehearse else copies_beyond_the_caches(moved))
        works = [network_op_work(case.op, case.batch, case.channels, DEVICE)[0]["compiled"] for _ in copies]
        day.add("compiled_ops", **case.key, us=1e6 * graph_seconds(works))


def copies_beyond_the_caches(moved: float) -> int:
    """So many inputs that the L2 cache holds less than half of them."""
    cache = torch.cuda.get_device_properties(DEVICE).L2_cache_size
    return max(1, min(int(2 * cache / moved) + 1, MOST_COPIES))


def op_of(case: OpCase) -> Op:
    """The op of a case."""
    if case.op == "lamb_step":
        return _lamb(NETWORKS[case.variant])
    if case.op == "cut_crops":
        return _cut(case)
    if case.channels:
        _, moved = network_op_work(case.op, case.batch, case.channels, "meta")
        return lambda: network_op_work(case.op, case.batch, case.channels, DEVICE)[0]["op"], moved
    alpha, scale = torch.tensor(0.5, device=DEVICE), case.scale

    if case.op == "downsample_blend":

        def make_blend() -> Work:
            hr, sr = _crops(case), _crops(case)
            return lambda: downsample_blend(hr, sr, alpha, scale, dtype=DTYPES[case.variant])

        values = case.batch * 3 * PATCH**2
        return make_blend, values * compulsory.downsample_blend(scale, PATCH, DTYPES[case.variant].itemsize)

    def make_loss() -> Work:
        hr, sr, side = _crops(case), _crops(case), scale * PATCH
        prediction = torch.rand(case.batch, 3, side, side, device=DEVICE, dtype=DTYPES[case.variant])
        prediction = prediction.contiguous(memory_format=torch.channels_last)  # its gradient is made with the loss
        return lambda: blended_loss(prediction, hr, sr, alpha, margin=margin_of(scale))

    values = case.batch * 3 * (scale * PATCH) ** 2
    return make_loss, values * compulsory.blended_loss(DTYPES[case.variant].itemsize)


def _crops(case: OpCase) -> Tensor:
    side, margin = crop_side(case.scale, PATCH), margin_of(case.scale)
    crops = move_crops(empty_crops(case.batch, side, margin), DEVICE).random_(0, 256)
    return crops if case.layout == "padded" else crops.contiguous()


def _cut(case: OpCase) -> Op:
    """Crops anywhere in 480x480 images, in all orientations."""
    side, size, count = crop_side(case.scale, PATCH), 480, 64
    pixels = torch.empty(count * size * size * 3, dtype=torch.uint8, device=DEVICE).random_(0, 256)

    def make() -> Work:
        plan = torch.zeros(case.batch, len(PlanColumn), dtype=torch.int64)
        plan[:, PlanColumn.OFFSET] = torch.randint(count, (case.batch,)) * size * size * 3
        plan[:, PlanColumn.ROW_BYTES] = size * 3
        plan[:, [PlanColumn.HEIGHT, PlanColumn.WIDTH]] = size
        plan[:, [PlanColumn.TOP, PlanColumn.LEFT]] = torch.randint(size - side, (case.batch, 2))
        plan[:, PlanColumn.ORIENTATION] = torch.randint(sum(Orientation) + 1, (case.batch,))
        on_device = plan.to(DEVICE)
        return lambda: cut_crops(pixels, on_device, side, margin_of(case.scale))

    return make, 2 * case.batch * side * side * 3


def _lamb(model: Model) -> Op:
    """The skip rule and the update of all weights; the gradients are clipped as the recipes clip them."""
    optimizer: Optimizer = config.load("edsr_x2_eco").optimizer
    weights = sum(parameter.numel() for parameter in build(model, 2).parameters())

    def make() -> Work:
        updater = OptimizerStep(build(model, 2).to(DEVICE).parameters(), optimizer, DEVICE)
        updater.sums.normal_(std=0.1)
        rate = torch.tensor(1e-3, device=DEVICE)
        return lambda: updater.step(rate)

    return make, weights * compulsory.lamb_step()


def loaded_kernels() -> list[dict[str, object]]:
    """Registers and spills of every variant that this process has launched."""
    kernels = [(name, kernel) for module in MODULES for name, kernel in vars(module).items()]
    return [
        {"kernel": name, "registers": variant.n_regs, "spills": variant.n_spills}
        for name, kernel in kernels
        for cache, *_ in getattr(kernel, "device_caches", {}).values()
        for variant in cache.values()
    ]


def main() -> None:
    """Each op once."""
    for case in OPS[:13]:
        op_of(case)[0]()()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
