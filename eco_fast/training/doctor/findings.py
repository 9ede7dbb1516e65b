"""What a check says."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Fact:
    """Something measured or looked up."""

    name: str
    value: str | float
    unit: str = ""

    def __str__(self) -> str:
        value = f"{self.value:.3g}" if isinstance(self.value, float) else self.value
        return f"{self.name} {value} {self.unit}".rstrip()


@dataclass(frozen=True)
class Finding:
    """Something that is wrong."""

    what: str
    """What it is."""
    why: str
    """Why it matters."""
    mend: str
    """The command that mends it."""


Notes = Iterator[Fact | Finding]


@dataclass(frozen=True)
class Subject:
    """What is examined."""

    folders: tuple[str, ...]
    """Where runs and stores are to lie."""
    device: str
    """auto, cpu, cuda or cuda:N."""

    @property
    def paths(self) -> list[Path]:
        """The folders."""
        return [Path(folder) for folder in self.folders]


Check = Callable[[Subject], Notes]


@dataclass
class Checked:
    """What one check has said."""

    group: str
    check: str
    facts: list[Fact] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(self, note: Fact | Finding) -> None:
        """Keep what it says."""
        if isinstance(note, Fact):
            self.facts.append(note)
        else:
            self.findings.append(note)
