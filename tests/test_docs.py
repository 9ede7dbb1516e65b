"""What README and docs tell people to type works: every block of bash, Python and TOML runs, or its commands are read.

- In `FOLLOWED` the commands run in order, in the folder of a `reader` who has small images; training is cut to `TINY`.
- Elsewhere the commands go through the command line's parser, and recipes are loaded with all keys.
- Python runs, with TINY too; TOML is loaded as a recipe.
- A comment above a block says otherwise: `<!-- file: NAME -->` saves it first. After `<!-- not run: REASON -->`
  commands of ours are read, and nothing runs.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import eco_fast
from eco_fast import config
from eco_fast.cli import main as cli
from eco_fast.config.recipe_files import recipe_names
from eco_fast.data.images import Pixels, write_png
from tests.cli.command_line import commands

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "consumers").glob("*.md")),
    ROOT / "kernels" / "README.md",
    ROOT / "bench" / "README.md",
]
FOLLOWED = ("README.md", "guide.md", "networks.md", "publish.md")
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
TINY_EDSR = {"model.features": 8, "model.blocks": 1}
TINY = {
    "data.patch": 8,
    "teacher.steps": 2,
    "train.steps": 2,
    "train.batch_size": 2,
    "train.compile": False,
}
FEW_IMAGES = ["--data.train", "DIV2K_train_HR", "--data.validation", "Set5/HR", "--data.test", "Set5/HR"]
"""For the quick start."""
FEW_RUNS = ["--seeds", "1", "--variant", "vanilla", "--variant", "eco"]
"""For comparisons."""


class Block(NamedTuple):
    """A fenced block, and the comment above it."""

    language: str
    text: str
    name: str | None
    """The file that it is saved as."""
    reason: str | None
    """Why it is not run."""

    def commands(self) -> list[list[str]]:
        """The words of each command of a block of bash."""
        lines = self.text.replace("\\\n", " ").replace("&&", "\n").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


FENCE = re.compile(
    r"(?:<!-- (?:file: (?P<name>\S+)|not run: (?P<reason>.+?)) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)```\n",
    re.DOTALL,
)


def blocks_of(page: Path) -> list[Block]:
    return [Block(**found.groupdict()) for found in FENCE.finditer(page.read_text(encoding="utf-8"))]


@pytest.fixture
def reader(photo: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's folder, with small images in the places of the examples; what they train there is tiny."""
    for name in ("DIV2K_train_HR/1.png", "DIV2K_valid_HR/1.png", "Set5/HR/1.png", "Set14/HR/1.png", "holiday.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, photo[:40, :48])
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "Set5").symlink_to(tmp_path / "Set5" / "HR")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    train = eco_fast.train

    def short(recipe: str, folder: str, changes: Mapping[str, Any]) -> Any:
        return train(recipe, folder, {**changes, **TINY, **TINY_EDSR})

    monkeypatch.setattr(eco_fast, "train", short)
    return tmp_path


@pytest.mark.slow
@EVERY_PAGE
def test_blocks(page: Path, reader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks_of(page):
        if block.name:
            (reader / block.name).write_text(block.text, encoding="utf-8")
        if block.language == "bash":
            check_commands(block, followed=page.name in FOLLOWED)
        elif block.reason:
            continue
        elif block.language == "python":
            exec(compile(block.text, str(page), "exec"), {"__name__": "example"})  # noqa: S102 - our own page
        elif block.language == "toml":
            (reader / "block.toml").write_text(block.text, encoding="utf-8")
            config.load("block.toml")
        else:
            assert block.language in ("", "bibtex"), f"{page.name}: nobody runs {block.language}"
    capsys.readouterr()


def check_commands(block: Block, *, followed: bool) -> None:
    for words in block.commands():
        if words[0] == "eco-fast" and followed and not block.reason:
            follow(words[1:])
        elif words[0] == "eco-fast":
            parse(words[1:])
        elif not block.reason:
            look_up(words)


def follow(arguments: list[str]) -> None:
    """Run a command, with less training."""
    more: list[str] = []
    if arguments[0] in ("train", "compare"):
        keys = TINY if arguments[-1].endswith(".toml") else {**TINY, **TINY_EDSR}
        more += [word for key, value in keys.items() for word in (f"--{key}", str(value).lower())]
        more += FEW_IMAGES if arguments == ["train"] else []
        more += FEW_RUNS if arguments[0] == "compare" else []
    assert cli.main([*arguments, *more]) == 0, shlex.join(arguments)


def parse(arguments: list[str]) -> None:
    """Read a command, and the recipe that it makes."""
    parsed = cli.parser().parse_args(arguments)
    if hasattr(parsed, "overrides"):
        recipe = getattr(parsed, "recipe", None) or "quickstart"
        config.load(recipe if recipe in recipe_names() else str(ROOT / recipe), parsed.overrides)


def look_up(words: list[str]) -> None:
    """Look whether there is what a command of others names."""
    if words[0] == "pytest":
        assert all((ROOT / word).exists() for word in words if "/" in word), words
    elif words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8"), words
    elif words[:2] == ["python", "-m"]:
        assert find_spec(words[2]), words
    elif words[:2] == ["pip", "install"]:
        assert {"-e", ".", ".[test]", "pre-commit"} >= set(words[2:]), words
    else:
        assert words == ["pre-commit", "install"] or (ROOT / words[0]).is_file(), words


@EVERY_PAGE
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:", link)]
    assert [link for link in links if not (page.parent / link.partition("#")[0]).exists()] == []


def test_every_command_has_its_line() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert [name for name in commands() if f"`eco-fast {name}" not in text] == []


def test_every_recipe_has_its_row() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert [name for name in recipe_names() if f"`{name}`" not in text] == []
    known = set(recipe_names())
    assert [word for word in re.findall(r"`((?:edsr|rcan|swinir)_\w+)`", text) if word not in known] == []


def test_the_readme_is_read_in_one_go() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 130


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    """Strictly: every link and anchor, and every name whose docstring a page shows."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "super_resolve" in (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
