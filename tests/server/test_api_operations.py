"""The table of operations, the server's routes and docs/http-api.md say the same."""

from __future__ import annotations

import re
from pathlib import Path

import falcon.inspect
import jsonschema
import pytest

from server.api.openapi import Operation, document
from server.api.operations import OPERATIONS
from tests.functional.live import LiveServer

DOCUMENT = (Path(__file__).parents[2] / "docs" / "http-api.md").read_text()
DESCRIBED_ELSEWHERE = {
    "/v1/messages/count_tokens",
    "/apply-template",
    "/rerank",
    "/api/tokenize",
    "/api/detokenize",
}
"""Their sections say that they take the fields of another one."""

SECTIONS = dict(
    re.findall(r"^## `(\w+ /\S*)`$\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
)
ROW = re.compile(r"^\| (`[^|]*) \| ([^|]*(?:\\\|[^|]*)*) \|$", re.MULTILINE)


def documented(section: str) -> dict[str, str]:
    """The fields of the tables that have ``field`` above them, with their verdicts.

    ``reasoning.effort`` and ``messages[].role`` speak of ``reasoning`` and ``messages``; one
    supported part makes the whole supported.
    """
    found: dict[str, str] = {}
    for table in re.findall(r"^\| field \| \|\n\|---\|---\|\n((?:\|.*\n)+)", section, re.MULTILINE):
        for names, text in ROW.findall(table):
            verdict = re.search(r"supported|ignored|refused", text)
            assert verdict is not None, f"{names}: neither supported, ignored nor refused"
            for name in re.findall(r"`([\w.\[\]]+)`", names):
                top = re.split(r"[.\[]", name)[0]
                if top and found.get(top) != "supported":
                    found[top] = verdict[0]
    return found


def called(operation: Operation) -> str:
    return f"{operation.method} {operation.path}"


def test_table_has_the_routes_of_the_server(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as server:
        served = {
            f"{method.method} {route.path.replace(':path', '')}"
            for route in falcon.inspect.inspect_routes(server.app)
            for method in route.methods
            if not method.internal and method.method != "HEAD"
        }
    assert {called(operation) for operation in OPERATIONS} == served


def test_document_has_the_routes_of_the_table() -> None:
    assert {called(operation) for operation in OPERATIONS} == set(SECTIONS)


def test_each_operation_stands_once() -> None:
    names = [called(operation) for operation in OPERATIONS]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    "operation",
    [one for one in OPERATIONS if one.path not in DESCRIBED_ELSEWHERE],
    ids=called,
)
def test_document_and_table_agree_on_each_field(operation: Operation) -> None:
    table = {name: field.verdict for name, field in (operation.fields or {}).items()}
    assert documented(SECTIONS[called(operation)]) == table


def test_required_fields_are_fields() -> None:
    for operation in OPERATIONS:
        assert set(operation.required) <= set(operation.fields or {}), called(operation)


def test_schemas_are_schemas() -> None:
    made = document(OPERATIONS, version="1")
    schemas = [
        content["schema"]
        for path in made["paths"].values()
        for operation in path.values()
        for content in operation.get("requestBody", {}).get("content", {}).values()
        if "schema" in content
    ]
    assert len(schemas) > 8
    for schema in [*schemas, *made["components"]["schemas"].values()]:
        jsonschema.Draft202012Validator.check_schema(schema)
