"""Networks: building them from a recipe, and loading them from anybody's checkpoint."""

from eco_fast.models.architectures import build
from eco_fast.models.checkpoint_files import (
    METADATA,
    description,
    first_not_finite,
    load_network,
    load_network_of_scale,
    read_state,
    save_network,
    save_weights,
    warm_start,
)
from eco_fast.models.network import Network, compile_blocks, compile_for_images

__all__ = [
    "METADATA",
    "Network",
    "build",
    "compile_blocks",
    "compile_for_images",
    "description",
    "first_not_finite",
    "load_network",
    "load_network_of_scale",
    "read_state",
    "save_network",
    "save_weights",
    "warm_start",
]
