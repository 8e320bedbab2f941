"""The five JSON schemas of W8, and a check of answers against them. Pure.

Every text and every list is bounded: a model of random weights never closes either of its own
accord. The check knows exactly the keywords used here and refuses others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

_LETTERS = "^[a-z]{1,12}$"


def _object(properties: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
        **more,
    }


SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    "object": _object(
        {
            "name": {"type": "string", "maxLength": 24},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "member": {"type": "boolean"},
        }
    ),
    "array, enum, pattern": _object(
        {
            "items": {
                "type": "array",
                "minItems": 3,
                "maxItems": 3,
                "items": _object(
                    {
                        "kind": {"enum": ["valve", "pump", "sensor"]},
                        "code": {"type": "string", "pattern": _LETTERS},
                    }
                ),
            }
        }
    ),
    "recursive": {
        **_object({"tree": {"$ref": "#/$defs/node"}}),
        "$defs": {
            "node": _object(
                {
                    "label": {"type": "string", "maxLength": 8},
                    "next": {"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/node"}},
                }
            )
        },
    },
    "long text": _object({"text": {"type": "string", "minLength": 400, "maxLength": 500}}),
    "nested": _object(
        {
            "order": _object(
                {
                    "id": {"type": "integer", "minimum": 1, "maximum": 9999},
                    "lines": {
                        "type": "array",
                        "minItems": 2,
                        "maxItems": 4,
                        "items": _object(
                            {
                                "article": {"type": "string", "maxLength": 16},
                                "count": {"type": "integer", "minimum": 1, "maximum": 99},
                            }
                        ),
                    },
                }
            )
        }
    ),
}


class SchemaError(Exception):
    """A schema has a keyword that the check does not know."""


def matches(text: str, schema: Mapping[str, Any]) -> bool:
    """Whether a text is JSON that the schema allows.

    Raises:
        SchemaError: the schema has an unknown keyword.
    """
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return _allows(schema, value, schema)


def _allows(schema: Mapping[str, Any], value: Any, root: Mapping[str, Any]) -> bool:
    if unknown := schema.keys() - _CHECKS.keys() - _STRUCTURE:
        raise SchemaError(f"schema: unknown keywords {sorted(unknown)}")
    if "$ref" in schema:
        return _allows(root["$defs"][schema["$ref"].rpartition("/")[2]], value, root)
    if not all(_CHECKS[key](value, wanted) for key, wanted in schema.items() if key in _CHECKS):
        return False
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        return all(_allows(properties[name], each, root) for name, each in value.items())
    if isinstance(value, list):
        return all(_allows(schema.get("items", {}), each, root) for each in value)
    return True


def _is_type(value: Any, wanted: str) -> bool:
    if isinstance(value, bool):
        return wanted == "boolean"
    kinds: Mapping[str, type] = {"object": dict, "array": list, "string": str, "integer": int}
    return wanted in kinds and isinstance(value, kinds[wanted])


_STRUCTURE = {"properties", "additionalProperties", "items", "$defs", "$ref"}
"""Keywords that lead to other schemas; all objects here are closed, so names are checked there."""

_CHECKS: Mapping[str, Callable[[Any, Any], bool]] = {
    "type": _is_type,
    "enum": lambda value, wanted: value in wanted,
    "required": lambda value, wanted: value.keys() == set(wanted),
    "minimum": lambda value, wanted: value >= wanted,
    "maximum": lambda value, wanted: value <= wanted,
    "minLength": lambda value, wanted: len(value) >= wanted,
    "maxLength": lambda value, wanted: len(value) <= wanted,
    "minItems": lambda value, wanted: len(value) >= wanted,
    "maxItems": lambda value, wanted: len(value) <= wanted,
    "pattern": lambda value, wanted: re.search(wanted, value) is not None,
}
