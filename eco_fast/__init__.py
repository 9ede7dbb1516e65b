"""eco-fast: fast, exact, resumable training of image super-resolution networks (ECO, Lee and Heo, AAAI 2024).

    from eco_fast import evaluate, load_network, super_resolve, train

    result = train("edsr_baseline_x2_eco", "runs/mine", {"data.train": ["DIV2K_train_HR"]})
    network = load_network(result.checkpoint)
    sr = super_resolve(network, lr)                 # uint8 [h, w, 3] to uint8 [2*h, 2*w, 3]
    print(evaluate(network, "Set5/HR")["Set5/HR"].mean.psnr_y)

What each of these names needs is imported when it is first used. The fused ops are in `eco_fast_kernels`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eco_fast.config import Config
    from eco_fast.evaluation.evaluate import SetScores, evaluate
    from eco_fast.evaluation.metrics import Scores
    from eco_fast.inference.upscale import super_resolve
    from eco_fast.models import Network, load_network
    from eco_fast.training.train import TrainingResult, train

__version__ = "0.1.0"

__all__ = [
    "Config",
    "Network",
    "Scores",
    "SetScores",
    "TrainingResult",
    "evaluate",
    "load_network",
    "super_resolve",
    "train",
]

_HOMES = {
    "Config": "config",
    "Network": "models",
    "Scores": "evaluation.metrics",
    "SetScores": "evaluation.evaluate",
    "TrainingResult": "training.train",
    "evaluate": "evaluation.evaluate",
    "load_network": "models",
    "super_resolve": "inference.upscale",
    "train": "training.train",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
