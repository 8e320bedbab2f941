"""The rows of `operations` that Ollama and llama-server have."""

from __future__ import annotations

from server.api import openapi
from server.api.infill import OPTIONS as INFILL_OPTIONS
from server.api.openapi import (
    ANYTHING,
    BASE64,
    BOOLEAN,
    INTEGER,
    KEEP_ALIVE,
    NATIVE_OPTIONS,
    NDJSON,
    OBJECT,
    SSE,
    STRING,
    STRINGS,
    TEXT,
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

_FUNCTION: Json = record(
    ("name",), name=STRING, description=STRING, parameters=OBJECT, strict=BOOLEAN
)
TOOL: Json = record(("function",), type=one_of("function"), function=_FUNCTION)
_MESSAGE: Json = record(
    ("role",),
    role=one_of("system", "user", "assistant", "tool"),
    content=STRING,
    thinking=STRING,
    images=array(BASE64),
    tool_calls=array(record(function=record(("name",), name=STRING, arguments=OBJECT))),
    tool_name=STRING,
    tool_call_id=STRING,
)
LORA: Json = array(record(("id", "scale"), id=INTEGER, scale={"type": "number"}))
_NATIVE: Fields = supported(
    model=STRING,
    stream=BOOLEAN,
    format={"anyOf": [one_of("json", ""), OBJECT]},
    keep_alive=KEEP_ALIVE,
    options=NATIVE_OPTIONS,
    grammar=STRING,
    lora=LORA,
    think={"anyOf": [BOOLEAN, one_of("low", "medium", "high", "max")]},
    truncate=BOOLEAN,
    shift=BOOLEAN,
    logprobs=BOOLEAN,
    top_logprobs={"type": "integer", "minimum": 0, "maximum": 20},
    _debug_render_only=BOOLEAN,
)

OLLAMA = (
    Operation(
        method="GET", path="/", summary="Is anybody at home?", dialect="Ollama", answers=(TEXT,)
    ),
    Operation(method="GET", path="/api/version", summary="An Ollama release.", dialect="Ollama"),
    Operation(method="GET", path="/api/tags", summary="Installed models.", dialect="Ollama"),
    Operation(method="GET", path="/api/ps", summary="Models in memory.", dialect="Ollama"),
    Operation(
        method="POST",
        path="/api/show",
        summary="Everything about one model.",
        dialect="Ollama",
        fields={
            **supported(model=STRING, name=STRING, verbose=BOOLEAN, system=STRING),
            **ignored("template", "options"),
        },
    ),
    Operation(
        method="POST",
        path="/api/copy",
        summary="One more name for a model.",
        dialect="Ollama",
        fields=supported(source=STRING, destination=STRING),
        required=("source", "destination"),
        answers=(),
    ),
    Operation(
        method="DELETE",
        path="/api/delete",
        summary="Remove a name, and the files nothing else needs.",
        dialect="Ollama",
        fields=supported(model=STRING, name=STRING),
        answers=(),
    ),
    *(
        Operation(
            method="POST",
            path=path,
            summary=summary,
            dialect="Ollama",
            fields={
                **supported(model=STRING, name=STRING, stream=BOOLEAN),
                **ignored("insecure", "username", "password"),
            },
            answers=(NDJSON, openapi.JSON),
        )
        for path, summary in (
            ("/api/pull", "Import a model from a medium."),
            ("/api/push", "Copy a model to a directory."),
        )
    ),
    Operation(
        method="POST",
        path="/api/create",
        summary="Make a model.",
        dialect="Ollama",
        fields={
            **supported(
                model=STRING,
                name=STRING,
                files={"type": "object", "additionalProperties": STRING},
                adapters={"type": "object", "additionalProperties": STRING},
                draft_files={"type": "object", "additionalProperties": STRING},
                quantize=STRING,
                draft_quantize=STRING,
                quantization=STRING,
                template=STRING,
                system=STRING,
                renderer=STRING,
                parser=STRING,
                requires=STRING,
                license={"anyOf": [STRING, STRINGS]},
                parameters=OBJECT,
                messages=array(record(("role",), role=STRING, content=STRING)),
                info=OBJECT,
                modelfile=STRING,
                stream=BOOLEAN,
            ),
            **supported(**{"from": STRING}),
            **refused(path=STRING, remote_host=STRING),
        },
        answers=(NDJSON, openapi.JSON),
    ),
    Operation(
        method="POST",
        path="/api/blobs/{digest}",
        summary="Take a file.",
        dialect="Ollama",
        answers=(),
        status=201,
        binary=True,
    ),
    Operation(
        method="POST",
        path="/api/generate",
        summary="Complete a prompt.",
        dialect="Ollama",
        fields={
            **_NATIVE,
            **supported(
                prompt=STRING,
                suffix=STRING,
                system=STRING,
                template=STRING,
                context=array(INTEGER),
                raw=BOOLEAN,
                images=array(BASE64),
            ),
        },
        required=("model",),
        answers=(NDJSON, openapi.JSON),
    ),
    Operation(
        method="POST",
        path="/api/chat",
        summary="Continue a conversation.",
        dialect="Ollama",
        fields={**_NATIVE, **supported(messages=array(_MESSAGE), tools=array(TOOL))},
        required=("model",),
        answers=(NDJSON, openapi.JSON),
    ),
    Operation(
        method="GET", path="/api/status", summary="There is no cloud here.", dialect="Ollama"
    ),
    Operation(method="POST", path="/api/me", summary="Nobody is signed in.", dialect="Ollama"),
    Operation(method="POST", path="/api/signout", summary="Nobody is signed in.", dialect="Ollama"),
    Operation(
        method="DELETE",
        path="/api/user/keys/{key}",
        summary="Nobody is signed in.",
        dialect="Ollama",
    ),
    Operation(
        method="POST",
        path="/api/experimental/web_search",
        summary="Refused: nothing leaves this machine.",
        dialect="Ollama",
    ),
    Operation(
        method="POST",
        path="/api/experimental/web_fetch",
        summary="Refused: nothing leaves this machine.",
        dialect="Ollama",
    ),
    Operation(
        method="GET",
        path="/api/experimental/model-recommendations",
        summary="Installed models.",
        dialect="Ollama",
    ),
)

_NAMED_MODEL: Fields = supported(model=STRING, options=NATIVE_OPTIONS, keep_alive=KEEP_ALIVE)
_TOKENIZE: Fields = {
    **_NAMED_MODEL,
    **supported(
        content=STRING, text=STRING, add_special=BOOLEAN, parse_special=BOOLEAN, with_pieces=BOOLEAN
    ),
}
_DETOKENIZE: Fields = {**_NAMED_MODEL, **supported(tokens=array(INTEGER))}
_INFILL: Fields = {
    **_NAMED_MODEL,
    **supported(
        input_prefix=STRING,
        input_suffix=STRING,
        input_extra=array(record(("text",), text=STRING, filename=STRING)),
        prompt=STRING,
        n_predict=INTEGER,
        n_keep=INTEGER,
        t_max_predict_ms=INTEGER,
        stream=BOOLEAN,
        response_fields=STRINGS,
        logit_bias=ANYTHING,
        grammar=STRING,
        json_schema=OBJECT,
        max_tokens=INTEGER,
        **dict.fromkeys(INFILL_OPTIONS, ANYTHING),
    ),
    **ignored(
        "n_indent",
        "t_max_prompt_ms",
        "cache_prompt",
        "samplers",
        "id_slot",
        "n_probs",
        "return_tokens",
        "ignore_eos",
    ),
}
RERANK: Fields = {
    **_NAMED_MODEL,
    **supported(
        query=STRING,
        documents=array({"anyOf": [STRING, record(("text",), text=STRING)]}),
        top_n=INTEGER,
        return_documents=BOOLEAN,
        truncate=BOOLEAN,
    ),
}

OLLAMA_TEXTS = (
    Operation(
        method="POST",
        path="/api/embed",
        summary="Vectors of some texts.",
        dialect="Ollama",
        fields={
            **_NAMED_MODEL,
            **supported(input={"anyOf": [STRING, STRINGS]}, truncate=BOOLEAN, dimensions=INTEGER),
        },
        required=("model",),
    ),
    Operation(
        method="POST",
        path="/api/embeddings",
        summary="The vector of a text.",
        dialect="Ollama",
        fields={**_NAMED_MODEL, **supported(prompt=STRING)},
        required=("model",),
    ),
    Operation(
        method="POST",
        path="/rerank",
        summary="Documents by their relevance.",
        dialect="Ollama",
        fields=RERANK,
        required=("model", "query", "documents"),
    ),
    Operation(
        method="POST",
        path="/infill",
        summary="What stands between two texts, as llama-server's editors ask for it.",
        dialect="OpenAI",
        fields=_INFILL,
        required=("input_prefix", "input_suffix"),
        answers=(openapi.JSON, SSE),
    ),
    *(
        Operation(
            method="POST",
            path=path,
            summary="Tokens of a text.",
            dialect="Ollama",
            fields=_TOKENIZE,
            required=("model",),
        )
        for path in ("/tokenize", "/api/tokenize")
    ),
    *(
        Operation(
            method="POST",
            path=path,
            summary="The text of tokens.",
            dialect="Ollama",
            fields=_DETOKENIZE,
            required=("model",),
        )
        for path in ("/detokenize", "/api/detokenize")
    ),
)
