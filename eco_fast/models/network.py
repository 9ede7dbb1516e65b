"""What the trainer knows of a network, whatever its architecture."""

import re
import warnings
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K


class Network(nn.Module, ABC):
    """A super-resolution network: float [N, 3, h, w], 0..1, to [N, 3, scale*h, scale*w], about 0..1.

    One of your own extends it with `__init__(self, scale, ...)`, `forward` and `halo`; the rest has defaults. A recipe
    names it: `model.name = "module:Class"`, with keyword arguments in `model.arguments`.

    Where its configuration asks for stochastic depth, training hands it `drop_path_uniforms` as a second argument.

    Args:
        scale: upscaling factor.
        hyperparameters: the other arguments that build it again, as JSON has them.
    """

    architecture: str
    """Its name in recipes and checkpoints."""
    scale_dependent_keys: ClassVar[tuple[str, ...]] = ()
    """How the keys of those weights begin that depend on the scale: `model.start_from` may leave them fresh."""
    recomputed_buffers: ClassVar[tuple[str, ...]] = ()
    """How the keys of those buffers end that the sizes decide: a file may lack them, or have others."""
    body_layers: ClassVar[str | None] = None
    """A regular expression that the names of the body's layers begin with: `optimizer.name = "muon"` takes their
    weights. None: all layers but the first and the last."""
    memory_format: ClassVar[torch.memory_format] = torch.channels_last
    """Memory format in which this architecture trains fastest."""
    tile: int = 256
    """LR pixels a side of the largest piece of an image that it is given at once, its halo left aside."""
    repeated_block: ClassVar["type[RepeatedBlock] | None"] = None
    """The block that makes up a network too deep to be compiled whole: RCAN would take minutes."""
    compiled_on: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    """Kinds of device on which compiling makes its training faster."""
    compiled_for_images: ClassVar[bool] = True
    """Whether compiling makes a GPU faster on images: not where the passes that it runs are written by hand."""

    def __init__(self, scale: int, **hyperparameters: Any) -> None:
        super().__init__()
        self.scale = scale
        self.hyperparameters = hyperparameters
        self.grid = 1
        """A tile of an image must begin at a multiple of so many LR pixels to be seen as the whole image is."""

    @property
    @abstractmethod
    def halo(self) -> int:
        """What an output pixel can see beyond its own place, in LR pixels, or as much of it as matters."""

    def body_matrices(self) -> list[nn.Parameter]:
        """The trainable weights that act as matrices inside the network: see `body_layers`.

        They are those of 2-d convolutions without groups and of linear layers, each once: no biases, norms, tables or
        weights of one's own modules, and no transposed or grouped convolutions.
        """
        layers = [(name, layer) for name, layer in self.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        if self.body_layers is None:
            layers = layers[1:-1]
        else:
            layers = [(name, layer) for name, layer in layers if re.match(self.body_layers, name)]
        weights = [layer.weight for _, layer in layers if getattr(layer, "groups", 1) == 1]
        own = {id(weight): weight for weight in weights if isinstance(weight, nn.Parameter) and weight.requires_grad}
        return list(own.values())

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Self | None:  # noqa: ARG003
        """A network of the sizes that a checkpoint's keys tell, or None if they are not of this architecture.

        A network of your own needs none: its checkpoints name its class.

        Args:
            state: the checkpoint, with this architecture's keys.
            facts: what our own checkpoints say of themselves; empty for anybody else's.
        """
        return None


class RepeatedBlock(nn.Module, ABC):
    """A block that a deep network repeats; its output has the shape of its first input."""

    compiled: Callable[..., Tensor] | None = None

    @abstractmethod
    def forward_block(self, *inputs: Any, **more: Any) -> Tensor:
        """What the block does."""

    def forward(self, *inputs: Tensor | None) -> Tensor:
        """What the block does, compiled in training alone: images have many sizes."""
        if self.compiled is None or not self.training:
            return self.forward_block(*inputs)
        return self.compiled(self, *inputs)


def compile_blocks(network: Network) -> None:
    """Compile the repeated block, once for all its places."""
    assert network.repeated_block is not None, "a network without such a block is compiled whole"
    # the compiler looks at `.grad` of what flows from block to block, and torch warns whoever does
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
    compiled = torch.compile(network.repeated_block.forward_block, fullgraph=True, dynamic=False)
    for block in network.modules():
        if isinstance(block, network.repeated_block):
            block.compiled = compiled


def compile_for_images(network: Network) -> None:
    """Compile a frozen network for images of all sizes: the block that it repeats, else the whole."""
    torch.compiler.reset()  # earlier networks of this process would count against the limit of recompilations
    for part in network.modules():
        if isinstance(part, network.repeated_block or Network):
            part.compile(dynamic=True)


class MeanShift(nn.Module):
    """Add `sign` times the DIV2K mean on the 0..255 scale.

    The original is a frozen 1x1 convolution with identity weights; the weight is kept for its files alone.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, sign: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.eye(3).view(3, 3, 1, 1))
        self.register_buffer("bias", sign * 255 * torch.tensor(RGB_MEAN))

    def forward(self, image: Tensor) -> Tensor:
        """[N, 3, H, W] to the same shape."""
        return image + self.bias.view(1, 3, 1, 1)


class SubPixelConvolution(nn.Conv2d):
    """A 3x3 convolution whose output channels become squares of pixels; its weights are those before a `PixelShuffle`.

    In channels_last that one would gather every pixel from channels far apart. Here the convolution has its output
    channels in another order, so that whole pixels move, and channels_last comes out on every device.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        factor: side of the squares of pixels.
    """

    def __init__(self, inputs: int, outputs: int, factor: int) -> None:
        super().__init__(inputs, outputs * factor**2, 3, padding=1)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, h, w] to [N, outputs, factor*h, factor*w], in channels_last."""
        assert self.bias is not None  # for mypy
        squares = self._conv_forward(x, self._place_by_place(self.weight), self._place_by_place(self.bias))
        count, _, height, width = squares.shape
        # [N, h, w, row in the square, column in it, outputs]
        pixels = squares.permute(0, 2, 3, 1).reshape(count, height, width, self.factor, self.factor, -1)
        rows: Tensor = pixels.transpose(2, 3).reshape(count, self.factor * height, self.factor * width, -1)
        return rows.permute(0, 3, 1, 2)

    def _place_by_place(self, weights: Tensor) -> Tensor:
        """The first dimension from `nn.PixelShuffle`'s order, [outputs, place in the square], to the other one."""
        squares = weights.reshape(-1, self.factor**2, *weights.shape[1:])
        return squares.transpose(0, 1).reshape(weights.shape)


def conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def reflect_pad(image: Tensor, height: int, width: int) -> Tensor:
    """[N, C, h, w] continued at its lower and right edge by its reflection to [N, C, height, width], however far."""
    for dim, wanted in ((2, height), (3, width)):
        size = image.shape[dim]
        if size < wanted:
            period = max(2 * size - 2, 1)
            place = torch.arange(wanted, device=image.device) % period
            image = image.index_select(dim, torch.minimum(place, period - place))
    return image


def up_to_multiple(size: int, multiple: int) -> int:
    """The next multiple that is not smaller."""
    return -(-size // multiple) * multiple


def upsample_factors(scale: int) -> list[int]:
    """The factors of sub-pixel upsampling: one step of 3, or steps of 2."""
    return [3] if scale == 3 else [2] * (scale.bit_length() - 1)


def sub_pixel_upsampler(scale: int, features: int) -> nn.Sequential:
    """Sub-pixel upsampling; its convolutions are .0, .2, .4, as where a `PixelShuffle` stands after each."""
    steps = enumerate(upsample_factors(scale))
    layers = {str(2 * place): SubPixelConvolution(features, features, by) for place, by in steps}
    return nn.Sequential(OrderedDict(layers))


def scale_of(state: Mapping[str, Tensor], upsample: str, features: int) -> int:
    """The scale of a checkpoint whose `sub_pixel_upsampler` is at the prefix `upsample`."""
    convolutions = [key for key in state if key.startswith(upsample) and key.endswith(".weight")]
    return 3 if state[f"{upsample}0.weight"].shape[0] == 9 * features else int(2 ** len(convolutions))
