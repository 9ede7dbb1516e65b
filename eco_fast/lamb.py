"""LAMB in the authors' form, by whichever code is fastest where the weights are; `reference.lamb_step` has the formula.

| backend | where | how |
|---|---|---|
| `triton` | GPUs | `eco_fast_kernels.lamb_step`: four launches for any number of tensors |
| `torch` | anywhere, meant for CPUs | tensors of one shape in one buffer, worked through in blocks that stay in cache |
| `apex` | GPUs, if apex is there | `apex.optimizers.FusedLAMB`; does not clamp the weight norm, asks the host |

`triton` and `torch` read nothing back to the host. All three keep `exp_avg` and `exp_avg_sq` per parameter, so that
another one may continue a run.

**The `torch` backend.** A loop over RCAN's 1 628 tensors goes through memory again with each of its ten operators. Here
the weights and moments of all tensors of one shape and memory layout lie in one buffer each, [tensors, numel], of which
the parameters and their state are views. A block is as many rows as fit into `BLOCK_BYTES`:

    1. is a gradient not finite? (the check of torch's gradient scalers, with a factor of 1)
    2. for each block, the last first: gather its gradients into the scratch; moments, and the update u in place of the
       gradients (one fused loop); norms of each row; p -= rate * u

Memory moves 28 bytes a weight for the update and 8 for the question that must be answered before it; the scratch and
what step 2 reads twice stay in the cache, and so do the gradients that step 1 has read last.
"""

import math
import mmap
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal

import torch
from eco_fast_kernels import lamb_step
from eco_fast_kernels.checks import is_dense
from torch import Tensor
from torch.nn import Parameter

from eco_fast.config import Optimizer
from eco_fast.device import why_not_compile

Backend = Literal["triton", "torch", "apex"]

BLOCK_BYTES = 4 << 20  # of each of a block's four arrays: they share the last cache, and calls are few
LARGE_PAGE = 2 << 20
NORM_CLAMP = 10.0  # the authors' bound of a weight's norm


def choose_backend(wanted: str, device: torch.device) -> Backend:
    """Resolve `optimizer.backend`.

    Raises:
        ValueError: the backend is for GPUs and the weights are elsewhere.
    """
    on_gpu = device.type == "cuda"
    if wanted in ("triton", "apex") and not on_gpu:
        raise ValueError(
            f"optimizer.backend: {wanted} needs a GPU, but the weights are on {device}; take optimizer.backend=torch"
        )
    if wanted == "auto":
        return "triton" if on_gpu else "torch"
    return wanted  # type: ignore[return-value]  # the config has checked it


class Lamb(torch.optim.Optimizer):
    """The authors' LAMB: no bias correction, weight norms clamped at 10.

    The `torch` backend moves the parameters (and `average`) into buffers of its own at its first step, and again when
    somebody else has moved them or other parameters have gradients; shapes and strides stay as they are.

    Args:
        parameters: float32, dense, all on one device.
        config: the recipe's optimizer.
        learning_rate: float32 [], on that device; read at every step.
        average: running averages of the weights, one per parameter and laid out like it; updated in place.
        average_decay: their decay.
        compiled: compile what the `torch` backend does to a block, where that is possible.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        config: Optimizer,
        learning_rate: Tensor,
        average: list[Tensor] | None = None,
        average_decay: float = 0.0,
        *,
        compiled: bool = True,
    ) -> None:
        super().__init__(parameters, {"lr": learning_rate})
        self.config = config
        self.average_decay = average_decay
        every = self.param_groups[0]["params"]
        self.averages = {} if average is None else dict(zip(every, average, strict=True))
        backend = choose_backend(config.backend, every[0].device)
        self._blocks: _Blocks | None = None
        if backend == "torch":
            self._blocks = _Blocks(config, average_decay, every[0].device, compiled=compiled)
        self._apex = _make_apex(every, config) if backend == "apex" else None

    @torch.no_grad()
    def step(self, skip: Tensor, inverse_scale: Tensor | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient.

        Args:
            skip: bool []; becomes true by a gradient that is not finite. Where true, every bit stays as it is.
            inverse_scale: float32 [], undoes a gradient scaler's factor; None for 1.
        """
        parameters = [parameter for parameter in self.param_groups[0]["params"] if parameter.grad is not None]
        if not parameters:
            raise ValueError("optimizer: expected at least one parameter with a gradient, got none")
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
                self.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
        learning_rate = self.param_groups[0]["lr"]
        if self._blocks is not None:
            if not self._blocks.hold(parameters):
                self._blocks.take(parameters, self.state, self.averages)
            self._blocks.step(learning_rate, skip, inverse_scale)
        elif self._apex is not None:
            self._step_by_apex(parameters, learning_rate, skip, inverse_scale)
        else:
            lamb_step(
                parameters,
                [parameter.grad for parameter in parameters],
                [self.state[parameter]["exp_avg"] for parameter in parameters],
                [self.state[parameter]["exp_avg_sq"] for parameter in parameters],
                learning_rate=learning_rate,
                skip=skip,
                betas=self.config.betas,
                epsilon=self.config.epsilon,
                weight_decay=self.config.weight_decay,
                norm_clamp=NORM_CLAMP,
                clip_value=self.config.clip_value or None,
                inverse_scale=inverse_scale,
                average=[self.averages[parameter] for parameter in parameters] if self.averages else None,
                average_decay=self.average_decay,
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the `state_dict` of any backend."""
        super().load_state_dict(state_dict)
        if self._blocks is not None:
            self._blocks.release()  # the state has new tensors

    def _step_by_apex(
        self, parameters: list[Parameter], learning_rate: Tensor, skip: Tensor, inverse_scale: Tensor | None
    ) -> None:
        """The step by apex, which takes the rate as a number and knows no skipping: the host waits for both, once.

        The gradients are used up: apex leaves its update in them.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        skip |= ~torch.stack(torch._foreach_norm(gradients, math.inf)).isfinite().all()  # noqa: SLF001 - any NaN or inf
        rate, skipped = torch.stack([learning_rate, skip.to(learning_rate.dtype)]).tolist()
        if skipped:
            return
        if inverse_scale is not None:
            torch._foreach_mul_(gradients, inverse_scale)
        if self.config.clip_value:
            torch.nn.utils.clip_grad_value_(parameters, self.config.clip_value)
        self._apex.state = self.state  # type: ignore[union-attr]  # anew, for loading makes another one
        self._apex.param_groups[0]["lr"] = rate  # type: ignore[union-attr]
        self._apex.step()  # type: ignore[union-attr]
        for parameter in parameters if self.averages else ():
            self.averages[parameter].lerp_(parameter, 1 - self.average_decay)


# --- torch ---


@dataclass
class _Block:
    """Rows of the buffers of one shape; `rows` is [tensors, numel], `flat` the same memory in one dimension."""

    parameters: list[Parameter]
    weights: Tensor  # rows
    exp_avg: Tensor  # flat
    exp_avg_sq: Tensor  # flat
    average: Tensor | None  # flat
    update: Tensor  # rows of the scratch
    gradients: Tensor  # the same memory, as `gather` writes it
    gather: Callable[..., Tensor]


class _Blocks:
    """The buffers that parameters and state are views of, and the step on them.

    Everything that may differ between steps or recipes is a tensor, so that one compiled function serves all.
    """

    def __init__(self, config: Optimizer, average_decay: float, device: torch.device, *, compiled: bool) -> None:
        betas = [value for beta in config.betas for value in (beta, 1 - beta)]
        others = [config.epsilon, config.weight_decay, config.clip_value or math.inf]
        self.constants = torch.tensor([*betas, *others], device=device)
        self.follow_rate = torch.tensor(1 - average_decay, device=device)
        self.one = torch.ones((), device=device)
        self.find_update, self.follow = _find_update, _follow
        if compiled and why_not_compile(str(device)) is None:  # where it cannot be, the trainer has said so
            # Otherwise the compiler decides about threads by the size of the block that it happens to see first.
            options = {"cpp.dynamic_threads": True}
            self.find_update, self.follow = (
                torch.compile(function, fullgraph=True, dynamic=True, options=options)
                for function in (_find_update, _follow)
            )
        self.release()

    def release(self) -> None:
        """Forget which tensors are views."""
        self.addresses: list[int] = []
        self.blocks: list[_Block] = []

    def hold(self, parameters: list[Parameter]) -> bool:
        """Whether these are the parameters that were taken last, where they were put."""
        return [parameter.data_ptr() for parameter in parameters] == self.addresses

    def take(
        self, parameters: list[Parameter], state: dict[Tensor, dict[str, Tensor]], averages: dict[Parameter, Tensor]
    ) -> None:
        """Make parameters, state and averages views of one buffer per shape and layout."""
        groups: dict[tuple[object, ...], list[Parameter]] = {}
        for parameter in parameters:
            if parameter.dtype != torch.float32 or not is_dense(parameter):
                raise ValueError(
                    f"optimizer: LAMB needs dense float32 weights, got {parameter.dtype}, shape "
                    f"{tuple(parameter.shape)}, strides {parameter.stride()}"
                )
            groups.setdefault((parameter.shape, parameter.stride()), []).append(parameter)
        members_of_each = list(groups.values())
        counts = [max(1, BLOCK_BYTES // 4 // max(members[0].numel(), 1)) for members in members_of_each]
        size = max(min(count, len(rows)) * rows[0].numel() for count, rows in zip(counts, members_of_each, strict=True))
        scratch = _memory(size, parameters[0].device)
        self.release()
        for members, most in zip(members_of_each, counts, strict=True):
            columns: dict[str, list[Tensor]] = {
                "weights": [parameter.data for parameter in members],
                "exp_avg": [state[parameter]["exp_avg"] for parameter in members],
                "exp_avg_sq": [state[parameter]["exp_avg_sq"] for parameter in members],
            }
            if averages:
                columns["average"] = [averages[parameter] for parameter in members]
            buffers = {name: _stacked(tensors, members[0]) for name, tensors in columns.items()}
            for index, parameter in enumerate(members):
                views = {
                    name: buffer[index].as_strided(parameter.shape, parameter.stride())
                    for name, buffer in buffers.items()
                }
                if averages:
                    averages[parameter].data = views["average"]
                state[parameter].update(exp_avg=views["exp_avg"], exp_avg_sq=views["exp_avg_sq"])
                parameter.data = views["weights"]
            count = -(-len(members) // -(-len(members) // most))  # blocks of equal size
            for first in range(0, len(members), count):
                rows = slice(first, first + count)
                self.blocks.append(
                    _block(members[rows], {name: buffer[rows] for name, buffer in buffers.items()}, scratch)
                )
        self.addresses = [parameter.data_ptr() for parameter in parameters]

    def step(self, learning_rate: Tensor, skip: Tensor, inverse_scale: Tensor | None) -> None:
        """One update of what was taken, with the gradients that the parameters have now."""
        scale = self.one if inverse_scale is None else inverse_scale
        # The factor of 1 leaves the gradients as they are; nothing else reads a list of tensors at the speed of memory.
        gradients = [parameter.grad for block in self.blocks for parameter in block.parameters]
        found = torch.zeros_like(self.one)
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, self.one)
        skip.logical_or_(found)
        for block in reversed(self.blocks):
            _collect(block)
            self._update(block, learning_rate, scale, skip)

    def _update(self, block: _Block, learning_rate: Tensor, scale: Tensor, skip: Tensor) -> None:
        update = block.update.view(-1)
        self.find_update(block.weights.view(-1), update, block.exp_avg, block.exp_avg_sq, self.constants, scale, skip)
        weight_norm, update_norm = (
            torch.linalg.vector_norm(rows, dim=1, keepdim=True) for rows in (block.weights, block.update)
        )
        weight_norm.clamp_(max=NORM_CLAMP)
        trust = torch.where((weight_norm > 0) & (update_norm > 0), weight_norm / update_norm, 1.0)
        block.weights.addcmul_(block.update, trust.mul_(learning_rate), value=-1)
        if block.average is not None:
            self.follow(block.average, block.weights.view(-1), self.follow_rate, skip)


def _memory(size: int, device: torch.device) -> Tensor:
    """Uninitialised float32 [size]; on the CPU in large pages, where Linux has them: they are read faster."""
    if device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE") or 4 * size < LARGE_PAGE:
        return torch.empty(size, device=device)
    pages = mmap.mmap(-1, -(-4 * size // LARGE_PAGE) * LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.float32, count=size)


def _stacked(tensors: list[Tensor], like: Tensor) -> Tensor:
    """[tensors, numel], each row in the memory order of `like`."""
    buffer = _memory(len(tensors) * like.numel(), like.device).view(len(tensors), like.numel())
    for row, tensor in zip(buffer, tensors, strict=True):
        row.as_strided(like.shape, like.stride()).copy_(tensor)
    return buffer


def _block(parameters: list[Parameter], buffers: dict[str, Tensor], scratch: Tensor) -> _Block:
    weights = buffers["weights"]
    shape, strides = parameters[0].shape, parameters[0].stride()
    rows, numel = weights.shape
    gather: Callable[..., Tensor]
    # Concatenated tensors are the rows one after the other, if their first axis is the outermost in memory. torch does
    # this at the speed of memory; the general way is slower.
    if shape and strides[0] * shape[0] == numel:
        gradients, gather = scratch.as_strided((rows * shape[0], *shape[1:]), strides), torch.cat
    else:
        gradients, gather = scratch.as_strided((rows, *shape), (numel, *strides)), torch.stack
    return _Block(
        parameters,
        weights,
        buffers["exp_avg"].view(-1),
        buffers["exp_avg_sq"].view(-1),
        buffers["average"].view(-1) if "average" in buffers else None,
        scratch[: weights.numel()].view_as(weights),
        gradients,
        gather,
    )


def _collect(block: _Block) -> None:
    block.gather([parameter.grad for parameter in block.parameters], out=block.gradients)


def _find_update(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, constants: Tensor, inverse_scale: Tensor, skip: Tensor
) -> None:
    """Moments in place; the update in place of the gradients, 0 where the step is skipped: p - 0 is p to the bit."""
    beta1, one_minus_beta1, beta2, one_minus_beta2, epsilon, weight_decay, bound = constants.unbind()
    clipped = (g * inverse_scale).clamp(-bound, bound)
    first = torch.where(skip, m, m * beta1 + clipped * one_minus_beta1)
    second = torch.where(skip, v, v * beta2 + clipped * clipped * one_minus_beta2)
    m.copy_(first)
    v.copy_(second)
    g.copy_(torch.where(skip, 0.0, first / (second.sqrt() + epsilon) + weight_decay * p))


def _follow(average: Tensor, p: Tensor, rate: Tensor, skip: Tensor) -> None:
    average.copy_(torch.where(skip, average, average + rate * (p - average)))


# --- apex ---


def _make_apex(parameters: list[Parameter], config: Optimizer) -> torch.optim.Optimizer:
    """An optimizer of apex in the authors' form, checked against the reference.

    Raises:
        ValueError: apex is missing, or does something else.
    """
    try:
        fused_lamb = import_module("apex.optimizers").FusedLAMB
        trial = Parameter(torch.linspace(-1, 1, 64, device=parameters[0].device))
        expected = Parameter(trial.detach().clone())
        trial.grad = torch.linspace(-0.05, 0.07, 64, device=trial.device)
        optimizer = _apex_of(fused_lamb, [trial], config)
        optimizer.param_groups[0]["lr"] = 0.01
        gradient = trial.grad.clone()  # apex uses it up
        optimizer.step()
        made: torch.optim.Optimizer = _apex_of(fused_lamb, parameters, config)
    except (ImportError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"optimizer.backend: apex's FusedLAMB cannot be used ({error}); build apex with its CUDA extensions, or "
            "take optimizer.backend=triton"
        ) from error
    lamb_step(
        [expected.detach()],
        [gradient],
        [torch.zeros_like(gradient)],
        [torch.zeros_like(gradient)],
        learning_rate=torch.tensor(0.01, device=gradient.device),
        skip=torch.tensor(False, device=gradient.device),
        betas=config.betas,
        epsilon=config.epsilon,
        weight_decay=config.weight_decay,
    )
    if not torch.allclose(trial, expected, rtol=1e-5, atol=1e-6):
        raise ValueError(
            "optimizer.backend: one step of this apex differs from the recipe's LAMB by "
            f"{float((trial - expected).detach().abs().max()):.1e}; take optimizer.backend=triton"
        )
    _say_what_apex_lacks()
    return made


def _apex_of(fused_lamb: Any, parameters: list[Parameter], config: Optimizer) -> Any:
    return fused_lamb(
        parameters,
        lr=config.learning_rate,
        bias_correction=False,
        betas=config.betas,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        adam_w_mode=True,
        grad_averaging=True,
        max_grad_norm=math.inf,  # the authors do not bound the norm of all gradients
        use_nvlamb=True,  # the trust ratio also where there is no weight decay
    )


@cache
def _say_what_apex_lacks() -> None:
    print("LAMB by apex: tensors whose norm exceeds 10 take larger steps than in the authors' form, which clamps it")
