"""Write manifest.schema.json, the JSON Schema of a data set's manifest, from its dataclasses.

    python docs/make_schema.py

Stricter than the dataclasses' types in what the reader also checks: no negative whole numbers, and
three of them for a size.
"""

import json
from pathlib import Path
from typing import Any

import msgspec

from shardify.dataset.manifest import DIGEST, VERSION, Manifest

FILE = Path(__file__).resolve().parent / "manifest.schema.json"


def render() -> str:
    """The schema as JSON text."""
    (schema, *_), definitions = msgspec.json.schema_components([Manifest])
    _forbid_negative(definitions)
    size = definitions["Role"]["properties"]["sizes"]["items"]
    size |= {"minItems": 3, "maxItems": 3}
    manifest = definitions["Manifest"]
    manifest["properties"] |= {"version": {"const": VERSION}, DIGEST: {"type": "string"}}
    manifest["required"].append("version")
    draft = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps({**draft, **schema, "$defs": definitions}, indent=1) + "\n"


def _forbid_negative(node: Any) -> None:
    """Set the minimum of every integer to 0."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        _forbid_negative(child)
    if isinstance(node, dict) and node.get("type") == "integer":
        node["minimum"] = 0


if __name__ == "__main__":
    FILE.write_text(render())
