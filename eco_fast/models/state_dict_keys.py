"""Other names of the same networks' weights: BasicSR's of EDSR and RCAN, and the older two of RRDB.

BasicSR keeps the mean of EDSR and RCAN out of its files; ours and the authors' have it.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from eco_fast.models.network import MeanShift

COMMON = {r"conv_first\.": "head.0.", r"upsample\.": "tail.0.", r"conv_last\.": "tail.1."}
EDSR_KEYS = {r"body\.(\d+)\.conv1\.": r"body.\1.body.0.", r"body\.(\d+)\.conv2\.": r"body.\1.body.2."}
RCAN_KEYS = {
    r"body\.(\d+)\.residual_group\.(\d+)\.rcab\.([02])\.": r"body.\1.body.\2.body.\3.",
    r"body\.(\d+)\.residual_group\.(\d+)\.rcab\.3\.attention\.1\.": r"body.\1.body.\2.body.3.conv_du.0.",
    r"body\.(\d+)\.residual_group\.(\d+)\.rcab\.3\.attention\.3\.": r"body.\1.body.\2.body.3.conv_du.2.",
}
RRDB_KEYS = {
    r"RRDB_trunk\.(\d+)\.RDB(\d)\.": r"body.\1.rdb\2.",
    r"trunk_conv\.": "conv_body.",
    r"upconv(\d)\.": r"conv_up\1.",
    r"HRconv\.": "conv_hr.",
}


def canonical_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names that our networks have, if their names are others; else as they are."""
    if any(key.startswith("RRDB_trunk.") for key in state):
        return {_renamed(key, RRDB_KEYS): value for key, value in state.items()}
    if "model.0.weight" in state and "model.1.sub.0.RDB1.conv1.0.weight" in state:
        return _of_the_first_rrdb(state)
    groups = _count(state, r"body\.(\d+)\.residual_group\.")
    blocks = _count(state, r"body\.0\.residual_group\.(\d+)\.")
    if groups:
        rules = {
            **COMMON,
            **RCAN_KEYS,
            r"body\.(\d+)\.conv\.": rf"body.\1.body.{blocks}.",
            r"conv_after_body\.": f"body.{groups}.",
        }
    elif blocks := _count(state, r"body\.(\d+)\.conv1\."):
        rules = {**COMMON, **EDSR_KEYS, r"conv_after_body\.": f"body.{blocks}."}
    else:
        return dict(state)
    renamed = {_renamed(key, rules): value for key, value in state.items()}
    means = {"sub_mean": MeanShift(-1), "add_mean": MeanShift(1)}
    buffers = {f"{name}.{key}": value for name, shift in means.items() for key, value in shift.state_dict().items()}
    return {**buffers, **renamed}


def _of_the_first_rrdb(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ESRGAN's first files: a sequence of first convolution, body, up-convolutions and the last two."""
    blocks = _count(state, r"model\.1\.sub\.(\d+)\.RDB1\.")
    ends = sorted({int(found[1]) for found in (re.match(r"model\.(\d+)\.", key) for key in state) if found} - {0, 1})
    names = [*(f"conv_up{index + 1}" for index in range(len(ends) - 2)), "conv_hr", "conv_last"]
    rules = {
        r"model\.0\.": "conv_first.",
        rf"model\.1\.sub\.{blocks}\.": "conv_body.",
        r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.": r"body.\1.rdb\2.conv\3.",
        **{rf"model\.{place}\.": f"{name}." for place, name in zip(ends, names, strict=False)},
    }
    return {_renamed(key, rules): value for key, value in state.items()}


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for found in (re.match(pattern, key) for key in state) if found})


def _renamed(key: str, rules: Mapping[str, str]) -> str:
    for pattern, name in rules.items():
        renamed, count = re.subn(f"^{pattern}", name, key)
        if count:
            return renamed
    return key
