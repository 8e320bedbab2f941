"""The table of everything this server answers: one row per method and path.

``docs/http-api.md`` says the same in words; a test compares the two. A new field or route is
added here and there.
"""

from __future__ import annotations

from server.api.openapi import Operation
from server.api.operations_anthropic import ANTHROPIC
from server.api.operations_ollama import OLLAMA, OLLAMA_TEXTS
from server.api.operations_openai import OPENAI

PROBES = (
    Operation(method="GET", path="/healthz", summary="The process answers.", dialect="probes"),
    Operation(method="GET", path="/readyz", summary="A request would be served.", dialect="probes"),
    Operation(method="GET", path="/openapi.json", summary="This document.", dialect="probes"),
)

OPERATIONS = (*OLLAMA, *OLLAMA_TEXTS, *OPENAI, *ANTHROPIC, *PROBES)
