"""Mistral: ``[TOOL_CALLS]`` and a JSON list, or a name, an id and arguments behind it.

Three forms: ``[TOOL_CALLS][{…}]`` (7B v0.3, Nemo, Small 3),
``[TOOL_CALLS]name[CALL_ID]id[ARGS]{…}`` (Small 3.2, Devstral), and the same without an id
(Ministral 3, Magistral). Ids are nine letters and digits.

Source of the format: Mistral AI's mistral-common tokenizers v3 to v13, and the models' templates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from server.chat import Tool
from server.output.bodies.named import NamedBody
from server.output.bodies.objects import ObjectBody
from server.output.lark import Lark
from server.output.layout import CallSink, Family, Layout, Tags
from server.output.source import Wait

TOOL_CALLS, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"


_OBJECT = ObjectBody()
_NAMED = NamedBody(marks=(ARGS,), id_marks=(CALL_ID,))


@dataclass(frozen=True, slots=True, kw_only=True)
class _MistralBody:
    """A list of objects, or a name with arguments.

    Attributes:
        written: what the model was trained to write.
    """

    written: ObjectBody | NamedBody = _OBJECT

    def read(self, sink: CallSink) -> Wait[None]:
        """Read one call or a list of calls; see `Body`."""
        yield from sink.source.blanks()
        listed = (yield from sink.source.peek()) == "{" or (
            yield from sink.source.begins(("[{", "[ ", "[\n"))
        )
        if listed:
            yield from _OBJECT.read(sink)
        else:
            yield from _NAMED.read(sink)

    def write(self, lark: Lark, tool: Tool) -> str:
        """One call; see `Body`."""
        return self.written.write(lark, tool)


MISTRAL = Family(
    name="mistral",
    tags=Tags(open="[THINK]", close="[/THINK]"),
    layouts=(Layout(openers=(TOOL_CALLS,), body=_MistralBody(), listed=True),),
    call_ids="short",
)


def written_as(example: str) -> Family:
    """The family as the model's template writes it."""
    if ARGS not in example:
        return MISTRAL
    written = _NAMED if CALL_ID in example else NamedBody(marks=(ARGS,))
    layout = Layout(openers=(TOOL_CALLS,), body=_MistralBody(written=written))
    return replace(MISTRAL, layouts=(layout,))
