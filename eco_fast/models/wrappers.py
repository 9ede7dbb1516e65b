"""What checkpoint files wrap their weights in: dictionaries, and prefixes of the keys."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

# The better weights first: an average where there is one, the generator and not its critic.
WRAPPERS = (
    *("params_ema", "params-ema", "ema_state_dict", "model_ema", "generator_ema", "net_g_ema", "ema"),
    *("params", "state_dict", "model_state_dict", "net_g", "netG", "generator", "model", "network", "net", "weights"),
)
EVERYWHERE = ("module.", "model.", "network.", "net.")  # prefixes that count where all keys have them
CHOSEN = ("generator_ema.", "net_g_ema.", "ema_model.", "generator.", "net_g.", "netG.")  # where any key has them


def plain_state(path: Path, content: Any) -> dict[str, Tensor]:
    """The weights in a checkpoint's content, with the names that the network itself gives them.

    Of BasicSR, KAIR, rcan-it, Lightning, accelerate, mmagic, torch.compile, DataParallel and the usual tutorials.

    Raises:
        ValueError: there are none, or several sets to choose from.
    """
    content, names = _unwrapped(path, content)
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path}: holds no weights")
    return _without_prefixes(state, lightning="state_dict" in names)


def _unwrapped(path: Path, content: Any) -> tuple[Mapping[Any, Any], list[str]]:
    """The dictionary of tensors inside others, and the keys on the way to it."""
    names: list[str] = []
    while isinstance(content, Mapping):
        inner = {str(key): value for key, value in content.items() if _holds_weights(value)}
        known = [name for name in WRAPPERS if name in inner]
        if not known and any(isinstance(value, Tensor) for value in content.values()):
            return content, names
        choice = known or list(inner)
        if not choice:
            break
        if not known and len(choice) > 1:
            raise ValueError(f"{path}: holds several sets of weights ({', '.join(choice)}); save one of them alone")
        names.append(choice[0])
        content = inner[choice[0]]
    raise ValueError(f"{path}: holds no weights")


def _holds_weights(value: Any) -> bool:
    """Whether there are named tensors at any depth: not in an optimizer's state, whose keys are numbers."""
    return isinstance(value, Mapping) and any(
        isinstance(key, str) and (isinstance(inner, Tensor) or _holds_weights(inner)) for key, inner in value.items()
    )


def _without_prefixes(state: dict[str, Tensor], *, lightning: bool) -> dict[str, Tensor]:
    state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    while True:
        # The count of torch's AveragedModel is no weight.
        named = {key: value for key, value in state.items() if key != "n_averaged"}
        prefix = next((one for one in CHOSEN if any(key.startswith(one) for key in named)), None)
        prefix = prefix or next((one for one in EVERYWHERE if all(key.startswith(one) for key in named)), None)
        if prefix is None and lightning and any(key.startswith("model.") for key in named):
            prefix = "model."  # beside it lie losses and metrics
        # ESRGAN's first files are a sequence called model: its number is part of the name.
        if prefix is None or any(re.match(rf"{re.escape(prefix)}\d", key) for key in named):
            return state
        state = {key.removeprefix(prefix): value for key, value in named.items() if key.startswith(prefix)}
