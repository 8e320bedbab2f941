"""An OpenAPI 3.1 document out of a table of operations. Pure.

The table says of each field whether it is supported, ignored or refused, as ``docs/http-api.md``
does; tests compare the two, and the table with the routes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from server.options import OPTIONS, Rule

Json = dict[str, Any]
Verdict = Literal["supported", "ignored", "refused"]
Dialect = Literal["Ollama", "OpenAI", "Anthropic", "probes"]

JSON = "application/json"
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
TEXT = "text/plain"
BYTES = "application/octet-stream"

ANYTHING: Json = {}
STRING: Json = {"type": "string"}
BOOLEAN: Json = {"type": "boolean"}
INTEGER: Json = {"type": "integer"}
NUMBER: Json = {"type": "number"}
OBJECT: Json = {"type": "object"}
STRINGS: Json = {"type": "array", "items": STRING}
BASE64: Json = {"type": "string", "contentEncoding": "base64"}
NATIVE_OPTIONS: Json = {"$ref": "#/components/schemas/Options"}
KEEP_ALIVE: Json = {"type": ["number", "string"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of a body: its schema, and what becomes of it."""

    schema: Json
    verdict: Verdict


Fields = Mapping[str, Field]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What one method of one path takes and gives.

    Attributes:
        path: with its parameters in braces.
        dialect: whose clients call it; it decides the form of errors.
        fields: those of a JSON body; ``None`` where there is none.
        required: names of fields without which it is refused.
        answers: media types of its answer.
        status: of an answer without fault.
        binary: the body is a file.
    """

    method: str
    path: str
    summary: str
    dialect: Dialect
    fields: Fields | None = None
    required: tuple[str, ...] = ()
    answers: tuple[str, ...] = (JSON,)
    status: int = 200
    binary: bool = False


def supported(**schemas: Json) -> Fields:
    """Fields that do what they say."""
    return {name: Field(schema=schema, verdict="supported") for name, schema in schemas.items()}


def refused(**schemas: Json) -> Fields:
    """Fields that are answered with an error."""
    return {name: Field(schema=schema, verdict="refused") for name, schema in schemas.items()}


def ignored(*names: str) -> Fields:
    """Fields that are accepted without effect."""
    return {name: Field(schema=ANYTHING, verdict="ignored") for name in names}


def array(items: Json) -> Json:
    """The schema of an array."""
    return {"type": "array", "items": items}


def one_of(*values: str) -> Json:
    """The schema of a text out of some."""
    return {"type": "string", "enum": list(values)}


def record(required: Sequence[str] = (), **properties: Json) -> Json:
    """The schema of an object."""
    return {"type": "object", "properties": properties, "required": list(required)}


def document(operations: Sequence[Operation], *, version: str) -> Json:
    """The whole document.

    Args:
        operations: the table.
        version: of this software.
    """
    paths: dict[str, Json] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Satchel",
            "version": version,
            "description": "Ollama's, OpenAI's and Anthropic's APIs on a machine no network "
            "reaches. Fields that are not listed are ignored.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"bearer": []}, {"apiKey": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "schemas": {"Options": _options(), **_ERRORS},
        },
    }


def _operation(operation: Operation) -> Json:
    words = re.findall(r"\w+", f"{operation.method} {operation.path}")
    body: Json = {
        "operationId": "_".join(words).lower(),
        "summary": operation.summary,
        "tags": [operation.dialect],
        "responses": _responses(operation),
    }
    names = re.findall(r"\{(\w+)\}", operation.path)
    if names:
        body["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": STRING} for name in names
        ]
    if operation.binary:
        body["requestBody"] = {"required": True, "content": {BYTES: {}}}
    if operation.fields is not None:
        schema = _body(operation.fields, operation.required)
        body["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    return body


def _body(fields: Fields, required: tuple[str, ...]) -> Json:
    properties = {name: {**one.schema, "description": one.verdict} for name, one in fields.items()}
    return {"type": "object", "properties": properties, "required": list(required)}


def _responses(operation: Operation) -> Json:
    error = {"$ref": f"#/components/schemas/{operation.dialect}Error"}
    errors = {JSON: {"schema": error}, TEXT: {"schema": STRING}}
    answer: Json = {"description": "The answer."}
    if operation.answers:
        answer["content"] = {media: {} for media in operation.answers}
    return {
        str(operation.status): answer,
        "4XX": {"description": "The request is refused.", "content": errors},
        "5XX": {"description": "The request could not be answered.", "content": errors},
    }


def _options() -> Json:
    """Ollama's options, from the rules they are read by."""
    properties = {name: _option(rule) for name, rule in OPTIONS.items()}
    properties["request_timeout"] = {"type": "number", "exclusiveMinimum": 0}
    return {"type": "object", "properties": properties}


def _option(rule: Rule) -> Json:
    match rule.kind:
        case "boolean":
            return BOOLEAN
        case "array":
            return STRINGS
        case "bias":
            return {"type": "object", "additionalProperties": NUMBER}
        case _:
            kind = "integer" if rule.kind == "integer" else "number"
            least = "exclusiveMinimum" if rule.positive else "minimum"
            return {"type": kind, least: rule.at_least, "maximum": rule.at_most}


_ERRORS: Mapping[str, Json] = {
    "OllamaError": record(("error",), error=STRING),
    "probesError": record(("error",), error=STRING),
    "OpenAIError": record(
        ("error",),
        error=record(
            ("message", "type"), message=STRING, type=STRING, param=ANYTHING, code=ANYTHING
        ),
    ),
    "AnthropicError": record(
        ("type", "error", "request_id"),
        type=one_of("error"),
        error=record(("type", "message"), type=STRING, message=STRING),
        request_id=STRING,
    ),
}
