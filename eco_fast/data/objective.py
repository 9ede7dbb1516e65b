"""What the network is fitted to at each step: the weight alpha of the real pair, in the input and in the target.

| objective | input | target | paper |
|---|---|---|---|
| vanilla | D(HR) | HR | Eq. 4 |
| kd | D(HR) | SR | Eq. 9 |
| noise_free | D(SR) | SR | Eq. 11 |
| eco | alpha D(HR) + (1 - alpha) D(SR) | alpha HR + (1 - alpha) SR | Eq. 14 |
| residual | D(HR) | HR - SR + mid-grey | Appendix B |
"""

import math
from dataclasses import dataclass

from torch import Tensor

from eco_fast.config import Objective

OBJECTIVES = ("vanilla", "kd", "noise_free", "eco")
"""Those whose networks make SR images, in the order of tables and plots."""
MID_GREY = 0.5
"""What stands for no residual in images of residuals, which networks can then make as any others (0..1)."""


@dataclass(frozen=True)
class BlendWeights:
    """Weights of the real pair at one step, 0..1."""

    input: float
    target: float
    residual: bool = False
    """Whether the target is what the centroid lacks."""

    @property
    def reads_hr(self) -> bool:
        """Whether any part of the batch comes from HR."""
        return max(self.input, self.target) > 0

    @property
    def reads_sr(self) -> bool:
        """Whether any part of the batch comes from the centroid."""
        return self.residual or min(self.input, self.target) < 1


def blend_weights_at(objective: Objective, step: int, steps: int) -> BlendWeights:
    """The weights at a step, counted from 0, in a run of `steps`."""
    if objective.name == "kd":
        return BlendWeights(input=1.0, target=0.0)
    if objective.name == "residual":
        return BlendWeights(input=1.0, target=1.0, residual=True)
    alpha = {"vanilla": 1.0, "noise_free": 0.0}.get(objective.name)
    if alpha is None:
        alpha = alpha_at(objective, step / steps)
    return BlendWeights(input=alpha, target=alpha)


def alpha_at(objective: Objective, progress: float) -> float:
    """Weight of the real pair under eco at a share of the training, 0..1.

    The sigmoid is the authors' (`DefaultTrainer._update_mixup_alpha` in their code): exactly 0 up to 26 % of the
    training, exactly 1 from 74 %.
    """
    if objective.alpha == "constant":
        return objective.alpha_value
    if objective.alpha == "linear":
        return min(max(progress, 0.0), 1.0)
    sigmoid = 1 / (1 + math.exp(-(10 * (progress - 0.5) - objective.alpha_shift)))
    return min(max(1.2 * (sigmoid - 0.5) + 0.5, 0.0), 1.0)


def onto_centroid(residual: Tensor, sr: Tensor, margin: int) -> Tensor:
    """The image that has a residual: |onto_centroid(r, SR) - HR| = |r - (HR - SR + mid-grey)|.

    Args:
        residual: float [N, 3, H, W], around mid-grey.
        sr: the centroid, uint8 [N, H + 2*margin, W + 2*margin, 3].
        margin: pixels on each side of `sr` that are not part of it.

    Returns:
        float32 [N, 3, H, W], channels_last, in 0..1 where the residual is right.
    """
    height, width = residual.shape[2:]
    inner = sr[:, margin : margin + height, margin : margin + width].permute(0, 3, 1, 2)
    return residual + (inner.float() / 255 - MID_GREY)
