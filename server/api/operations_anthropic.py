"""The rows of `operations` that Anthropic has."""

from __future__ import annotations

from server.api import openapi
from server.api.openapi import (
    BASE64,
    BOOLEAN,
    INTEGER,
    KEEP_ALIVE,
    NATIVE_OPTIONS,
    NUMBER,
    OBJECT,
    SSE,
    STRING,
    STRINGS,
    Fields,
    Json,
    Operation,
    array,
    ignored,
    one_of,
    record,
    supported,
)

_BLOCK: Json = {
    "anyOf": [
        record(("type", "text"), type=one_of("text"), text=STRING),
        record(("type", "thinking"), type=one_of("thinking"), thinking=STRING),
        record(
            ("type", "id", "name", "input"),
            type=one_of("tool_use"),
            id=STRING,
            name=STRING,
            input=OBJECT,
        ),
        record(
            ("type", "tool_use_id"),
            type=one_of("tool_result"),
            tool_use_id=STRING,
            content=STRING,
        ),
        record(
            ("type", "source"),
            type=one_of("image"),
            source=record(type=one_of("base64"), media_type=STRING, data=BASE64),
        ),
    ]
}
_TEXTS: Json = {
    "anyOf": [STRING, array(record(("type", "text"), type=one_of("text"), text=STRING))]
}
_CONVERSATION: Fields = {
    **supported(
        model=STRING,
        messages=array(
            record(
                ("role", "content"),
                role=one_of("user", "assistant", "system"),
                content={"anyOf": [STRING, array(_BLOCK)]},
            )
        ),
        system=_TEXTS,
        stream=BOOLEAN,
        temperature=NUMBER,
        top_p=NUMBER,
        top_k=INTEGER,
        stop_sequences=STRINGS,
        tools=array(
            record(("name",), name=STRING, description=STRING, input_schema=OBJECT, strict=BOOLEAN)
        ),
        tool_choice=record(("type",), type=one_of("auto", "any", "tool", "none"), name=STRING),
        thinking=record(
            ("type",), type=one_of("enabled", "adaptive", "disabled"), budget_tokens=INTEGER
        ),
        output_config=record(effort=one_of("low", "medium", "high", "xhigh", "max")),
        output_format=record(("type",), type=one_of("json_schema"), schema=OBJECT),
        options=NATIVE_OPTIONS,
        keep_alive=KEEP_ALIVE,
    ),
    **ignored("metadata", "service_tier", "container", "speed", "inference_geo", "diagnostics"),
}

ANTHROPIC = (
    Operation(
        method="POST",
        path="/v1/messages",
        summary="Continue a conversation.",
        dialect="Anthropic",
        fields={**_CONVERSATION, **supported(max_tokens={"type": "integer", "minimum": 1})},
        required=("model", "max_tokens", "messages"),
        answers=(openapi.JSON, SSE),
    ),
    Operation(
        method="POST",
        path="/v1/messages/count_tokens",
        summary="Count the tokens of a conversation.",
        dialect="Anthropic",
        fields=_CONVERSATION,
        required=("model", "messages"),
    ),
)
