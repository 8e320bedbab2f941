"""The grammar of what is demanded of an answer, in the family's own form. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from server.chat import Tool
from server.output.lark import Lark, Special
from server.output.layout import Family, Layout


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
    call = lark.choice([layout.body.write(lark, tool) for tool in tools])
    line = lark.pattern(r"\n?")
    around = [lark.mark(layout.call_open[0])] if layout.call_open else []
    behind = [lark.mark(layout.call_close[0])] if layout.call_close else []
    call = " ".join([*around, call, *behind])
    inner = call
    if layout.listed:
        more = f" ({lark.text(', ')} {call})*" if several else ""
        inner = f"{lark.text('[')} {call}{more} {lark.text(']')}"
    elif layout.call_open and several:
        inner = f"{call} ({line} {call})*"
    space = [line] if layout.lines else []
    opener = [lark.mark(layout.openers[0]), *space] if layout.openers else []
    closer = [*space, lark.mark(layout.closers[0])] if layout.closers else []
    whole = " ".join([*opener, inner, *closer])
    if several and layout.openers and not layout.listed and not layout.call_open:
        return f"{whole} ({line} {whole})*"
    return whole


def _harmony(lark: Lark, tools: Sequence[Tool]) -> str:
    calls = [
        f"{lark.text(f'commentary to=functions.{tool.name} ')} {lark.mark('<|constrain|>')} "
        f"{lark.text('json')} {lark.mark('<|message|>')} {lark.object(tool.parameters)}"
        for tool in tools
    ]
    return f"{_header(lark)} {lark.choice(calls)}"


def _header(lark: Lark) -> str:
    """The beginning of a message of harmony's, up to the name of its channel."""
    start = f"({lark.mark('<|start|>')} {lark.text('assistant')})?"
    return f"{start} {lark.mark('<|channel|>')}"
