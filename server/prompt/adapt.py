"""A conversation in the words that a template has. Pure.

What a template cannot express is said otherwise, so that nothing of the conversation is lost:
 * a system message becomes the beginning of the next user message;
 * a call becomes JSON text, a tool's result a user message;
 * calls of one turn become turns of their own, each with its result behind it;
 * text beside calls becomes a turn of its own;
 * turns of one role are merged where roles must alternate, and an empty turn stands where the
   other role is missing.

Calls without an id get one, and results without one belong to the calls in their order.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from server.chat import Message, ToolCall
from server.prompt.abilities import Capabilities

_OTHER = {"user": "assistant", "assistant": "user"}
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")


def adapt(messages: Iterable[Message], can: Capabilities) -> tuple[Message, ...]:
    """The conversation as a template can express it."""
    turns = _identified(_systems(messages, can))
    if can.short_ids:
        turns = [_with_short_ids(turn) for turn in turns]
    if can.calls and can.one_call:
        turns = _one_by_one(turns)
    turns = [_spelled_out(turn, can) for turn in turns]
    if can.text_apart:
        turns = [part for turn in turns for part in _text_apart(turn)]
    if can.alternates:
        turns = _alternating(turns, aside=can.calls_aside)
    return tuple(turns)


def _systems(messages: Iterable[Message], can: Capabilities) -> list[Message]:
    """System messages where the template has them."""
    turns: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        role = message.role
        if role == "developer" and not (can.developer and can.system):
            role = "system"
        begins = all(turn.role == "system" for turn in turns) and not waiting
        if role == "system" and not can.system:
            waiting.append(message.content)
        elif role == "system" and turns and not can.late_system:
            if begins:
                turns[-1] = _joined(turns[-1], message)
            else:
                waiting.append(message.content)
        elif role == "user" and waiting:
            turns.append(replace(message, content="\n\n".join([*waiting, message.content])))
            waiting = []
        else:
            turns.append(replace(message, role=role))
    if waiting:
        turns.append(Message(role="user", content="\n\n".join(waiting)))
    return turns


def _identified(turns: Iterable[Message]) -> list[Message]:
    """Every call has an id, and every result the id and the name of its call."""
    named: list[Message] = []
    open_calls: list[ToolCall] = []
    count = 0
    for turn in turns:
        if turn.tool_calls:
            first = count
            count += len(turn.tool_calls)
            calls = tuple(
                call if call.id else replace(call, id=f"call{first + index:05d}")
                for index, call in enumerate(turn.tool_calls)
            )
            open_calls = list(calls)
            named.append(replace(turn, tool_calls=calls))
        elif turn.role == "tool":
            call = _answered(turn, open_calls)
            if call is not None:
                open_calls.remove(call)
                name = turn.tool_name or call.name
                turn = replace(turn, tool_name=name, tool_call_id=call.id)  # noqa: PLW2901
            named.append(turn)
        else:
            named.append(turn)
    return named


def _answered(result: Message, calls: Sequence[ToolCall]) -> ToolCall | None:
    """The call that a result belongs to."""
    if result.tool_call_id:
        return next((call for call in calls if call.id == result.tool_call_id), None)
    same = (call for call in calls if call.name == result.tool_name)
    return next(same, calls[0] if calls and not result.tool_name else None)


def _with_short_ids(turn: Message) -> Message:
    calls = tuple(replace(call, id=short_id(call.id)) for call in turn.tool_calls)
    if turn.role != "tool":
        return replace(turn, tool_calls=calls)
    return replace(turn, tool_call_id=short_id(turn.tool_call_id))


def short_id(text: str) -> str:
    """Nine letters and digits for an id, the same for the same one; such an id stays."""
    if _SHORT_ID.fullmatch(text):
        return text
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:9]


def _one_by_one(turns: Sequence[Message]) -> list[Message]:
    """Each call in a turn of its own, with its results behind it."""
    apart: list[Message] = []
    results: list[Message] = []
    calls: list[Message] = []

    def place() -> None:
        for call in calls:
            mine = [each for each in results if each.tool_call_id == call.tool_calls[0].id]
            apart.extend((call, *mine))
            results[:] = [each for each in results if each not in mine]
        apart.extend(results)
        calls.clear()
        results.clear()

    for turn in turns:
        if turn.role == "tool":
            results.append(turn)
            continue
        place()
        if len(turn.tool_calls) > 1:
            first, *more = turn.tool_calls
            calls.append(replace(turn, tool_calls=(first,)))
            calls.extend(Message(role=turn.role, tool_calls=(call,)) for call in more)
        else:
            apart.append(turn)
    place()
    return apart


def _spelled_out(turn: Message, can: Capabilities) -> Message:
    """Calls and results as text, where the template has none."""
    if turn.tool_calls and not can.calls:
        calls = (
            json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
            for call in turn.tool_calls
        )
        content = "\n".join(filter(None, (turn.content, *calls)))
        return replace(turn, content=content, tool_calls=())
    if turn.role == "tool" and not can.results:
        return replace(turn, role="user")
    return turn


def _text_apart(turn: Message) -> tuple[Message, ...]:
    if not (turn.tool_calls and turn.content):
        return (turn,)
    return replace(turn, tool_calls=()), replace(turn, content="", thinking="", images=())


def _alternating(turns: Sequence[Message], *, aside: bool) -> list[Message]:
    """Users and assistants take turns, behind the system message; a user begins.

    Args:
        turns: the conversation.
        aside: calls and results do not count.
    """
    taken: list[Message] = []
    last = "assistant"
    for turn in turns:
        counts = turn.role in _OTHER and not (aside and turn.tool_calls)
        if counts and turn.role == last and taken and _same_speaker(taken[-1], turn, aside=aside):
            taken[-1] = _joined(taken[-1], turn)
            continue
        begins = last == "assistant" and all(each.role == "system" for each in taken)
        missing = turn.role == last if counts else begins and turn.role != "system"
        if missing:
            last = _OTHER[last]
            taken.append(Message(role=last))
        taken.append(turn)
        last = turn.role if counts else last
    if all(turn.role == "system" for turn in taken):
        taken.append(Message(role="user"))
    return taken


def _same_speaker(one: Message, other: Message, *, aside: bool) -> bool:
    return one.role == other.role and not (aside and one.tool_calls)


def _joined(one: Message, other: Message) -> Message:
    return replace(
        one,
        content="\n\n".join(filter(None, (one.content, other.content))),
        tool_calls=(*one.tool_calls, *other.tool_calls),
        thinking="\n\n".join(filter(None, (one.thinking, other.thinking))),
        images=(*one.images, *other.images),
    )
