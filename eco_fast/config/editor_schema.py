"""The JSON schema of recipes, by which editors complete and check them.

recipe.schema.json beside this module holds it: the shipped recipes name it in their first line.
"""

import json
from typing import Any

from eco_fast.config.schema import Config

DRAFT = "http://json-schema.org/draft-07/schema#"
"""What editors of TOML know; pydantic writes a later one, of which a tuple alone is said otherwise."""
EXTENDS = {"type": "string", "description": "A shipped recipe by name, or a .toml file as seen from this one."}


def schema_text() -> str:
    """The schema as JSON text."""
    schema = _tidy(Config.model_json_schema())
    model = schema["properties"]["model"]
    model["anyOf"] = model.pop("oneOf")  # a section without a name fits several architectures
    schema["properties"] = {"extends": EXTENDS, **schema["properties"]}
    return json.dumps({"$schema": DRAFT, **schema}, indent=2) + "\n"


def _tidy(value: Any) -> Any:
    """As it is in draft 7, without the titles, which repeat names, nor the defaults of sections, which repeat keys'."""
    if isinstance(value, list):
        return [_tidy(one) for one in value]
    if not isinstance(value, dict):
        return value
    section = value.keys() & {"$ref", "oneOf"}
    tidied = {}
    for key, one in value.items():
        if key == "description" and isinstance(one, str):
            tidied[key] = " ".join(one.split())
        elif key != "title" and not (key == "default" and section):
            tidied["items" if key == "prefixItems" else key] = _tidy(one)
    return tidied
