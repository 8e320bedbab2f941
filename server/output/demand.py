"""Grammars of calls in the family's own form: of those demanded, and of those begun. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from server.chat import Tool
from server.output.lark import Lark, Special
from server.output.layout import Family, Layout

_LINE = r"\n?"


class _HarmonyBegun(NamedTuple):
    """A control token and the text behind it that begin a call, and the channel behind its name."""

    token: str
    text: str
    channel: str = ""


_HARMONY_BEGUN = (
    _HarmonyBegun("<|channel|>", "commentary to=functions."),
    _HarmonyBegun("<|channel|>", "analysis to=functions."),
    _HarmonyBegun("<|start|>", "assistant to=functions.", "commentary"),
)
"""Source: OpenAI's harmony response format guide; models call from the analysis channel, too."""


def calls_grammar(
    family: Family, tools: Sequence[Tool], special: Special, *, several: bool
) -> str | None:
    """A Lark grammar for calls of these tools, with arguments by their schemas.

    Args:
        family: who writes them.
        tools: what may be called; at least one.
        special: the model's control tokens.
        several: more than one call may be made.

    Returns:
        The grammar; ``None`` if the family has no calls.
    """
    lark = Lark(special)
    if family.harmony:
        return lark.grammar(_harmony(lark, tools))
    if not family.layouts:
        return None
    bare = [layout for layout in family.layouts if not layout.openers]
    layout = bare[-1] if bare else family.layouts[0]
    return lark.grammar(_calls(lark, layout, tools, several=several))


@dataclass(frozen=True, slots=True, kw_only=True)
class BegunCalls:
    """How calls are written once one has begun.

    Attributes:
        begins: texts that begin nothing but calls.
        grammar: in Lark, of what such a text begins, itself included.
    """

    begins: tuple[str, ...]
    grammar: str


def begun_calls(
    family: Family, tools: Sequence[Tool], special: Special, *, several: bool
) -> BegunCalls | None:
    """What binds calls where none is demanded; the arguments are those of `calls_grammar`.

    Returns:
        ``None`` if nothing tells a call from an answer before it is over, as with bare JSON.
    """
    lark = Lark(special)
    begins: tuple[str, ...] = ()
    forms: list[str] = []
    if family.harmony:
        begins = tuple(form.token + form.text for form in _HARMONY_BEGUN)
        forms = [_harmony_begun(lark, form, tools) for form in _HARMONY_BEGUN]
    for layout in family.layouts:
        if not layout.openers or not layout.certain:
            continue
        opener = lark.choice([lark.mark(text) for text in layout.openers])
        forms.append(f"{opener} {_behind(lark, layout, tools, several=several)}")
        if layout.implied and layout.implied == layout.call_open:
            forms.append(_call(lark, layout, tools))
        begins += (*layout.openers, *layout.implied)
    return BegunCalls(begins=begins, grammar=lark.grammar(lark.choice(forms))) if forms else None


def answer_lead(family: Family, special: Special) -> str:
    """A Lark expression for what a family says before visible text; empty if nothing.

    Args:
        family: who writes.
        special: the model's control tokens.
    """
    if not family.harmony:
        return ""
    lark = Lark(special)
    final = lark.text("final")
    return f"{_header(lark)} {final} {lark.mark('<|message|>')}"


def _calls(lark: Lark, layout: Layout, tools: Sequence[Tool], *, several: bool) -> str:
    whole = _behind(lark, layout, tools, several=several)
    if layout.openers:
        whole = f"{lark.mark(layout.openers[0])} {whole}"
    if several and layout.openers and not layout.listed and not layout.call_open:
        return f"{whole} ({lark.pattern(_LINE)} {whole})*"
    return whole


def _behind(lark: Lark, layout: Layout, tools: Sequence[Tool], *, several: bool) -> str:
    """What stands behind one opener."""
    line = lark.pattern(_LINE)
    call = inner = _call(lark, layout, tools)
    if layout.listed:
        more = f" ({lark.text(', ')} {call})*" if several else ""
        inner = f"{lark.text('[')} {call}{more} {lark.text(']')}"
    elif layout.call_open and several:
        inner = f"{call} ({line} {call})*"
    space = [line] if layout.lines else []
    closer = [*space, lark.mark(layout.closers[0])] if layout.closers else []
    return " ".join([*(space if layout.openers else []), inner, *closer])


def _call(lark: Lark, layout: Layout, tools: Sequence[Tool]) -> str:
    """One call with what stands around it inside a section."""
    call = lark.choice([layout.body.write(lark, tool) for tool in tools])
    around = [lark.mark(layout.call_open[0])] if layout.call_open else []
    behind = [lark.mark(layout.call_close[0])] if layout.call_close else []
    return " ".join([*around, call, *behind])


def _harmony(lark: Lark, tools: Sequence[Tool]) -> str:
    head = lark.text("commentary to=functions.")
    format_ = f"{lark.text(' ')} {lark.mark('<|constrain|>')} {lark.text('json')}"
    calls = [_harmony_call(lark, tool, format_) for tool in tools]
    return f"{_header(lark)} {head} {lark.choice(calls)}"


def _harmony_begun(lark: Lark, form: _HarmonyBegun, tools: Sequence[Tool]) -> str:
    behind = f"{lark.text(' ')}? {lark.mark('<|constrain|>')}? {lark.text('json')}?"
    if form.channel:
        behind = f"{lark.mark('<|channel|>')} {lark.text(form.channel)} {behind}"
    calls = [_harmony_call(lark, tool, behind) for tool in tools]
    return f"{lark.mark(form.token)} {lark.text(form.text)} {lark.choice(calls)}"


def _harmony_call(lark: Lark, tool: Tool, behind: str) -> str:
    """A call from its name on; ``behind`` stands between that and the message."""
    arguments = lark.arguments(tool)
    return f"{lark.text(tool.name)} {behind} {lark.mark('<|message|>')} {arguments}"


def _header(lark: Lark) -> str:
    """The beginning of a message of harmony's, up to the name of its channel."""
    start = f"({lark.mark('<|start|>')} {lark.text('assistant')})?"
    return f"{start} {lark.mark('<|channel|>')}"
