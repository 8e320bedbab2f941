"""Which family writes a model's output, as its template shows. Pure.

A template shows how the model was trained to write a call by writing one itself: a conversation
with a call is rendered beside one without, and what differs is the call. Rules, first match:

 * the template is harmony's;
 * what it writes for the call holds the markers of a family that is known by name;
 * the call is an object, a name with an object, or tagged, in some other frame: a family is made
   from the frame;
 * it writes nothing for the call, but mentions the markers of a family.

Reasoning stands between what the template writes around it, else between tags it mentions.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from server.output.bodies.named import NamedBody
from server.output.bodies.objects import ObjectBody
from server.output.bodies.tagged import TaggedBody
from server.output.families import FAMILIES
from server.output.families.mistral import MISTRAL, written_as
from server.output.layout import Family, Layout, Tags

NAME, KEY, VALUE, THOUGHT, ANSWER, RESULT = (
    "probename",
    "probekey",
    "probevalue",
    "probethought",
    "probeanswer",
    "proberesult",
)
NUMBER_KEY, NUMBER, CALL_ID = "probenumber", 7, "probe0001"
"""What a probe conversation holds; words no template has of its own."""

PLAIN = Family(name="plain")
"""No calls, and reasoning between ``<think>`` tags if there is any."""

_MARKERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("<｜DSML｜",), "deepseek-dsml"),
    (("<｜tool▁call▁begin｜>",), "deepseek"),
    (("<|tool_call_begin|>",), "kimi-k2"),
    (("<minimax:tool_call>",), "minimax-m2"),
    (("<seed:tool_call>",), "seed-oss"),
    (("<function=", "<parameter="), "qwen-coder"),
    (('<function name="', '<param name="'), "minicpm5"),
    (("<function=", "</function>"), "functionary"),
    (("<arg_key>",), "glm4"),
    (("[TOOL_CALLS]",), "mistral"),
    (("<|tool_call>", "<tool_call|>"), "gemma4"),
    (("<start_function_call>",), "functiongemma"),
    (("<|START_ACTION|>",), "command-r7b"),
    (("Action:", "```json"), "command-r"),
    (("<|tools_prefix|>",), "apertus"),
    (("<|tool_call_start|>",), "lfm2"),
    (("<|tool_list_start|>",), "lfm2"),
    (("<|/tool_call|>",), "phi4"),
    (("<|tool_call|>",), "granite3"),
    (("<tool_calls>\n{",), "minimax-m1"),
    (("<tool_call>", '"name"'), "hermes"),
)
"""Texts of which a family writes all, the more particular first."""

_ONLY_MENTIONED: tuple[tuple[tuple[str, ...], str], ...] = (
    (("<|python_tag|>",), "llama3"),
    (("<|start_header_id|>", "ipython"), "llama3"),
    (("<|tool|>", "<|/tool|>"), "phi4"),
    (("<start_of_turn>", "<end_of_turn>"), "gemma3"),
)
"""The same for what a template mentions where it writes no call."""

_TAGS = (
    Tags(open="[THINK]", close="[/THINK]"),
    Tags(open="<seed:think>", close="</seed:think>"),
    Tags(open="<|START_THINKING|>", close="<|END_THINKING|>"),
    Tags(open="<|inner_prefix|>", close="<|inner_suffix|>"),
    Tags(open="<|channel>thought", close="<channel|>"),
    Tags(open="Here are my reasoning steps:", close="[BEGIN FINAL RESPONSE]"),
    Tags(open="<think>", close="</think>"),
)
"""Tags around reasoning that templates mention."""

_OPENING = re.compile(r"(<[^<>\n]{1,40}>|\[[A-Z_]{2,20}\])\s*$")
_CLOSING = re.compile(r"\s*(<[^<>\n]{1,40}>|\[[A-Z_/ ]{2,30}\])")
_REASONS = re.compile(r"think|thought|reason|inner", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a template was seen to write.

    Attributes:
        source: the template itself.
        plain: a conversation with an answer.
        called: the same with a call instead, and perhaps its result; empty if it cannot.
        thought: a conversation with reasoning in it; empty if it shows none.
    """

    source: str
    plain: str = ""
    called: str = ""
    thought: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detected:
    """How a model writes.

    Attributes:
        family: by which its output is read.
        tags: what stands around its reasoning.
        by: how that is known, for operators: ``call``, ``frame``, ``mention``, ``nothing``,
            ``parser`` of the model's configuration, or ``configuration``.
    """

    family: Family
    tags: Tags
    by: str


def detect(evidence: Evidence) -> Detected:
    """The family of a model by what its template writes."""
    source = evidence.source
    if all(mark in source for mark in ("<|start|>", "<|channel|>", "<|message|>", "analysis")):
        family = FAMILIES["harmony"]
        return Detected(family=family, tags=family.tags, by="mention")
    family, by = _seen(evidence)
    return Detected(family=family, tags=_tags(evidence) or family.tags, by=by)


def _seen(evidence: Evidence) -> tuple[Family, str]:
    call = call_text(evidence)
    if found := _of_call(call):
        return found, "call"
    if found := _of_frame(call):
        return found, "frame"
    if found := _marked(evidence.source, (*_MARKERS, *_ONLY_MENTIONED)):
        return found, "mention"
    return PLAIN, "nothing"


def named(name: str, evidence: Evidence, *, by: str) -> Detected:
    """The same where the family is known by name; ``plain`` and the keys of `FAMILIES` are."""
    family = FAMILIES.get(name, PLAIN)
    own = family.tags if family.tags != Tags() else None
    return Detected(family=family, tags=own or _tags(evidence) or family.tags, by=by)


def call_text(evidence: Evidence) -> str:
    """What a template writes for a call, without what it writes for any answer."""
    called, plain = evidence.called, evidence.plain
    if NAME not in called:
        return ""
    start = _common(called, plain)
    start = min(_before_tag(called, start), called.rfind(NAME))
    if RESULT in called:
        return called[start:].partition(RESULT)[0]
    tail = _common(called[start:][::-1], plain[::-1])
    return called[start : _behind_tag(called, len(called) - tail)]


def _common(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _before_tag(text: str, at: int) -> int:
    """The same place, or where the tag begins that it is in."""
    opening = text.rfind("<", 0, at)
    return opening if opening > text.rfind(">", 0, at) else at


def _behind_tag(text: str, at: int) -> int:
    """The same place, or where the tag ends that it is in."""
    inside = text.rfind("<", 0, at) > text.rfind(">", 0, at)
    return text.find(">", at) + 1 if inside and ">" in text[at:] else at


def _of_call(call: str) -> Family | None:
    family = _marked(call, _MARKERS)
    if family is MISTRAL:
        return written_as(call)
    if family is None and call.lstrip().startswith("{") and '"parameters"' in call:
        return FAMILIES["llama3"]
    return family


def _marked(text: str, table: tuple[tuple[tuple[str, ...], str], ...]) -> Family | None:
    for marks, name in table:
        if all(mark in text for mark in marks):
            return FAMILIES[name]
    return None


def _of_frame(call: str) -> Family | None:
    """A family made from what stands around a call."""
    layout = _object_layout(call) or _named_layout(call) or _tagged_layout(call)
    return Family(name="generic", layouts=(layout,)) if layout else None


def _object_layout(call: str) -> Layout | None:
    at = call.find("{")
    while at >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(call, at)
        except (ValueError, RecursionError):
            value, end = None, at
        body = _object_body(value)
        if body is not None:
            opener = call[:at].rstrip().removesuffix("[").strip()
            closer = call[end:].lstrip().removeprefix("]").strip()
            if not opener:
                return Layout(openers=(), body=replace(body, declared_only=True))
            return Layout(openers=(opener,), closers=(closer,) if closer else (), body=body)
        at = call.find("{", at + 1)
    return None


def _object_body(value: Any) -> ObjectBody | None:
    if not isinstance(value, dict):
        return None
    if isinstance(value.get(NAME), dict):
        return ObjectBody(keyed=True)
    names = tuple(key for key, each in value.items() if each == NAME)
    holds = tuple(key for key, each in value.items() if isinstance(each, dict) and KEY in each)
    return ObjectBody(names=names, arguments=holds) if names and holds else None


def _named_layout(call: str) -> Layout | None:
    before, _, behind = call.partition(NAME)
    mark, brace, rest = behind.partition("{")
    framed = before.strip() and mark.strip() and CALL_ID not in before
    if not brace or KEY not in rest or not framed:
        return None
    try:
        _, end = json.JSONDecoder().raw_decode(brace + rest)
    except (ValueError, RecursionError):
        return None
    closer = (brace + rest)[end:].strip()
    return Layout(
        openers=(before.strip(),),
        closers=(closer,) if closer else (),
        body=NamedBody(marks=(mark.strip(),)),
    )


def _tagged_layout(call: str) -> Layout | None:
    before, _, rest = call.partition(NAME)
    first, key, rest = rest.partition(KEY)
    between, value, rest = rest.partition(VALUE)
    second, number_key, rest = rest.partition(NUMBER_KEY)
    common = second[len(second) - _common(first[::-1], second[::-1]) :]
    key_open = common[common.find("<") :].strip() if "<" in common else ""
    if not (before.strip() and key and value and number_key and key_open):
        return None
    value_end = second[: second.rfind(key_open)].strip()
    last = rest.partition(str(NUMBER))[2].strip()
    end = last.removeprefix(value_end).strip()
    if not (value_end and end and between.strip()):
        return None
    if CALL_ID in before or any(word in value_end + end for word in (KEY, NUMBER_KEY)):
        return None  # what stands around it depends on the call
    return Layout(
        openers=(before.strip(),),
        body=TaggedBody(
            name_end=first[: first.rfind(key_open)].strip(),
            key=(key_open, between.strip()),
            value_end=(value_end,),
            end=(end,),
        ),
    )


def _tags(evidence: Evidence) -> Tags | None:
    before, thought, behind = evidence.thought.partition(THOUGHT)
    opening, closing = _OPENING.search(before), _CLOSING.match(behind)
    if thought and opening and closing:
        shown = opening[1]
        if _REASONS.search(shown) or shown not in evidence.plain:
            return Tags(open=shown, close=closing[1])
    for tags in _TAGS:
        if tags.close in evidence.source and (tags.open in evidence.source):
            return tags
    return None
