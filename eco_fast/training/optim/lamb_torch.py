"""`reference.lamb_step`, which has the formula, by torch's own loops over lists of tensors."""

import math

import torch
from eco_fast_kernels import LambOptions
from torch import Tensor


def lamb_by_torch(
    parameters: list[Tensor],
    gradients: list[Tensor],
    exp_avg: list[Tensor],
    exp_avg_sq: list[Tensor],
    average: list[Tensor],
    options: LambOptions,
    learning_rate: Tensor,
    skip: Tensor,
    inverse_scale: Tensor,
) -> None:
    """One LAMB update in place, on any device and without a read by the host; the arguments are the reference's.

    The gradients are used up. The moments and the last subtraction are left to torch's fused Adam and SGD: unlike any
    arithmetic with a factor of 0, they leave every bit as it is where `found_inf` is 1, whatever the gradients hold.
    On a CPU they walk through memory and do not ask what is where: all of a tensor's must be laid out alike.
    """
    updates = [torch.zeros_like(parameter) for parameter in parameters]
    unscale_and_clip(gradients, inverse_scale, options.clip_value)
    one = torch.ones_like(learning_rate)
    skipped, no_bias_correction = skip.float(), [one * math.inf] * len(parameters)
    torch._fused_adam_(
        updates,
        gradients,
        exp_avg,
        exp_avg_sq,
        [],
        no_bias_correction,
        found_inf=skipped,
        lr=-1.0,
        beta1=options.beta1,
        beta2=options.beta2,
        eps=options.epsilon,
        weight_decay=0.0,
        amsgrad=False,
        maximize=False,
    )
    if options.weight_decay:
        torch._foreach_add_(updates, parameters, alpha=options.weight_decay)
    weight_norms, update_norms = (
        torch.stack(torch._foreach_norm(tensors))  # noqa: SLF001 - no public name
        for tensors in (parameters, updates)
    )
    trust = torch.where(
        (weight_norms > 0) & (update_norms > 0), weight_norms.clamp(max=options.norm_clamp) / update_norms, 1.0
    )
    torch._foreach_mul_(updates, (learning_rate * trust).unbind())
    _subtract(parameters, updates, 1.0, skipped)
    if average:
        changes = list[Tensor](torch._foreach_sub(average, parameters))  # noqa: SLF001 - likewise
        _subtract(average, changes, 1 - options.average_decay, skipped)


def unscale_and_clip(gradients: list[Tensor], inverse_scale: Tensor, clip_value: float | None) -> None:
    """Multiply by `inverse_scale` and bound by +-`clip_value`, in place."""
    torch._foreach_mul_(gradients, inverse_scale)
    if clip_value is not None:
        torch._foreach_clamp_min_(gradients, -clip_value)
        torch._foreach_clamp_max_(gradients, clip_value)


def _subtract(tensors: list[Tensor], changes: list[Tensor], factor: float, skipped: Tensor) -> None:
    torch._fused_sgd_(
        tensors, changes, [], found_inf=skipped, lr=factor, weight_decay=0.0, momentum=0.0, dampening=0.0,
        nesterov=False, maximize=False, is_first_step=False,
    )  # fmt: skip
