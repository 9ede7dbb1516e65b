"""BasicSR's names of EDSR's and RCAN's weights, as the authors' own: the networks are the same.

BasicSR keeps the mean out of its files; ours and the authors' have it.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from eco_fast.models.network import MeanShift

COMMON = {r"conv_first\.": "head.0.", r"upsample\.": "tail.0.", r"conv_last\.": "tail.1."}
EDSR = {r"body\.(\d+)\.conv1\.": r"body.\1.body.0.", r"body\.(\d+)\.conv2\.": r"body.\1.body.2."}
RCAN = {
    r"body\.(\d+)\.residual_group\.(\d+)\.rcab\.([02])\.": r"body.\1.body.\2.body.\3.",
    r"body\.(\d+)\.residual_group\.(\d+)\.rcab\.3\.attention\.1\.": r"body.\1.body.\2.body.3.conv_du.0.",
    r"body\.(\d+)\.residual_group\.(\d+)\.rcab\.3\.attention\.3\.": r"body.\1.body.\2.body.3.conv_du.2.",
}


def authors_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the authors' names, if the names are BasicSR's; else as they are."""
    groups = _count(state, r"body\.(\d+)\.residual_group\.")
    blocks = _count(state, r"body\.0\.residual_group\.(\d+)\.")
    if groups:
        rules = {
            **COMMON,
            **RCAN,
            r"body\.(\d+)\.conv\.": rf"body.\1.body.{blocks}.",
            r"conv_after_body\.": f"body.{groups}.",
        }
    elif blocks := _count(state, r"body\.(\d+)\.conv1\."):
        rules = {**COMMON, **EDSR, r"conv_after_body\.": f"body.{blocks}."}
    else:
        return dict(state)
    renamed = {_renamed(key, rules): value for key, value in state.items()}
    means = {"sub_mean": MeanShift(-1), "add_mean": MeanShift(1)}
    buffers = {f"{name}.{key}": value for name, shift in means.items() for key, value in shift.state_dict().items()}
    return {**buffers, **renamed}


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for found in (re.match(pattern, key) for key in state) if found})


def _renamed(key: str, rules: Mapping[str, str]) -> str:
    for pattern, name in rules.items():
        renamed, count = re.subn(f"^{pattern}", name, key)
        if count:
            return renamed
    return key
