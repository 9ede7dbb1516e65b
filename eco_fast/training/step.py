"""One optimizer step: input, network, loss, gradients, update. Nothing of it waits for the device.

windows --downsample_blend--> input --network--> prediction --blended_loss--> loss --backward--> update
"""

import itertools
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from eco_fast_kernels import blend_lr, blended_loss, downsample_blend, margin_of
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from eco_fast.config import Config
from eco_fast.data.batch import Batch
from eco_fast.models import Network, compile_blocks
from eco_fast.objective import onto_centroid
from eco_fast.training.optim.optimizer_step import Updater
from eco_fast.training.precision import Precision
from eco_fast.utils import distributed
from eco_fast.utils.device import why_not_compile


class TrainingLoss(nn.Module):
    """Everything from a batch's windows to its loss, as one function that torch.compile takes whole.

    Args:
        network: float [N, 3, h, w] to [N, 3, scale*h, scale*w].
        config: the recipe.
        precision: what the network computes in; input, loss and weights are float32.
    """

    def __init__(self, network: Network, config: Config, precision: Precision) -> None:
        super().__init__()
        self.network, self.config, self.precision = network, config, precision

    def forward(self, target_alpha: Tensor, gradient_scale: Tensor, draws: Tensor | None, **inputs: Any) -> Tensor:
        """The mean loss, float32 [].

        Args:
            target_alpha: as `Batch` has it.
            gradient_scale: the upstream gradient that is to be expected, float32 [].
            draws: as `Batch` has it.
            inputs: those of `network_input`.
        """
        config = self.config
        lr = network_input(config, **inputs)
        with self.precision.autocast(lr.device.type):
            prediction = self.network(lr) if draws is None else self.network(lr, draws)
        if config.objective.name == "residual":
            prediction = onto_centroid(prediction, inputs["sr"], margin_of(config.scale))
        loss, _ = blended_loss(
            prediction,
            inputs["hr"],
            inputs["sr"],
            target_alpha,
            config.objective.loss,
            margin=margin_of(config.scale),
            gradient_scale=gradient_scale,
        )
        return loss


def network_input(
    config: Config,
    hr: Tensor | None,
    sr: Tensor | None,
    lr_of_hr: Tensor | None,
    lr_of_sr: Tensor | None,
    transposed: Tensor,
    input_alpha: Tensor,
    noise: Tensor | None,
) -> Tensor:
    """The blended LR images with their noise: float32 [N, 3, patch, patch] in 0..1 (not clipped), channels_last.

    The arguments are those of `Batch`.
    """
    if config.data.downsample == "dali":
        lr = blend_lr(lr_of_hr, lr_of_sr, input_alpha)
    else:
        lr = downsample_blend(hr, sr, input_alpha, config.scale, config.data.rounding, transposed=transposed)
    return lr if noise is None else lr + noise / 255


def input_of(batch: Batch, config: Config) -> Tensor:
    """`network_input` of a whole batch."""
    values = batch.tensors()
    del values["target_alpha"], values["draws"]
    return network_input(config, **values)


class Step:
    """The training step of this rank.

    A global batch is split over the ranks, and a rank's share into equal parts that it takes one after the other, so
    that activations of one part alone are in memory. Each part's loss is weighted with its share of the global batch:
    the gradients are those of the mean over the global batch, however it is split.

    Args:
        network: on `device`.
        updater: holds the network's parameters.
        config: the recipe.
        precision: what the network computes in.
        device: "cpu", "cuda:0", ...
        samples: this rank's share of the global batch.
        mark: called with the name of each stage as it begins.
    """

    def __init__(
        self,
        network: Network,
        updater: Updater,
        config: Config,
        precision: Precision,
        device: str,
        samples: int,
        mark: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.updater, self.config, self.device = updater, config, device
        self.parts = split(samples, config.train.micro_batch or samples)
        loss = TrainingLoss(network, config, precision)
        compiled = config.train.compile and torch.device(device).type in network.compiled_on
        if compiled and why_not_compile(device) is None:
            torch.compiler.reset()  # earlier networks of this process would count against the limit of recompilations
            if network.repeated is None:
                loss.compile(fullgraph=True, dynamic=False)
            else:
                compile_blocks(network)
        self.parallel: DistributedDataParallel | None = None
        if distributed.world_size() > 1:
            with warnings.catch_warnings():  # the new name of `broadcast_buffers` is not in all the torch we support
                warnings.simplefilter("ignore", FutureWarning)
                self.parallel = DistributedDataParallel(loss, broadcast_buffers=False, gradient_as_bucket_view=True)
        self.loss: nn.Module = self.parallel or loss
        self.mark = mark

    def __call__(self, batch: Batch, learning_rate: float) -> tuple[Tensor, Tensor]:
        """Train on one batch.

        Returns:
            The mean loss of the global batch, float32 [], and whether the step was skipped, bool []; on the device.
        """
        batch = batch.to(self.device)
        total = torch.zeros((), device=self.device)
        for part in self.parts:
            self.mark("forward")
            share = (part.stop - part.start) / self.config.train.batch
            # DistributedDataParallel takes the mean over the ranks, of what is here to be a sum
            upstream = self.updater.scale * (share * distributed.world_size())
            with self._reduced_at_the_end(part):
                loss: Tensor = self.loss(**self._inputs(batch.part(part)), gradient_scale=upstream)
                self.mark("backward")
                loss.backward(upstream)  # type: ignore[no-untyped-call]
            total += loss.detach() * share
        if self.parallel is not None:
            torch.distributed.all_reduce(total)
        self.mark("optimizer")
        skip = self.updater.step(total, learning_rate)
        self.mark("other")
        return total, skip

    def _inputs(self, batch: Batch) -> dict[str, Tensor | None]:
        """The tensors of a part, always the same ones of them None, so that one compiled graph serves all steps.

        An image that the mix does not read has no weight: the other stands in where other steps read both.
        """
        values = batch.tensors()
        if self.config.objective.name == "eco":
            for first, second in (("hr", "sr"), ("lr_of_hr", "lr_of_sr")):
                one, other = values[first], values[second]
                values[first] = other.detach() if one is None and other is not None else one
                values[second] = one.detach() if other is None and one is not None else other
        return values

    def _reduced_at_the_end(self, part: slice) -> AbstractContextManager[None]:
        """The ranks add up their gradients once, with the last part's."""
        if self.parallel is None or part == self.parts[-1]:
            return nullcontext()
        return self.parallel.no_sync()


def split(samples: int, at_most: int) -> list[slice]:
    """Cut a share into the fewest nearly equal parts of at most so many samples."""
    count = -(-samples // at_most)
    edges = [index * samples // count for index in range(count + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]
