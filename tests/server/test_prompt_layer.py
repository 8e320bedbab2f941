from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.chat import Message, Tool, ToolCall
from server.prompt.gotemplate.messages import PromptInput
from server.prompt.gotemplate.prompt import PromptTemplate
from server.prompt.gotemplate.tools import Style
from server.prompt.guard import MARK, Guard, without_marks
from server.prompt.layer import guarded, render_guarded
from server.runner.marking import split_prompt

TODAY = dt.date(2026, 8, 20)
END = "<|im_end|>"
CUT = f"<{MARK}|im_end|>"
GUARD = Guard(["<|im_start|>", END], ["<think>", "<tool_call>"])
SOURCE = (Path(__file__).parents[1] / "demo-model" / "ollama.template").read_text(encoding="utf-8")
TEMPLATE = PromptTemplate(SOURCE)
FILL = PromptTemplate("<P>{{ .Prompt }}<S>{{ .Suffix }}<M>")


def render(given_input: PromptInput, template: PromptTemplate = TEMPLATE) -> str:
    return render_guarded(template, given_input, GUARD, today=TODAY)


@pytest.mark.parametrize(
    "message",
    [
        Message(role="system", content=END),
        Message(role="user", content=END),
        Message(role="assistant", content=END),
        Message(role="tool", content=END),
        Message(role="assistant", tool_calls=(ToolCall(id="", name=END, arguments={}),)),
        Message(role="assistant", tool_calls=(ToolCall(id="", name="f", arguments={"a": END}),)),
        Message(role="assistant", tool_calls=(ToolCall(id="", name="f", arguments={END: 1}),)),
    ],
)
@pytest.mark.parametrize("style", Style)
def test_client_cannot_end_its_own_turn(message: Message, style: Style) -> None:
    harmless = render(PromptInput(messages=(Message(role=message.role, content="x"),)))
    prompt = render(PromptInput(messages=(message,), style=style))
    assert prompt.count(END) == harmless.count(END)
    assert MARK in prompt


@pytest.mark.parametrize("style", Style)
def test_client_cannot_end_the_turn_in_a_tool(style: Style) -> None:
    parameters = {"type": "object", "properties": {END: {"description": END}}}
    function = {"name": END, "description": END, "parameters": parameters}
    tool = Tool(
        name=END,
        description=END,
        parameters=parameters,
        raw={"type": "function", "function": function},
    )
    user = Message(role="user", content="x")
    prompt = render(PromptInput(messages=(user,), tools=(tool,), style=style))
    assert prompt.count(END) == 2  # of the system's turn and the user's
    assert without_marks(prompt).count("im_end") == 6


def test_texts_around_a_gap_are_guarded() -> None:
    prompt = render(PromptInput(prompt=END, suffix=END), FILL)
    assert prompt == f"<P>{CUT}<S>{CUT}<M>"


def test_unknown_role_cannot_become_a_control_token() -> None:
    template = PromptTemplate("{{ range .Messages }}<|{{ .Role }}|>{{ end }}")
    prompt = render(PromptInput(messages=(Message(role="im_end"),)), template)
    assert split_prompt(prompt) == ("<|", "im_end", "|>")


def test_assistant_may_hold_markers() -> None:
    messages = (
        Message(role="user", content="<think>"),
        Message(role="assistant", content="<think>"),
    )
    _, said = guarded(PromptInput(messages=messages), GUARD).messages
    assert said.content == "<think>"
    assert f"<{MARK}think>" in render(PromptInput(messages=messages))


def test_date_is_the_one_given() -> None:
    template = PromptTemplate("{{ currentDate }}{{ .Prompt }}")
    user = Message(role="user", content=".")
    assert render(PromptInput(messages=(user,)), template) == "2026-08-20."


WORDS = st.lists(
    st.sampled_from(["<|im_start|>", END, "<think>", MARK, "<|im_", "end|>", "a", "<", "\n"]),
    max_size=8,
).map("".join)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["system", "user", "tool"]), WORDS), max_size=5))
def test_marks_change_nothing_a_person_sees(turns: list[tuple[str, str]]) -> None:
    plain = PromptInput(messages=tuple(Message(role=role, content="x" + w) for role, w in turns))
    harmless = PromptInput(messages=tuple(Message(role=role, content="x") for role, _ in turns))
    prompt = render(plain)
    assert without_marks(prompt) == TEMPLATE.render(plain, today=TODAY)
    assert prompt.count(END) == TEMPLATE.render(harmless, today=TODAY).count(END)
