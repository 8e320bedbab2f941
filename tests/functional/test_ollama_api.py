"""Ollama's API through real sockets: every refusal of the reference, and its order; the answers."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.functional.live import (
    FIM,
    TEMPLATE,
    THINKING_TEMPLATE,
    TOOLS_TEMPLATE,
    LiveServer,
    put_model,
)

CREATED_AT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")
LOCAL_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}[+-]\d\d:\d\d")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One server for all tests of this module; they leave its store alone."""
    folder = tmp_path_factory.mktemp("server")
    with LiveServer(folder) as live:
        put_model(live.store, "thinker", folder, template=THINKING_TEMPLATE)
        put_model(live.store, "caller:v1", folder, template=TOOLS_TEMPLATE)
        put_model(live.store, "embedder", folder, header={"llama.pooling_type": 1})
        put_model(live.store, "filler", folder, header=FIM)
        put_model(live.store, "bare", folder, template=None)
        put_model(
            live.store,
            "site/dressed:x.1",
            folder,
            texts={
                "system": "Be kind.",
                "params": json.dumps({"temperature": 0.5, "stop": ["END", "\n\n"], "top_k": 7}),
                "messages": json.dumps([{"role": "user", "content": "one"}]),
                "license": "MIT",
            },
        )
        yield live


NO_SUCH_OPENAI_MODEL = (
    '{"error":{"message":"model \'absent\' not found","type":"not_found_error",'
    '"param":null,"code":null}}'
)
UNREACHED: dict[str, Any] = {"options": {"temperature": "hot"}}
"""An option of the wrong type, which is looked at after everything below."""

THINKING = "does not support thinking"


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/api/generate", {"model": ""}, 404, "model '' not found"),
        ("/api/generate", {}, 404, "model '' not found"),
        ("/api/generate", {"model": "no such"}, 404, "model 'no such' not found"),
        ("/api/generate", {"model": "Absent:7b"}, 404, "model 'Absent:7b' not found"),
        ("/api/generate", {"model": "absent", "top_logprobs": 21}, 400,
         "top_logprobs must be between 0 and 20"),
        ("/api/generate", {"model": "absent", "raw": True, "system": "x"}, 404,
         "model 'absent' not found"),
        ("/api/generate", {"model": "tiny", "prompt": "x", "raw": True, "system": "x"}, 400,
         "raw mode does not support template, system, or context"),
        ("/api/generate", {"model": "tiny", "prompt": "x", "raw": True, "template": "x"}, 400,
         "raw mode does not support template, system, or context"),
        ("/api/generate", {"model": "tiny", "prompt": "x", "raw": True, "context": [1]}, 400,
         "raw mode does not support template, system, or context"),
        ("/api/generate",
         {"model": "embedder", "prompt": "x", "raw": True, "system": "x", "think": True}, 400,
         "raw mode does not support template, system, or context"),
        ("/api/generate", {"model": "embedder", "prompt": "x", "think": True}, 400,
         f'"embedder" {THINKING}'),
        ("/api/generate", {"model": "tiny", "prompt": "x", "format": ["a", True]}, 400,
         'invalid format: ["a",true]; expected "json" or a valid JSON Schema object'),
        ("/api/generate", {"model": "embedder", "prompt": "x"}, 400,
         '"embedder" does not support generate'),
        ("/api/generate", {"model": "Tiny", "prompt": "x", "suffix": "y"}, 400,
         "registry.ollama.ai/library/tiny:latest does not support insert"),
        ("/api/generate", {"model": "tiny", "prompt": "x", "think": True}, 400,
         f'"tiny" {THINKING}'),
        ("/api/generate", {"model": "tiny", "prompt": "x", "think": "high", **UNREACHED}, 400,
         f'"tiny" {THINKING}'),
        ("/api/generate", {"model": "tiny", "prompt": "x", "images": ["AAAA"]}, 400,
         "registry.ollama.ai/library/tiny:latest does not support vision"),
        ("/api/generate", {"model": "tiny", "prompt": "x", "template": "{{ .Prompt"}, 400,
         "template: :1: unclosed action"),
        ("/api/generate", {"model": "tiny", "prompt": "x", **UNREACHED}, 400,
         'option "temperature" must be of type float32'),
        ("/api/generate", {"model": "tiny", "prompt": "x", "context": [99999999]}, 400,
         "context: expected token ids below 32000, found 99999999"),
        ("/api/generate", {"model": "tiny:cloud", "prompt": "x"}, 403,
         "ollama cloud is disabled: remote inference is unavailable"),
        ("/api/generate", {"model": "tiny:8b-cloud", "prompt": "x"}, 403,
         "ollama cloud is disabled: remote inference is unavailable"),
        ("/api/generate", {"model": "tiny:cloud:local", "prompt": "x"}, 400,
         'use either :local or :cloud, not both: "tiny:cloud:local"'),
        ("/api/chat", {"model": "", "messages": []}, 400, "model is required"),
        ("/api/chat", {"messages": []}, 400, "model is required"),
        ("/api/chat", {"model": "no such"}, 400, "model is required"),
        ("/api/chat", {"model": "Absent"}, 404, "model 'Absent' not found"),
        ("/api/chat", {"model": "embedder"}, 400, '"embedder" does not support chat'),
        ("/api/chat", {"model": "tiny", "tools": [{"function": {"name": "f"}}]}, 400,
         "registry.ollama.ai/library/tiny:latest does not support tools"),
        ("/api/chat", {"model": "tiny", "think": "low"}, 400, f'"tiny" {THINKING}'),
        ("/api/chat", {"model": "tiny", "messages": [{"role": "user", "images": ["AAAA"]}]}, 400,
         "registry.ollama.ai/library/tiny:latest does not support vision"),
        ("/api/chat", {"model": "tiny", "options": {"stop": "END"}}, 400,
         'option "stop" must be of type array'),
        ("/api/chat", {"model": "tiny:cloud"}, 403,
         "ollama cloud is disabled: remote inference is unavailable"),
        ("/api/show", {}, 400, "model is required"),
        ("/api/show", {"model": "absent"}, 404, "model 'absent:latest' not found"),
        ("/api/show", {"name": "absent:x"}, 404, "model 'absent:x' not found"),
        ("/api/show", {"model": "x:cloud"}, 403,
         "ollama cloud is disabled: remote model details are unavailable"),
        ("/api/copy", {"source": "a b", "destination": "c"}, 400, 'source "a b" is invalid'),
        ("/api/copy", {"source": "a", "destination": ""}, 400, 'destination "" is invalid'),
        ("/api/copy", {"source": "a", "destination": "b"}, 404, 'model "a" not found'),
        ("/v1/chat/completions", {"model": "tiny", "messages": []}, 400,
         "[] is too short - 'messages'"),
        ("/v1/chat/completions",
         {"model": "absent", "messages": [{"role": "user", "content": "x"}]}, 404,
         "model 'absent' not found"),
        ("/v1/chat/completions",
         {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": "hot"},
         400, 'option "temperature" must be of type float32'),
    ],
)  # fmt: skip
def test_refusal_has_ollamas_status_and_text(
    server: LiveServer, path: str, body: dict[str, Any], status: int, text: str
) -> None:
    found, answer = server.post(path, **body)
    error = answer["error"]["message"] if path.startswith("/v1/") else answer["error"]
    assert (found, error) == (status, text)


@pytest.mark.parametrize(
    ("call", "body", "status", "text"),
    [
        ("POST /api/chat", b"", 400, '{"error":"missing request body"}'),
        ("POST /api/generate", b"  ", 400, '{"error":"missing request body"}'),
        ("DELETE /api/delete", b"", 400, '{"error":"missing request body"}'),
        ("POST /api/chat", b"[]", 400,
         '{"error":"request body: expected an object, found array"}'),
        ("DELETE /api/delete", {"model": "a b"}, 400, '{"error":"name \\"a b\\" is invalid"}'),
        ("DELETE /api/delete", {"name": "absent"}, 404,
         """{"error":"model 'absent' not found"}"""),
        ("GET /api/status", None, 200, '{"cloud":{"disabled":true,"source":"config"}}'),
        ("POST /api/me", b"", 401, '{"error":"unauthorized","signin_url":""}'),
        ("POST /api/signout", b"", 401, '{"error":"you are not currently signed in"}'),
        ("DELETE /api/user/keys/abc", None, 401, '{"error":"you are not currently signed in"}'),
        ("POST /api/experimental/web_search", {"query": "x"}, 403,
         '{"error":"ollama cloud is disabled: web search is unavailable"}'),
        ("POST /api/experimental/web_fetch", {"url": "x"}, 403,
         '{"error":"ollama cloud is disabled: web fetch is unavailable"}'),
        ("GET /nowhere", None, 404, "404 page not found"),
        ("GET /api/tags/", None, 404, "404 page not found"),
        ("GET /debug/pprof/", None, 404, "404 page not found"),
        ("GET /api/chat", None, 405, "405 method not allowed"),
        ("POST /api/tags", {}, 405, "405 method not allowed"),
        ("PUT /", None, 405, "405 method not allowed"),
        ("PUT /api/chat", {}, 405, "405 method not allowed"),
        ("DELETE /api/show", {}, 405, "405 method not allowed"),
        ("POST /api/delete", {}, 405, "405 method not allowed"),
        ("GET /api/copy", None, 405, "405 method not allowed"),
        ("POST /api/ps", {}, 405, "405 method not allowed"),
        ("GET /api/me", None, 405, "405 method not allowed"),
        ("POST /v1/models", {}, 405, "405 method not allowed"),
        ("GET /v1/chat/completions", None, 405, "405 method not allowed"),
        ("GET /v1/completions", None, 405, "405 method not allowed"),
        ("GET /v1/responses", None, 405, "405 method not allowed"),
        ("GET /v1/messages", None, 405, "405 method not allowed"),
        ("GET /v1/messages/count_tokens", None, 405, "405 method not allowed"),
        ("GET /v1/responses/resp_1", None, 404, "404 page not found"),
        ("POST /v1/audio/transcriptions", {}, 404, "404 page not found"),
        ("GET /v1/models/absent", None, 404,
         NO_SUCH_OPENAI_MODEL),
    ],
)  # fmt: skip
def test_refusal_outside_of_the_answers(
    server: LiveServer, call: str, body: Any, status: int, text: str
) -> None:
    method, _, path = call.partition(" ")
    assert server.ask(method, path, body) == (status, text.encode())


@pytest.mark.parametrize(
    ("call", "status"),
    [
        ("HEAD /", 200),
        ("HEAD /api/version", 200),
        ("HEAD /api/tags", 200),
        ("HEAD /healthz", 200),
        ("HEAD /api/ps", 405),
        ("HEAD /api/chat", 405),
        ("HEAD /nowhere", 404),
        ("OPTIONS /", 204),
        ("OPTIONS /api/chat", 204),
        ("OPTIONS /v1/messages", 204),
        ("OPTIONS /nowhere", 204),
    ],
)
def test_head_and_options_have_no_body(server: LiveServer, call: str, status: int) -> None:
    method, path = call.split()
    assert server.ask(method, path) == (status, b"")


def test_recommendations_are_what_is_installed(server: LiveServer) -> None:
    status, data = server.ask("GET", "/api/experimental/model-recommendations")
    listed = {entry["model"]: entry for entry in json.loads(data)["recommendations"]}
    assert status == 200
    assert "tiny:latest" in listed
    assert "embedder:latest" not in listed
    assert set(listed["tiny:latest"]) == {"model", "description", "context_length"}


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
@pytest.mark.parametrize("chunked", [False, True])
def test_body_over_the_limit_is_refused_in_json(
    server: LiveServer, path: str, *, chunked: bool
) -> None:
    size = (1 << 20) + 1
    if chunked:
        head = "Transfer-Encoding: chunked"
        body = b"%x\r\n" % size + b"x" * size + b"\r\n0\r\n\r\n"
    else:
        head, body = f"Content-Length: {size}", b""
    sock = server.raw(f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n".encode())
    with sock:
        with contextlib.suppress(OSError):  # it has been refused before it was read
            sock.sendall(body)
        answer = sock.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413 ")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    text = error["message"] if path.startswith("/v1/") else error
    assert text == "request body: expected at most 1048576 bytes"


def test_broken_http_is_refused_in_json(server: LiveServer) -> None:
    with server.raw(b"POST /api/chat HTTP/1.1\r\nContent-Length: many\r\n\r\n") as sock:
        answer = sock.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert "error" in json.loads(answer.partition(b"\r\n\r\n")[2])


def test_nothing_tells_what_serves(server: LiveServer) -> None:
    connection = server.connect()
    connection.request("GET", "/")
    response = connection.getresponse()
    assert response.read() == b"Ollama is running"
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert "Server" not in response.headers
    assert "Via" not in response.headers
    connection.close()


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags", "/healthz", "/readyz"])
def test_head_is_answered_without_a_body(server: LiveServer, path: str) -> None:
    assert server.ask("HEAD", path) == (200, b"")


def test_version_is_the_configured_one(server: LiveServer) -> None:
    assert server.ask("GET", "/api/version") == (200, b'{"version":"0.33.0"}')


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "edge-7"}, 200),
        ({"Origin": "http://localhost:3000"}, 200),
    ],
)
def test_strangers_in_a_browser_are_refused(
    server: LiveServer, headers: dict[str, str], status: int
) -> None:
    found, body = server.ask("GET", "/api/version", headers=headers)
    assert found == status
    assert status == 200 or body == b""


def test_preflight_is_answered(server: LiveServer) -> None:
    connection = server.connect()
    connection.request("OPTIONS", "/api/chat", headers={"Origin": "http://localhost:3000"})
    response = connection.getresponse()
    assert (response.status, response.read()) == (204, b"")
    assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
    assert "Authorization" in response.headers["Access-Control-Allow-Headers"]
    assert "POST" in response.headers["Access-Control-Allow-Methods"]
    connection.close()


def test_generate_streams_lines_by_default(server: LiveServer) -> None:
    *parts, last = server.lines("/api/generate", model="TINY", prompt="hi")
    assert "".join(part["response"] for part in parts) == "Hello world"
    assert all(part["model"] == "TINY" and part["done"] is False for part in parts)
    assert all(CREATED_AT.fullmatch(part["created_at"]) for part in parts)
    assert last["done"] is True
    assert last["done_reason"] == "stop"
    assert last["response"] == ""
    assert last["prompt_eval_count"] == len(last["context"]) - last["eval_count"]
    assert last["eval_count"] == 2
    for name in ("total_duration", "load_duration", "prompt_eval_duration"):
        assert isinstance(last[name], int)


def test_streamed_answer_has_the_type_of_lines(server: LiveServer) -> None:
    connection = server.connect()
    connection.request("POST", "/api/chat", json.dumps({"model": "tiny", "messages": [
        {"role": "user", "content": "x"}]}))  # fmt: skip
    response = connection.getresponse()
    assert response.headers["Content-Type"] == "application/x-ndjson"
    assert response.headers["Transfer-Encoding"] == "chunked"
    response.read()
    connection.close()


def test_generate_answers_whole_when_asked(server: LiveServer) -> None:
    status, answer = server.post("/api/generate", model="tiny", prompt="hi", stream=False)
    assert status == 200
    assert answer["response"] == "Hello world"
    assert answer["done"] is True
    assert answer["done_reason"] == "stop"


def test_length_is_the_reason_of_a_cut_answer(server: LiveServer) -> None:
    options = {"num_predict": 1}
    _, answer = server.post(
        "/api/generate", model="tiny", prompt="hi", stream=False, options=options
    )
    assert (answer["response"], answer["done_reason"]) == ("Hello ", "length")


def test_stop_text_ends_the_answer(server: LiveServer) -> None:
    _, answer = server.post(
        "/api/generate", model="tiny", prompt="hi", stream=False, options={"stop": ["wor"]}
    )
    assert (answer["response"], answer["done_reason"]) == ("Hello ", "stop")


def test_raw_answer_has_no_context(server: LiveServer) -> None:
    *_, last = server.lines("/api/generate", model="tiny", prompt="hi", raw=True)
    assert "context" not in last


def test_logprobs_come_with_their_tokens(server: LiveServer) -> None:
    _, answer = server.post(
        "/api/generate", model="tiny", prompt="x", stream=False, logprobs=True, top_logprobs=1
    )
    assert [entry["token"] for entry in answer["logprobs"]] == ["Hello ", "world"]
    assert answer["logprobs"][0]["top_logprobs"][0]["bytes"] == list(b"Hello ")


def test_chat_streams_and_answers_whole(server: LiveServer) -> None:
    messages = [{"role": "user", "content": "hi"}]
    *parts, last = server.lines("/api/chat", model="tiny", messages=messages)
    assert "".join(part["message"]["content"] for part in parts) == "Hello world"
    assert {part["message"]["role"] for part in parts} == {"assistant"}
    assert (last["done"], last["message"]["content"]) == (True, "")
    status, answer = server.post("/api/chat", model="tiny", messages=messages, stream=False)
    assert status == 200
    assert answer["message"] == {"role": "assistant", "content": "Hello world"}


@pytest.mark.parametrize("stream", [True, False])
def test_empty_prompt_only_loads(server: LiveServer, *, stream: bool) -> None:
    status, data = server.ask("POST", "/api/generate", {"model": "tiny", "stream": stream})
    answer = json.loads(data)
    assert status == 200
    assert set(answer) == {"model", "created_at", "response", "done", "done_reason"}
    assert (answer["response"], answer["done"], answer["done_reason"]) == ("", True, "load")
    assert answer["model"] == "tiny"


def test_empty_messages_only_load(server: LiveServer) -> None:
    _, answer = server.post("/api/chat", model="tiny", messages=[])
    assert answer["message"] == {"role": "assistant", "content": ""}
    assert (answer["done"], answer["done_reason"]) == (True, "load")


def render(server: LiveServer, path: str, **body: Any) -> str:
    status, answer = server.post(path, _debug_render_only=True, **body)
    assert status == 200, answer
    text: str = answer["_debug_info"]["rendered_template"]
    return text


USER = {"role": "user", "content": "q"}


@pytest.mark.parametrize(
    ("path", "body", "prompt"),
    [
        ("/api/generate", {"model": "tiny", "prompt": "q"}, "[user]q[assistant]"),
        ("/api/generate", {"model": "tiny", "prompt": "q", "system": "s"},
         "[system]s[user]q[assistant]"),
        ("/api/generate", {"model": "tiny", "prompt": "q", "raw": True}, "q"),
        ("/api/generate", {"model": "bare", "prompt": "q"}, "q"),
        ("/api/generate", {"model": "thinker", "prompt": "q"}, "[user]q[assistant]T"),
        ("/api/generate", {"model": "thinker", "prompt": "q", "think": False},
         "[user]q[assistant]"),
        ("/api/generate", {"model": "site/dressed:x.1", "prompt": "q"},
         "[system]Be kind.[user]one[user]q[assistant]"),
        ("/api/chat", {"model": "tiny", "messages": [USER]}, "[user]q[assistant]"),
        ("/api/chat", {"model": "SITE/Dressed:X.1", "messages": [USER]},
         "[system]Be kind.[user]one[user]q[assistant]"),
        ("/api/chat",
         {"model": "site/dressed:x.1", "messages": [{"role": "System", "content": "me"}, USER]},
         "[user]one[system]me[user]q[assistant]"),
        ("/api/chat",
         {"model": "caller:v1", "messages": [USER], "tools": [{"function": {"name": "f"}}]},
         "<f>[user]q[assistant]"),
    ],
)  # fmt: skip
def test_prompt_is_rendered_by_the_models_template(
    server: LiveServer, path: str, body: dict[str, Any], prompt: str
) -> None:
    assert render(server, path, **body) == prompt


def test_control_tokens_of_a_client_are_shown_as_written(server: LiveServer) -> None:
    content = "a<s>b</s>\ue000"
    messages = [{"role": "user", "content": content}]
    prompt = render(server, "/api/chat", model="tiny", messages=messages)
    assert prompt == f"[user]{content}[assistant]"


def test_answer_that_has_begun_is_gone_on_with(server: LiveServer) -> None:
    messages = [USER, {"role": "assistant", "content": "The answer"}]
    prompt = render(server, "/api/chat", model="tiny", messages=messages)
    assert prompt == "[user]q[assistant]The answer"


def test_context_is_put_in_front(server: LiveServer) -> None:
    _, first = server.post("/api/generate", model="tiny", prompt="hi", stream=False)
    again = render(server, "/api/generate", model="tiny", prompt="q", context=first["context"])
    assert again.endswith("[user]q[assistant]")
    assert again.startswith("[user]hi[assistant]Hello world")


def test_suffix_is_filled_in_by_a_model_that_can(server: LiveServer) -> None:
    _, answer = server.post("/api/generate", model="filler", prompt="a b", suffix="c", stream=False)
    assert answer["prompt_eval_count"] == 1 + 3 + 3  # BOS, three marks, three words


def test_oldest_messages_are_dropped_where_the_context_is_too_small(server: LiveServer) -> None:
    words = " ".join(["w"] * 100)
    history = [{"role": "user", "content": f"{i} {words}"} for i in range(20)]
    messages = [{"role": "system", "content": "S"}, *history, USER]
    prompt = render(server, "/api/chat", model="tiny", messages=messages)
    assert prompt.startswith("[system]S[user]")
    assert prompt.endswith("[user]q[assistant]")
    assert 0 < len(prompt) < 512 * 2 + 200
    assert "[user]19 w" in prompt


def test_overlong_prompt_that_may_not_be_cut_is_refused(server: LiveServer) -> None:
    prompt = " ".join(["w"] * 600)
    status, answer = server.post("/api/generate", model="tiny", prompt=prompt, truncate=False)
    assert status == 400
    assert answer["error"].startswith("the prompt is longer than the context length currently")
    status, answer = server.post("/api/generate", model="tiny", prompt=prompt, stream=False)
    assert status == 200


def test_tags_lists_newest_first_with_details(server: LiveServer) -> None:
    _, data = server.ask("GET", "/api/tags")
    models = json.loads(data)["models"]
    times = [model["modified_at"] for model in models]
    assert times == sorted(times, reverse=True)
    assert all(LOCAL_TIME.fullmatch(text) for text in times)
    (tiny,) = (model for model in models if model["name"] == "tiny:latest")
    assert tiny["model"] == "tiny:latest"
    assert re.fullmatch(r"[0-9a-f]{64}", tiny["digest"])
    assert tiny["size"] > 1000
    assert tiny["details"] == {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": tiny["details"]["parameter_size"],
        "quantization_level": "F32",
        "context_length": 512,
        "embedding_length": 32,
    }
    assert tiny["capabilities"] == ["completion"]
    by_name = {model["name"]: model["capabilities"] for model in models}
    assert by_name["thinker:latest"] == ["completion", "thinking"]
    assert by_name["caller:v1"] == ["completion", "tools"]
    assert by_name["embedder:latest"] == ["embedding"]
    assert by_name["filler:latest"] == ["completion", "insert"]
    assert "site/dressed:x.1" in by_name


def test_show_tells_everything(server: LiveServer) -> None:
    status, answer = server.post("/api/show", model="site/DRESSED:x.1")
    assert status == 200
    assert answer["license"] == "MIT"
    assert answer["system"] == "Be kind."
    assert answer["messages"] == [{"role": "user", "content": "one"}]
    assert answer["parameters"].splitlines() == [
        'stop                           "END"',
        'stop                           "\\n\\n"',
        "temperature                    0.5",
        "top_k                          7",
    ]
    assert answer["template"] == TEMPLATE
    assert answer["template_source"] == "jinja"
    assert answer["capabilities"] == ["completion"]
    assert LOCAL_TIME.fullmatch(answer["modified_at"])
    info = answer["model_info"]
    assert info["general.architecture"] == "llama"
    assert info["general.parameter_count"] > 0
    assert "tokenizer.chat_template" not in info
    assert answer["tensors"][0].keys() == {"name", "type", "shape"}
    assert "# FROM site/dressed:x.1\n" in answer["modelfile"]
    assert "FROM sha256-" in answer["modelfile"]
    assert "store" not in answer["modelfile"]


def test_show_lists_long_arrays_only_when_asked(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as server:
        tokens = {"tokenizer.ggml.tokens": list("abcdefghi")}
        put_model(server.store, "wordy", tmp_path, header=tokens)
        _, brief = server.post("/api/show", model="wordy")
        _, verbose = server.post("/api/show", model="wordy", verbose=True, system="Other.")
    assert brief["model_info"]["tokenizer.ggml.tokens"] is None
    assert verbose["model_info"]["tokenizer.ggml.tokens"] == list("abcdefghi")
    assert verbose["system"] == "Other."


def test_copy_and_delete(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as server:
        names = {"source": "Tiny", "destination": "team/copy:1"}
        assert server.ask("POST", "/api/copy", names) == (200, b"")
        _, data = server.ask("GET", "/api/tags")
        models = json.loads(data)["models"]
        assert {model["name"] for model in models} == {"tiny:latest", "team/copy:1"}
        assert len({model["digest"] for model in models}) == 1
        assert server.ask("DELETE", "/api/delete", {"model": "team/copy:1"}) == (200, b"")
        assert server.ask("DELETE", "/api/delete", {"name": "tiny"}) == (200, b"")
        assert server.ask("GET", "/api/tags") == (200, b'{"models":[]}')
        assert server.ask("GET", "/v1/models") == (200, b'{"object":"list","data":[]}')
        status, answer = server.post("/api/chat", model="tiny", messages=[USER])
        assert (status, answer["error"]) == (404, "model 'tiny' not found")


def test_damaged_model_is_left_out_and_refused(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as server:
        folder = tmp_path / "junk"
        folder.mkdir()
        put_model(server.store, "junk", folder)
        path = server.store.resolve(server.store.names()[0]).model_path
        size = path.stat().st_size
        path.chmod(0o644)
        path.write_bytes(b"\0" * size)
        _, data = server.ask("GET", "/api/tags")
        listed = [model["name"] for model in json.loads(data)["models"]]
        assert len(listed) == 1
        bad = next(name for name in ("junk", "tiny") if f"{name}:latest" not in listed)
        status, answer = server.post("/api/chat", model=bad, messages=[USER])
        assert status == 500
        assert "not a usable GGUF" in answer["error"]
        assert str(tmp_path) not in answer["error"]
