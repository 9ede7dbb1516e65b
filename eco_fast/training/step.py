"""One optimizer step: input, network, loss, gradients, update. Nothing of it waits for the device.

crops --downsample_blend--> input --network--> prediction --blended_loss--> loss --backward--> update

On a GPU the whole of it is one CUDA graph (`step_graph.py`): all that differs from step to step is a tensor.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from eco_fast_kernels import blend_lr, blended_loss, downsample_blend, margin_of
from torch import Tensor, nn

from eco_fast.config import Data, Objective, Train
from eco_fast.data.batch import Batch, Samples, Unpackable
from eco_fast.data.objective import onto_centroid
from eco_fast.models import Network, compile_blocks
from eco_fast.training.optim.flat import laid_out_like
from eco_fast.training.precision import Precision
from eco_fast.training.state import TrainingState
from eco_fast.training.step_graph import Recorder, StepGraph
from eco_fast.training.working_copy import WorkingCopy
from eco_fast.utils import distributed
from eco_fast.utils.device import why_not_compile


class TrainingLoss(nn.Module):
    """Everything from a batch's crops to its loss, as one function that torch.compile takes whole.

    Args:
        network: float [N, 3, h, w] to [N, 3, scale*h, scale*w].
        data: how the input is made.
        objective: what the prediction is compared with, and how.
        precision: what the network computes in; input, loss and weights are float32.
    """

    def __init__(self, network: Network, data: Data, objective: Objective, precision: Precision) -> None:
        super().__init__()
        self.network, self.data, self.objective, self.precision = network, data, objective, precision

    def forward(self, samples: Samples, gradient_scale: Tensor) -> Tensor:
        """The mean loss, float32 []; `gradient_scale`, float32 [], is the upstream gradient that is to be expected."""
        margin = margin_of(self.network.scale)
        lr = network_input(samples, self.network.scale, self.data)
        with self.precision.autocast(lr.device.type):
            uniforms = samples.drop_path_uniforms
            prediction = self.network(lr) if uniforms is None else self.network(lr, uniforms)
        if self.objective.name == "residual":
            assert samples.sr is not None, "residuals are of centroids"
            prediction = onto_centroid(prediction, samples.sr, margin)
        loss, _ = blended_loss(
            prediction,
            samples.hr,
            samples.sr,
            samples.target_alpha,
            self.objective.loss,
            margin=margin,
            gradient_scale=gradient_scale,
        )
        return loss


def network_input(samples: Samples, scale: int, data: Data) -> Tensor:
    """The blended LR images with their noise: float32 [N, 3, patch, patch] in 0..1 (not clipped), channels_last."""
    if data.downsample == "dali":
        lr = blend_lr(samples.lr_hr, samples.lr_sr, samples.input_alpha)
    else:
        lr = downsample_blend(
            samples.hr, samples.sr, samples.input_alpha, scale, data.rounding, transposed=samples.transposed
        )
    return lr if samples.noise is None else lr + samples.noise / 255


class TrainStep:
    """The training step of this rank.

    A global batch is split over the ranks, and a rank's share into equal micro-batches that it takes one after the
    other, so that activations of one of them alone are in memory. Each one's loss is weighted with its share of the
    global batch: the gradients are those of the mean over the global batch, however it is split. The ranks add them up
    in one exchange, with the loss.

    Args:
        state: what is trained.
        samples: this rank's share of the global batch.
        on_stage: called with the name of each stage as it begins; a recorded step is a stage of its own, "step".
        recorder: records the step once and replays it from then on; None: every step is made anew.
    """

    def __init__(
        self,
        state: TrainingState,
        samples: int,
        on_stage: Callable[[str], object] = lambda _: None,
        recorder: Recorder | None = None,
    ) -> None:
        self.updater, self.device, self.on_stage = state.updater, state.device, on_stage
        self.train, self.objective = state.config.train, state.config.objective
        self.micro_batches = split(samples, patches_at_once(self.train, samples))
        network, self.weights = state.network, self.updater.parameters
        self.working: WorkingCopy | None = None
        if state.precision.dtype is not None:
            self.working = WorkingCopy(network, self.weights, self.updater.weights, state.precision.dtype)
            network, self.weights = self.working.network, self.working.parameters
        pairs = zip(self.updater.gradients, self.weights, strict=True)
        self.places = [place for place, weight in pairs if weight.dtype == torch.float32]
        self.loss = TrainingLoss(network, state.config.data, self.objective, state.precision)
        wanted = self.train.compile and torch.device(self.device).type in network.compiled_on
        self.compiled = wanted and why_not_compile(self.device) is None
        if self.compiled:
            torch.compiler.reset()  # earlier networks of this process would count against the limit of recompilations
            if network.repeated_block is None:
                self.loss.compile(fullgraph=True, dynamic=False)
            else:
                compile_blocks(network)
        self.recorder = recorder
        self.graph = None if recorder is None else StepGraph(recorder)

    def __call__(self, batch: Batch[Any]) -> Tensor:
        """Train on one batch, on its share of this rank.

        Returns:
            The mean loss of the global batch, float32 [], on the device; the next step overwrites it.
        """
        if self.graph is None:
            self._take(batch.samples)
        else:
            self.on_stage("step")
            self.graph(self._take, batch.samples)
        self.on_stage("other")
        return self.updater.loss

    def take_at_once(self, patches: int) -> None:
        """Cut this rank's share into micro-batches of at most so many patches, from the next step on."""
        self.micro_batches = split(self.micro_batches[-1].stop, patches)

    def try_part(self, samples: Samples, patches: int) -> None:
        """Make the gradients of a batch's first patches, as of a micro-batch; no weight and no moment changes."""
        samples = self._unpack(samples)
        self._pass(samples, slice(0, min(patches, len(samples.transposed))))

    def _take(self, packed: Unpackable) -> None:
        """All of a step. Whatever may differ from step to step is read from tensors: this may be a recording."""
        samples = self._unpack(packed)
        self.updater.loss.zero_()
        for micro_batch in self.micro_batches:
            self._pass(samples, micro_batch)
        self._mark("optimizer")
        if distributed.world_size() > 1:
            torch.distributed.all_reduce(self.updater.sums)
        self.updater.step(samples.learning_rate)

    def _unpack(self, packed: Unpackable) -> Samples:
        """What a step reads, on the device, and weights as they are computed with."""
        samples = packed.to(self.device)
        if self.objective.name == "eco":
            samples = samples.complete()
        if self.working is not None:
            self.working.refresh()
        return samples

    def _pass(self, samples: Samples, micro_batch: slice) -> None:
        """Forward and backward pass of a micro-batch."""
        self._mark("forward")
        share = (micro_batch.stop - micro_batch.start) / self.train.batch_size
        upstream = self.updater.scale * share
        loss: Tensor = self.loss(samples.part(micro_batch), upstream)
        self._mark("backward")
        self._add(torch.autograd.grad(loss, self.weights, upstream, materialize_grads=True), micro_batch)
        self.updater.loss.add_(loss.detach() * share)

    def _mark(self, stage: str) -> None:
        if self.graph is None:
            self.on_stage(stage)

    @torch.no_grad()
    def _add(self, made: tuple[Tensor, ...], micro_batch: slice) -> None:
        """Add a micro-batch's gradients to the sums; the first ones take their place."""
        first = micro_batch.start == 0
        gradients = [laid_out_like(one, parameter) for one, parameter in zip(made, self.weights, strict=True)]
        if self.working is not None:
            cast, whole = self.working.gather(gradients), self.updater.sums[:-1]
            whole.copy_(cast) if first else whole.add_(cast)
            gradients = [one for one in gradients if one.dtype == torch.float32]
        if gradients:
            (torch._foreach_copy_ if first else torch._foreach_add_)(self.places, gradients)


def patches_at_once(train: Train, share: int) -> int:
    """How many patches of a share the recipe lets a device take at once; all, until "auto" is settled."""
    return share if train.micro_batch == "auto" else train.micro_batch or share


def split(samples: int, at_most: int) -> list[slice]:
    """Cut a share into the fewest nearly equal micro-batches of at most so many samples."""
    count = -(-samples // at_most)
    edges = [index * samples // count for index in range(count + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]
