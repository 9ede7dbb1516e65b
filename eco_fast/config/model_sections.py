"""The [model] section: each architecture has keys of its own."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

Positive = Annotated[int, Field(ge=1)]
Value = bool | int | float | str
OWN = "module:Class"  # what stands for any network of one's own


class Section(BaseModel):
    """Common behaviour of all sections: immutable, strictly typed, no unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelSection(Section):
    """What every architecture's section has."""

    start_from: str = ""
    """Checkpoint whose matching weights start the run (x2 for an x3, x4 or x8 run); empty means from scratch."""

    @property
    def drop_path_branches(self) -> int:
        """Branches that a training sample may leave out, each by a random number."""
        return 0


class EdsrModel(ModelSection):
    """EDSR; EDSR-baseline by default."""

    name: Literal["edsr"] = "edsr"
    """Architecture."""
    features: Positive = 64
    """Channels of the body."""
    blocks: Positive = 16
    """Residual blocks."""
    residual_scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor on each residual branch (EDSR's 0.1 for 256 features)."""


class RcanModel(ModelSection):
    """RCAN; the published one by default."""

    name: Literal["rcan"] = "rcan"
    """Architecture."""
    features: Positive = 64
    """Channels of the body."""
    groups: Positive = 10
    """Residual groups."""
    blocks: Positive = 20
    """Attention blocks in each group."""
    reduction: Positive = 16
    """The hidden layer of the channel attention is so many times smaller than `features`."""


class SwinirModel(ModelSection):
    """SwinIR; the classical SwinIR-M by default."""

    name: Literal["swinir"] = "swinir"
    """Architecture."""
    features: Positive = 180
    """Channels of the body."""
    depths: tuple[Positive, ...] = (6,) * 6
    """Blocks of each layer."""
    heads: tuple[Positive, ...] = (6,) * 6
    """Heads of the attention in each layer; they divide the features."""
    window: Positive = 8
    """Side of an attention window, even."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 2.0
    """Width of the MLPs over the features."""
    upsampler: Literal["pixelshuffle", "pixelshuffledirect"] = "pixelshuffle"
    """pixelshuffledirect: one convolution, the lightweight SwinIR-S."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Probability of the last block to be left out of a training sample; it grows linearly from 0."""
    patch: Positive = 48
    """Side of the images whose attention masks the checkpoint holds (the authors' img_size)."""

    @property
    def drop_path_branches(self) -> int:
        """The two of each block, unless none is ever left out."""
        return 2 * sum(self.depths) if self.drop_path else 0


class RrdbModel(ModelSection):
    """RRDB, ESRGAN's generator; the published one by default."""

    name: Literal["rrdb"] = "rrdb"
    """Architecture."""
    features: Positive = 64
    """Channels of the body."""
    blocks: Positive = 23
    """Residual-in-residual dense blocks."""
    growth: Positive = 32
    """Channels that each convolution of a dense block adds."""
    unshuffle: bool = False
    """Take squares of 2x2 pixels as channels, and upscale once more: BasicSR's form of x2."""


class OwnModel(ModelSection):
    """A network of your own: a class that extends `eco_fast.Network`, in a module that can be imported."""

    name: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] = "module:Class"
    """Where the class is: "module:Class"."""
    arguments: dict[str, Value | tuple[Value, ...]] = {}
    """Its keyword arguments, beside the scale: numbers, strings, booleans, and arrays of them."""


MODELS: dict[str, type[EdsrModel | RcanModel | SwinirModel | RrdbModel | OwnModel]] = {
    "edsr": EdsrModel,
    "rcan": RcanModel,
    "swinir": SwinirModel,
    "rrdb": RrdbModel,
    OWN: OwnModel,
}


def architecture_of(model: Any) -> str:
    """The name of the architecture that a [model] section, raw or typed, is for."""
    name = str(model.get("name", "edsr") if isinstance(model, dict) else getattr(model, "name", model))
    return OWN if ":" in name else name


Model = Annotated[
    Annotated[EdsrModel, Tag("edsr")]
    | Annotated[RcanModel, Tag("rcan")]
    | Annotated[SwinirModel, Tag("swinir")]
    | Annotated[RrdbModel, Tag("rrdb")]
    | Annotated[OwnModel, Tag(OWN)],
    Discriminator(
        architecture_of,
        custom_error_type="architecture",
        custom_error_message=f"the architecture is one of {', '.join(MODELS)}",
    ),
]
"""The network; each architecture has keys of its own, and EDSR is what a section without a name means."""
