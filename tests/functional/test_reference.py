"""Ollama's surface row by row, in the order of its sections: what each call answers, to the letter.

A row is a request and what must come back. A text is the error; an object is laid over the answer,
field by field; `ABSENT` stands for a field that must not be there. Rows that differ from Ollama on
purpose say so, and docs/http-api.md says why.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.functional.live import (
    FIM,
    THINKING_TEMPLATE,
    TOOLS_TEMPLATE,
    LiveServer,
    put_model,
)

ABSENT = object()
"""A field that must not be there."""


class Matching:
    """Anything that a condition holds for."""

    def __init__(self, holds: Callable[[Any], bool], said: str) -> None:
        self._holds = holds
        self._said = said

    def __eq__(self, other: object) -> bool:
        return self._holds(other)

    def __hash__(self) -> int:
        return hash(self._said)

    def __repr__(self) -> str:
        return self._said


def like(pattern: str) -> Matching:
    """A text of this form."""
    return Matching(lambda found: bool(re.fullmatch(pattern, str(found), re.DOTALL)), pattern)


NUMBER = Matching(lambda found: isinstance(found, int) and not isinstance(found, bool), "number")
VECTOR = Matching(lambda found: isinstance(found, list) and bool(found), "vector")
FULL = "registry.ollama.ai/library/"
HI: dict[str, Any] = {"prompt": "hi", "stream": False}
USER = {"role": "user", "content": "q"}
CHAT: dict[str, Any] = {"messages": [USER], "stream": False}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
THINK_FORMS = '(must be "high", "medium", "low", "max", true, or false)'
CLOUD = "ollama cloud is disabled: "
V1 = "/v1/chat/completions"
PNG = "iVBORw0KGgo="

Row = tuple[str, dict[str, Any] | bytes | None, int, Any]

GENERATE: list[Row] = [
    # order of checks: body, top_logprobs, name, existence, unload, raw, think, options
    ("generate", b"{", 400, like("request body: expected JSON, .*")),
    ("generate", {"top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
    ("generate", {"model": "absent", "top_logprobs": -1}, 400,
     "top_logprobs must be between 0 and 20"),
    ("generate", {"model": "absent", "think": "hot"}, 400,
     f'invalid think value: "hot" {THINK_FORMS}'),
    ("generate", {"model": "absent", "keep_alive": "300"}, 400,
     'time: missing unit in duration "300"'),
    ("generate", {"model": "absent", "format": "xml"}, 404, "model 'absent' not found"),
    ("generate", {"model": "absent", "raw": True, "system": "s"}, 404, "model 'absent' not found"),
    ("generate", {"model": "tiny", "keep_alive": 0, "raw": True, "system": "s"}, 200,
     {"done_reason": "unload", "response": "", "done": True, "context": ABSENT}),
    ("generate", {"model": "tiny", "raw": True, "system": "s"}, 400,
     "raw mode does not support template, system, or context"),
    ("generate", {"model": "tiny", **HI, "raw": True, "context": [1], "think": True}, 400,
     "raw mode does not support template, system, or context"),
    ("generate", {"model": "embedder", "think": True}, 400, '"embedder" does not support thinking'),
    ("generate", {"model": "embedder"}, 400, '"embedder" does not support generate'),
    ("generate", {"model": "tiny", **HI, "think": True, "options": {"seed": "x"}}, 400,
     '"tiny" does not support thinking'),
    ("generate", {"model": "tiny", **HI, "format": "xml"}, 400,
     'invalid format: "xml"; expected "json" or a valid JSON Schema object'),
    ("generate", {"model": "tiny", **HI, "format": 7}, 400,
     'invalid format: 7; expected "json" or a valid JSON Schema object'),
    # names
    ("generate", {"model": " tiny ", **HI}, 200, {"model": " tiny "}),
    ("generate", {"model": "TINY:LATEST", **HI}, 200, {"model": "TINY:LATEST"}),
    ("generate", {"model": "registry.ollama.ai/library/tiny", **HI}, 200, {"done": True}),
    ("generate", {"model": "tiny:local", **HI}, 200, {"model": "tiny:local"}),
    ("generate", {"model": "x-cloud", **HI}, 404, "model 'x-cloud' not found"),
    ("generate", {"model": "x:7b-cloud", **HI}, 403, f"{CLOUD}remote inference is unavailable"),
    ("generate", {"name": "tiny", **HI}, 404, "model '' not found"),
    ("generate", {"model": 7}, 400, "model: expected string, found number"),
    # fields
    ("generate", {"model": "tiny", "prompt": None}, 200, {"done_reason": "load"}),
    ("generate", {"model": "tiny", "prompt": ["a"]}, 400, "prompt: expected string, found array"),
    ("generate", {"model": "tiny", **HI, "nonsense": 1}, 200, {"response": "Hello world"}),
    ("generate", {"model": "tiny", **HI, "format": ""}, 200, {"done": True}),
    ("generate", {"model": "tiny", **HI, "format": None}, 200, {"done": True}),
    ("generate", {"model": "tiny", **HI, "think": False}, 200, {"thinking": ABSENT}),
    ("generate", {"model": "tiny", **HI, "think": 1}, 400,
     'think must be a boolean or string ("high", "medium", "low", "max", true, or false)'),
    ("generate", {"model": "tiny", **HI, "images": ["a"]}, 400,
     "images[0]: expected base64 string, found other text"),
    ("generate", {"model": "tiny", **HI, "images": ["YQ"]}, 400,
     "images[0]: expected base64 string, found other text"),
    ("generate", {"model": "tiny", **HI, "images": [PNG]}, 400,
     f"{FULL}tiny:latest does not support vision"),
    ("generate", {"model": "tiny", **HI, "suffix": "x"}, 400,
     f"{FULL}tiny:latest does not support insert"),
    ("generate", {"model": "tiny", **HI, "stream": "no"}, 400,
     "stream: expected boolean, found string"),
    ("generate", {"model": "tiny", **HI, "logprobs": True}, 200,
     {"logprobs": [{"token": "Hello ", "logprob": Matching(lambda p: p <= 0, "<= 0"),
                    "bytes": list(b"Hello "), "top_logprobs": ABSENT},
                   {"token": "world"}]}),
    ("generate", {"model": "tiny", **HI, "top_logprobs": 3}, 200, {"logprobs": ABSENT}),
    ("generate", {"model": "tiny", **HI}, 200,
     {"model": "tiny", "done": True, "done_reason": "stop", "context": VECTOR,
      "total_duration": NUMBER, "prompt_eval_count": NUMBER, "eval_count": 2,
      "eval_duration": NUMBER, "prompt_eval_duration": NUMBER,
      "remote_model": ABSENT, "remote_host": ABSENT, "_debug_info": ABSENT,
      "created_at": like(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")}),
    ("generate", {"model": "tiny", **HI, "raw": True}, 200, {"context": ABSENT}),
    ("generate", {"model": "tiny", **HI, "template": "{{ .Prompt"}, 400,
     "template: :1: unclosed action"),  # Ollama: 500
    ("generate", {"model": "tiny", **HI, "template": "<{{ .Prompt }}>",
                  "_debug_render_only": True}, 200,
     {"_debug_info": {"rendered_template": "<hi>", "image_count": ABSENT}}),
]  # fmt: skip

CHATS: list[Row] = [
    ("chat", {}, 400, "model is required"),
    ("chat", {"model": "a b", **CHAT}, 400, "model is required"),
    ("chat", {"model": "absent", **CHAT}, 404, "model 'absent' not found"),
    ("chat", {"top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
    ("chat", {"model": "absent", "format": "xml"}, 404, "model 'absent' not found"),
    ("chat", {"model": "tiny", "messages": [], "keep_alive": 0}, 200,
     {"message": {"role": "assistant", "content": ""}, "done_reason": "unload", "done": True}),
    ("chat", {"model": "tiny", "keep_alive": "0s"}, 200, {"done_reason": "unload"}),
    ("chat", {"model": "tiny", "messages": None}, 200, {"done_reason": "load"}),
    ("chat", {"model": "tiny", **CHAT, "tools": [TOOL]}, 400,
     f"{FULL}tiny:latest does not support tools"),
    ("chat", {"model": "tiny", **CHAT, "tools": []}, 200, {"done": True}),
    ("chat", {"model": "embedder", **CHAT}, 400, '"embedder" does not support chat'),
    ("chat", {"model": "tiny", "messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400,
     "messages[0].content: expected string, found array"),
    ("chat", {"model": "tiny", "messages": [{"role": "USER", "content": "q"}],
              "_debug_render_only": True}, 200,
     {"_debug_info": {"rendered_template": "[user]q[assistant]"}}),
    ("chat", {"model": "tiny", "messages": [USER, {"role": "assistant", "content": None}, USER],
              "_debug_render_only": True}, 200,
     {"_debug_info": {"rendered_template": "[user]q[assistant][user]q[assistant]"}}),
    ("chat", {"model": "tiny", "messages": [{"role": "critic", "content": "c"}, USER],
              "_debug_render_only": True}, 200,
     {"_debug_info": {"rendered_template": "[critic]c[user]q[assistant]"}}),
    ("chat", {"model": "dressed", **CHAT, "_debug_render_only": True}, 200,
     {"_debug_info": {"rendered_template": "[system]Be kind.[user]one[user]q[assistant]"}}),
    ("chat", {"model": "dressed", "messages": [{"role": "system", "content": "s"}, USER],
              "_debug_render_only": True}, 200,
     {"_debug_info": {"rendered_template": "[user]one[system]s[user]q[assistant]"}}),
    ("chat", {"model": "thinker", **CHAT, "_debug_render_only": True}, 200,
     {"_debug_info": {"rendered_template": "[user]q[assistant]T"}}),
    ("chat", {"model": "thinker", **CHAT, "think": False, "_debug_render_only": True}, 200,
     {"_debug_info": {"rendered_template": "[user]q[assistant]"}}),
    ("chat", {"model": "tiny", **CHAT}, 200,
     {"message": {"role": "assistant", "content": "Hello world", "thinking": ABSENT,
                  "tool_calls": ABSENT},
      "done_reason": "stop", "eval_count": 2, "context": ABSENT}),
    ("chat", {"model": "tiny", "messages": "hi"}, 400, "messages: expected array, found string"),
    ("chat", {"model": "tiny", "messages": ["hi"]}, 400,
     "messages[0]: expected object, found string"),
    ("chat", {"model": "tiny", "messages": [{"content": "q"}]}, 400,
     "messages[0].role: expected string, found nothing"),  # Ollama lets it pass
    ("chat", {"model": "tiny:cloud", **CHAT}, 403, f"{CLOUD}remote inference is unavailable"),
    ("chat", {"model": "tiny:local:cloud", **CHAT}, 400,
     'use either :local or :cloud, not both: "tiny:local:cloud"'),
    ("chat", {"model": "tiny", **CHAT, "options": {"stop": ["a", 1]}}, 400,
     'option "stop" must be of an array of strings'),
]  # fmt: skip

EMBEDS: list[Row] = [
    ("embed", {"model": "absent", "input": {}}, 400, "invalid input type"),
    ("embed", {"model": "absent", "input": "x"}, 404,
     'model "absent" not found, try pulling it first'),
    ("embed", {"model": "", "input": "x"}, 400, "model is required"),
    ("embed", {"model": "absent", "input": ["x", 1]}, 400, "invalid input type"),
    ("embed", {"model": "x:cloud", "input": "x"}, 403, f"{CLOUD}remote inference is unavailable"),
    ("embed", {"model": "embedder"}, 200, {"model": "embedder", "embeddings": []}),
    ("embed", {"model": "embedder", "input": None}, 200, {"embeddings": []}),
    ("embed", {"model": "embedder", "input": ""}, 200, {"embeddings": []}),
    ("embed", {"model": "embedder", "input": []}, 200, {"embeddings": []}),
    ("embed", {"model": "Embedder", "input": "a"}, 200,
     {"model": "Embedder", "embeddings": [VECTOR], "prompt_eval_count": NUMBER,
      "total_duration": NUMBER}),
    ("embed", {"model": "embedder", "input": ["a", "b c"], "dimensions": 2}, 200,
     {"embeddings": Matching(lambda found: [len(one) for one in found] == [2, 2], "2 of 2")}),
    ("embed", {"model": "embedder", "input": "a", "dimensions": 10_000}, 200,
     {"embeddings": [VECTOR]}),
    ("embed", {"model": "embedder", "input": "a", "options": {"num_ctx": "x"}}, 400,
     'option "num_ctx" must be of type integer'),
    ("embed", {"model": "tiny", "input": "a"}, 200, {"embeddings": [VECTOR]}),
    ("embed", {"model": "embedder", "input": "a", "keep_alive": []}, 400,
     "Unsupported type: '[]interface {}'"),
    ("embeddings", {"model": "embedder", "prompt": ""}, 200, {"embedding": []}),
    ("embeddings", {"model": "embedder", "prompt": "a"}, 200, {"embedding": VECTOR}),
    ("embeddings", {"model": "absent", "prompt": "a"}, 404,
     'model "absent" not found, try pulling it first'),
    ("embeddings", {"model": "embedder", "prompt": ["a"]}, 400,
     "prompt: expected string, found array"),
]  # fmt: skip

MODELS: list[Row] = [
    ("show", {}, 400, "model is required"),
    ("show", {"model": "Absent"}, 404, "model 'Absent:latest' not found"),
    ("show", {"model": "site/absent:v1"}, 404, "model 'site/absent:v1' not found"),
    ("show", {"model": "a b"}, 400, "model is required"),
    ("show", {"name": "dressed"}, 200,
     {"system": "Be kind.", "license": "MIT\nBSD", "template": like(".+"),
      "parameters": "\n".join(
          f"{name:<30} {value}" for name, value in (
              ("stop", '"END"'), ("stop", r'"\n\n"'), ("temperature", 0.5), ("top_k", 7))),
      "messages": [{"role": "user", "content": "one"}],
      "details": {"parent_model": "", "format": "gguf", "family": "llama",
                  "families": Matching(lambda found: found is None or isinstance(found, list),
                                       "families"),
                  "parameter_size": like(".+"), "quantization_level": like(".+")},
      "model_info": {"general.architecture": "llama", "general.parameter_count": NUMBER,
                     "general.name": ABSENT, "tokenizer.chat_template": ABSENT},
      "modelfile": like('# Modelfile generated by "ollama show"\n'
                        "# To build a new Modelfile based on this, replace FROM with:\n"
                        "# FROM dressed:latest\n\nFROM .*"),
      "tensors": Matching(
          lambda found: set(found[0]) == {"name", "type", "shape"}, "name, type, shape"),
      "capabilities": ["completion"],
      "modified_at": like(r".*[+-]\d\d:\d\d")}),
    ("show", {"model": "dressed", "system": "Other."}, 200, {"system": "Other."}),
    ("show", {"model": "dressed", "template": "x"}, 200, {"template": like(r"\{% for.*")}),
    ("show", {"model": "embedder"}, 200, {"capabilities": ["embedding"]}),
    ("show", {"model": "thinker"}, 200, {"capabilities": ["completion", "thinking"]}),
    ("show", {"model": "caller:v1"}, 200, {"capabilities": ["completion", "tools"]}),
    ("show", {"model": "filler"}, 200, {"capabilities": ["completion", "insert"]}),
    ("show", {"model": "x:cloud"}, 403, f"{CLOUD}remote model details are unavailable"),
    ("copy", {"source": "", "destination": "b"}, 400, 'source "" is invalid'),
    ("copy", {"source": "tiny", "destination": "b/c/d/e"}, 400, 'destination "b/c/d/e" is invalid'),
    ("copy", {"source": "absent", "destination": "b"}, 404, 'model "absent" not found'),
    ("DELETE delete", {"model": "absent"}, 404, "model 'absent' not found"),
    ("DELETE delete", {"name": "a b"}, 400, 'name "a b" is invalid'),
    ("DELETE delete", {}, 400, 'name "" is invalid'),
    ("pull", {"model": "absent", "stream": False}, 500,
     "pull model manifest: file does not exist"),
    ("pull", {}, 400, "model is required"),
    ("push", {}, 400, "model is required"),
    ("create", {"model": "n"}, 400, "neither 'from' or 'files' was specified"),
    ("create", {"model": "n", "files": {}}, 400, "no files provided to convert"),
    ("create", {"model": "a b", "from": "tiny"}, 400, "invalid model name"),
    ("create", {"model": "n", "from": "tiny", "quantize": "Q2_X"}, 400,
     like("unsupported quantization type Q2_X.*")),
    ("create", {"model": "n", "files": {"/etc/x": "sha256:" + "0" * 64}}, 400,
     "file path must be relative"),
    ("create", {"model": "n", "files": {"x": "sha256:0"}}, 400, "invalid digest format"),
    ("create", {"model": "n", "from": "tiny", "template": "{{ .X"}, 400,
     like("template error: .*")),
    ("create", {"model": "n", "from": "tiny", "parameters": {"x": 1}}, 400,
     "unknown parameter 'x'"),
    ("create", {"model": "n", "from": "tiny", "info": {"base_name": 1}}, 400,
     like('info field "base_name" must be a string.*')),
    ("create", {"model": "n", "from": "tiny", "remote_host": "x"}, 400,
     "remote_host: there are no remote models here"),
    ("create", {"model": "n", "from": "tiny", "draft_quantize": "Q8_0"}, 400,
     "--draft-quantize requires a DRAFT model"),
    ("POST blobs/sha256:1", b"x", 400, "invalid digest format"),
    ("HEAD blobs/sha256:1", None, 400, b""),
    ("HEAD blobs/sha256:" + "0" * 64, None, 404, b""),
    ("HEAD blobs/sha256-" + "0" * 64, None, 404, b""),
]  # fmt: skip

OPTION_TYPES: dict[str, str] = {
    **dict.fromkeys(
        ("num_ctx", "num_batch", "num_gpu", "num_thread", "num_keep", "seed", "num_predict",
         "top_k", "repeat_last_n"), "integer"),
    **dict.fromkeys(
        ("temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty",
         "frequency_penalty"), "float32"),
    "use_mmap": "boolean",
    "stop": "array",
}  # fmt: skip
IGNORED = (
    "main_gpu", "penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock",
    "numa", "nonsense",
)  # fmt: skip

OPTIONS: list[Row] = [
    *(("generate", {"model": "tiny", **HI, "options": {name: {}}}, 400,
       f'option "{name}" must be of type {kind}') for name, kind in OPTION_TYPES.items()),
    *(("generate", {"model": "tiny", **HI, "options": {name: None}}, 200, {"done": True})
      for name in OPTION_TYPES),
    *(("generate", {"model": "tiny", **HI, "options": {name: {}}}, 200, {"done": True})
      for name in IGNORED),
    ("generate", {"model": "tiny", **HI, "options": {"num_predict": 1.0}}, 200,
     {"done_reason": "length", "eval_count": 1}),
    ("generate", {"model": "tiny", **HI, "options": {"num_predict": 1.9}}, 200, {"eval_count": 1}),
    ("generate", {"model": "tiny", **HI, "options": {"temperature": 0}}, 200, {"done": True}),
    ("generate", {"model": "tiny", **HI, "options": {"stop": ["wor"]}}, 200,
     {"response": "Hello "}),
    ("generate", {"model": "tiny", **HI, "options": []}, 400,
     "options: expected object, found array"),
]  # fmt: skip

KEEP_ALIVE: list[Row] = [
    *(("generate", {"model": "tiny", "keep_alive": value}, 200, {"done_reason": "load"})
      for value in (300, 1.5, "5m", "300ms", "1.5h", "2h45m", "-1m", -1, "-1s", None)),
    *(("generate", {"model": "tiny", "keep_alive": value}, 200, {"done_reason": "unload"})
      for value in (0, 0.0, "0", "0s", "0h0m")),
    ("generate", {"model": "tiny", "keep_alive": "300"}, 400,
     'time: missing unit in duration "300"'),
    ("generate", {"model": "tiny", "keep_alive": "soon"}, 400, 'time: invalid duration "soon"'),
    ("generate", {"model": "tiny", "keep_alive": True}, 400, "Unsupported type: 'bool'"),
    ("generate", {"model": "tiny", "keep_alive": {}}, 400,
     "Unsupported type: 'map[string]interface {}'"),
]  # fmt: skip


ASKED = {"model": "tiny", "messages": [USER]}
DATA_URL = f"data:image/png;base64,{PNG}"


def parts(*items: Any) -> dict[str, Any]:
    """A chat whose only message has these parts."""
    return {"model": "tiny", "messages": [{"role": "user", "content": list(items)}]}


def with_calls(arguments: str) -> dict[str, Any]:
    """A chat in which a tool was called with these arguments."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"model": "tiny", "messages": [
        USER, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "12"}]}  # fmt: skip


OPENAI: list[Row] = [
    (V1, {"model": "tiny", "messages": []}, 400, "[] is too short - 'messages'"),
    (V1, {"model": "tiny"}, 400, "[] is too short - 'messages'"),
    (V1, {"model": "absent", "messages": [USER]}, 404, "model 'absent' not found"),
    (V1, {"messages": [USER]}, 400, "model is required"),
    (V1, ASKED, 200,
     {"id": like(r"chatcmpl-\w+"), "object": "chat.completion", "created": NUMBER,
      "model": "tiny", "system_fingerprint": "fp_ollama",
      "choices": [{"index": 0, "finish_reason": "stop",
                   "message": {"role": "assistant", "content": "Hello world",
                               "tool_calls": ABSENT, "reasoning": ABSENT}}],
      "usage": {"prompt_tokens": NUMBER, "completion_tokens": 2, "total_tokens": NUMBER}}),
    (V1, {**ASKED, "max_tokens": 1}, 200, {"choices": [{"finish_reason": "length"}]}),
    (V1, {**ASKED, "max_completion_tokens": 1}, 200, {"choices": [{"finish_reason": "length"}]}),
    (V1, {**ASKED, "stop": "wor"}, 200, {"choices": [{"message": {"content": "Hello "}}]}),
    (V1, {**ASKED, "stop": ["wor", 7]}, 200, {"choices": [{"message": {"content": "Hello "}}]}),
    (V1, {**ASKED, "n": 2}, 200, {"choices": [{"index": 0}, {"index": 1}]}),
    (V1, {**ASKED, "n": 0}, 400, "n: expected 1 to 128, found 0"),
    (V1, {**ASKED, "response_format": {"type": "text"}}, 200, {"object": "chat.completion"}),
    (V1, {**ASKED, "reasoning_effort": "none"}, 200, {"object": "chat.completion"}),
    (V1, {**ASKED, "reasoning_effort": "hot"}, 400,
     'invalid reasoning value: "hot" (must be "high", "medium", "low", "max", or "none")'),
    (V1, {**ASKED, "reasoning": {"effort": "high"}}, 400, '"tiny" does not support thinking'),
    (V1, {**ASKED, "tools": [TOOL]}, 400, f"{FULL}tiny:latest does not support tools"),
    (V1, {**ASKED, "tools": [TOOL], "tool_choice": "none"}, 200, {"object": "chat.completion"}),
    (V1, {**ASKED, "top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
    (V1, {**ASKED, "logprobs": True, "top_logprobs": 1}, 200,
     {"choices": [{"logprobs": {"content": [
         {"token": "Hello ", "logprob": Matching(lambda p: p <= 0, "<= 0"),
          "bytes": list(b"Hello "), "top_logprobs": VECTOR}, {"token": "world"}]}}]}),
    *((V1, {**ASKED, name: value}, 200, {"object": "chat.completion"}) for name, value in (
        ("user", "u"), ("metadata", {"a": "b"}), ("store", True), ("parallel_tool_calls", True),
        ("service_tier", "auto"), ("seed", 7), ("frequency_penalty", 0.5), ("nonsense", 1),
        ("presence_penalty", -0.5), ("logit_bias", {"12": -100}), ("keep_alive", "5m"),
        ("options", {"num_ctx": 256}), ("temperature", 0), ("top_p", 1))),
    (V1, {"model": "tiny", "messages": [{"role": "user", "content": None}]}, 400,
     "invalid message content type: <nil>"),
    (V1, parts({"type": "text", "text": "a"}, {"type": "text", "text": "b"}), 200,
     {"object": "chat.completion"}),
    (V1, parts({"type": "film"}), 400, "invalid message format"),
    (V1, parts({"type": "image_url", "image_url": {"url": "https://x/y.png"}}), 400,
     "image URLs are not currently supported, please use base64 encoded data instead"),
    (V1, parts({"type": "image_url", "image_url": "data:text/plain;base64,YQ=="}), 400,
     "invalid image input"),
    (V1, parts({"type": "image_url", "image_url": DATA_URL}), 400,
     f"{FULL}tiny:latest does not support vision"),
    (V1, with_calls('{"a": 1}'), 200, {"object": "chat.completion"}),
    (V1, with_calls("[]"), 400, "invalid tool call arguments"),
    (V1, with_calls("{"), 400, "invalid tool call arguments"),
    ("/v1/completions", {"model": "tiny", "prompt": "hi"}, 200,
     {"id": like(r"cmpl-\w+"), "object": "text_completion", "model": "tiny",
      "choices": [{"index": 0, "text": "Hello world", "finish_reason": "stop",
                   "logprobs": None}]}),
    ("/v1/completions", {"model": "tiny", "prompt": ["hi", "ho"]}, 200,
     {"choices": [{"index": 0}, {"index": 1}]}),  # Ollama refuses
    ("/v1/completions", {"model": "tiny", "prompt": "hi", "logprobs": 1}, 200,
     {"choices": [{"logprobs": {"tokens": ["Hello ", "world"]}}]}),  # Ollama tells none
    ("/v1/completions", {"model": "tiny", "prompt": "hi", "stop": [1]}, 400,
     like("invalid type for 'stop' field: .*")),
    ("/v1/completions", {"model": "tiny", "prompt": "hi", "max_tokens": 1, "suffix": ""}, 200,
     {"choices": [{"finish_reason": "length"}]}),
    ("/v1/completions", {"model": "absent", "prompt": "x"}, 404, "model 'absent' not found"),
    ("/v1/embeddings", {"model": "embedder", "input": None}, 400, "invalid input"),
    ("/v1/embeddings", {"model": "embedder", "input": []}, 400, "invalid input"),
    ("/v1/embeddings", {"model": "embedder", "input": "a", "encoding_format": "hex"}, 400,
     "Invalid value for 'encoding_format' = hex. Supported values: ['float', 'base64']."),
    ("/v1/embeddings", {"model": "embedder", "input": "a"}, 200,
     {"object": "list", "model": "embedder",
      "data": [{"object": "embedding", "index": 0, "embedding": VECTOR}],
      "usage": {"prompt_tokens": NUMBER, "total_tokens": NUMBER}}),
    ("/v1/embeddings", {"model": "embedder", "input": "a", "encoding_format": "base64"}, 200,
     {"data": [{"embedding": like("[A-Za-z0-9+/=]+")}]}),
    ("/v1/embeddings", {"model": "absent", "input": "a"}, 404,
     'model "absent" not found, try pulling it first'),
    ("/v1/responses", {"model": "tiny", "input": "hi"}, 200,
     {"id": like("resp_.*"), "object": "response", "status": "completed", "store": False,
      "parallel_tool_calls": True, "tool_choice": "auto", "truncation": like("auto|disabled"),
      "output": [{"type": "message", "content": [{"type": "output_text"}]}]}),
    ("/v1/responses", {"model": "tiny", "input": "hi", "max_output_tokens": 1}, 200,
     {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}),  # better
    ("/v1/responses", {"model": "tiny", "input": [{"type": "film"}]}, 400,
     'unknown input item type: "film"'),
    ("/v1/responses", {"model": "tiny", "input": [{}]}, 400,
     "input item missing required 'type' field"),
    ("/v1/responses",
     {"model": "tiny", "input": [{"role": "user", "content": [{"type": "input_file"}]}]}, 400,
     like(".*file inputs are not currently supported")),
    ("/v1/responses",
     {"model": "tiny", "input": [{"role": "user", "content": [{"type": "film"}]}]}, 400,
     like(".*unknown content type: film")),
    ("GET /v1/models/site/long:v1", None, 200,
     {"id": "site/long:v1", "object": "model", "created": NUMBER, "owned_by": "site"}),
    ("GET /v1/models/tiny", None, 200, {"id": like("tiny(:latest)?"), "owned_by": "library"}),
    ("GET /v1/models", None, 200,
     {"object": "list", "data": Matching(lambda found: len(found) >= 6, "all of them")}),
    ("/v1/audio/transcriptions", {}, 404, b"404 page not found"),
]  # fmt: skip

M1 = "/v1/messages"
CLAUDE = {"model": "tiny", "max_tokens": 9, "messages": [USER]}


def block(**fields: Any) -> dict[str, Any]:
    """A request whose only message is this block."""
    return {**CLAUDE, "messages": [{"role": "user", "content": [fields]}]}


ANTHROPIC: list[Row] = [
    (M1, {"model": "tiny", "messages": [USER]}, 400,
     "max_tokens is required and must be positive"),
    (M1, {**CLAUDE, "max_tokens": 0}, 400, "max_tokens is required and must be positive"),
    (M1, {"model": "tiny", "max_tokens": 9}, 400, "messages is required"),
    (M1, {"max_tokens": 9, "messages": [USER]}, 400, "model is required"),
    (M1, {**CLAUDE, "model": "absent"}, 404, "model 'absent' not found"),
    (M1, CLAUDE, 200,
     {"id": like("msg_.*"), "type": "message", "role": "assistant", "model": "tiny",
      "content": [{"type": "text", "text": "Hello world"}], "stop_reason": "end_turn",
      "usage": {"input_tokens": NUMBER, "output_tokens": 2}}),
    (M1, {**CLAUDE, "max_tokens": 1}, 200, {"stop_reason": "max_tokens"}),
    (M1, {**CLAUDE, "stop_sequences": ["wor"]}, 200, {"stop_reason": "end_turn"}),
    (M1, {**CLAUDE, "system": [{"type": "text", "text": "s", "cache_control": {}}]}, 200,
     {"type": "message"}),
    (M1, {**CLAUDE, "thinking": {"type": "enabled", "budget_tokens": 1024}}, 200,
     {"content": [{"type": "text"}]}),
    (M1, {**CLAUDE, "messages": [{"role": "system", "content": "s"}, USER]}, 200,
     {"type": "message"}),
    (M1, block(type="image", source={"type": "url", "url": "http://x"}), 400,
     "invalid image source type: url. Only base64 images are supported."),
    (M1, block(type="text", text="q"), 200, {"type": "message"}),
    (M1, {**CLAUDE, "metadata": {"user_id": "u"}, "top_k": 3, "temperature": 0}, 200,
     {"type": "message"}),
    (M1, {**CLAUDE, "tools": [{"type": "web_search_20250305", "name": "web_search"}]}, 403,
     like(".*web search.*")),
    ("/v1/messages/count_tokens", CLAUDE, 200, {"input_tokens": NUMBER}),
]  # fmt: skip

ELSEWHERE: list[Row] = [
    ("GET /", None, 200, b"Ollama is running"),
    ("HEAD /", None, 200, b""),
    ("GET version", None, 200, {"version": like(r"\d+\.\d+\.\d+")}),
    ("GET status", None, 200,
     {"cloud": {"disabled": True, "source": like("none|env|config|both")}}),
    ("POST me", b"", 401, b'{"error":"unauthorized","signin_url":""}'),
    ("POST signout", b"", 401, "you are not currently signed in"),
    ("DELETE user/keys/a", None, 401, "you are not currently signed in"),
    ("experimental/web_search", {}, 403, f"{CLOUD}web search is unavailable"),
    ("experimental/web_fetch", {}, 403, f"{CLOUD}web fetch is unavailable"),
    ("GET experimental/model-recommendations", None, 200, {"recommendations": VECTOR}),
    ("GET /debug/pprof/", None, 404, b"404 page not found"),
    ("GET nowhere", None, 404, b"404 page not found"),
    ("GET chat", None, 405, b"405 method not allowed"),
    ("chat", b"", 400, "missing request body"),
    ("chat", b"null", 400, like("request body: .*")),
    ("GET tags", None, 200,
     {"models": Matching(
         lambda found: all(
             one["name"] == one["model"] and len(one["digest"]) == 64 and ":" in one["name"]
             and set(one["details"]) >= {
                 "parent_model", "format", "family", "families", "parameter_size",
                 "quantization_level"}
             for one in found), "names with tags, bare digests, details")}),
    ("GET ps", None, 200,
     {"models": Matching(
         lambda found: all(
             set(one) >= {"name", "model", "size", "digest", "details", "expires_at",
                          "size_vram", "context_length"} for one in found), "what is loaded")}),
]  # fmt: skip


def named(rows: list[Row]) -> pytest.MarkDecorator:
    """Rows for pytest, with names that say which one failed."""
    return pytest.mark.parametrize(
        ("call", "body", "status", "expected"),
        rows,
        ids=[f"{index}-{row[0].replace('/', '.')}" for index, row in enumerate(rows)],
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("server")
    with LiveServer(folder) as live:
        put_model(live.store, "thinker", folder, template=THINKING_TEMPLATE)
        put_model(live.store, "caller:v1", folder, template=TOOLS_TEMPLATE)
        put_model(live.store, "embedder", folder, header={"llama.pooling_type": 1})
        put_model(live.store, "filler", folder, header=FIM)
        put_model(live.store, "site/long:v1", folder)
        put_model(
            live.store,
            "dressed",
            folder,
            texts={
                "system": "Be kind.",
                "params": json.dumps({"temperature": 0.5, "stop": ["END", "\n\n"], "top_k": 7}),
                "messages": json.dumps([{"role": "user", "content": "one"}]),
                "license": "MIT\nBSD",
            },
        )
        yield live


def fits(found: Any, expected: Any) -> bool:
    """Whether an answer is what the row says; objects may have more fields than it names."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(
            name not in found if value is ABSENT else name in found and fits(found[name], value)
            for name, value in expected.items()
        )
    if isinstance(expected, list):
        return (
            isinstance(found, list)
            and len(found) == len(expected)
            and all(map(fits, found, expected))
        )
    return bool(expected == found)


def check(server: LiveServer, call: str, body: Any, status: int, expected: Any) -> None:
    method, _, path = call.rpartition(" ")
    path = path if path.startswith("/") else f"/api/{path}"
    found, data = server.ask(method or "POST", path, body)
    if isinstance(expected, bytes):
        assert (found, data) == (status, expected)
        return
    answer = json.loads(data.splitlines()[-1]) if data else {}
    if isinstance(expected, str) or (isinstance(expected, Matching) and status >= 400):
        expected = {"error": {"message": expected} if path.startswith("/v1/") else expected}
    assert found == status, answer
    assert fits(answer, expected), answer


@named(GENERATE)
def test_1_2_generate(server: LiveServer, call: str, body: Any, status: int, expected: Any) -> None:
    check(server, call, body, status, expected)


@named(CHATS)
def test_1_3_chat(server: LiveServer, call: str, body: Any, status: int, expected: Any) -> None:
    check(server, call, body, status, expected)


@named(EMBEDS)
def test_1_4_and_1_5_embeddings(
    server: LiveServer, call: str, body: Any, status: int, expected: Any
) -> None:
    check(server, call, body, status, expected)


@named(MODELS)
def test_1_7_to_1_10_models(
    server: LiveServer, call: str, body: Any, status: int, expected: Any
) -> None:
    check(server, call, body, status, expected)


@named(OPTIONS)
def test_1_11_options(server: LiveServer, call: str, body: Any, status: int, expected: Any) -> None:
    check(server, call, body, status, expected)


@named(KEEP_ALIVE)
def test_1_12_keep_alive(
    server: LiveServer, call: str, body: Any, status: int, expected: Any
) -> None:
    check(server, call, body, status, expected)


@named(OPENAI)
def test_1_15_openai(server: LiveServer, call: str, body: Any, status: int, expected: Any) -> None:
    check(server, call, body, status, expected)


@named(ANTHROPIC)
def test_1_16_anthropic(
    server: LiveServer, call: str, body: Any, status: int, expected: Any
) -> None:
    check(server, call, body, status, expected)


@named(ELSEWHERE)
def test_1_0_1_1_1_6_and_1_17_the_rest(
    server: LiveServer, call: str, body: Any, status: int, expected: Any
) -> None:
    check(server, call, body, status, expected)


@pytest.mark.parametrize(
    ("call", "body", "kind"),
    [
        ("GET /", None, "text/plain; charset=utf-8"),
        ("GET /nowhere", None, "text/plain.*"),
        ("GET /api/chat", None, "text/plain.*"),
        ("GET /api/tags", None, "application/json; charset=utf-8"),
        ("POST /api/chat", {"model": "tiny", "messages": [USER]}, "application/x-ndjson"),
        ("POST /api/chat", {"model": "tiny", **CHAT}, "application/json; charset=utf-8"),
        ("POST /api/chat", {"model": "tiny"}, "application/json; charset=utf-8"),
        ("POST /api/chat", {"model": "absent"}, "application/json; charset=utf-8"),
        ("POST /api/pull", {"model": "tiny"}, "application/x-ndjson"),
        ("POST /v1/chat/completions", ASKED, "application/json.*"),
        ("POST /v1/chat/completions", {**ASKED, "stream": True}, "text/event-stream.*"),
        ("POST /v1/responses", {"model": "tiny", "input": "q", "stream": True},
         "text/event-stream.*"),
        ("POST /v1/messages", {**CLAUDE, "stream": True}, "text/event-stream.*"),
    ],
)  # fmt: skip
def test_1_0_type_of_what_is_answered(server: LiveServer, call: str, body: Any, kind: str) -> None:
    method, _, path = call.partition(" ")
    connection = server.connect()
    headers = {"Content-Type": "application/x-www-form-urlencoded"}  # is not looked at
    connection.request(method, path, json.dumps(body) if body else None, headers)
    response = connection.getresponse()
    assert re.fullmatch(kind, response.headers["Content-Type"])
    response.read()
    connection.close()


def test_1_0_headers_that_pages_may_send(server: LiveServer) -> None:
    connection = server.connect()
    connection.request("OPTIONS", "/v1/models", headers={"Origin": "app://obsidian.md"})
    response = connection.getresponse()
    allowed = {
        one.strip().lower() for one in response.headers["Access-Control-Allow-Headers"].split(",")
    }
    stainless = (
        "arch", "async", "custom-poll-interval", "helper-method", "lang", "os",
        "package-version", "poll-helper", "retry-count", "runtime", "runtime-version", "timeout",
    )  # fmt: skip
    assert {
        "authorization", "content-type", "user-agent", "accept", "x-requested-with",
        "openai-beta", *(f"x-stainless-{name}" for name in stainless),
    } <= allowed  # fmt: skip
    connection.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        *(({"Origin": origin}, 200) for origin in (
            "http://localhost", "https://localhost:3000", "http://127.0.0.1:8080",
            "http://0.0.0.0", "app://x", "file://x", "tauri://localhost", "vscode-webview://x",
            "vscode-file://x", "chrome-extension://x", "moz-extension://x")),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        *(({"Host": host}, 200) for host in (
            "localhost", "edge-7", "a.localhost", "a.local", "a.internal", "127.0.0.1:11434",
            "[::1]:11434", "192.168.1.9", "0.0.0.0", "")),
        ({"Host": "evil.example"}, 403),
        ({"Host": "8.8.8.8"}, 403),
    ],
)  # fmt: skip
def test_1_0_who_may_ask(server: LiveServer, headers: dict[str, str], status: int) -> None:
    found, data = server.ask("GET", "/api/version", headers=headers)
    assert found == status
    assert bool(data) == (status == 200)


def events(server: LiveServer, path: str, body: Any) -> list[str]:
    """The lines of a stream of events, without blank ones."""
    status, data = server.ask("POST", path, body)
    assert status == 200
    return [line for line in data.decode().splitlines() if line]


def test_1_15_chunks_of_a_stream(server: LiveServer) -> None:
    body = {**ASKED, "stream": True, "stream_options": {"include_usage": True}}
    *lines, end = events(server, V1, body)
    assert end == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert (
        len({chunk["id"] for chunk in chunks}) == len({chunk["created"] for chunk in chunks}) == 1
    )
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    *said, finish, usage = chunks
    assert said[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(one["choices"][0]["delta"]["content"] or "" for one in said) == "Hello world"
    assert (finish["choices"][0]["delta"], finish["choices"][0]["finish_reason"]) == ({}, "stop")
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 2)
    *lines, end = events(server, V1, {**ASKED, "stream": True})
    assert end == "data: [DONE]"
    assert all("usage" not in json.loads(line.removeprefix("data: ")) for line in lines)


def test_1_15_events_of_a_response(server: LiveServer) -> None:
    lines = events(server, "/v1/responses", {"model": "tiny", "input": "q", "stream": True})
    told = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data:")]
    kinds = [one["type"] for one in told]
    assert [line.removeprefix("event: ") for line in lines if line.startswith("event:")] == kinds
    assert [one["sequence_number"] for one in told] == list(range(len(told)))
    deltas = kinds.count("response.output_text.delta")
    assert kinds == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added", *["response.output_text.delta"] * deltas,
        "response.output_text.done", "response.content_part.done", "response.output_item.done",
        "response.completed",
    ]  # fmt: skip


def test_1_16_events_of_a_message(server: LiveServer) -> None:
    lines = events(server, M1, {**CLAUDE, "stream": True})
    kinds = [line.removeprefix("event: ") for line in lines if line.startswith("event:")]
    deltas = kinds.count("content_block_delta")
    assert kinds == [
        "message_start", "ping", "content_block_start", *["content_block_delta"] * deltas,
        "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip


def test_1_6_a_model_that_stays_expires_in_centuries(server: LiveServer) -> None:
    server.post("/api/generate", model="tiny", keep_alive=-1)
    loaded = {one["name"]: one for one in json.loads(server.ask("GET", "/api/ps")[1])["models"]}
    assert int(loaded["tiny:latest"]["expires_at"][:4]) > 2300
    assert loaded["tiny:latest"]["size_vram"] == 0
    server.post("/api/generate", model="tiny", keep_alive="5m")


def test_1_7_show_names_renderer_parser_and_requires(server: LiveServer) -> None:
    text = "FROM tiny\nRENDERER qwen3-coder\nPARSER qwen3-coder\nREQUIRES 0.14.0"
    assert server.post("/api/create", model="coder", modelfile=text, stream=False)[0] == 200
    shown = server.post("/api/show", model="coder")[1]
    assert [shown[name] for name in ("renderer", "parser", "requires")] == [
        "qwen3-coder", "qwen3-coder", "0.14.0"]  # fmt: skip
    assert not {"renderer", "parser", "requires"} & set(server.post("/api/show", model="tiny")[1])
    assert server.ask("DELETE", "/api/delete", {"model": "coder"})[0] == 200


def test_1_7_copilot_reads_the_name_it_asked_for(server: LiveServer) -> None:
    agent = {"User-Agent": "GitHubCopilotChat/1.2"}
    status, data = server.ask("POST", "/api/show", {"model": "Tiny"}, agent)
    assert (status, json.loads(data)["model_info"]["general.basename"]) == (200, "Tiny")
    assert "general.basename" not in server.post("/api/show", model="tiny")[1]["model_info"]


def test_1_0_a_full_queue_says_it_in_ollamas_words(tmp_path: Path) -> None:
    script = {"words": ["w "] * 40, "step_s": 0.05}
    with LiveServer(tmp_path, script=script, max_queue=1, max_in_flight=1) as live:
        socks = []
        body = json.dumps({"model": "tiny", **HI}).encode()
        request = (
            b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        refused = None
        for _ in range(40):
            socks.append(live.raw(request))
            status, data = live.ask("POST", "/api/generate", {"model": "tiny", **HI})
            if status == 503:
                refused = json.loads(data)
                break
        for sock in socks:
            sock.close()
    assert refused == {"error": "server busy, please try again.  maximum pending requests exceeded"}
