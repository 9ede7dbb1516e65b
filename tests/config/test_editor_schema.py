"""The JSON schema for editors: it is that of today's keys, and refuses what the trainer refuses."""

import json
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from eco_fast import config
from eco_fast.cli import main as cli
from eco_fast.config.recipe_files import recipe_names

FILES = Path(str(resources.files("eco_fast.config")))
SCHEMA = json.loads((FILES / "recipe.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)


def test_the_file_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """If a key has changed: `eco-fast schema > eco_fast/config/recipe.schema.json`."""
    assert cli.main(["schema"]) == 0
    assert capsys.readouterr().out == (FILES / "recipe.schema.json").read_text(encoding="utf-8")
    VALIDATOR.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == VALIDATOR.META_SCHEMA["$schema"]


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_valid_and_name_the_schema(name: str) -> None:
    path = FILES / "recipes" / f"{name}.toml"
    text = path.read_text(encoding="utf-8")
    (named,) = re.findall(r"\A#:schema (\S+)\n", text)  # taplo looks for it as seen from the file
    assert (path.parent / named).resolve() == (FILES / "recipe.schema.json").resolve()
    VALIDATOR.validate(tomllib.loads(text))
    VALIDATOR.validate(tomllib.loads(config.dump(config.load(name))))  # as a run writes it


GOOD = [
    "",
    "[model]\nblocks = 3",
    '[model]\nname = "swinir"\ndepths = [2, 2]',
    '[train]\nvalidate_every = "2.5%"\ngraph = true',
    "[optimizer]\nbetas = [0, 0.5]\nlearning_rate = 1",
]
BAD = {
    "steps = 3": "'steps' was unexpected",
    "scale = 5": "5 is not one of",
    "[train]\nstps = 3": "'stps' was unexpected",
    '[train]\nsteps = "3"': "is not of type 'integer'",
    "[train]\nsteps = 0": "less than the minimum",
    '[train]\nvalidate_every = "2"': "not valid under any",
    "[train]\nvalidate_every = 0": "not valid under any",
    "[train]\ncompile = 1": "is not of type 'boolean'",
    '[train]\ngraph = "on"': "not valid under any",
    '[data]\ntrain = "DIV2K"': "is not of type 'array'",
    "[optimizer]\nbetas = [0.9]": "too short",
    "[optimizer]\nbetas = [0.9, 0.9, 0.9]": "too long",
    '[optimizer]\nbetas = [0.9, "a"]': "is not of type 'number'",
    "[paper]\nset5 = [30.0]": "not valid under any",
    "[optimizer]\nlearning_rate = 0": "less than or equal to the minimum",
    '[model]\nname = "rcan"\nresidual_scale = 1.0': "not valid under any",
    '[model]\nname = "vgg"': "not valid under any",
}


@pytest.mark.parametrize("text", GOOD)
def test_good_recipes_are_good_to_both(text: str) -> None:
    values = tomllib.loads(text)
    config.validate(values, "test")
    VALIDATOR.validate(values)


@pytest.mark.parametrize("text", BAD)
def test_bad_recipes_are_bad_to_both(text: str) -> None:
    values = tomllib.loads(text)
    with pytest.raises(ValueError, match=r"^test: "):
        config.validate(values, "test")
    with pytest.raises(jsonschema.ValidationError, match=BAD[text]):
        VALIDATOR.validate(values)


def test_every_key_is_described() -> None:
    sections = [SCHEMA, *SCHEMA["$defs"].values()]
    keys: list[dict[str, Any]] = [key for section in sections for key in section["properties"].values()]
    assert all(key.get("description") or "$ref" in key for key in keys if "anyOf" not in key)
    assert SCHEMA["$defs"]["Train"]["properties"]["steps"]["description"] == "Optimizer steps."
