"""Parts of a page that runs and comparisons share: head, crops, skipped steps, the recipe, machines and hashes."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eco_fast import config
from eco_fast.config import Config
from eco_fast.config.paper import nearest
from eco_fast.training.report.elements import Html, element, folded, section, text_table
from eco_fast.training.run_folder import CHECKPOINTS, METRICS, PINNED, RECIPE
from eco_fast.utils.files import name_damaged, sha256_of

CONDITIONS = ("device", "threads", "processes", "platform", "python", "eco_fast", "commit")


@dataclass(frozen=True)
class Slides:
    """One crop of an image, in several versions that lie upon each other.

    Attributes:
        image: its name.
        panels: PNG files by their label, from LR to HR.
        first: places in them of those at the left and at the right of the divider, before anybody chooses.
    """

    image: str
    panels: Mapping[str, Path]
    first: tuple[int, int]


def page_head(folder: Path, description: str, facts: Mapping[str, str]) -> Html:
    """The folder's name, what the recipe says of itself, and the facts that people look for first."""
    pairs = [element("div", element("dt", name), element("dd", value)) for name, value in facts.items()]
    described = [element("p", description)] if description else []
    title = element("h1", folder.resolve().name)
    return element("header", title, *described, element("dl", *pairs, class_="facts"))


def crops_section(slides: Sequence[Slides]) -> Html:
    """The crops, each with a divider between any two of its versions."""
    if not slides:
        return section("Crops", element("p", "There are none: no images were scored, or not yet."))
    how = "Move the divider with the mouse, a finger or the arrow keys; choose what is on either side of it."
    figures = [_slides(one) for one in slides]
    return section("Crops", element("p", how, class_="script"), element("div", *figures, class_="crops"))


def _slides(one: Slides) -> Html:
    images = [
        element("figure", element("img", src=_data_uri(file), alt=label), element("figcaption", label))
        for label, file in one.panels.items()
    ]
    choices = [
        element(
            "select",
            *(element("option", label, selected=place == chosen) for place, label in enumerate(one.panels)),
            aria_label=f"{side} of the divider",
        )
        for side, chosen in zip(("left", "right"), one.first, strict=True)
    ]
    divider = element("input", type="range", min="0", max="100", value="50", aria_label=f"divider over {one.image}")
    return element(
        "div",
        element("h3", one.image),
        element("div", *images, class_="stage"),
        divider,
        element("div", *choices, class_="sides"),
        class_="crop",
    )


def _data_uri(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def skipped_section(trainings: Mapping[str, Sequence[Mapping[str, Any]]]) -> Html:
    """Which steps were skipped, up to the interval of the log, by training; from the rows of metrics.jsonl."""
    rows = []
    for name, training in trainings.items():
        before, last = 0, 0
        for row in training:
            if (count := row.get("skipped")) is None:
                continue
            if count > before:
                rows.append([name, f"{last + 1} to {row['step']}", str(count - before)])
            before, last = count, row["step"]
    if not rows:
        return section("Skipped steps", element("p", "None."))
    why = "Their loss or gradients were not finite, or the loss jumped (optimizer.spike_factor); they changed nothing."
    return section(
        "Skipped steps", element("p", why), text_table(("training", "steps", "skipped"), rows, "Skipped steps")
    )


def nearest_in_words(recipe: Config) -> str:
    """The shipped recipe that a recipe is nearest to, its row of the paper, and in what it differs."""
    if (found := nearest(recipe)) is None:
        return "No shipped recipe has this scale, network and objective."
    said = f"The nearest shipped recipe is {found.name}"
    said += f" ({found.recipe.paper.row})" if found.recipe.paper.row else ""
    values = config.flat(recipe)
    differing = [f"{key} = {json.dumps(values.get(key), ensure_ascii=False)}" for key in found.differing]
    return f"{said}; it differs in {', '.join(differing)}." if differing else f"{said}, from which it does not differ."


def recipe_text(folder: Path) -> Html:
    """A run's recipe in full."""
    path = folder / RECIPE
    return folded(f"{folder.name}/{RECIPE}", path.read_text(encoding="utf-8"))


def machine_section(starts: Sequence[tuple[str, Mapping[str, Any]]]) -> Html:
    """Machine, versions and command of some starts, by name; those with the same machine and versions are one."""
    groups: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for name, start in starts:
        conditions = [start["packages"], *(start.get(key) for key in CONDITIONS)]
        groups.setdefault(json.dumps(conditions), []).append((name, start))
    distinct = [group[0][1] for group in groups.values()]
    rows = [[key, *(str(start.get(key)) for start in distinct)] for key in CONDITIONS]
    packages = dict.fromkeys(package for start in distinct for package in start["packages"])
    rows += [[package, *(str(start["packages"].get(package)) for start in distinct)] for package in packages]
    rows = [row for row in rows if set(row[1:]) != {"None"}]
    rows.append(["command", *(" ".join(start["command"]) for start in distinct)])
    names = [f"{group[0][0]}{f' and {len(group) - 1} more' if len(group) > 1 else ''}" for group in groups.values()]
    changes = [element("li", f"{name}: {change}") for name, start in starts for change in start.get("changed", ())]
    return section("Machine", text_table(["", *names], rows, "Machine"), element("ul", *changes))


def hashes_section(folders: Mapping[str, Path], scores: str, pinned: Path) -> Html:
    """SHA-256 of what the runs in some folders consist of.

    Args:
        folders: by what leads to them from the page's folder, "" or with a slash at its end.
        scores: file of their scores.
        pinned: folder whose pinned.json is spoken of.
    """
    wanted = (RECIPE, PINNED, METRICS, scores, f"{CHECKPOINTS}/last.safetensors", f"{CHECKPOINTS}/best.safetensors")
    lines = [
        f"{sha256_of(folder / file)}  {name}{file}"
        for name, folder in folders.items()
        for file in wanted
        if (folder / file).is_file()
    ]
    how = "The lines below are as sha256sum -c reads them in the folder of this page."
    said = element("p", f"{_pinned_in_words(pinned)} {how}")
    return section("Hashes", said, folded(f"{len(lines)} files", "\n".join(lines)))


def _pinned_in_words(folder: Path) -> str:
    path = folder / PINNED
    if not path.is_file():
        return "Nothing is pinned yet."
    with name_damaged(path):
        pinned = json.loads(path.read_text(encoding="utf-8"))
        counts = [f"{what} ({len(entries)})" for what, entries in pinned.items() if not what.startswith("names of")]
    return f"{PINNED} holds the names and hashes of all that it depends on: {', '.join(counts)}."
