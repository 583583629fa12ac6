"""The schemas in docs/ that describe what --json prints."""

from __future__ import annotations

import json
from typing import Any

import jsonschema

from support import REPOSITORY


def strict(schema: Any) -> Any:
    """With nothing beside what is described; readers are to take what comes later, we may print no more."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if schema.get("type") == "object" else {}
    return closed | {key: strict(value) for key, value in schema.items()}


def of(verb: str) -> Any:
    return strict(json.loads((REPOSITORY / f"docs/{verb}.schema.json").read_text()))


def validate(printed: Any, verb: str) -> None:
    schema = of(verb)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(printed, schema, jsonschema.Draft202012Validator)
