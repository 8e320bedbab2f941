"""The rows of `operations` that OpenAI has, and one that takes the same fields."""

from __future__ import annotations

from server.api import openapi
from server.api.openapi import (
    ANYTHING,
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
    refused,
    supported,
)
from server.api.operations_ollama import LORA, RERANK, TOOL

SAMPLING: Fields = supported(
    temperature=NUMBER,
    top_p=NUMBER,
    seed=INTEGER,
    frequency_penalty=NUMBER,
    presence_penalty=NUMBER,
    logit_bias={
        "type": "object",
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
    },
    options=NATIVE_OPTIONS,
    grammar=STRING,
    lora=LORA,
    keep_alive=KEEP_ALIVE,
)
_STOP: Json = {"anyOf": [STRING, STRINGS]}
_STREAM: Fields = supported(
    model=STRING, stream=BOOLEAN, stream_options=record(include_usage=BOOLEAN)
)
_SCHEMA: Json = record(name=STRING, schema=OBJECT, strict=BOOLEAN)
_GRAMMAR: Json = {
    "syntax": one_of("gbnf", "lark", "regex"),
    "definition": STRING,
    "grammar": STRING,
    "pattern": STRING,
}
_EFFORT: Json = one_of("none", "minimal", "low", "medium", "high", "xhigh", "max")
_CALLED: Json = record(("name", "arguments"), name=STRING, arguments=STRING)
_CHAT_MESSAGE: Json = record(
    ("role", "content"),
    role=one_of("system", "developer", "user", "assistant", "tool"),
    content={
        "anyOf": [
            STRING,
            array(
                record(
                    ("type",),
                    type=one_of("text", "refusal", "image_url"),
                    text=STRING,
                    refusal=STRING,
                    image_url={"anyOf": [STRING, record(url=STRING)]},
                )
            ),
        ]
    },
    name=STRING,
    reasoning=STRING,
    tool_calls=array(record(("function",), id=STRING, function=_CALLED)),
    tool_call_id=STRING,
)
_CHOICE: Json = {"anyOf": [one_of("none", "auto", "required"), OBJECT]}
_ITEM: Json = {
    "anyOf": [
        record(
            ("role", "content"),
            role=one_of("system", "developer", "user", "assistant"),
            content={
                "anyOf": [
                    STRING,
                    array(record(("type",), type=one_of("input_text", "output_text"), text=STRING)),
                ]
            },
        ),
        record(
            ("type", "call_id", "name"),
            type=one_of("function_call"),
            call_id=STRING,
            name=STRING,
            arguments=one_of("{}", "", '{"x":1}', "["),
        ),
        record(
            ("type", "call_id", "output"),
            type=one_of("function_call_output"),
            call_id=STRING,
            output=STRING,
        ),
        record(("type",), type=one_of("reasoning"), encrypted_content=STRING),
    ]
}

_CHAT: Fields = {
    **_STREAM,
    **SAMPLING,
    **supported(
        messages=array(_CHAT_MESSAGE),
        max_tokens=INTEGER,
        max_completion_tokens=INTEGER,
        n={"type": "integer", "minimum": 1, "maximum": 128},
        stop=_STOP,
        response_format=record(
            type=one_of("text", "json_object", "json_schema", "grammar", "regex"),
            json_schema=_SCHEMA,
            **_GRAMMAR,
        ),
        tools=array(TOOL),
        tool_choice=_CHOICE,
        parallel_tool_calls=BOOLEAN,
        reasoning_effort=_EFFORT,
        reasoning=record(effort=_EFFORT),
        logprobs=BOOLEAN,
        top_logprobs={"type": "integer", "minimum": 0, "maximum": 20},
    ),
    **ignored(
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "verbosity",
        "prediction",
        "modalities",
        "audio",
        "web_search_options",
        "functions",
        "function_call",
    ),
}

OPENAI = (
    Operation(
        method="POST",
        path="/v1/chat/completions",
        summary="Continue a conversation.",
        dialect="OpenAI",
        fields=_CHAT,
        required=("model", "messages"),
        answers=(openapi.JSON, SSE),
    ),
    Operation(
        method="POST",
        path="/v1/completions",
        summary="Complete some prompts.",
        dialect="OpenAI",
        fields={
            **_STREAM,
            **SAMPLING,
            **supported(
                prompt={
                    "anyOf": [
                        STRING,
                        array(STRING),
                        array(INTEGER),
                        array({"anyOf": [STRING, array(INTEGER)]}),
                    ]
                },
                suffix=STRING,
                max_tokens=INTEGER,
                stop=_STOP,
                logprobs={"type": "integer", "minimum": 0, "maximum": 20},
                echo=BOOLEAN,
                n={"type": "integer", "minimum": 1, "maximum": 128},
                best_of={"type": "integer", "minimum": 1, "maximum": 128},
                raw=BOOLEAN,
            ),
            **ignored("user"),
        },
        required=("model",),
        answers=(openapi.JSON, SSE),
    ),
    Operation(
        method="POST",
        path="/v1/responses",
        summary="Answer; nothing is kept.",
        dialect="OpenAI",
        fields={
            **SAMPLING,
            **supported(
                model=STRING,
                input={"anyOf": [STRING, array(_ITEM)]},
                instructions=STRING,
                stream=BOOLEAN,
                max_output_tokens=INTEGER,
                text=record(
                    format=record(
                        type=one_of("text", "json_object", "json_schema", "grammar", "regex"),
                        schema=OBJECT,
                        strict=BOOLEAN,
                        **_GRAMMAR,
                    )
                ),
                tools=array(
                    record(
                        ("type", "name"),
                        type=one_of("function"),
                        name=STRING,
                        parameters=OBJECT,
                        strict=BOOLEAN,
                    )
                ),
                tool_choice=_CHOICE,
                parallel_tool_calls=BOOLEAN,
                reasoning=record(effort=_EFFORT, summary=STRING),
                truncation=one_of("auto", "disabled"),
                include=STRINGS,
                top_logprobs={"type": "integer", "minimum": 0, "maximum": 20},
            ),
            **refused(
                previous_response_id=STRING,
                conversation=ANYTHING,
                background=BOOLEAN,
                prompt=OBJECT,
            ),
            **ignored(
                "store",
                "metadata",
                "user",
                "service_tier",
                "safety_identifier",
                "prompt_cache_key",
                "max_tool_calls",
            ),
        },
        required=("model", "input"),
        answers=(openapi.JSON, SSE),
    ),
    Operation(
        method="POST",
        path="/v1/embeddings",
        summary="Vectors of some texts.",
        dialect="OpenAI",
        fields={
            **supported(
                model=STRING,
                input={"anyOf": [STRING, STRINGS, array(INTEGER), array(array(INTEGER))]},
                encoding_format=one_of("float", "base64"),
                dimensions=INTEGER,
                options=NATIVE_OPTIONS,
                keep_alive=KEEP_ALIVE,
            ),
            **ignored("user"),
        },
        required=("model", "input"),
    ),
    Operation(
        method="POST",
        path="/v1/rerank",
        summary="Documents by their relevance.",
        dialect="OpenAI",
        fields=RERANK,
        required=("model", "query", "documents"),
    ),
    Operation(
        method="POST",
        path="/apply-template",
        summary="The prompt a conversation comes to.",
        dialect="Ollama",
        fields=_CHAT,
        required=("model", "messages"),
    ),
    Operation(method="GET", path="/v1/models", summary="Installed models.", dialect="OpenAI"),
    Operation(
        method="GET", path="/v1/models/{model}", summary="One installed model.", dialect="OpenAI"
    ),
)
