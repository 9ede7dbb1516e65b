"""Networks from and to checkpoint files: ours are safetensors; anybody's are read."""

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from eco_fast.models.architectures import ARCHITECTURES
from eco_fast.models.network import Network
from eco_fast.models.onnx_network import OnnxNetwork
from eco_fast.models.own import own_network
from eco_fast.models.spandrel_net import Foreign, installed
from eco_fast.models.state_dict_keys import canonical_keys
from eco_fast.models.wrappers import plain_state
from eco_fast.utils.content_hash import content_hash
from eco_fast.utils.device import pick_device
from eco_fast.utils.files import CHUNK_BYTES, write_atomically

NUMPY_MAKERS = [(name, getattr(np._core.multiarray, name)) for name in ("scalar", "_reconstruct")]  # type: ignore[attr-defined]  # noqa: SLF001
METADATA = "eco_fast"  # our key in the metadata of a safetensors file
NUMPY_VALUES: list[Any] = [  # scores and counts beside the weights: data, not code; by both names of numpy's module
    *((function, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name, function in NUMPY_MAKERS),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"},
]


def save_network(path: Path, network: Network, **facts: str | int) -> None:
    """Write the weights as safetensors, with what is needed to build the network in the metadata."""
    state = {key: value.detach().cpu() for key, value in network.state_dict().items()}
    save_weights(path, state, description(network, **facts))


def save_weights(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write weights that are on the CPU, with a network's `description`."""
    packed = {key: value.contiguous() for key, value in state.items()}
    facts = json.loads(metadata[METADATA])
    hashed = {METADATA: json.dumps({**facts, "sha256": _hash(packed, facts)})}
    write_atomically(path, lambda file: file.write(save(packed, hashed)))


def description(network: Network, **facts: str | int) -> dict[str, str]:
    """The metadata from which `load_network` builds the network again, and other facts worth keeping."""
    values = {"architecture": network.architecture, "scale": network.scale, **network.hyperparameters, **facts}
    return {METADATA: json.dumps(values)}  # one key: safetensors writes several in random order


def load_network(checkpoint: str | Path, device: str = "auto") -> Network:
    """Load a checkpoint: our safetensors, or a .pt/.pth file with the authors' keys or BasicSR's, in any usual wrapper.

    Or, where spandrel is installed, of any network that it knows; or an ONNX file of `eco-fast export`, which runs on
    the CPU. No code in a file is run; what our own file may name is the class of a network of one's own, see
    `own_network`.

    Args:
        checkpoint: the file.
        device: "auto" takes a GPU where there is one; or "cpu", "cuda", "cuda:1".

    Returns:
        The network in evaluation mode, frozen: an nn.Module from float [N, 3, h, w], 0..1, to
        [N, 3, scale*h, scale*w], about 0..1. It knows its `scale`.

    Raises:
        ValueError: the file is missing, damaged or of a network that eco-fast does not know; or no such device.
    """
    path = Path(checkpoint)
    if path.suffix.lower() == ".onnx":
        if device not in ("auto", "cpu"):
            raise ValueError(f"{path}: ONNX files run on the CPU here, but {device} is asked for; leave it out")
        return OnnxNetwork(path).eval()
    where = pick_device(device)
    state, metadata = read_state(path)
    facts = json.loads(metadata.get(METADATA, "{}"))
    network = _network_of(path, state, facts)
    if network is None:
        network = _load_foreign(path, state)
    else:
        _check_mean_shift(path, state, network)
        state = _without_recomputed(state, network)
        _match(path, state, network)
        network.load_state_dict(state, strict=False)
    return network.eval().requires_grad_(requires_grad=False).to(where)


def _network_of(path: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Network | None:
    """A network of the checkpoint's architecture and sizes, where eco-fast trains it."""
    if ":" in facts.get("architecture", ""):
        try:
            return own_network(facts["architecture"], facts["scale"], facts["arguments"])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    known = (architecture.from_state_dict(state, facts) for architecture in ARCHITECTURES)
    return next((one for one in known if one is not None), None)


def _load_foreign(path: Path, state: dict[str, Tensor]) -> Network:
    try:
        network = Foreign.from_state_dict(state, {}) if installed() else None
    except Exception as error:  # spandrel's architectures raise all sorts when sizes do not fit
        raise ValueError(f"{path}: cannot be used: {' '.join(str(error).split())[:300]}") from error
    if network is None:
        names = ", ".join(architecture.architecture.upper() for architecture in ARCHITECTURES)
        more = "or one that spandrel knows" if installed() else "or forty more with pip install 'eco-fast[teachers]'"
        keys = ", ".join(list(state)[:3])
        raise ValueError(f"{path}: not a checkpoint of a known network ({names}, {more}); its first keys are {keys}")
    return network


def load_network_of_scale(path: Path, scale: int) -> Network:
    """`load_network` on the CPU, refusing a network of another scale."""
    network = load_network(path, "cpu")
    if network.scale != scale:
        raise ValueError(f"{path}: a network for x{network.scale}, but x{scale} is asked for")
    return network


def warm_start(network: Network, path: Path) -> list[str]:
    """Copy all weights of a checkpoint whose shapes match, the authors' way to start x3, x4 and x8 from x2.

    Returns:
        Keys that kept their fresh weights.

    Raises:
        ValueError: a mismatch outside the tail, that is, another network.
    """
    state = _without_recomputed(read_state(path)[0], network)
    own = _without_recomputed(network.state_dict(), network)
    matching = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    kept = sorted(own.keys() - matching.keys())
    outside = [key for key in kept if not key.startswith(network.scale_dependent_keys)]
    outside += [key for key in state if key not in own and not key.startswith(network.scale_dependent_keys)]
    if outside:
        raise ValueError(
            f"{path}: cannot start this network from it, {outside[0]} does not match; "
            "the checkpoint must be of the same architecture and sizes"
        )
    network.load_state_dict(matching, strict=False)
    return kept


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights of a checkpoint file, unwrapped and with plain names, and its metadata.

    Raises:
        ValueError: the file is missing, damaged, of another kind, or holds a weight that is not a finite number.
    """
    content, metadata = _content(path)
    # A file of ours has the network's own names, which may look like a wrapper's: all below `self.net`, say.
    state = content if METADATA in metadata else canonical_keys(plain_state(path, content))
    if key := first_not_finite(state):
        raise ValueError(
            f"{path}: {key} holds values that are not finite (NaN or infinity): the training that wrote it had "
            "failed; take an earlier checkpoint"
        )
    return state, metadata


def first_not_finite(state: Mapping[str, Tensor]) -> str | None:
    """The first weight that holds NaN or infinity; masks of attention may."""
    for key, value in state.items():
        if value.is_floating_point() and not key.endswith("mask") and not torch.isfinite(value).all():
            return key
    return None


def _content(path: Path) -> tuple[Any, dict[str, str]]:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such checkpoint")
    with path.open("rb") as file:
        head = file.read(512).lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(f"{path}: a web page, not a checkpoint; download the file that the page links to")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path}: a Git LFS pointer, not the checkpoint itself; fetch it with `git lfs pull`")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                content = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: damaged or not a safetensors file ({error})") from error
        return content, _checked(path, content, metadata)
    try:
        _check_sums(path)
        with torch.serialization.safe_globals(NUMPY_VALUES):
            return torch.load(path, map_location="cpu", weights_only=True), {}
    except Exception as error:  # torch.load raises a dozen types on a damaged file
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path}: holds code besides weights ({found[1]}), which eco-fast never runs; "
                "expected plain weights, as torch.save(network.state_dict(), FILE) writes them"
            ) from error
        raise ValueError(f"{path}: damaged, or not a checkpoint of plain weights") from error


def _check_sums(path: Path) -> None:
    """Read what torch.save has written, for its checksums: torch.load ignores them. Where there is none, it is 0.

    Raises:
        BadZipFile: a bit of it is not as it was written.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                if part.CRC:
                    with archive.open(part) as file:
                        while file.read(CHUNK_BYTES):
                            pass


def _checked(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str]) -> dict[str, str]:
    """The metadata without the hash of a file of ours, of which every bit is as it was written."""
    try:
        facts = json.loads(metadata.get(METADATA, "{}"))
        wanted = facts.pop("sha256", None)
        whole = wanted == _hash(state, facts) if wanted else not any("sha256" in text for text in metadata.values())
    except (ValueError, AttributeError):
        whole = False
    if not whole:
        raise ValueError(f"{path}: damaged, its hash is another one; take another checkpoint, or a copy of this one")
    return {**metadata, METADATA: json.dumps(facts)} if wanted else metadata


def _hash(state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    return content_hash([json.dumps(facts, sort_keys=True), dict(sorted(state.items()))])


def _match(path: Path, state: Mapping[str, Tensor], network: Network) -> None:
    own, name = _without_recomputed(network.state_dict(), network), _title(network)
    wrong = [f"not a complete {name} checkpoint, {key} is missing" for key in own if key not in state]
    wrong += [f"more than {name} weights, {key} is unknown" for key in state if key not in own]
    wrong += [
        f"not a proper {name} checkpoint, {key} is of shape {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if wrong:
        raise ValueError(f"{path}: {wrong[0]}")


def _title(network: Network) -> str:
    """Its architecture in a sentence: EDSR, or module:Class."""
    return network.architecture if ":" in network.architecture else network.architecture.upper()


def _without_recomputed(state: Mapping[str, Tensor], network: Network) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.endswith(network.recomputed_buffers)}


def _check_mean_shift(path: Path, state: Mapping[str, Tensor], network: Network) -> None:
    """The original's 1x1 convolutions that subtract and add the mean: their weights are here a file's alone."""
    for name in ("sub_mean.weight", "add_mean.weight"):
        if name not in network.state_dict():
            continue
        weight = state.get(name)
        if weight is None or weight.shape != (3, 3, 1, 1) or not torch.equal(weight[:, :, 0, 0].float(), torch.eye(3)):
            raise ValueError(f"{path}: {name} is not {_title(network)}'s identity; the file is of another network")
