"""The networks that eco-fast trains."""

from eco_fast.config import Model, OwnModel
from eco_fast.models.edsr import EDSR
from eco_fast.models.network import Network
from eco_fast.models.own import own_network
from eco_fast.models.rcan import RCAN
from eco_fast.models.rrdb import RRDB
from eco_fast.models.swinir import SwinIR

ARCHITECTURES: tuple[type[Network], ...] = (EDSR, RCAN, SwinIR, RRDB)


def build(model: Model, scale: int) -> Network:
    """A network with fresh weights, drawn from torch's global random state.

    Raises:
        ValueError: it is of a class of one's own that cannot be used; see `own_network`.
    """
    if isinstance(model, OwnModel):
        return own_network(model.name, scale, model.arguments)
    architecture = {one.architecture: one for one in ARCHITECTURES}[model.name]
    return architecture(scale, **model.model_dump(exclude={"name", "start_from"}))
