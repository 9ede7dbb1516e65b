"""The network as a 16-bit training computes it: weights and gradients are cast once a step, each in one piece."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eco_fast.models import Network
from eco_fast.training.optim.flat import FlatTensors, views_of

CAST_BY_AUTOCAST = (nn.Conv2d, nn.Linear)
"""Modules whose weights autocast would cast to 16 bits whenever they are used."""


class WorkingCopy:
    """A network that shares everything with another one but the weights that are wanted in 16 bits.

    Autocast makes the same values, but by a kernel for each weight and each gradient: a third of RCAN's kernels.

    Args:
        network: float32; is not changed.
        parameters: its trainable ones, in the order of `weights`.
        weights: the buffer that they lie in.
        dtype: of the copies.

    Attributes:
        network: the copy.
        parameters: its own, one for each of the other's.
    """

    def __init__(
        self, network: Network, parameters: list[nn.Parameter], weights: FlatTensors, dtype: torch.dtype
    ) -> None:
        self._source = weights.buffer
        self._cast, self._gradients = (torch.zeros_like(weights.buffer, dtype=dtype) for _ in range(2))
        views = zip(parameters, views_of(self._cast, parameters), strict=True)
        own = {id(parameter): nn.Parameter(view) for parameter, view in views}
        shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
        self.network = copy.deepcopy(network, dict[int, object](shared))
        for module in self.network.modules():
            if isinstance(module, CAST_BY_AUTOCAST):
                for name, parameter in module.named_parameters(recurse=False):
                    setattr(module, name, own.get(id(parameter), parameter))
        kept = {id(parameter) for parameter in self.network.parameters()} & shared.keys()
        self.parameters = [one if id(one) in kept else own[id(one)] for one in parameters]
        places = zip(views_of(self._gradients, parameters), self.parameters, strict=True)
        self._places = [place for place, parameter in places if parameter.dtype == dtype]

    @torch.no_grad()
    def refresh(self) -> None:
        """Cast the weights as they are now."""
        self._cast.copy_(self._source)

    @torch.no_grad()
    def gather(self, gradients: Sequence[Tensor]) -> Tensor:
        """The 16-bit ones of gradients that are laid out like the weights, in one piece; zeros for the others."""
        torch._foreach_copy_(self._places, [one for one in gradients if one.dtype == self._gradients.dtype])
        return self._gradients
