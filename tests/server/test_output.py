"""What models write, split into reasoning, text and calls, family by family."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.settings import OUTPUT_FORMATS
from server.calling import new_call_id
from server.chat import Tool
from server.chunks import (
    Piece,
    TextChunk,
    ThinkingChunk,
    ToolCallChunk,
    ToolCallDeltaChunk,
    ToolCallStartChunk,
)
from server.output.events import CallArguments, CallBroken, CallEnd, CallStart, Content, Event
from server.output.families import FAMILIES
from server.output.harmony import HarmonyParser
from server.output.layout import CallIds, Family, Tags
from server.output.parser import OutputParser, TagParser
from server.output.stream import PLAIN, OutputStream
from server.runner.shown import is_shown

WEATHER = Tool(
    name="weather",
    description="The weather of a city.",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "options": {"type": "object"},
        },
    },
)
GOLDEN = Path(__file__).parents[1] / "golden" / "output"
HERMES = FAMILIES["hermes"]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Lima"}}\n</tool_call>'


def stream(family: Family = HERMES, **more: Any) -> OutputStream:
    numbers = itertools.count()

    def new_id(kind: CallIds) -> str:
        return f"{kind}-{next(numbers)}"

    return OutputStream(
        family=family, **{"thinking": True, "tools": (WEATHER,), "new_call_id": new_id, **more}
    )


def told(family: Family, texts: Iterable[str], **more: Any) -> list[list[Any]]:
    """What an answer comes to: neighbours of one kind joined, calls whole or as begun."""
    out = stream(family, **more)
    pieces = [piece for text in texts for piece in out.feed(text)]
    return joined([*pieces, *out.finish()])


def joined(pieces: Sequence[Piece]) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for piece in pieces:
        match piece:
            case TextChunk() | ThinkingChunk():
                if rows and rows[-1][0] == piece.kind:
                    rows[-1][1] += piece.text
                else:
                    rows.append([piece.kind, piece.text])
            case ToolCallStartChunk():
                rows.append(["begun", piece.id, piece.name, ""])
            case ToolCallDeltaChunk():
                rows[-1][3] += piece.arguments
            case ToolCallChunk():
                assert rows[-1][:3] == ["begun", piece.call.id, piece.call.name]
                assert json.loads(rows[-1][3]) == piece.call.arguments
                rows[-1] = ["call", piece.call.id, piece.call.name, dict(piece.call.arguments)]
    return rows


def transcripts() -> list[Any]:
    return [
        pytest.param(file.stem, row["text"], row["told"], id=f"{file.stem}: {row['about']}")
        for file in sorted(GOLDEN.glob("*.json"))
        for row in json.loads(file.read_text())["transcripts"]
    ]


@pytest.mark.parametrize(("family", "text", "expected"), transcripts())
def test_transcript_is_read_however_it_is_cut(
    family: str, text: str, expected: list[list[Any]]
) -> None:
    for size in (len(text), 1, 2, 3, 5, 7):
        cuts = [text[at : at + size] for at in range(0, len(text), size)]
        assert told(FAMILIES[family], cuts) == expected


def test_every_family_has_transcripts_and_can_be_configured() -> None:
    assert {file.stem for file in GOLDEN.glob("*.json")} == set(FAMILIES)
    assert set(OUTPUT_FORMATS) == {"plain", *FAMILIES}
    for file in GOLDEN.glob("*.json"):
        assert json.loads(file.read_text())["format"]


def test_tokens_that_frame_calls_and_reasoning_stay_in_the_text() -> None:
    marks = {mark for family in FAMILIES.values() for mark in _marks(family)}
    tokens = {mark for mark in marks if mark.startswith(("<|", "<｜", "[")) and mark[-1] in ">]"}
    assert len(tokens) > 20
    assert [token for token in sorted(tokens) if not is_shown(token)] == []
    assert not any(map(is_shown, ("<|im_end|>", "<|eot_id|>", "</s>", "<|turn>", "[INST]")))


def _marks(family: Family) -> Iterable[str]:
    yield from (family.tags.open.removesuffix("thought").split("|>")[0] + "|>",)
    for layout in family.layouts:
        yield from (*layout.openers, *layout.closers, *layout.call_open, *layout.call_close)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("hello", [["text", "hello"]]),
        ("  hello ", [["text", "  hello "]]),
        (" \n", [["text", " \n"]]),
        ("<think>a</think>b", [["thinking", "a"], ["text", "b"]]),
        ("\n<think>\na b\n</think>\n\nc\n", [["thinking", "a b"], ["text", "c\n"]]),
        ("<think>\n\n</think>\n\nc", [["text", "c"]]),
        ("<think>never closed </thi", [["thinking", "never closed </thi"]]),
        ("<thinking>no", [["text", "<thinking>no"]]),
        ("say <think>x</think>", [["text", "say <think>x</think>"]]),
        ("<thi", [["text", "<thi"]]),
        (f"<think>x {CALL}</think>b", [["thinking", f"x {CALL}"], ["text", "b"]]),
        ("a < b <tool", [["text", "a < b <tool"]]),
        (
            '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',
            [
                ["begun", "generated-0", "f", '{"a": '],
                ["text", '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>'],
            ],
        ),
        (
            '<tool_call>{"name": "f", "arguments": {"a": 1e999}}</tool_call>',
            [
                ["begun", "generated-0", "f", '{"a": '],
                ["text", '<tool_call>{"name": "f", "arguments": {"a": 1e999}}</tool_call>'],
            ],
        ),
        ('<tool_call>{"name": 3}</tool_call>', [["text", '<tool_call>{"name": 3}</tool_call>']]),
        ('<tool_call>{"name": "f"}', [["call", "generated-0", "f", {}]]),
        (
            '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>',
            [["call", "generated-0", "f", {"a": 1}]],
        ),
        (
            '<tool_call>{"name": "f", "arguments": {"a": "\\ud83d\\ude00"}}</tool_call>',
            [["call", "generated-0", "f", {"a": "\N{GRINNING FACE}"}]],
        ),
        (
            '<tool_call>{"name": "f", "arguments": {"a": "\\ud83d"}}</tool_call>',
            [
                ["begun", "generated-0", "f", '{"a": "'],
                ["text", '<tool_call>{"name": "f", "arguments": {"a": "\\ud83d"}}</tool_call>'],
            ],
        ),
    ],
)
def test_text_is_split_as_written(text: str, expected: list[list[Any]]) -> None:
    assert told(HERMES, [text]) == told(HERMES, text) == expected


def test_prompt_that_opened_the_tag_starts_inside() -> None:
    assert told(HERMES, ["\nwhy\n</think>\n\nyes"], opened=True) == [
        ["thinking", "why"],
        ["text", "yes"],
    ]


def test_calls_stay_text_when_the_request_has_no_tools() -> None:
    assert told(HERMES, [CALL], tools=()) == [["text", CALL]]
    text = "<|channel|>commentary to=functions.f<|message|>{}"
    assert told(FAMILIES["harmony"], [text], tools=()) == [["text", text]]


def test_tags_stay_text_when_the_model_does_not_think() -> None:
    text = "<think>a</think>b"
    assert told(HERMES, [text], thinking=False) == [["text", text]]


@pytest.mark.parametrize("deep", ["[", '{"a":'])
@pytest.mark.parametrize("family", ["hermes", "llama3", "lfm2", "gemma4", "qwen-coder"])
def test_deep_nesting_loses_nothing(family: str, deep: str) -> None:
    opener = (FAMILIES[family].layouts[0].openers or ("",))[0]
    heads = {
        "lfm2": "weather(options=",
        "gemma4": "call:weather{options:",
        "qwen-coder": "<function=weather><parameter=options>",
    }
    head = heads.get(family, '{"name": "weather", "arguments": {"options": ')
    text = opener + head + deep * 50_000
    *_, last = told(FAMILIES[family], [text])
    assert last == ["text", text]


def test_reasoning_stands_between_the_tags_of_the_template() -> None:
    tags = Tags(open="<why>", close="</why>")
    text = "\n<why> a <think> </why>b</why>"
    assert told(HERMES, [text], tags=tags) == [["thinking", "a <think>"], ["text", "b</why>"]]
    assert told(HERMES, ["<think>x"], tags=tags) == [["text", "<think>x"]]


def test_plain_text_passes_as_it_comes() -> None:
    out = OutputStream()
    assert joined(out.feed("<think>a ")) == [["text", "<think>a "]]
    assert joined([*out.feed("b"), *out.finish()]) == [["text", "b"]]
    assert PLAIN.layouts == ()


def test_ids_have_the_form_their_family_needs() -> None:
    assert len(new_call_id("short")) == 9
    assert new_call_id("short").isalnum()
    assert new_call_id("generated").startswith("call_")
    assert len({new_call_id("short") for _ in range(50)}) == 50


# Properties, for every family.

COMMON = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<", "</th", " ", "\n", "a", "word "),
    *("{", "}", "[", "]", ",", ":", '"', "\\", '{"name": "weather", "arguments": {}}'),
    *("weather", "\N{GRINNING FACE}", "null", "-1", "1e9", "'", "=", "(", ")", "\x00"),
]


def fragments(family: Family) -> list[str]:
    """Pieces of a family's transcripts, cut at its marks, beside ordinary text."""
    rows = json.loads((GOLDEN / f"{family.name}.json").read_text())["transcripts"]
    pieces = [piece for row in rows for piece in _cut(row["text"])]
    return [*dict.fromkeys([*pieces, *COMMON, *(row["text"] for row in rows)])]


def _cut(text: str) -> Iterable[str]:
    for word in text.replace("<", "\0<").replace(">", ">\0").replace("[", "\0[").split("\0"):
        yield word
        yield word[: len(word) // 2]


ANSWERS = st.sampled_from([*FAMILIES.values()]).flatmap(
    lambda family: st.tuples(
        st.just(family), st.lists(st.sampled_from(fragments(family)), max_size=12).map("".join)
    )
)


def parser(family: Family, *, opened: bool, tools: Sequence[Tool]) -> OutputParser:
    if family.harmony:
        return HarmonyParser(tools=tools)
    return TagParser(family, tags=family.tags, opened=opened, tools=tools)


@settings(deadline=None, max_examples=400)
@given(answer=ANSWERS, opened=st.booleans(), tools=st.sampled_from([(), (WEATHER,)]))
def test_nothing_a_model_writes_is_lost(
    answer: tuple[Family, str], *, opened: bool, tools: tuple[Tool, ...]
) -> None:
    """The raw text of all events is the input; what is no call is shown; calls are valid JSON."""
    family, text = answer
    out = parser(family, opened=opened, tools=tools)
    events = [*out.feed(text), *out.finish()]
    assert "".join(event.raw for event in events) == text
    arguments: list[str] = []
    begun = ""
    for event in events:
        check(event, arguments, begun)
        begun = begun + event.raw if isinstance(event, CallStart | CallArguments) else ""
        if isinstance(event, CallStart):
            begun = event.raw
    # A call that began is ended or broken before anything else is told.
    kinds = [type(event) for event in events]
    assert kinds.count(CallStart) == kinds.count(CallEnd) + kinds.count(CallBroken)


def check(event: Event, arguments: list[str], begun: str) -> None:
    match event:
        case CallStart():
            assert event.name
            arguments.clear()
        case CallArguments():
            arguments.append(event.text)
        case CallEnd():
            assert isinstance(json.loads("".join(arguments)), dict)
        case CallBroken():
            assert event.text.endswith(event.raw)
            assert event.text.strip()[-20:] in begun + event.raw
        case Content():
            assert event.text.strip() in event.raw


@settings(deadline=None, max_examples=400)
@given(
    answer=ANSWERS,
    cuts=st.lists(st.integers(0, 400), max_size=20),
    opened=st.booleans(),
    tools=st.sampled_from([(), (WEATHER,)]),
)
def test_where_the_text_is_cut_does_not_matter(
    answer: tuple[Family, str], cuts: list[int], *, opened: bool, tools: tuple[Tool, ...]
) -> None:
    family, text = answer
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    whole = told(family, [text], opened=opened, tools=tools)
    assert told(family, pieces, opened=opened, tools=tools) == whole
    assert told(family, text, opened=opened, tools=tools) == whole
