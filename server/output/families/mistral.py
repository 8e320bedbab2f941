"""Mistral: ``[TOOL_CALLS]`` and a JSON list, or a name, an id and arguments behind it.

Three forms: ``[TOOL_CALLS][{…}]`` (7B v0.3, Nemo, Small 3),
``[TOOL_CALLS]name[CALL_ID]id[ARGS]{…}`` (Small 3.2, Devstral), and the same without an id
(Ministral 3, Magistral). Ids are nine letters and digits.

Source of the format: Mistral AI's mistral-common tokenizers v3 to v13, and the models' templates.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.output.bodies.named import NamedBody
from server.output.bodies.objects import ObjectBody
from server.output.layout import CallSink, Family, Layout, Tags
from server.output.source import Wait

TOOL_CALLS, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"


@dataclass(frozen=True, slots=True, kw_only=True)
class _MistralBody:
    """A list of objects, or a name with arguments."""

    def read(self, sink: CallSink) -> Wait[None]:
        """Read one call or a list of calls; see `Body`."""
        yield from sink.source.blanks()
        listed = (yield from sink.source.peek()) == "{" or (
            yield from sink.source.begins(("[{", "[ ", "[\n"))
        )
        if listed:
            yield from ObjectBody().read(sink)
        else:
            yield from NamedBody(marks=(ARGS,), id_marks=(CALL_ID,)).read(sink)


MISTRAL = Family(
    name="mistral",
    tags=Tags(open="[THINK]", close="[/THINK]"),
    layouts=(Layout(openers=(TOOL_CALLS,), body=_MistralBody()),),
    call_ids="short",
)
