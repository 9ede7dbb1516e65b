"""EDSR for spandrel, and the programs that open networks through it: `install()`, then open the file as any other.

Nothing but torch and spandrel is imported, so that a copy of this file alone works in another program's environment.
"""

from spandrel import MAIN_REGISTRY, Architecture, ArchSupport, ImageModelDescriptor, StateDict
from spandrel.util import KeyCondition, get_pixelshuffle_params, get_seq_len, store_hyperparameters
from torch import Tensor, eye, nn, tensor

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)


class ResBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, n_feats: int, res_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(n_feats, n_feats), nn.ReLU(), _conv(n_feats, n_feats))
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        """[N, n_feats, h, w] to the same shape."""
        residual: Tensor = self.body(x)
        return x + residual * self.res_scale


@store_hyperparameters()
class EDSR(nn.Module):
    """EDSR (Lim et al., CVPRW 2017), with the state-dict keys of the authors' EDSR-PyTorch.

    Args:
        scale: 2, 3, 4 or 8.
        n_resblocks: residual blocks.
        n_feats: channels of the body.
        res_scale: factor on each residual branch.
        rgb_range: white, as the network has it inside.
    """

    hyperparameters: dict[str, int | float] = {}  # noqa: RUF012 - spandrel's decorator sets it

    def __init__(
        self, *, scale: int = 2, n_resblocks: int = 16, n_feats: int = 64, res_scale: float = 1, rgb_range: int = 255
    ) -> None:
        super().__init__()
        self.rgb_range = rgb_range
        self.sub_mean, self.add_mean = _mean_shift(-rgb_range), _mean_shift(rgb_range)
        self.head = nn.Sequential(_conv(3, n_feats))
        blocks = [ResBlock(n_feats, res_scale) for _ in range(n_resblocks)]
        self.body = nn.Sequential(*blocks, _conv(n_feats, n_feats))
        factors = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
        steps = [layer for by in factors for layer in (_conv(n_feats, n_feats * by**2), nn.PixelShuffle(by))]
        self.tail = nn.Sequential(nn.Sequential(*steps), _conv(n_feats, 3))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, h, w], 0..1, to [N, 3, scale*h, scale*w], about 0..1."""
        x = self.head(self.sub_mean(x * self.rgb_range))
        x = self.tail(x + self.body(x))
        sr: Tensor = self.add_mean(x)
        return sr / self.rgb_range


class EDSRArch(Architecture):  # type: ignore[misc]
    """EDSR's files: EDSR-PyTorch's keys, with the mean or without, and BasicSR's."""

    def __init__(self) -> None:
        super().__init__(
            id="EDSR",
            detect=KeyCondition.has_any(
                KeyCondition.has_all(
                    "head.0.weight",
                    "body.0.body.0.weight",
                    "body.0.body.2.weight",
                    "tail.0.0.weight",
                    "tail.1.weight",
                ),
                KeyCondition.has_all(
                    "conv_first.weight",
                    "body.0.conv1.weight",
                    "body.0.conv2.weight",
                    "conv_after_body.weight",
                    "upsample.0.weight",
                    "conv_last.weight",
                ),
            ),
        )

    def load(self, state_dict: StateDict) -> ImageModelDescriptor:
        """The network of a file that `detect` has accepted."""
        state_dict = _authors_keys(state_dict)
        scale, n_feats = get_pixelshuffle_params(state_dict, "tail.0")
        n_resblocks = get_seq_len(state_dict, "body") - 1
        model = EDSR(
            scale=scale,
            n_resblocks=n_resblocks,
            n_feats=n_feats,
            res_scale=0.1 if n_feats == 256 else 1,  # it leaves no trace: the authors' choice for each of their sizes
            rgb_range=_rgb_range(state_dict),
        )
        return ImageModelDescriptor(
            model,
            {**model.state_dict(), **state_dict},  # BasicSR keeps the mean out of its files
            architecture=self,
            purpose="SR",
            tags=[f"{n_feats}nf", f"{n_resblocks}nb"],
            supports_half=False,  # not verified
            supports_bfloat16=True,
            scale=scale,
            input_channels=3,
            output_channels=3,
        )


def install() -> None:
    """Let spandrel's loaders open EDSR, unless they can already."""
    MAIN_REGISTRY.add(ArchSupport.from_architecture(EDSRArch()), ignore_duplicates=True)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _mean_shift(white: int) -> nn.Conv2d:
    """Adds the mean of DIV2K, in the form that the authors' files keep it."""
    shift = nn.Conv2d(3, 3, 1).requires_grad_(requires_grad=False)
    shift.weight.copy_(eye(3).view(3, 3, 1, 1))
    if shift.bias is not None:
        shift.bias.copy_(white * tensor(DIV2K_MEAN))
    return shift


def _rgb_range(state_dict: StateDict) -> int:
    """White, by the mean that the file subtracts; 255 where it holds none."""
    bias = state_dict.get("sub_mean.bias")
    return 255 if bias is None else round((-bias / tensor(DIV2K_MEAN)).mean().item()) or 255


def _authors_keys(state_dict: StateDict) -> StateDict:
    """EDSR-PyTorch's keys in place of BasicSR's."""
    if "conv_first.weight" not in state_dict:
        return state_dict
    blocks = get_seq_len(state_dict, "body")
    names = {"conv_first": "head.0", "conv_after_body": f"body.{blocks}", "upsample": "tail.0", "conv_last": "tail.1"}
    for block in range(blocks):
        names |= {f"body.{block}.conv{1 + place // 2}": f"body.{block}.body.{place}" for place in (0, 2)}
    return {
        next((new + key[len(old) :] for old, new in names.items() if key.startswith(f"{old}.")), key): value
        for key, value in state_dict.items()
    }
