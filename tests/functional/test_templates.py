"""Prompts of models with a TEMPLATE layer, through real sockets; seeing them takes no engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.functional.live import FIM, TEMPLATE, THINKING_TEMPLATE, LiveServer, put_model

DEMO = Path(__file__).parents[1] / "demo-model"
LAYER = (DEMO / "ollama.template").read_text(encoding="utf-8")
TURNS = (
    "{{ range .Messages }}({{ .Role }}){{ .Content }}"
    "{{ if .Thinking }}<why>{{ .Thinking }}</why>{{ end }}{{ end }}(answer)"
)
FILL = "{{ if .Suffix }}P:{{ .Prompt }} S:{{ .Suffix }} M:{{ else }}{{ .Prompt }}{{ end }}"
ENDLESS = "{{ range $.Messages }}" + "{{ range (slice $.Messages) }}" * 8 + "x" + "{{ end }}" * 9


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One server for all tests of this module; they leave its store alone."""
    folder = tmp_path_factory.mktemp("templates")
    with LiveServer(folder) as live:
        weights = (DEMO / "demo-f16.gguf").read_bytes()
        put_model(live.store, "demo", folder, texts={"template": LAYER}, weights=weights)
        for name, template, layer in (
            ("both", TEMPLATE, TURNS),
            ("only", None, TURNS),
            ("plain", None, "{{ .Prompt }}!"),
            ("outdone", THINKING_TEMPLATE, "{{ .Prompt }}!"),
            ("gap", None, FILL),
            ("broken", None, "{{ nonsense }}"),
            ("stale", TEMPLATE, "{{ nonsense }}"),
            ("endless", None, ENDLESS),
            ("odd", None, "{{ range .Messages }}{{ .Bogus }}{{ end }}"),
        ):
            put_model(live.store, name, folder, template=template, texts={"template": layer})
        put_model(live.store, "bare", folder, template=None)
        put_model(live.store, "tokens", folder, header=FIM)
        yield live


def render(server: LiveServer, path: str, **body: Any) -> str:
    status, answer = server.post(path, _debug_render_only=True, **body)
    assert status == 200, answer
    text: str = answer["_debug_info"]["rendered_template"]
    return text


USER = {"role": "user", "content": "q"}
NONSENSE = (
    'broken:latest: the TEMPLATE layer is malformed: template: :1: function "nonsense" not defined'
)
FAILED = "the model's template failed: template: :1:"
MANY = [{"role": role, "content": "w"} for _ in range(50) for role in ("user", "assistant")]


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/api/generate", {"model": "bare", "prompt": "x", "template": "{{ bogus }}"}, 400,
         'template: :1: function "bogus" not defined'),
        ("/api/generate", {"model": "bare", "prompt": "x", "template": "\n{{ if .A }}"}, 400,
         "template: :2: unexpected EOF"),
        ("/api/generate", {"model": "bare", "prompt": "x", "template": "{{ .Prompt.Q }}"}, 400,
         "template: :1: can't evaluate field Q in type string"),
        ("/api/generate", {"model": "bare", "prompt": "x", "template": "x", "raw": True}, 400,
         "raw mode does not support template, system, or context"),
        ("/api/generate", {"model": "bare", "prompt": "x", "suffix": "y"}, 400,
         "registry.ollama.ai/library/bare:latest does not support insert"),
        ("/api/generate",
         {"model": "bare", "prompt": "x", "suffix": "y", "template": "{{ .Prompt }}"}, 400,
         "registry.ollama.ai/library/bare:latest does not support insert"),
        ("/api/chat", {"model": "plain", "messages": [USER], "think": True}, 400,
         '"plain" does not support thinking'),
        ("/api/chat", {"model": "both", "messages": [USER],
                       "tools": [{"function": {"name": "f"}}]}, 400,
         "registry.ollama.ai/library/both:latest does not support tools"),
        ("/api/chat", {"model": "broken", "messages": [USER]}, 500,
         NONSENSE),
        ("/api/chat", {"model": "odd", "messages": [USER]}, 500,
         f"{FAILED} can't evaluate field Bogus in type api.Message"),
        ("/api/chat", {"model": "endless", "messages": MANY}, 500,
         f"{FAILED} took more than 1000000 steps"),
    ],
)  # fmt: skip
def test_request_is_refused(
    server: LiveServer, path: str, body: dict[str, Any], status: int, text: str
) -> None:
    found, answer = server.post(path, stream=False, **body)
    assert (found, answer["error"]) == (status, text)


@pytest.mark.parametrize(
    ("path", "body", "prompt"),
    [
        ("/api/chat", {"model": "both", "messages": [USER]}, "(user)q(answer)"),
        ("/api/chat", {"model": "only", "messages": [{"role": "system", "content": "s"}, USER]},
         "(system)s(user)q(answer)"),
        ("/api/generate", {"model": "only", "prompt": "q", "system": "s"},
         "(system)s(user)q(answer)"),
        ("/api/generate", {"model": "only", "prompt": "q", "raw": True}, "q"),
        ("/api/chat", {"model": "plain", "messages": [USER]}, "q!"),
        ("/api/chat", {"model": "stale", "messages": [USER]}, "[user]q[assistant]"),
        ("/api/chat", {"model": "outdone", "messages": [USER]}, "[user]q[assistant]T"),
        ("/api/chat", {"model": "bare", "messages": [{"role": "system", "content": "s"}, USER]},
         "q"),
        ("/api/generate", {"model": "both", "prompt": "q", "template": "<{{ .Prompt }}>"}, "<q>"),
        ("/api/generate", {"model": "tokens", "prompt": "q", "system": "s",
                           "template": "{{ .System }}/{{ .Prompt }}>{{ .Response }} end"},
         "s/q>"),
        ("/api/generate", {"model": "gap", "prompt": "q", "suffix": "z"}, "P:q S:z M:"),
        ("/api/generate", {"model": "gap", "prompt": "q"}, "q"),
        ("/api/generate", {"model": "bare", "prompt": "q", "suffix": "z", "template": FILL},
         "P:q S:z M:"),
        ("/api/generate", {"model": "tokens", "prompt": "q", "suffix": "z", "template": FILL},
         "P:q S:z M:"),
    ],
)  # fmt: skip
def test_prompt_is_made_by_the_chosen_template(
    server: LiveServer, path: str, body: dict[str, Any], prompt: str
) -> None:
    assert render(server, path, **body) == prompt


@pytest.mark.parametrize(
    ("model", "source", "template", "capabilities"),
    [
        ("demo", "go", LAYER, ["completion", "tools", "insert", "thinking"]),
        ("both", "go", TURNS, ["completion", "thinking"]),
        ("outdone", "jinja", THINKING_TEMPLATE, ["completion", "thinking"]),
        ("stale", "jinja", TEMPLATE, ["completion"]),
        ("gap", "go", FILL, ["completion", "insert"]),
        ("bare", "builtin", "{{ .Prompt }}", ["completion"]),
        ("broken", "go", "{{ nonsense }}", ["completion"]),
        ("tokens", "jinja", TEMPLATE, ["completion", "insert"]),
    ],
)
def test_show_tells_the_choice(
    server: LiveServer, model: str, source: str, template: str, capabilities: list[str]
) -> None:
    _, answer = server.post("/api/show", model=model)
    assert (answer["template_source"], answer["template"]) == (source, template)
    assert answer["capabilities"] == capabilities


def demo_cases() -> list[Any]:
    cases = json.loads((DEMO / "golden.json").read_text(encoding="utf-8"))["cases"]
    return [pytest.param(case, id=case["messages"][-1]["content"]) for case in cases]


@pytest.mark.parametrize("case", demo_cases())
def test_layer_of_the_demo_model_gives_the_prompts_of_its_jinja(
    server: LiveServer, case: dict[str, Any]
) -> None:
    body = {"messages": case["messages"], "tools": case["tools"], "think": False}
    assert render(server, "/api/chat", model="demo", **body) == case["prompt"]


def test_thinking_is_split_at_the_tags_of_the_template(tmp_path: Path) -> None:
    with LiveServer(tmp_path, script={"words": ["<why>", "so", "</w", "hy>", "yes"]}) as server:
        put_model(server.store, "wise", tmp_path, template=None, texts={"template": TURNS})
        _, answer = server.post("/api/chat", model="wise", messages=[USER], stream=False)
        assert answer["message"]["thinking"] == "so"
        assert answer["message"]["content"] == "yes"
        _, plain = server.post(
            "/api/chat", model="wise", messages=[USER], stream=False, think=False
        )
        assert plain["message"]["content"] == "<why>so</why>yes"


def test_call_is_read_in_the_form_of_the_template(tmp_path: Path) -> None:
    layer = (
        "{{ range .Tools }}{{ .Function.Name }}{{ end }}{{ range .Messages }}{{ .Content }}"
        '{{ if .ToolCalls }}[CALLS]{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", '
        '"arguments": {{ .Function.Arguments }}}{{ end }}{{ end }}{{ end }}'
    )
    words = ["Well. ", "[CA", "LLS]", '{"name": "f", ', '"arguments": {"a": 1}}']
    with LiveServer(tmp_path, script={"words": words}) as server:
        put_model(server.store, "caller", tmp_path, template=None, texts={"template": layer})
        tools = [{"function": {"name": "f"}}]
        body = {"model": "caller", "messages": [USER], "tools": tools, "stream": False}
        _, answer = server.post("/api/chat", **body)
    message = answer["message"]
    assert message["content"] == "Well."
    (call,) = message["tool_calls"]
    assert call["function"] == {"index": 0, "name": "f", "arguments": {"a": 1}}


@pytest.mark.parametrize(
    ("setting", "sources"), [("on", ("go", "go")), ("off", ("jinja", "go")), ("auto", ("go", "go"))]
)
def test_operator_decides_for_all_models(
    tmp_path: Path, setting: str, sources: tuple[str, str]
) -> None:
    with LiveServer(tmp_path, flags={"go_template": setting}) as server:
        put_model(server.store, "both", tmp_path, texts={"template": TURNS})
        put_model(server.store, "only", tmp_path, template=None, texts={"template": TURNS})
        shown = [server.post("/api/show", model=name)[1] for name in ("both", "only")]
        prompt = render(server, "/api/chat", model="both", messages=[USER])
    assert tuple(answer["template_source"] for answer in shown) == sources
    assert prompt == ("(user)q(answer)" if sources[0] == "go" else "[user]q[assistant]")
