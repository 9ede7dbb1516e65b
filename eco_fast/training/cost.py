"""What one training takes, counted on tensors that have a shape and no memory."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from eco_fast_kernels import crop_side
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from eco_fast.config import Config, Model
from eco_fast.data.batch import Samples
from eco_fast.data.objective import BlendWeights, blend_weights_at
from eco_fast.inference.whole_images import Appetite
from eco_fast.models import Network, build
from eco_fast.training.precision import Precision
from eco_fast.training.profiling import saved_bytes, training_flops
from eco_fast.training.step import TrainingLoss, patches_at_once, split
from eco_fast.utils import distributed

KEPT_PIXEL, SCORED_PIXEL = 4, 48  # bytes of an HR pixel: the image with its LR; the planes of PSNR and SSIM


@dataclass(frozen=True)
class Cost:
    """What one training of a recipe takes."""

    parameters: int
    """That are trained."""
    multiply_adds: int
    """Of the forward pass of one LR patch; the backward pass takes twice as many."""
    at_once: int
    """Patches that a device has in memory."""
    weights: int
    """Bytes; the gradients take as many, the optimizer's moments twice as many, a running average once more."""
    activations: int
    """Bytes that the forward pass keeps for the backward pass; torch.compile keeps less."""
    copies: int
    """How often the weights' memory is taken: weights, gradients, moments, average."""

    @property
    def memory(self) -> int:
        """Bytes on each device."""
        return self.copies * self.weights + self.activations


def estimate(config: Config, device: str, precision: Precision) -> Cost:
    """The cost of a recipe on each device; raises as `network_without_memory`."""
    network = network_without_memory(config.model, config.scale, config.data.patch)
    parameters = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    samples = -(-config.train.batch_size // distributed.world_size())
    at_once = max(part.stop - part.start for part in split(samples, patches_at_once(config.train, samples)))
    loss = TrainingLoss(network, config.data, config.objective, precision)
    halfway = blend_weights_at(config.objective, config.train.steps // 2, config.train.steps)
    return Cost(
        parameters=parameters,
        multiply_adds=training_flops(network, config.data.patch) // 6,  # two operations, forward and twice backward
        at_once=at_once,
        weights=4 * parameters,
        activations=activation_bytes(loss, halfway, config.model.drop_path_branches, device, at_once),
        copies=4 + (config.train.ema_decay > 0),
    )


def network_without_memory(model: Model, scale: int, patch: int) -> Network:
    """A network in shapes alone, for LR patches of that side.

    Raises:
        ValueError: it cannot be built, or does not make of a patch one that is `scale` times as large.
    """
    with torch.device("meta"):
        network = build(model, scale)
        wanted, made = (1, 3, scale * patch, scale * patch), network.eval()(torch.empty(1, 3, patch, patch)).shape
    if made != wanted:
        raise ValueError(
            f"{model.name}: makes {list(made)} of an LR patch [1, 3, {patch}, {patch}] at x{scale}; expected "
            f"{list(wanted)}"
        )
    return network.train()


def activation_bytes(loss: TrainingLoss, weights: BlendWeights, branches: int, device: str, samples: int) -> int:
    """What the forward pass of so many patches, blended with these weights, keeps for the backward pass."""
    with FakeTensorMode(), torch.device(device):
        tensors, forward = _forward_pass(loss, weights, branches, samples)
        return saved_bytes(tensors, forward)


def passes_bytes(config: Config, device: str, precision: Precision, samples: int) -> int:
    """The most that forward and backward pass of so many patches take, beyond weights and the sums of gradients."""
    network = network_without_memory(config.model, config.scale, config.data.patch)
    loss = TrainingLoss(network, config.data, config.objective, precision)
    halfway = blend_weights_at(config.objective, config.train.steps // 2, config.train.steps)
    with FakeTensorMode(), torch.device(device):
        tensors, forward = _forward_pass(loss, halfway, config.model.drop_path_branches, samples)
        with Appetite(tensors) as most:
            torch.autograd.grad(forward(), [one for one in tensors if one.requires_grad], materialize_grads=True)
        return int(most.bytes)


def scoring_bytes(network: Network, sizes: Sequence[tuple[int, int]]) -> int:
    """What it takes on a CPU to score images of these (height, width) in HR pixels by a `network_without_memory`."""
    if not sizes:
        return 0
    network.eval()
    height, width = max(sizes, key=math.prod)
    most = network.tile + 2 * network.halo
    shape = [min(side // network.scale, most) for side in (height, width)]
    with torch.inference_mode(), Appetite(network.state_dict().values()) as tile:
        network(torch.empty(1, 3, *shape, device="meta"))
    return int(tile.bytes) + SCORED_PIXEL * height * width + KEPT_PIXEL * sum(map(math.prod, sizes))


def _forward_pass(
    loss: TrainingLoss, weights: BlendWeights, branches: int, samples: int
) -> tuple[list[Tensor], Callable[[], Tensor]]:
    """A loss's weights and buffers on the default device, and its forward pass with them."""
    data, patch, scale = loss.data, loss.data.patch, loss.network.scale
    by_dali = data.downsample == "dali"

    def crops(side: int, *, wanted: bool) -> Tensor | None:
        return torch.empty(samples, side, side, 3, dtype=torch.uint8) if wanted else None

    inputs = Samples(
        hr=crops(crop_side(scale, patch), wanted=weights.reads_hr),
        sr=crops(crop_side(scale, patch), wanted=weights.reads_sr),
        lr_hr=crops(patch, wanted=by_dali and weights.reads_hr),
        lr_sr=crops(patch, wanted=by_dali and weights.reads_sr),
        transposed=torch.zeros(samples, dtype=torch.bool),
        input_alpha=torch.tensor(weights.input),
        target_alpha=torch.tensor(weights.target),
        learning_rate=torch.zeros(()),
        noise=torch.empty(samples, 3, patch, patch) if data.noise_sigma else None,
        drop_path_uniforms=torch.empty(samples, branches) if branches else None,
    )
    tensors = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
        for name, tensor in (*loss.named_parameters(), *loss.named_buffers())
    }
    return list(tensors.values()), lambda: functional_call(loss, tensors, (inputs, torch.ones(())))
