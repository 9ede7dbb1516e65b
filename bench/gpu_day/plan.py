"""Which steps and ops are timed, and what was predicted for an H100 before anybody had one.

Predictions are [guess] unless a comment says otherwise: peaks times guessed rates plus counted bytes; host times were
taken on another machine, on a GPU that computes nothing (`docs/gpu.md`).
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class StepCase:
    """A way to make the steps of a recipe."""

    recipe: str
    batch: int
    way: str = "graph"
    """eager, compiled, reduce-overhead, graph: what launches the kernels; bare: the network alone, in a graph; field:
    the usual loop."""
    loader: str = "device"
    """device: images in the GPU's memory; host: crops from pinned memory; dali; fixed: one batch for ever; files."""
    precision: str = "bf16"
    predicted_ms: str = ""
    predicted_host_ms: str = ""

    @property
    def key(self) -> dict[str, Any]:
        """What identifies it among the results."""
        return {name: value for name, value in asdict(self).items() if not name.startswith("predicted")}

    @property
    def overrides(self) -> list[str]:
        """Settings that make the trainer's step this one."""
        made = [f"train.batch_size={self.batch}", f"train.precision={self.precision}"]
        made += [f"train.compile={str(self.way != 'eager').lower()}", f"train.graph={str(self.way == 'graph').lower()}"]
        if self.loader == "dali":
            return [*made, "data.loader=dali"]
        return [*made, f"data.residence={self.loader}"]


EDSR_BASELINE = "edsr_baseline_x2_eco"
STEPS = (
    StepCase(EDSR_BASELINE, 16, predicted_ms="1.8 to 2.6", predicted_host_ms="0.1 to 0.2"),
    StepCase(EDSR_BASELINE, 16, way="compiled", predicted_ms="8 to 10", predicted_host_ms="10 to 13.9"),
    StepCase(EDSR_BASELINE, 16, way="bare", loader="fixed", predicted_ms="at least 0.95 of the whole step"),
    StepCase(EDSR_BASELINE, 16, loader="host"),
    StepCase(EDSR_BASELINE, 16, loader="dali"),
    StepCase(EDSR_BASELINE, 16, way="field", loader="files", precision="torch's defaults"),
    StepCase(EDSR_BASELINE, 128),
    StepCase(EDSR_BASELINE, 16, way="eager", predicted_ms="11", predicted_host_ms="11.0"),
    StepCase(EDSR_BASELINE, 64),
    StepCase(EDSR_BASELINE, 16, precision="fp16"),
    StepCase(EDSR_BASELINE, 16, precision="tf32"),
    StepCase(EDSR_BASELINE, 16, precision="fp32"),
    StepCase(EDSR_BASELINE, 16, way="reduce-overhead", predicted_host_ms="3.3"),
)
"""Of EDSR-baseline, the most important first."""
RECIPES = (
    StepCase("swinir_small_x2_eco", 32, predicted_ms="12"),
    StepCase("rcan_x4_eco", 16, predicted_ms="32"),
    StepCase("edsr_x2_eco", 128, predicted_ms="176"),
    StepCase("rcan_x2_eco", 128, predicted_ms="168"),
    StepCase("swinir_small_x2_eco", 32, way="compiled", predicted_ms="66", predicted_host_ms="66"),
    StepCase("rcan_x4_eco", 16, way="compiled", predicted_ms="170 to 230", predicted_host_ms="170 to 230"),
    StepCase("edsr_x2_eco", 128, way="compiled", predicted_ms="176", predicted_host_ms="18 to 22"),
    StepCase("rcan_x2_eco", 128, way="compiled", predicted_ms="168 to 263", predicted_host_ms="185 to 263"),
)
"""Of the other recipes."""


@dataclass(frozen=True)
class OpCase:
    """One of our ops at one size."""

    op: str
    scale: int = 2
    batch: int = 16
    variant: str = ""
    """dtype or network."""
    layout: str = "padded"
    channels: int = 0
    """Of what stands for a formula of a network, forward and backward; 0 for all others."""
    floor_us: str = ""
    """What its compulsory bytes take at the copy rate."""
    predicted_us: str = ""

    @property
    def key(self) -> dict[str, Any]:
        """What identifies it among the results."""
        names = ("op", "scale", "batch", "variant", "layout", "channels")
        return {name: getattr(self, name) for name in names}


OPS = (
    OpCase("downsample_blend", 2, 16, "fp32", floor_us="0.5", predicted_us="8 to 25"),
    OpCase("downsample_blend", 2, 128, "fp32", floor_us="4", predicted_us="40 to 60"),
    OpCase("blended_loss", 2, 16, "fp32", floor_us="1.5", predicted_us="8 to 12 + 3"),
    OpCase("blended_loss", 2, 128, "fp32", floor_us="12", predicted_us="18 to 25"),
    OpCase("lamb_step", variant="edsr", floor_us="600", predicted_us="700 to 800"),
    OpCase("lamb_step", variant="rcan", floor_us="230", predicted_us="300"),
    OpCase("lamb_step", variant="edsr-baseline"),
    OpCase("window_attention", batch=32, variant="bf16", channels=60, floor_us="32"),
    OpCase("cut_crops", 2, 16, "uint8", predicted_us="3 to 5"),
    OpCase("residual_epilogues", batch=16, variant="bf16", channels=64, floor_us="19"),
    OpCase("channel_attention", batch=16, variant="bf16", channels=64, floor_us="16"),
    OpCase("add_norm", batch=32, variant="bf16", channels=60, floor_us="41"),
    OpCase("bias_gelu", batch=32, variant="bf16", channels=120, floor_us="29"),
    OpCase("residual_epilogues", batch=128, variant="bf16", channels=64, floor_us="151"),
    OpCase("channel_attention", batch=128, variant="bf16", channels=64, floor_us="126"),
    OpCase("residual_epilogues", batch=128, variant="bf16", channels=256, floor_us="604"),
    OpCase("cut_crops", 2, 128, "uint8"),
    OpCase("blended_loss", 2, 16, "bf16"),
    OpCase("blended_loss", 2, 128, "bf16"),
    *(OpCase("downsample_blend", scale, batch, "fp32") for scale in (3, 4, 8) for batch in (16, 128)),
    *(OpCase("blended_loss", scale, 16, "fp32") for scale in (3, 4, 8)),
    *(OpCase("downsample_blend", scale, 16, "fp32", "contiguous") for scale in (2, 3, 4, 8)),
    *(OpCase("blended_loss", scale, 16, "fp32", "contiguous") for scale in (2, 3, 4, 8)),
)
"""The most important first."""

RATES = {
    "copy_gb_per_s": "3 000 (measured on another such card)",
    "mm_bf16_tflops": "798 (measured on another such card)",
    "conv_256_b128_bf16_fprop_tflops": "480",
    "conv_256_b128_bf16_dgrad_tflops": "480",
    "conv_256_b128_bf16_wgrad_tflops": "480",
    "conv_64_b128_bf16_fprop_tflops": "240",
    "conv_64_b128_bf16_dgrad_tflops": "240",
    "conv_64_b128_bf16_wgrad_tflops": "240",
    "launch_in_graph_us": "1.5",
}
"""What the predictions of the steps take for granted."""

GPUS = ("H100", "A6000", "TITAN RTX")
ROOFLINE: tuple[tuple[StepCase, str, str, str, str, tuple[str, str, str], str], ...] = (
    (STEPS[0], "EDSR-baseline x2", "0.304", "1.3", "2.06", ("0.43 / 2.1", "1.96 / 6.4", "2.3 / 7.8"), "the host"),
    (RECIPES[2], "EDSR x2", "72.1", "77", "129", ("90 / 176", "465 / 830", "554 / 1 030"), "convolutions"),
    (RECIPES[3], "RCAN x2", "27.1", "162", "243", ("54 / 168", "231 / 623", "270 / 767"), "both; the host"),
    (RECIPES[1], "RCAN x4", "3.52", "21", "30", ("7 / 32", "30 / 90", "35 / 110"), "the host"),
    (RECIPES[0], "SwinIR-small x2", "0.592", "9", "31.9", ("3.1 / 12", "13 / 48", "15 / 56"), "memory; the host"),
)
"""The measured case; step, TFLOP, GB at least and as compiled; ms ideal / as compiled on each GPU; what bounds it."""

IMAGES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("D on the GPU", "none", {"what": "D", "device": "cuda:0"}),
    ("scores on the GPU", "none", {"what": "scores", "device": "cuda:0"}),
    (
        "EDSR-baseline in tiles of 256, fp32: 3.1 TFLOP",
        "0.08",
        {"network": "edsr-baseline", "precision": "fp32", "tile": "256"},
    ),
    ("EDSR in tiles of 256, fp32: 132 TFLOP", "3.3 to 5.6", {"network": "edsr", "precision": "fp32", "tile": "256"}),
    ("EDSR in large tiles, tf32", "0.4 to 0.6", {"network": "edsr", "precision": "tf32", "tile": "largest"}),
    ("five images of five sizes, without cuDNN's search", "none", {"what": "five sizes", "cudnn_benchmark": False}),
    ("the same with the search", "tens of seconds more", {"what": "five sizes", "cudnn_benchmark": True}),
)
"""What, the prediction in seconds, and what identifies it among the results."""

OPTIONS = ("convolution, then ReLU", "cudnn_convolution_relu", "SDPA", "FlexAttention", "max-autotune")
"""What torch has and no recipe takes; the first and third are what they take."""
