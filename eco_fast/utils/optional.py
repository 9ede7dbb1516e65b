"""Libraries that only some commands need."""

from importlib import import_module
from typing import Any


def optional(module: str, purpose: str, extra: str) -> Any:
    """Import a module that may not be there.

    Args:
        module: its name.
        purpose: what needs it, the beginning of a sentence.
        extra: of this package, that installs it.

    Raises:
        ValueError: it cannot be imported; says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        raise ValueError(f"{purpose} needs {module}, which {why}; pip install 'eco-fast[{extra}]'") from error
