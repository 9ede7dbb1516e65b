"""What the ops refuse: each message says what was expected and what came."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from eco_fast_kernels import (
    PlanColumn,
    StepRules,
    StepState,
    add_norm,
    bias_gelu,
    blended_loss,
    cut_crops,
    decide_step,
    downsample,
    downsample_blend,
    window_attention,
)
from torch import Tensor

HALF = torch.tensor(0.5)


GRADIENTS = torch.zeros(5)
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


def decide(gradients: Tensor = GRADIENTS, value: Tensor = HALF, **fields: Tensor) -> object:
    return decide_step(gradients, value, StepState.at_start("cpu", 4)._replace(**fields), StepRules())


STREAM, VECTOR, LONG = torch.zeros(2, 3, 4, 6), torch.zeros(6), torch.zeros(1024)


def norm(stream: Tensor = STREAM, dtype: torch.dtype = torch.float32, **changed: Any) -> object:
    given = {"branch": STREAM, "branch_bias": VECTOR, "factors": torch.ones(2), "weight": VECTOR, "bias": VECTOR}
    return add_norm(stream, eps=1e-5, dtype=dtype, **given | changed)


def gelu(x: Tensor = STREAM, bias: Tensor = VECTOR) -> object:
    return bias_gelu(x, bias)


QKV, QKV_BIAS, TABLE = torch.zeros(1, 8, 16, 60), torch.zeros(60), torch.zeros(225, 2)


def attend(
    qkv: Tensor = QKV, qkv_bias: Tensor = QKV_BIAS, table: Tensor = TABLE, window: int = 8, shift: int = 4
) -> object:
    return window_attention(qkv, qkv_bias, table, window, shift)


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
    "gradients dtype": (lambda: decide(torch.zeros(5).half()), r"gradients must be float32 .M., got torch.float16"),
    "gradients axes": (lambda: decide(torch.zeros(5, 2)), r"gradients must be float32 .M., got torch.float32 \(5, 2\)"),
    "no gradients": (lambda: decide(torch.zeros(0)), r"gradients must be float32 .M., got torch.float32 \(0,\)"),
    "gradients strides": (lambda: decide(torch.zeros(10)[::2]), r"gradients must be contiguous, got strides \(2,\)"),
    "step loss dtype": (lambda: decide(value=HALF.double()), "loss must be a torch.float32 .*, got torch.float64"),
    "step loss size": (lambda: decide(value=torch.zeros(1)), r"loss must be .* of one value, got torch.float32 \(1,\)"),
    "step loss device": (lambda: decide(value=on_meta(HALF)), "loss is on meta, the rest on cpu"),
    "count dtype": (
        lambda: decide(skipped=torch.tensor(0.0)),
        r"skipped must be torch.int64 \(\), got torch.float32 \(\)",
    ),
    "sum dtype": (lambda: decide(loss_sum=torch.tensor(0.0)), "loss_sum must be torch.float64"),
    "sum size": (
        lambda: decide(accepted=torch.zeros(1, dtype=torch.int64)),
        r"accepted must be .* \(\), got .* \(1,\)",
    ),
    "state device": (lambda: decide(scale=on_meta(HALF)), "scale is on meta, the rest on cpu"),
    "logs": (
        lambda: decide(skips=torch.zeros(3, dtype=torch.bool)),
        r"skips must be torch.bool \(4,\), got torch.bool \(3,\)",
    ),
    "no log": (lambda: decide(losses=torch.zeros(0)), r"losses must be torch.float32 \(1,\), got torch.float32 \(0,\)"),
    "window": (lambda: attend(window=7), "expected a window of 8 or 16 and a shift below it, got 7 and 4"),
    "shift": (lambda: attend(shift=8), "a shift below it, got 8 and 8"),
    "shift below 0": (lambda: attend(shift=-1), "got 8 and -1"),
    "qkv dtype": (lambda: attend(QKV.int()), "qkv must be float16, .*, got torch.int32"),
    "qkv axes": (lambda: attend(QKV[0]), r"contiguous .N, h, w, 3\*C., got \(8, 16, 60\)"),
    "qkv strides": (lambda: attend(QKV.transpose(1, 2)), r"with strides \(7680, 60, 960, 1\); call .contiguous\(\)"),
    "qkv height": (lambda: attend(QKV[:, :7].contiguous()), r"whole windows of 8, got \(1, 7, 16, 60\); pad them"),
    "qkv width": (lambda: attend(window=16, table=torch.zeros(961, 2)), r"whole windows of 16, got \(1, 8, 16, 60\)"),
    "no qkv": (lambda: attend(QKV[:0]), r"got \(0, 8, 16, 60\)"),
    "table entries": (lambda: attend(table=TABLE[1:]), r"must be contiguous .225, heads., got \(224, 2\)"),
    "table axes": (lambda: attend(table=TABLE[:, 0]), r"contiguous .225, heads., got \(225,\)"),
    "table strides": (lambda: attend(table=torch.zeros(2, 225).T), r"\(225, 2\) with strides \(1, 225\)"),
    "no heads": (lambda: attend(table=TABLE[:, :0].contiguous()), r"got \(225, 0\)"),
    "table dtype": (lambda: attend(table=TABLE.int()), "the table must be float16, .*, got torch.int32"),
    "table device": (lambda: attend(table=on_meta(TABLE)), "the table is on meta, the rest on cpu"),
    "heads": (lambda: attend(table=torch.zeros(225, 3)), "q, k and v of 3 heads with at most 64 .*, got 60 channels"),
    "wide heads": (lambda: attend(torch.zeros(1, 8, 8, 3 * 130), torch.zeros(390)), "of 2 heads .*, got 390 channels"),
    "qkv bias shape": (lambda: attend(qkv_bias=QKV_BIAS[1:]), r"qkv_bias must be contiguous .60., got \(59,\)"),
    "qkv bias strides": (lambda: attend(qkv_bias=torch.zeros(120)[::2]), r"qkv_bias must be contiguous .60."),
    "qkv bias dtype": (lambda: attend(qkv_bias=QKV_BIAS.int()), "qkv_bias must be float16, .*, got torch.int32"),
    "qkv bias device": (lambda: attend(qkv_bias=on_meta(QKV_BIAS)), "qkv_bias is on meta, the rest on cpu"),
    "log strides": (lambda: decide(losses=torch.zeros(8)[::2]), r"losses must be contiguous, got strides \(2,\)"),
    "stream dtype": (lambda: norm(STREAM.int()), "add_norm: the stream must be float16, .*, got torch.int32"),
    "stream axes": (lambda: norm(STREAM[0]), r"the stream must be .N, h, w, C., C at most 1024, got \(3, 4, 6\)"),
    "stream channels": (lambda: norm(torch.zeros(1, 1, 1, 1025)), r"C at most 1024, got \(1, 1, 1, 1025\)"),
    "stream strides": (
        lambda: norm(STREAM.transpose(1, 2)),
        r"the stream must be contiguous and not empty, got \(2, 4, 3, 6\) with .*; call .contiguous\(\) on it",
    ),
    "empty stream": (lambda: norm(STREAM[:0]), r"contiguous and not empty, got \(0, 3, 4, 6\)"),
    "normalised dtype": (lambda: norm(dtype=torch.int32), "the normalised values must be float16, .*int32"),
    "branch dtype": (lambda: norm(branch=STREAM.int()), "the branch must be float16, .*, got torch.int32"),
    "branch shape": (lambda: norm(branch=STREAM[:1]), r"branch must be contiguous \(2, 3, 4, 6\), got \(1, 3, 4, 6\)"),
    "branch device": (lambda: norm(branch=on_meta(STREAM)), "the branch is on meta, the rest on cpu; move it there"),
    "branch alone": (lambda: norm(branch_bias=None), "a branch comes with the bias of its linear layer"),
    "branch bias alone": (lambda: norm(branch=None), "a branch comes with the bias of its linear layer"),
    "factors alone": (lambda: norm(branch=None, branch_bias=None), "and factors with a branch alone"),
    "branch bias size": (lambda: norm(branch_bias=VECTOR[:1]), r"branch's bias must be contiguous \(6,\), got \(1,\)"),
    "weight dtype": (lambda: norm(weight=VECTOR.int()), "the weight must be float16, .*, got torch.int32"),
    "weight size": (lambda: norm(weight=STREAM), r"the weight must be contiguous \(6,\), got \(2, 3, 4, 6\)"),
    "norm bias strides": (
        lambda: norm(bias=torch.zeros(12)[::2]),
        r"the bias must be contiguous \(6,\), got \(6,\) with strides \(2,\)",
    ),
    "norm bias device": (lambda: norm(bias=on_meta(VECTOR)), "the bias is on meta, the rest on cpu"),
    "factors size": (lambda: norm(factors=torch.ones(2, 1)), r"factors must be contiguous \(2,\), got \(2, 1\)"),
    "factors dtype": (lambda: norm(factors=torch.ones(2).half()), "factors must be float32, got torch.float16"),
    "factors device": (lambda: norm(factors=torch.ones(2, device="meta")), "factors is on meta, the rest on cpu"),
    "gelu dtype": (lambda: gelu(STREAM.int()), "bias_gelu: x must be float16, .*, got torch.int32"),
    "gelu strides": (lambda: gelu(STREAM.transpose(1, 2)), "bias_gelu: x must be contiguous and not empty"),
    "gelu empty": (lambda: gelu(STREAM[:0]), "bias_gelu: x must be contiguous and not empty"),
    "gelu bias dtype": (lambda: gelu(bias=VECTOR.int()), "the bias must be float16, .*, got torch.int32"),
    "gelu bias size": (lambda: gelu(bias=VECTOR[:5]), r"the bias must be contiguous \(6,\), got \(5,\)"),
    "gelu bias device": (lambda: gelu(bias=on_meta(VECTOR)), "the bias is on meta, the rest on cpu"),
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
    decide()
    norm()
    norm(branch=None, branch_bias=None, factors=None)
    norm(torch.zeros(1, 1, 1, 1024), branch=None, branch_bias=None, factors=None, weight=LONG, bias=LONG)
    gelu()
    gelu(VECTOR)

    attend()
    attend(torch.zeros(1, 16, 16, 60), table=torch.zeros(961, 5), window=16, shift=15)
    attend(torch.zeros(1, 8, 8, 3 * 128), torch.zeros(384).half())
    blend(CROPS[:, :, 1:11], None)
    blend(torch.zeros((3, 14, 12, 3), dtype=torch.uint8)[:1, 2:], None)  # rows of one sample of a batch
    loss(hr=torch.zeros((3, 14, 12, 3), dtype=torch.uint8)[:1, 2:], sr=None, prediction=PREDICTION[:1])
