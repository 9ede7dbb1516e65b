"""`lamb_step` by torch's own loops over lists of tensors; `reference.lamb_step` has the formula."""

import math

import torch
from eco_fast_kernels import LambOptions
from eco_fast_kernels.checks import matches_layout
from torch import Tensor

from eco_fast.training.precision import multiply_gradients


def lamb_by_torch(
    parameters: list[Tensor],
    gradients: list[Tensor],
    exp_avg: list[Tensor],
    exp_avg_sq: list[Tensor],
    *,
    options: LambOptions,
    learning_rate: Tensor,
    skip: Tensor,
    inverse_scale: Tensor | None,
    average: list[Tensor] | None,
) -> None:
    """One LAMB update in place, on any device and without a read by the host; the arguments are `lamb_step`'s.

    The gradients are used up. The moments and the last subtraction are left to torch's fused Adam and SGD: unlike any
    arithmetic with a factor of 0, they leave every bit as it is where `found_inf` is 1, whatever the gradients hold.

    Raises:
        ValueError: a tensor is laid out otherwise than its parameter, or that is not dense.
    """
    updates = [torch.zeros_like(parameter) for parameter in parameters]
    _check_layouts(parameters, gradients, exp_avg, exp_avg_sq, updates, average or parameters)
    one = torch.ones_like(learning_rate)
    multiply_gradients(gradients, one if inverse_scale is None else inverse_scale, skip)
    if options.clip_value is not None:
        torch._foreach_clamp_min_(gradients, -options.clip_value)
        torch._foreach_clamp_max_(gradients, options.clip_value)
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


def _subtract(tensors: list[Tensor], changes: list[Tensor], factor: float, skipped: Tensor) -> None:
    torch._fused_sgd_(
        tensors, changes, [], found_inf=skipped, lr=factor, weight_decay=0.0, momentum=0.0, dampening=0.0,
        nesterov=False, maximize=False, is_first_step=False,
    )  # fmt: skip


def _check_layouts(parameters: list[Tensor], *others: list[Tensor]) -> None:
    """On a CPU the fused optimizers walk through memory and do not ask what is where."""
    for parameter, *tensors in zip(parameters, *others, strict=True):
        for tensor in tensors:
            if tensor.stride() != parameter.stride() and not matches_layout(tensor, parameter):
                raise ValueError(
                    "optimizer: LAMB needs dense weights, and gradients, moments and averages laid out like them; got "
                    f"strides {parameter.stride()} and {tensor.stride()} of shape {tuple(parameter.shape)}"
                )
