"""schemathesis reads our OpenAPI document and sends what it allows, and what it does not.

Whatever it sends, it gets an answer or a refusal in the dialect of the path: never an internal
error. The engine is not in this; runners repeat a scripted answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.specs.openapi.schemas import OpenApiSchema

from server.api.openapi import Operation
from server.api.operations import OPERATIONS
from tests.functional.live import FIM, THINKING_TEMPLATE, TOOLS_TEMPLATE, LiveServer, put_model

MODELS = ["tiny", "everything", "embedder", "ranker", "absent"]
DESTROYING = {"/api/delete", "/api/copy", "/api/create"}
"""What is called with names that are not those of the models the other calls need."""


JOBS = {"/api/pull", "/api/push"}
"""Each call starts a process; a model that is nowhere is 500, in Ollama's words."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("server")
    script = {"words": ["<think>hm</think>", "Hello ", "world"]}
    with LiveServer(folder, script=script) as live:
        template = TOOLS_TEMPLATE + THINKING_TEMPLATE
        put_model(live.store, "everything", folder, template=template, header=FIM)
        put_model(live.store, "embedder", folder, header={"llama.pooling_type": 1})
        put_model(live.store, "ranker", folder, header={"llama.pooling_type": 4})
        yield live


@pytest.fixture(scope="module")
def made(server: LiveServer) -> Any:
    status, data = server.ask("GET", "/openapi.json")
    assert status == 200
    return json.loads(data)


@pytest.fixture
def described(server: LiveServer, made: Any) -> OpenApiSchema:
    """The document, with the names of models that are there."""
    for path, methods in made["paths"].items():
        for operation in methods.values():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            fields = body.get("schema", {}).get("properties", {})
            if fields:  # few at a time, or something is always refused
                body["schema"]["maxProperties"] = len(body["schema"]["required"]) + 3
            if "messages" in fields:
                fields["messages"] |= {"minItems": 1, "maxItems": 3}
            if "model" in fields and path not in DESTROYING:
                fields["model"]["enum"] = MODELS
            options = made["components"]["schemas"]["Options"]["properties"]
            options["num_predict"] = {"type": "integer", "enum": [-1, 0, 1, 9]}
    schema = schemathesis.openapi.from_dict(made)
    schema.app = server.app
    return schema


def test_document_is_openapi(made: Any) -> None:
    assert made["openapi"] == "3.1.0"
    assert made["info"]["title"] == "Satchel"
    assert "/v1/chat/completions" in made["paths"]
    schema = schemathesis.openapi.from_dict(made)
    assert sum(1 for _ in schema.get_all_operations()) > 20


POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE


CALLS = [
    pytest.param(one, mode, id=f"{one.method} {one.path} {mode.value}")
    for one in OPERATIONS
    for mode in (POSITIVE, NEGATIVE)
    if mode is POSITIVE or one.fields
]


def examples(called: Operation, mode: schemathesis.GenerationMode) -> int:
    if not called.fields or called.path in JOBS:
        return 5
    return 60 if mode is POSITIVE else 20


@pytest.mark.parametrize(("called", "mode"), CALLS)
def test_no_call_is_an_internal_error(
    described: OpenApiSchema, made: Any, called: Operation, mode: schemathesis.GenerationMode
) -> None:
    seen: set[int] = set()

    @seed(20260801)
    @settings(
        max_examples=examples(called, mode),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=described[called.path][called.method].as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case[Any]) -> None:
        response = case.call()
        status = response.status_code
        seen.add(status)
        nowhere = called.path in JOBS and b"file does not exist" in response.content
        assert status not in {500, 501, 502} or nowhere, response.content
        if status < 400:
            return
        kind = response.headers["content-type"][0]
        if kind.startswith("text/plain"):
            assert status in {404, 405}
            return
        jsonschema.validate(
            json.loads(response.content),
            made["components"]["schemas"][f"{called.dialect}Error"],
        )

    ask()
    if mode is POSITIVE and called.fields and called.path not in DESTROYING | JOBS:
        assert 200 in seen, seen  # it reached a model
