"""Conversations become prompts as Ollama makes them, by the templates of public formats."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.chat import Message, Tool, ToolCall
from server.prompt.gotemplate.messages import PromptInput, collate, turns_of
from server.prompt.gotemplate.prompt import PromptTemplate
from server.prompt.gotemplate.template import Limits, TemplateError
from server.prompt.gotemplate.tools import Style

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "golden" / "gotemplate"
DEMO = ROOT / "demo-model"
TODAY = dt.date(2026, 8, 20)
CONVERSATIONS = json.loads((GOLDEN / "conversations.json").read_text(encoding="utf-8"))
FORMATS = sorted(path.stem for path in (GOLDEN / "formats").glob("*.gotmpl"))


def tool_of(sent: Mapping[str, Any]) -> Tool:
    function = sent["function"]
    return Tool(
        name=function["name"],
        description=function.get("description", ""),
        parameters=function.get("parameters", {}),
        raw=sent,
    )


def message_of(sent: Mapping[str, Any]) -> Message:
    calls = [call["function"] for call in sent.get("tool_calls", ())]
    return Message(
        role=sent["role"],
        content=sent["content"],
        thinking=sent.get("thinking", ""),
        tool_name=sent.get("tool_name", ""),
        tool_calls=tuple(
            ToolCall(id="", name=call["name"], arguments=call["arguments"]) for call in calls
        ),
    )


def conversation(name: str) -> PromptInput:
    sent = CONVERSATIONS[name]
    return PromptInput(
        messages=tuple(map(message_of, sent["messages"])),
        tools=tuple(map(tool_of, sent.get("tools", ()))),
        think=sent.get("think"),
    )


def ask(*turns: str) -> PromptInput:
    """A conversation from texts such as ``user: hello``."""
    pairs = (turn.split(": ", 1) for turn in turns)
    return PromptInput(messages=tuple(Message(role=role, content=text) for role, text in pairs))


def render(source: str, given: PromptInput) -> str:
    return PromptTemplate(source).render(given, today=TODAY)


# Refusals.


def test_malformed_template_is_refused() -> None:
    with pytest.raises(TemplateError, match=r'^template: :1: function "bogus" not defined$'):
        PromptTemplate("{{ bogus }}")


def test_tool_schema_that_nests_too_deep_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(400):
        schema = {"items": schema}
    tool = Tool(name="f", description="", parameters=schema)
    given = PromptInput(messages=(Message(role="user", content="x"),), tools=(tool,))
    with pytest.raises(TemplateError, match="levels"):
        render("{{ .Messages }}", given)


def test_turns_share_the_limits() -> None:
    template = PromptTemplate("{{ .Prompt }}{{ .Response }}")
    long = ask(*(f"{role}: 0123456789" for _ in range(50) for role in ("user", "assistant")))
    assert len(template.render(long)) == 1_000
    with pytest.raises(TemplateError, match="made more than 500 characters"):
        template.render(long, limits=Limits(chars=500))
    with pytest.raises(TemplateError, match="took more than 200 steps"):
        template.render(long, limits=Limits(steps=200))


# Formats.


@pytest.mark.parametrize("name", FORMATS)
def test_format_renders_as_go_does(name: str) -> None:
    source = (GOLDEN / "formats" / f"{name}.gotmpl").read_text(encoding="utf-8")
    golden = (GOLDEN / "formats" / f"{name}.txt").read_text(encoding="utf-8")
    parts = re.split(r"^==== (.*)\n", golden, flags=re.MULTILINE)[1:]
    expected = dict(zip(parts[::2], parts[1::2], strict=True))
    assert len(expected) >= 4
    rendered = {title: render(source, conversation(title)) + "\n" for title in expected}
    assert rendered == expected


@pytest.mark.parametrize("name", FORMATS)
def test_format_shows_what_its_model_can_do(name: str) -> None:
    source = (GOLDEN / "formats" / f"{name}.gotmpl").read_text(encoding="utf-8")
    template = PromptTemplate(source)
    tools = name in {"command-r", "harmony", "llama3.1-tools", "mistral-tools", "qwen-tools"}
    assert ("tools" in template.capabilities) is tools
    assert ("thinking" in template.capabilities) is (name == "qwen-tools")


def demo_cases() -> list[Any]:
    cases = json.loads((DEMO / "golden.json").read_text(encoding="utf-8"))["cases"]
    return [pytest.param(case, id=case["messages"][-1]["content"]) for case in cases]


@pytest.mark.parametrize("case", demo_cases())
def test_demo_template_equals_the_models_own_prompt(case: dict[str, Any]) -> None:
    template = PromptTemplate((DEMO / "ollama.template").read_text(encoding="utf-8"))
    given = PromptInput(
        messages=tuple(map(message_of, case["messages"])),
        tools=tuple(map(tool_of, case["tools"] or ())),
        style=Style.AS_SENT,
    )
    assert template.render(given) == case["prompt"]


def test_demo_template_tells_its_capabilities_and_tags() -> None:
    template = PromptTemplate((DEMO / "ollama.template").read_text(encoding="utf-8"))
    assert template.capabilities == {"tools", "thinking"}
    assert template.thinking_tags == ("<think>", "</think>")


# Choice of rendering.


def test_without_a_template_the_prompt_stands_alone() -> None:
    assert PromptTemplate().render(ask("system: S", "user: U")) == "U"


def test_response_is_added_where_a_template_has_no_place_for_it() -> None:
    given = ask("user: a", "assistant: b", "user: c")
    assert render("[{{ .Prompt }}]", given) == "[a]b[c]"
    assert PromptTemplate("{{ .Messages }}").source == "{{ .Messages }}"


def test_suffix_is_rendered_at_once() -> None:
    given = PromptInput(prompt="a", suffix="b", messages=(Message(role="user", content="no"),))
    template = PromptTemplate("<{{ .Prompt }}|{{ .Suffix }}|{{ .Response }}{{ .System }}>")
    assert template.render(given) == "<a|b|<no value>>"
    assert template.capabilities == {"insert"}


def test_prompt_without_suffix_is_a_conversation() -> None:
    given = PromptInput(prompt="a", messages=(Message(role="user", content="yes"),))
    assert render("{{ .Prompt }}", given) == "yes"


def test_system_texts_are_joined_and_stay_in_the_list() -> None:
    given = ask("system: a", "user: b", "system: c")
    source = "{{ .System }}|{{ range .Messages }}{{ .Role }}={{ .Content }},{{ end }}"
    assert render(source, given) == "a\n\nc|system=a,user=b,system=c,"


@pytest.mark.parametrize(
    ("source", "prompt"),
    [
        ("{{ .Prompt }}>{{ .Response }}<end>", "a>b<end>c>"),
        ("{{ .Prompt }}>{{ .Response }}{{ if .System }}x{{ end }}!", "a>b!c>"),
        ("{{ if .Prompt }}{{ .Prompt }}>{{ .Response }}{{ else }}no{{ end }}!", "a>b!c>"),
        ("{{ range .L }}{{ else }}{{ .Prompt }}{{ .Response }}{{ end }}!", "ab!c"),
        ("{{ .Prompt }}>{{ $.Response }}!", "a>b!c>"),
        ("{{ .Prompt }}{{ if .Response }}>{{ .Response }}!{{ end }}", "a>b!c"),
        ('{{ .Prompt }}>{{ printf "%s!" .Response }}?', "a>b!?c>!"),
        ('{{ .Prompt }}>{{ .Response | printf "%s" }}!', "a>b!c>"),
        ("{{ .Prompt }}>{{ with $x := 1 }}{{ .Response }}{{ end }}", None),
    ],
)
def test_last_turn_ends_where_the_answer_begins(source: str, prompt: str | None) -> None:
    given = ask("user: a", "assistant: b", "user: c")
    if prompt is None:
        with pytest.raises(TemplateError, match="can't evaluate field Response"):
            render(source, given)
    else:
        assert render(source, given) == prompt


def test_answer_that_has_begun_is_gone_on_with() -> None:
    given = ask("user: a", "assistant: b")
    assert render("{{ .Prompt }}>{{ .Response }}<end>", given) == "a>b"


def test_turns_begin_where_something_is_pending() -> None:
    given = ask(
        "system: s", "user: u", "assistant: a", "system: t", "user: v", "tool: r", "user: w"
    )
    turns = turns_of(given.messages)
    assert [(turn.system, turn.prompt, turn.response) for turn in turns] == [
        ("s", "u", "a"),
        ("t", "w", ""),
    ]
    assert turns_of(()) == turns_of(ask("tool: r").messages)


@pytest.mark.parametrize(
    ("think", "shown"),
    [
        (None, "false  false"),
        (False, "false  true"),
        (True, "true medium true"),
        ("low", "true low true"),
        ("max", "true max true"),
    ],
)
@pytest.mark.parametrize("extra", ["", "{{ if .Messages }}{{ end }}"])
def test_thinking_is_told_to_every_kind_of_template(
    think: bool | str | None,  # noqa: FBT001 - a column of the table
    shown: str,
    extra: str,
) -> None:
    source = "{{ .Think }} {{ .ThinkLevel }} {{ .IsThinkSet }}" + extra
    given = PromptInput(messages=(Message(role="user", content="x"),), think=think)
    assert render(source, given) == shown


# Messages.


def test_neighbours_of_one_role_are_merged_except_results() -> None:
    messages = ask(
        "user: a", "user: b", "tool: 1", "tool: 2", "assistant: x", "assistant: "
    ).messages
    _, collated = collate(messages)
    assert [(message.role, message.content) for message in collated] == [
        ("user", "a\n\nb"),
        ("tool", "1"),
        ("tool", "2"),
        ("assistant", "x\n\n"),
    ]


def test_merging_loses_no_calls_and_no_images() -> None:
    call = ToolCall(id="1", name="f", arguments={})
    first = Message(role="assistant", content="a", images=(b"1",), thinking="t")
    second = Message(role="assistant", tool_calls=(call,), images=(b"2",), thinking="u")
    _, (merged,) = collate((first, second))
    assert merged.tool_calls == (call,)
    assert merged.images == (b"1", b"2")
    assert merged.thinking == "t\n\nu"


ROLES = st.sampled_from(["system", "user", "assistant", "tool", "other"])
MESSAGES = st.lists(st.builds(Message, role=ROLES, content=st.text(max_size=5)), max_size=8)


@settings(deadline=None, max_examples=200)
@given(MESSAGES)
def test_collating_keeps_every_text_in_order(messages: list[Message]) -> None:
    system, collated = collate(messages)
    assert "\n\n".join(m.content for m in messages) == "\n\n".join(m.content for m in collated)
    assert system == "\n\n".join(m.content for m in messages if m.role == "system")
    assert collate(collated)[1] == collated


def test_images_can_be_counted_but_not_read() -> None:
    given = PromptInput(messages=(Message(role="user", content="x", images=(b"abc", b"")),))
    source = "{{ range .Messages }}{{ len .Images }}{{ range .Images }}{{ . }}{{ end }}{{ end }}"
    assert render(source, given) == "2{}{}"


def test_message_is_written_as_json_with_the_keys_of_the_wire() -> None:
    call = ToolCall(id="c1", name="f", arguments={"b": 1, "a": "<"})
    message = Message(role="assistant", content="x", thinking="t", tool_calls=(call,))
    given = PromptInput(messages=(message,))
    assert render("{{ json .Messages }}", given) == (
        '[{"role":"assistant","content":"x","thinking":"t","tool_calls":[{"id":"c1","function":'
        '{"index":0,"name":"f","arguments":{"a":"\\u003c","b":1}}}]}]'
    )


def test_unknown_field_of_a_message_is_an_error() -> None:
    with pytest.raises(TemplateError, match=r"can't evaluate field Rôle in type api\.Message"):
        render("{{ range .Messages }}{{ .Rôle }}{{ end }}", ask("user: x"))


# Tools.

SENT: dict[str, Any] = {
    "function": {
        "parameters": {
            "$defs": {"z": 1, "a": 2},
            "type": "object",
            "properties": {
                "when": {"type": ["string", "null"], "format": "date", "description": "<day>"},
                "ask": {"anyOf": [{"type": "integer"}, {"type": "array", "minItems": 1}]},
                "any": {"enum": [3, "x"], "default": 3},
            },
            "required": ["when"],
            "additionalProperties": False,
        },
        "description": "plans",
        "name": "plan",
        "strict": True,
    },
    "type": "function",
}


def with_tool(style: Style) -> PromptInput:
    message = Message(role="user", content="x")
    return PromptInput(messages=(message,), tools=(tool_of(SENT),), style=style)


def test_tools_are_written_as_ollama_writes_them() -> None:
    source = "{{ .Tools }}{{ if .Messages }}{{ end }}"
    assert render(source, with_tool(Style.OLLAMA)) == (
        '[{"type":"function","function":{"name":"plan","description":"plans","parameters":{'
        '"type":"object","$defs":{"a":2,"z":1},"required":["when"],"properties":{'
        '"any":{"enum":[3,"x"]},'
        '"ask":{"anyOf":[{"type":"integer"},{"type":"array"}]},'
        '"when":{"type":["string","null"],"description":"\\u003cday\\u003e"}}}}}]'
    )


def test_tools_are_written_as_they_were_sent() -> None:
    source = (
        "{{ range .Tools }}{{ . }}{{ json .Function.Parameters }}{{ end }}{{ .Messages | len }}"
    )
    parameters = json.dumps(SENT["function"]["parameters"])
    assert render(source, with_tool(Style.AS_SENT)) == json.dumps(SENT) + parameters + "1"


@pytest.mark.parametrize("style", Style)
def test_fields_of_tools_can_be_gone_through(style: Style) -> None:
    source = (
        "{{ range .Tools }}{{ .Type }} {{ .Function.Name }}: {{ .Function.Description }}\n"
        "{{ range $name, $p := .Function.Parameters.Properties }}{{ $name }} {{ $p.Type }} "
        "{{ toTypeScriptType $p }} {{ $p.ToTypeScriptType }} {{ $p.Description }} "
        "{{ len $p.Enum }}\n"
        "{{ end }}{{ .Function.Parameters.Required }} {{ .Function.Parameters.Defs.a }}{{ end }}"
        "{{ if .Messages }}{{ end }}"
    )
    assert render(source, with_tool(style)) == (
        "function plan: plans\n"
        "any  any any  2\n"
        "ask  number | any[] number | any[]  0\n"
        "when [string null] string | null string | null <day> 0\n"
        "[when] 2"
    )


def test_conversation_without_tools_has_nil_tools() -> None:
    source = (
        "{{ if .Tools }}y{{ end }}{{ eq .Tools nil }} "
        "{{ range .Messages }}{{ eq .ToolCalls nil }}{{ end }}"
    )
    assert render(source, ask("user: x")) == "true true"


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"properties": None, "required": "x", "type": 5},
        {"properties": [], "required": [1, "a"], "type": ["object"]},
        {"properties": {"a": None, "b": 1, "c": {"type": {}, "anyOf": 3, "properties": "x"}}},
        {"properties": {"a": {"anyOf": [1, None]}}, "items": {"b": [1]}, "$defs": []},
    ],
)
@pytest.mark.parametrize("style", Style)
def test_strange_schemas_do_no_harm(parameters: dict[str, Any], style: Style) -> None:
    tool = Tool(name="f", description="", parameters=parameters)
    given = PromptInput(messages=(Message(role="user", content="x"),), tools=(tool,), style=style)
    output = render(
        "{{ range .Tools }}{{ . }}\x00{{ json .Function }}\x00{{ json .Function.Parameters }}"
        "{{ range .Function.Parameters.Properties }}{{ .Type }}{{ toTypeScriptType . }}{{ end }}"
        "{{ end }}{{ if .Messages }}{{ end }}",
        given,
    )
    assert json.loads(output.split("\x00")[0])["function"]["name"] == "f"


@pytest.mark.parametrize(
    ("style", "written"),
    [(Style.OLLAMA, '{"a":"\\u003c","n":1000000}'), (Style.AS_SENT, '{"n": 1000000, "a": "<"}')],
)
def test_arguments_are_written_in_the_style_asked_for(style: Style, written: str) -> None:
    call = ToolCall(id="c1", name="f", arguments={"n": 1_000_000, "a": "<"})
    message = Message(role="assistant", tool_calls=(call, call))
    source = (
        "{{ range .Messages }}{{ range .ToolCalls }}{{ .ID }}{{ .Function.Index }}"
        "{{ .Function.Arguments }}{{ range $k, $v := .Function.Arguments }}{{ $k }}{{ $v }}"
        "{{ end }}\n{{ end }}{{ end }}"
    )
    given = PromptInput(messages=(message,), style=style)
    assert render(source, given) == f"c10{written}a<n1000000\nc11{written}a<n1000000\n"
