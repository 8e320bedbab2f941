from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.chat import (
    Piece,
    TextChunk,
    ThinkingChunk,
    ToolCallChunk,
    ToolCallDeltaChunk,
    ToolCallStartChunk,
)
from server.output.stream import DEFAULT_TAGS, OutputStream
from server.output.thinking import Tags

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Lima"}}\n</tool_call>'


def stream(
    *,
    thinking: bool = True,
    opened: bool = False,
    tools: bool = True,
    tags: Tags = DEFAULT_TAGS,
    tool_tag: str = "<tool_call>",
) -> OutputStream:
    numbers = itertools.count()
    return OutputStream(
        thinking=thinking,
        opened=opened,
        tools=tools,
        new_call_id=lambda: f"call_{next(numbers)}",
        tags=tags,
        tool_tag=tool_tag,
    )


def run(texts: Iterable[str], **kinds: Any) -> list[Piece]:
    """All pieces of an answer, neighbours of one kind joined, calls only whole."""
    out = stream(**kinds)
    pieces = [piece for text in texts for piece in out.feed(text)]
    joined: list[Piece] = []
    for piece in [*pieces, *out.finish()]:
        last = joined[-1] if joined else None
        if isinstance(piece, TextChunk) and isinstance(last, TextChunk):
            joined[-1] = TextChunk(text=last.text + piece.text)
        elif isinstance(piece, ThinkingChunk) and isinstance(last, ThinkingChunk):
            joined[-1] = ThinkingChunk(text=last.text + piece.text)
        elif not isinstance(piece, ToolCallStartChunk | ToolCallDeltaChunk):
            joined.append(piece)
    return joined


def shown(pieces: list[Piece]) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for piece in pieces:
        if isinstance(piece, ToolCallChunk):
            out.append((piece.kind, f"{piece.call.name} {json.dumps(dict(piece.call.arguments))}"))
        elif isinstance(piece, TextChunk | ThinkingChunk):
            out.append((piece.kind, piece.text))
    return out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello", [("text", "hello")]),
        ("  hello ", [("text", "  hello ")]),
        ("<think>a</think>b", [("thinking", "a"), ("text", "b")]),
        ("\n<think>\na b\n</think>\n\nc\n", [("thinking", "a b"), ("text", "c\n")]),
        ("<think>\n\n</think>\n\nc", [("text", "c")]),
        ("<think>never closed </thi", [("thinking", "never closed </thi")]),
        ("<thinking>no", [("text", "<thinking>no")]),
        ("say <think>x</think>", [("text", "say <think>x</think>")]),
        ("<thi", [("text", "<thi")]),
        (CALL, [("tool_call", 'weather {"city": "Lima"}')]),
        (
            f"Let me see.\n{CALL}\n",
            [("text", "Let me see."), ("tool_call", 'weather {"city": "Lima"}')],
        ),
        (f"{CALL}\n{CALL}", [("tool_call", 'weather {"city": "Lima"}')] * 2),
        (
            f"<think>x {CALL}</think>{CALL}",
            [("thinking", f"x {CALL}"), ("tool_call", 'weather {"city": "Lima"}')],
        ),
        ('<tool_call>{"name": "f"}', [("tool_call", "f {}")]),
        (
            '<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>',
            [("tool_call", 'f {"a": 1}')],
        ),
        (
            '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
            [("tool_call", 'f {"a": 1}')],
        ),
        ("a <tool_call>oops</tool_call> b", [("text", "a <tool_call>oops</tool_call> b")]),
        (
            'x\n<tool_call>{"name": 3}</tool_call>',
            [("text", 'x\n<tool_call>{"name": 3}</tool_call>')],
        ),
        ('<tool_call>{"name": "f", "arg', [("text", '<tool_call>{"name": "f", "arg')]),
        (f"{CALL} then text", [("tool_call", 'weather {"city": "Lima"}'), ("text", "then text")]),
        (
            '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',
            [("text", '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>')],
        ),
        (
            '<tool_call>{"name": "f", "arguments": {"a": 1e999}}</tool_call>',
            [("text", '<tool_call>{"name": "f", "arguments": {"a": 1e999}}</tool_call>')],
        ),
        ("a < b <tool", [("text", "a < b <tool")]),
    ],
)
def test_text_is_split_as_written(text: str, expected: list[tuple[str, str]]) -> None:
    assert shown(run([text])) == expected


def test_prompt_that_opened_the_tag_starts_inside() -> None:
    assert shown(run(["\nwhy\n</think>\n\nyes"], opened=True)) == [
        ("thinking", "why"),
        ("text", "yes"),
    ]


def test_calls_stay_text_when_the_request_has_no_tools() -> None:
    assert shown(run([CALL], tools=False)) == [("text", CALL)]


def test_tags_stay_text_when_the_model_does_not_think() -> None:
    assert shown(run(["<think>a</think>b"], thinking=False)) == [("text", "<think>a</think>b")]


def test_deeply_nested_arguments_stay_text() -> None:
    text = '<tool_call>{"name": "f", "arguments": ' + "[" * 100_000 + "</tool_call>"
    assert shown(run([text])) == [("text", text)]


def test_a_call_is_told_in_pieces_and_then_whole() -> None:
    out = stream()
    pieces = [*out.feed(CALL + CALL), *out.finish()]
    assert [piece.kind for piece in pieces] == [
        "tool_call_start",
        "tool_call_delta",
        "tool_call",
    ] * 2
    assert [piece.index for piece in pieces if isinstance(piece, ToolCallStartChunk)] == [0, 1]
    (first, _) = [piece for piece in pieces if isinstance(piece, ToolCallDeltaChunk)]
    assert json.loads(first.arguments) == {"city": "Lima"}


def test_each_call_has_its_own_id() -> None:
    calls = [piece.call.id for piece in run([CALL, CALL]) if isinstance(piece, ToolCallChunk)]
    assert calls == ["call_0", "call_1"]


def test_reasoning_stands_between_the_tags_of_the_template() -> None:
    tags = Tags(open="<why>", close="</why>")
    text = "\n<why> a <think> </why>b</why>"
    assert shown(run([text], tags=tags)) == [("thinking", "a <think>"), ("text", "b</why>")]
    assert shown(run(["<think>x"], tags=tags)) == [("text", "<think>x")]


F1 = '{"name": "f", "arguments": {"a": 1}}'
F2 = '{"name": "g", "parameters": {}}'
BARE = "{"
LISTED = "[TOOL_CALLS]"


@pytest.mark.parametrize(
    ("tag", "text", "expected"),
    [
        (BARE, F1, [("tool_call", 'f {"a": 1}')]),
        (BARE, f" \n{F1}; {F2}\n", [("tool_call", 'f {"a": 1}'), ("tool_call", "g {}")]),
        (BARE, f"[{F1}, {F2}]", [("tool_call", 'f {"a": 1}'), ("tool_call", "g {}")]),
        (BARE, f"Well: {F1}", [("text", f"Well: {F1}")]),
        (BARE, f"{F1} done", [("text", f"{F1} done")]),
        (BARE, '{"answer": 1}', [("text", '{"answer": 1}')]),
        (BARE, '{"name": "Bob"}', [("text", '{"name": "Bob"}')]),
        (BARE, '{"name": "f", "arguments": 5}', [("text", '{"name": "f", "arguments": 5}')]),
        (BARE, '{"name": "f", "arg', [("text", '{"name": "f", "arg')]),
        (BARE, "[]", [("text", "[]")]),
        (BARE, "[1] is a list", [("text", "[1] is a list")]),
        (BARE, "  \n", [("text", "  \n")]),
        (BARE, "", []),
        (BARE, '{"name": "f", "arguments": "{}"}', [("tool_call", "f {}")]),
        (LISTED, f"{LISTED} [{F1}]", [("tool_call", 'f {"a": 1}')]),
        (LISTED, f"[{F1}]", [("tool_call", 'f {"a": 1}')]),
        (LISTED, f"I look. {LISTED}{F1}{LISTED}{F2}",
         [("text", "I look. "), ("tool_call", 'f {"a": 1}'), ("tool_call", "g {}")]),
        (LISTED, f"so {LISTED}f[ARGS]{{}}", [("text", f"so {LISTED}f[ARGS]{{}}")]),
        (LISTED, "so [TOOL_C", [("text", "so [TOOL_C")]),
    ],
)  # fmt: skip
def test_calls_at_the_end_are_found(tag: str, text: str, expected: list[tuple[str, str]]) -> None:
    assert shown(run([text], tool_tag=tag)) == expected
    assert shown(run(text, tool_tag=tag)) == expected


def test_deeply_nested_bare_json_stays_text() -> None:
    text = "[" * 100_000
    assert shown(run([text], tool_tag=BARE)) == [("text", text)]


FRAGMENTS = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        CALL,
        "<",
        "</th",
        "<tool",
        " ",
        "\n",
        "a",
        "word ",
        '{"name": "f", "arguments": {}}',
        "{",
        "}",
        "\N{GRINNING FACE}",
    ]
)
TEXTS = st.lists(FRAGMENTS, max_size=12).map("".join)


@settings(deadline=None, max_examples=300)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 400), max_size=20), opened=st.booleans())
def test_where_the_text_is_cut_does_not_matter(text: str, cuts: list[int], *, opened: bool) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    assert run(pieces, opened=opened) == run([text], opened=opened) == run(text, opened=opened)


@settings(deadline=None, max_examples=300)
@given(
    text=st.lists(st.sampled_from([F1, F2, LISTED, "[TOOL", " ", "[", "]", ",", "a"])).map("".join),
    cuts=st.lists(st.integers(0, 200), max_size=20),
    tag=st.sampled_from([BARE, LISTED]),
)
def test_where_calls_at_the_end_are_cut_does_not_matter(
    text: str, cuts: list[int], tag: str
) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    whole = run([text], tool_tag=tag)
    assert run(pieces, tool_tag=tag) == whole
    if not any(isinstance(piece, ToolCallChunk) for piece in whole):
        assert "".join(value for _, value in shown(whole)) == text


@settings(deadline=None, max_examples=300)
@given(text=TEXTS, opened=st.booleans())
def test_no_text_is_lost(text: str, *, opened: bool) -> None:
    """Every character that is not blank stands in the output, but for tags that were understood."""
    written = ""
    for piece in run([text], opened=opened):
        if isinstance(piece, ToolCallChunk):
            written += '<tool_call>{"name":"%s","arguments":%s}</tool_call>' % (  # noqa: UP031
                piece.call.name,
                json.dumps(dict(piece.call.arguments)),
            )
        elif isinstance(piece, TextChunk | ThinkingChunk):
            written += piece.text

    def bare(value: str) -> str:
        for tag in ("<think>", "</think>"):
            value = value.replace(tag, "")
        return "".join(value.split())

    # A call that ended with the text got a closing tag it did not have.
    got, want = bare(written), bare(text)
    assert got in {want, want + "</tool_call>"}
