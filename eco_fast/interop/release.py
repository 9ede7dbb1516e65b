"""What a release consists of: a finished run, what its author says of it, and the files that were made of both."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from eco_fast.config import Config
from eco_fast.evaluation.benchmarks import set_name
from eco_fast.study.run_results import Result

FORMS = {
    "name": (r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*", "letters and digits, with single hyphens between them"),
    "author": (r".*[A-Za-z0-9].*", "a name with letters from A to Z or digits in it"),
    "url": (r"https?://[^\s/]\S*", "an address that begins with https://"),
    "tags": (r"([a-z0-9]+:)?[a-z0-9]+(-[a-z0-9]+|\+)*", "tags of OpenModelDB, such as photo or general-upscaler"),
    "pretrained": (r"none|\d+x-[A-Za-z0-9]+(-[A-Za-z0-9]+)*", "an id of OpenModelDB, such as 2x-Photo, or none"),
}
"""The pattern of each value, and what it is in words; OpenModelDB's own, in its `src/lib/schema-util.ts`."""


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What a release says, and no run knows; empty: not said."""

    name: str = ""
    """The network's, without its scale."""
    author: Sequence[str] = ()
    """One or several."""
    license: str = ""
    """An SPDX identifier, or several with OR."""
    description: str = ""
    """What the network is for, in Markdown."""
    url: str = ""
    """Of the folder in which the files will be."""
    tags: Sequence[str] = ()
    """Of OpenModelDB."""
    pretrained: str = ""
    """OpenModelDB's id of the network that the run started from; "none": it has no entry there."""

    def checked(self, run: Path, recipe: Config) -> "Declaration":
        """The same, with the licence as SPDX spells it.

        Args:
            run: the run folder, for the sentence.
            recipe: the run's.

        Raises:
            ValueError: something is missing, and all of it is named; or the first value that has another form.
        """
        needed = [key for key in vars(self) if key != "pretrained" or recipe.model.start_from]
        if missing := [f"--{key}" for key in needed if not "".join(getattr(self, key)).strip()]:
            raise ValueError(f"{run}: a release says what no run knows; add {', '.join(missing)}")
        for key, (pattern, expected) in FORMS.items():
            values = getattr(self, key)
            for value in filter(None, [values] if isinstance(values, str) else values):
                if not re.fullmatch(pattern, value):
                    raise ValueError(f"--{key}: expected {expected}, got {value!r}")
        if self.pretrained and not recipe.model.start_from:
            raise ValueError(f"--pretrained: {run} started from scratch, not from {self.pretrained}; leave it out")
        scale = recipe.scale
        if re.search(rf"^({scale}x|x{scale})|-({scale}x|x{scale})$", self.name, re.IGNORECASE):
            raise ValueError(f"--name: expected a name without the scale, which is added to it, got {self.name!r}")
        return replace(self, license=_spdx(self.license), description=self.description.strip())


def _spdx(text: str) -> str:
    expected = "one SPDX identifier, such as Apache-2.0, or several with OR"
    try:
        license_ = str(canonicalize_license_expression(text))
    except InvalidLicenseExpression as error:
        raise ValueError(f"--license: expected {expected}, got {text!r}") from error
    if not re.fullmatch(r"[A-Za-z0-9.-]+( OR [A-Za-z0-9.-]+)*", license_):
        raise ValueError(f"--license: OpenModelDB takes {expected}, got {text!r}")
    return license_


@dataclass(frozen=True, kw_only=True)
class Release:
    """A folder that is about to be published."""

    said: Declaration
    result: Result
    """The finished run's."""
    folder: Path
    files: Sequence[tuple[str, str]]
    """The network's files in the folder: format and name."""
    samples: Sequence[tuple[str, str]]
    """The names of LR and SR images."""
    training_images: int | None
    """Their number; None: the run does not tell."""

    @property
    def dataset(self) -> str:
        """The names of the folders of training images."""
        data = self.result.run.data
        return ", ".join(map(set_name, data.train)) or set_name(data.store)

    def url(self, name: str) -> str:
        """Where a file of the folder will be."""
        return f"{self.said.url.rstrip('/')}/{quote(name)}"
