"""Whatever a client sends, it gets an answer or a refusal; never an internal error."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.anthropic_parse import parse_count, parse_messages
from server.api.body import Fields, read_object
from server.api.completions_parse import parse_completion
from server.api.ollama_parse import parse_chat, parse_generate
from server.api.openai_parse import parse_chat_completion
from server.api.responses_parse import parse_response
from server.errors import BadRequestError, ForbiddenError

PARSERS = (
    parse_chat,
    parse_generate,
    parse_chat_completion,
    parse_completion,
    parse_messages,
    parse_count,
    parse_response,
)

NAMES = st.sampled_from(
    [
        *("model", "prompt", "suffix", "system", "template", "context", "stream", "raw", "format"),
        *("keep_alive", "images", "think", "truncate", "shift", "logprobs", "top_logprobs"),
        *("messages", "tools", "options", "role", "content", "tool_calls", "tool_call_id", "id"),
        *("function", "name", "arguments", "parameters", "type", "text", "image_url", "url"),
        *("stop", "max_tokens", "response_format", "json_schema", "schema", "reasoning"),
        *("reasoning_effort", "effort", "stream_options", "tool_choice", "max_tokens"),
        *("source", "data", "input", "tool_use_id", "thinking", "input_schema", "output_config"),
        *("n", "best_of", "echo", "seed"),
        *("input", "instructions", "include", "truncation", "call_id", "output", "summary"),
    ]
)
TEXTS = st.sampled_from(
    [
        "",
        "user",
        "json",
        "high",
        "5m",
        "text",
        "image_url",
        "image",
        "base64",
        "tool_use",
        "tool_result",
        "thinking",
        "enabled",
        "function_call",
        "function_call_output",
        "input_text",
        "reasoning",
        "namespace",
        "json_schema",
        "{}",
        "[",
        "AAAA",
        "data:;base64,AAAA",
        "http://x",
        "none",
    ]
) | st.text(max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=16,
)
BODIES = st.dictionaries(NAMES, VALUES, max_size=6)


@settings(deadline=None, max_examples=500)
@given(body=BODIES)
def test_any_fields_are_read_or_refused(body: dict[str, Any]) -> None:
    for parse in PARSERS:
        try:
            parse(Fields(values={"model": "m", "max_tokens": 1, **body}))
        except (BadRequestError, ForbiddenError):
            continue


@settings(deadline=None, max_examples=200)
@given(body=BODIES)
def test_any_body_is_read_or_refused(body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    for parse in PARSERS:
        try:
            parse(read_object(data))
        except (BadRequestError, ForbiddenError):
            continue
