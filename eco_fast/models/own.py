"""A network of one's own: a class of any module that can be imported, which recipes and checkpoints name."""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from eco_fast.models.network import Network


def own_network(name: str, scale: int, arguments: Mapping[str, Any]) -> Network:
    """A network of a class that extends `Network`, with fresh weights; its checkpoints name the class and arguments.

    Args:
        name: where the class is: "module:Class".
        scale: its first argument.
        arguments: the others, by keyword; arrays arrive as tuples.

    Raises:
        ValueError: the module cannot be imported, has no such class, or the class does not take these arguments.
    """
    found = _class_named(name)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    try:
        inspect.signature(found).bind(scale, **given)
    except TypeError as error:
        takes = inspect.signature(found)
        raise ValueError(f"{name}: the class takes {takes}, not scale and model.arguments: {error}") from error
    try:
        network = found(scale, **given)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    network.architecture, network.hyperparameters = name, {"arguments": given}
    return network


def _class_named(name: str) -> type[Network]:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{name}: there is no module {error.name} to import; install it, or add its folder to PYTHONPATH"
        ) from error
    except Exception as error:  # anybody's code may raise anything
        raise ValueError(f"{name}: importing {module} failed ({type(error).__name__}: {error})") from error
    if not isinstance(found, type) or not issubclass(found, Network):
        raise ValueError(f"{name}: expected a class that extends eco_fast.Network, got {found!r}")  # noqa: TRY004 - the user's input
    if missing := sorted(found.__abstractmethods__):
        raise ValueError(f"{name}: the class lacks {', '.join(missing)}; see eco_fast.Network")
    return found
