"""What a chat template can express, found out by rendering a few probes, once per model.

No template is known by name: each is given the forms a conversation may have, and what comes out,
or is refused, decides. A form counts as expressed if all its words come out again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.errors import ServerError
from server.prompt.jinja import JinjaTemplate

RESULT_ROLES = ("tool", "ipython", "function", "observation", "tool_response")
"""Names that templates have for the turn with a tool's result, the usual one first."""

_REASONING = re.compile(r"<think>|:think>|\[THINK\]|reasoning_content|<\|channel\|>")
"""Signs in a template that its model reasons before it answers."""

_S, _U, _A, _V, _T, _R = (
    "probesystem",
    "probeuser",
    "probeassistant",
    "probevalue",
    "probetext",
    "proberesult",
)
_N, _OTHER = "probename", "probeother"
_SHORT_ID, _LONG_ID = "probe0001", "call_probe0001"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a template can express.

    Attributes:
        system: system messages.
        late_system: system messages behind the first turn, and more than one.
        developer: a role of its own for developers.
        parts: contents must be lists of parts, not texts.
        tools: functions the model may call.
        calls: calls in an assistant's turn.
        call_objects: arguments of calls are objects; otherwise they are JSON texts.
        null_content: a turn of calls alone is known by content that is null, not empty.
        one_call: a turn has one call at most.
        text_apart: text and calls must be turns of their own, or one is lost.
        short_ids: ids of calls must be nine letters and digits.
        results: tool messages.
        result_role: what their role is called.
        alternates: users and assistants must take turns, and a user begins.
        calls_aside: where roles alternate, turns of calls and results do not count.
        thinking: ``enable_thinking`` changes the prompt, or reasoning is shown.
        empty_tools: "no tools" must be an empty list; as a rule it is ``None``.
    """

    system: bool = True
    late_system: bool = True
    developer: bool = False
    parts: bool = False
    tools: bool = False
    calls: bool = False
    call_objects: bool = True
    null_content: bool = False
    one_call: bool = False
    text_apart: bool = False
    short_ids: bool = False
    results: bool = False
    result_role: str = "tool"
    alternates: bool = False
    calls_aside: bool = False
    thinking: bool = False
    empty_tools: bool = False


def probe(template: JinjaTemplate) -> Capabilities:
    """What a template can express."""
    user: dict[str, Any] = {"role": "user", "content": _U}
    listed = {"role": "user", "content": [{"type": "text", "text": _U}]}
    shown = _try(template, [user]) or _try(template, [listed])
    empty_tools = shown is None
    nothing: list[Any] | None = [] if empty_tools else None
    shown = _try(template, [user], nothing)
    parts = (shown is None or _U not in shown) and _U in (_try(template, [listed], nothing) or "")
    wanted: dict[str, Any] = {"type": "object", "properties": {"key": {"type": "string"}}}
    tool = {"name": _V, "description": _S, "parameters": wanted}
    saying = _Saying(template, nothing, parts=parts)
    first = saying.turn("user", _U)
    on = _try(template, [first], nothing, enable_thinking=True, thinking=True)
    off = _try(template, [first], nothing, enable_thinking=False, thinking=False)
    system = saying.turn("system", _S)
    answer, late = saying.turn("assistant", _A), saying.turn("system", _T)
    return Capabilities(
        system=saying.says(_S, turns=[system, first]),
        late_system=saying.says(_S, _T, turns=[system, first, answer, late, first]),
        developer="developer" in template.source,
        parts=parts,
        tools=_V in (_try(template, [first], [{"type": "function", "function": tool}]) or ""),
        alternates=saying.says(_U, turns=[first]) and not saying.says(_U, turns=[first, first]),
        thinking=on != off or bool(_REASONING.search(template.source)),
        empty_tools=empty_tools,
        **_of_calls(saying, first, answer),
    )


class _Saying:
    """Renders probes with one template."""

    def __init__(self, template: JinjaTemplate, nothing: list[Any] | None, *, parts: bool) -> None:
        self.template = template
        self._nothing = nothing
        self._parts = parts

    def turn(self, role: str, text: str) -> dict[str, Any]:
        """A turn with a text."""
        content: Any = [{"type": "text", "text": text}] if self._parts else text
        return {"role": role, "content": content}

    def says(self, *words: str, turns: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the template takes these turns, and writes these words."""
        text = _try(self.template, turns, self._nothing)
        return text is not None and all(word in text for word in words)

    def text(self, turns: Sequence[Mapping[str, Any]]) -> str:
        """What the template writes; empty if it refuses."""
        return _try(self.template, turns, self._nothing) or ""


def _as_json(text: str) -> bool:
    """Arguments came out as JSON, neither quoted twice nor as Python."""
    return _V in text and f"'{_V}'" not in text and '\\"' not in text


_CALLED: tuple[Callable[[str], bool], ...] = (
    _as_json,
    lambda text: _V in text,
    lambda text: _N in text,
)
"""What shows that a call came out, the better first: some templates have a form of their own for
arguments, or leave them out."""


def _writes(
    saying: _Saying,
    first: Mapping[str, Any],
    form: tuple[bool, bool],
    shown: Callable[[str], bool],
) -> bool:
    """Whether a call comes out, whatever the template wants behind it."""
    asked = [first, _calls(form)]
    return any(shown(saying.text([*asked, *behind])) for behind in ([first], [], [_result()]))


def _of_calls(
    saying: _Saying, first: Mapping[str, Any], answer: Mapping[str, Any]
) -> dict[str, Any]:
    """The capabilities that are about calls and results."""
    forms = [(objects, null) for objects in (True, False) for null in (False, True)]
    found = next(
        (form for asked in _CALLED for form in forms if _writes(saying, first, form, asked)), None
    )
    form = found or (True, False)
    call = _calls(form)
    role = next(
        (
            role
            for role in RESULT_ROLES
            if saying.says(_R, turns=[first, call, _result(role)])
            and (role == RESULT_ROLES[0] or role in saying.template.source)
        ),
        None,
    )
    result = _result(role or RESULT_ROLES[0])
    answered = [first, call, result]
    two = [first, _calls(form, _V, _OTHER), result, result]
    apart = [first, call, result, _calls(form, _OTHER), result]
    both = [first, {**call, "content": _T}, result]
    turns = [first, {"role": "assistant", "content": _T}, call, result, answer, first]
    long = [first, _calls(form, _V, id=_LONG_ID), {**result, "tool_call_id": _LONG_ID}]
    bridge = saying.turn("assistant", "")
    called = found is not None
    return {
        "calls": called,
        "call_objects": form[0],
        "null_content": form[1],
        "one_call": not saying.says(_V, _OTHER, turns=two) and saying.says(_V, _OTHER, turns=apart),
        "text_apart": called
        and not saying.says(_T, _V, turns=both)
        and saying.says(_T, _V, _R, _A, turns=turns),
        "short_ids": saying.says(_V, turns=answered) and not saying.says(_V, turns=long),
        "results": role is not None,
        "result_role": role or RESULT_ROLES[0],
        "calls_aside": not saying.says(_V, turns=[*answered, first])
        and saying.says(_V, turns=[*answered, bridge, first]),
    }


def _try(
    template: JinjaTemplate,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str | None:
    try:
        return template.render(messages, tools, **variables)
    except ServerError:
        return None


def _calls(
    form: tuple[bool, bool],
    *values: str,
    id: str = _SHORT_ID,  # noqa: A002 - the field's name
) -> dict[str, Any]:
    """A turn with a call for each value; ``form`` is `call_objects` and `null_content`."""
    objects, null = form
    calls = []
    for value in values or (_V,):
        arguments: Any = {"key": value}
        if not objects:
            arguments = json.dumps(arguments)
        function = {"name": _N, "arguments": arguments}
        calls.append({"id": id, "type": "function", "function": function})
    return {"role": "assistant", "content": None if null else "", "tool_calls": calls}


def _result(role: str = RESULT_ROLES[0]) -> dict[str, Any]:
    return {"role": role, "content": _R, "name": _N, "tool_call_id": _SHORT_ID}
