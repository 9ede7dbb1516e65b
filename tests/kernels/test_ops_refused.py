"""What the ops refuse: each message says what was expected and what came."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from eco_fast_kernels import PlanColumn, blended_loss, cut_crops, downsample, downsample_blend, lamb_step
from torch import Tensor

HALF, RATE, KEEP = torch.tensor(0.5), torch.tensor(0.01), torch.tensor(False)


def lamb_lists() -> list[list[Tensor]]:
    """Parameters, gradients, moments and average of three tensors, one of them channels_last."""
    parameters = [torch.ones(3, 4), torch.ones(5), torch.ones(2, 3, 3, 3).contiguous(memory_format=torch.channels_last)]
    return [[parameter.clone() for parameter in parameters] for _ in range(5)]


CROPS, PREDICTION = torch.zeros((2, 12, 12, 3), dtype=torch.uint8), torch.zeros(2, 3, 8, 8)


def on_meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


PIXELS, PLAN = torch.zeros(1000, dtype=torch.uint8), torch.tensor([[7, 30, 8, 9, -2, 3, 6], [300, 50, 4, 16, 1, 5, 1]])


def cut(pixels: Tensor = PIXELS, plan: Tensor = PLAN, side: int = 12, margin: int = 4) -> object:
    return cut_crops(pixels, plan, side, margin)


def planned(column: PlanColumn, value: int) -> Tensor:
    """The plan with another value in its last row."""
    plan = PLAN.clone()
    plan[-1, column] = value
    return plan


def blend(hr: Any = CROPS, sr: Any = CROPS, alpha: Tensor = HALF, scale: int = 2, **options: Any) -> object:
    return downsample_blend(hr, sr, alpha, scale, **options)


def loss(prediction: Tensor = PREDICTION, hr: Any = CROPS, sr: Any = CROPS, **options: Any) -> object:
    return blended_loss(prediction, hr, sr, **{"alpha": HALF, "margin": 2, **options})


def lamb(index: int = 0, tensors: Callable[[list[Tensor]], list[Tensor]] | None = None, **options: Any) -> None:
    lists = lamb_lists()
    if tensors is not None:
        lists[index] = tensors(lists[index])
    lamb_step(*lists[:4], average=lists[4], **{"learning_rate": RATE, "skip": KEEP.clone(), **options})


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "pixels dtype": (lambda: cut(PIXELS.int()), r"pixels must be contiguous uint8 .bytes., got torch.int32 \(1000,\)"),
    "pixels axes": (lambda: cut(CROPS), r"got torch.uint8 \(2, 12, 12, 3\) .*; call .contiguous\(\).view\(-1\) on it"),
    "pixels strides": (lambda: cut(PIXELS[::2]), r"with strides \(2,\)"),
    "plan dtype": (lambda: cut(plan=PLAN.int()), r"must be contiguous int64 .N, 7., got torch.int32 \(2, 7\)"),
    "plan columns": (lambda: cut(plan=PLAN[:, :6].contiguous()), r"int64 .N, 7., got torch.int64 \(2, 6\)"),
    "plan axes": (lambda: cut(plan=PLAN[0]), r"int64 .N, 7., got torch.int64 \(7,\)"),
    "plan strides": (lambda: cut(plan=PLAN.repeat(1, 2)[:, ::2]), r"\(2, 7\) with strides \(14, 2\)"),
    "plan device": (lambda: cut(plan=on_meta(PLAN)), "the plan is on meta, the rest on cpu; move it there"),
    "no crop": (lambda: cut(plan=PLAN[:0]), "expected at least one crop, .* got 0 of 12 pixels"),
    "all margin": (
        lambda: cut(side=8),
        "more than twice its margin a side; got 2 of 8 pixels a side with",
    ),
    "negative margin": (lambda: cut(margin=-1), "a margin of -1"),
    "image behind the end": (
        lambda: cut(plan=planned(PlanColumn.OFFSET, 803)),
        r"crop 1 is of an image of 4 x 16 pixels at byte 803, with rows 50 bytes apart and .*inside the 1000 bytes",
    ),
    "image before the start": (lambda: cut(plan=planned(PlanColumn.OFFSET, -1)), "at byte -1,"),
    "image too high": (lambda: cut(plan=planned(PlanColumn.HEIGHT, 15)), "an image of 15 x 16 pixels"),
    "image without rows": (lambda: cut(plan=planned(PlanColumn.HEIGHT, 0)), "an image of 0 x 16 pixels"),
    "image without columns": (lambda: cut(plan=planned(PlanColumn.WIDTH, 0)), "an image of 4 x 0 pixels"),
    "rows backwards": (lambda: cut(plan=planned(PlanColumn.ROW_BYTES, -50)), "with rows -50 bytes apart"),
    "orientation above": (
        lambda: cut(plan=planned(PlanColumn.ORIENTATION, 8)),
        "orientation 8; .* orientation of 0..7",
    ),
    "orientation below": (lambda: cut(plan=planned(PlanColumn.ORIENTATION, -1)), "orientation -1"),
    "scale": (lambda: blend(scale=6), "the scale is one of 2, 3, 4, 8, got 6"),
    "rounding": (lambda: blend(rounding="floor"), "the rounding is one of uint8, im2double, got 'floor'"),
    "crop dtype": (
        lambda: blend(CROPS.int(), None),
        r"expected uint8 .N, H, W, C., got torch.int32 \(2, 12, 12, 3\)",
    ),
    "crop axes": (lambda: blend(CROPS[0], None), r"expected uint8 .N, H, W, C., got torch.uint8 \(12, 12, 3\)"),
    "crop size": (lambda: blend(CROPS[:, :11], None), r"scale \* \(n \+ 4\) pixels a side .*got \(2, 11, 12, 3\)"),
    "crop too small": (lambda: blend(scale=3), r"scale 3, n >= 1\), got \(2, 12, 12, 3\)"),
    "crop strides": (
        lambda: blend(CROPS.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)),
        r"the crop must be uint8 .* with strides \(432, 12, 1, 144\); call .contiguous\(\) on it",
    ),
    "every second column": (lambda: blend(torch.zeros((1, 12, 24, 3), dtype=torch.uint8)[:, :, ::2]), "whole rows"),
    "rows of a batch": (lambda: blend(torch.zeros((2, 14, 12, 3), dtype=torch.uint8)[:, :12]), "whole rows"),
    "channels": (lambda: downsample(CROPS[..., :1].contiguous(), 2), r"made for 3 channels, got \(2, 12, 12, 1\)"),
    "sr dtype": (lambda: blend(sr=CROPS.float()), "sr must be uint8 .* got torch.float32"),
    "sr shape": (lambda: blend(sr=CROPS[:1]), r"hr is \(2, 12, 12, 3\) but sr is \(1, 12, 12, 3\)"),
    "no image": (lambda: blend(None, None), "downsample_blend: expected hr, sr or both, got neither"),
    "transposed dtype": (
        lambda: blend(transposed=torch.zeros(2)),
        r"transposed must be bool .2., got torch.float32 \(2,\)",
    ),
    "transposed size": (lambda: blend(transposed=torch.tensor([True])), r"must be bool .2., got torch.bool \(1,\)"),
    "transposed oblong": (
        lambda: blend(CROPS[:, :10].contiguous(), None, transposed=torch.tensor([True, False])),
        r"need square crops, got \(2, 10, 12, 3\)",
    ),
    "output dtype": (lambda: blend(dtype=torch.float64), "the output must be float16, .*, got torch.float64"),
    "alpha above": (lambda: blend(alpha=torch.tensor([0.5, 1.01])), r"alpha is a weight, 0..1, got 0.5 to 1.0099"),
    "alpha below": (lambda: blend(alpha=torch.tensor(-0.25)), r"alpha is a weight, 0..1, got -0.25 to -0.25"),
    "alpha nan": (lambda: blend(alpha=torch.tensor(float("nan"))), "alpha is a weight, 0..1, got nan to nan"),
    "alpha size": (lambda: blend(alpha=torch.zeros(3)), r"one value or one per sample \(2\), got torch.float32 \(3,\)"),
    "alpha dtype": (lambda: blend(alpha=HALF.double()), r"alpha must be float32, .*got torch.float64 \(\)"),
    "sr device": (lambda: blend(sr=on_meta(CROPS)), "sr is on meta, the rest on cpu; move it there"),
    "alpha device": (lambda: blend(alpha=on_meta(HALF)), "alpha is on meta, the rest on cpu"),
    "transposed device": (
        lambda: blend(transposed=torch.zeros(2, dtype=torch.bool, device="meta")),
        "transposed is on meta, the rest on cpu",
    ),
    "loss kind": (lambda: loss(kind="huber"), "the kind is one of l1, l2, charbonnier, got 'huber'"),
    "loss no image": (lambda: loss(hr=None, sr=None), "blended_loss: expected hr, sr or both, got neither"),
    "prediction dtype": (lambda: loss(PREDICTION.double()), "the prediction must be float16, .*, got torch.float64"),
    "prediction axes": (lambda: loss(PREDICTION[0]), r"must be .N, C, H, W., got \(3, 8, 8\)"),
    "margin": (
        lambda: loss(margin=1),
        r"\(2, 3, 8, 8\) and a margin of 1 need hr of \(2, 10, 10, 3\), got \(2, 12, 12, 3\)",
    ),
    "margin below 0": (lambda: loss(torch.zeros(2, 3, 16, 16), margin=-2), "a margin of -2 need"),
    "loss sr shape": (
        lambda: loss(sr=CROPS[:, 1:].contiguous()),
        r"need sr of \(2, 12, 12, 3\), got \(2, 11, 12, 3\)",
    ),
    "loss hr strides": (lambda: loss(hr=CROPS.transpose(1, 2)), r"hr must be uint8 .*call .contiguous\(\) on it"),
    "loss sr dtype": (lambda: loss(sr=CROPS.float()), "sr must be uint8 .* got torch.float32"),
    "loss alpha": (lambda: loss(alpha=torch.tensor(1.01)), r"blended_loss: alpha is a weight, 0..1"),
    "loss alpha size": (lambda: loss(alpha=torch.zeros(2, 1)), r"one per sample \(2\), got torch.float32 \(2, 1\)"),
    "loss device": (lambda: loss(on_meta(PREDICTION)), "hr is on cpu, the rest on meta"),
    "loss sr device": (lambda: loss(sr=on_meta(CROPS)), "sr is on meta, the rest on cpu"),
    "gradient scale dtype": (
        lambda: loss(gradient_scale=torch.tensor(2)),
        r"gradient_scale must be a torch.float32 .*, got torch.int64 \(\)",
    ),
    "gradient scale size": (lambda: loss(gradient_scale=torch.ones(1)), r"of one value, got torch.float32 \(1,\)"),
    "gradient scale device": (lambda: loss(gradient_scale=torch.ones((), device="meta")), "gradient_scale is on meta"),
    "lamb nothing": (lambda: lamb(0, lambda _: []), "expected at least one parameter, got none"),
    "lamb gradients": (lambda: lamb(1, lambda of: of[:2]), "expected 3 gradients, one per parameter, got 2"),
    "lamb moments": (lambda: lamb(2, lambda of: [*of, of[0]]), "expected 3 exp_avg, one per parameter, got 4"),
    "lamb second moments": (lambda: lamb(3, lambda of: of[1:]), "expected 3 exp_avg_sq, one per parameter, got 2"),
    "lamb average": (lambda: lamb(4, lambda of: of[:1]), "expected 3 average, one per parameter, got 1"),
    "lamb dtype": (
        lambda: lamb(0, lambda of: [one.half() for one in of]),
        "parameter 0 must be dense float32, got torch.float16",
    ),
    "lamb strides": (
        lambda: lamb(0, lambda of: [of[0], torch.zeros(10)[::2], of[2]]),
        r"parameter 1 must be dense float32, got torch.float32, shape \(5,\), strides \(2,\)",
    ),
    "lamb expanded": (
        lambda: lamb(0, lambda of: [of[0], torch.zeros(1).expand(5), of[2]]),
        "parameter 1 must be dense",
    ),
    "lamb gradient dtype": (
        lambda: lamb(1, lambda of: [of[0].half(), *of[1:]]),
        r"gradients 0 must be laid out like its .*got torch.float16",
    ),
    "lamb gradient shape": (
        lambda: lamb(1, lambda of: [of[0], of[1][:4], of[2]]),
        r"float32 \(5,\), strides \(1,\); got torch.float32 \(4,\)",
    ),
    "lamb layout": (
        lambda: lamb(2, lambda of: [one.contiguous() for one in of]),
        r"exp_avg 2 must be laid out like its parameter: .*strides \(27, 1, 9, 3\); got .* strides \(27, 9, 3, 1\)",
    ),
    "lamb device": (
        lambda: lamb(1, lambda of: [of[0], on_meta(of[1]), of[2]]),
        "gradients 1 is on meta, the rest on cpu",
    ),
    "lamb parameter device": (
        lambda: lamb(0, lambda of: [of[0], on_meta(of[1]), of[2]]),
        "parameter 1 is on meta, the rest on cpu",
    ),
    "lamb rate": (lambda: lamb(learning_rate=torch.ones(2)), r"learning_rate must be .*got torch.float32 \(2,\)"),
    "lamb rate device": (lambda: lamb(learning_rate=on_meta(RATE)), "learning_rate is on meta"),
    "lamb skip": (
        lambda: lamb(skip=torch.tensor(0)),
        r"skip must be a torch.bool tensor of one value, got torch.int64",
    ),
    "lamb count": (lambda: lamb(step_count=torch.tensor(0.0)), "step_count must be a torch.int64 .* got torch.float32"),
    "lamb scale": (lambda: lamb(inverse_scale=torch.tensor(2)), "inverse_scale must be a torch.float32 .*torch.int64"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_what_the_refusals_are_compared_with_is_taken() -> None:
    cut()
    cut(side=9)
    cut(plan=planned(PlanColumn.OFFSET, 802))
    cut(plan=planned(PlanColumn.HEIGHT, 14))
    blend()
    loss()
    lamb()
    blend(CROPS[:, :, 1:11], None)
    blend(torch.zeros((3, 14, 12, 3), dtype=torch.uint8)[:1, 2:], None)  # rows of one sample of a batch
    loss(hr=torch.zeros((3, 14, 12, 3), dtype=torch.uint8)[:1, 2:], sr=None, prediction=PREDICTION[:1])


def test_strides_of_axes_of_size_1_do_not_matter() -> None:
    parameter, gradient = torch.zeros(6, 4).as_strided((6, 4, 1, 1), (4, 1, 4, 4)), torch.randn(6, 4, 1, 1)
    assert gradient.stride() == (4, 1, 1, 1)
    moments = [torch.zeros_like(parameter)], [torch.zeros_like(parameter)]
    lamb_step([parameter], [gradient], *moments, learning_rate=RATE, skip=KEEP.clone())
    assert torch.equal(moments[0][0], 0.1 * gradient)
