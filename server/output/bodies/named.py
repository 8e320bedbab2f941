"""Calls as a name, a marker and a JSON object: ``name[ARGS]{…}``. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from server.chat import Tool
from server.output.jsontext import MAX_NAME_CHARACTERS, MalformedCallError, pass_value
from server.output.lark import Lark
from server.output.layout import CallSink
from server.output.source import Source, Wait


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedBody:
    """Reads ``NAME marker {…}``.

    Attributes:
        marks: texts between name and arguments.
        id_marks: texts between name and id; the id ends at one of ``marks``.
        prefix: dropped from the name.
        numbered: the name ends with ``:`` and a number, and is as a whole the call's id.
        fence: what may stand around the arguments.
    """

    marks: tuple[str, ...]
    id_marks: tuple[str, ...] = ()
    prefix: str = ""
    numbered: bool = False
    fence: tuple[str, str] | None = None

    def read(self, sink: CallSink) -> Wait[None]:
        """Read one call; see `Body`."""
        source = sink.source
        written, found = yield from read_name(source, (*self.id_marks, *self.marks))
        call_id = ""
        if found in self.id_marks:
            call_id, _ = yield from read_name(source, self.marks)
        elif self.numbered:
            call_id = written
        name = written.removeprefix(self.prefix)
        if self.numbered:
            head, _, tail = name.rpartition(":")
            name = head if head and tail.isdecimal() else name
        yield from read_arguments(sink, name, call_id, fence=self.fence)

    def write(self, lark: Lark, tool: Tool) -> str:
        """The name and arguments of one call; see `Body`."""
        parts = [lark.text(self.prefix + tool.name)]
        if self.numbered:
            parts += [lark.text(":"), lark.pattern("[0-9]{1,2}")]
        if self.id_marks:
            parts += [lark.mark(self.id_marks[0]), lark.pattern("[a-zA-Z0-9]{9}")]
        return " ".join([*parts, lark.mark(self.marks[0]), lark.arguments(tool)])


def read_name(source: Source, marks: tuple[str, ...]) -> Wait[tuple[str, str]]:
    """Take a name and the mark behind it, and return both.

    Raises:
        MalformedCallError: there is no mark, no name, or a very long one.
    """
    parts: list[str] = []

    def keep(text: str) -> None:
        parts.append(text)
        if sum(map(len, parts)) > MAX_NAME_CHARACTERS:
            raise MalformedCallError("too long a name")

    found = yield from source.until(marks, keep)
    name = "".join(parts).strip()
    if not found or not name:
        raise MalformedCallError("no name, or nothing behind it")
    source.take(len(found))
    return name, found


def read_arguments(
    sink: CallSink,
    name: str,
    call_id: str = "",
    *,
    fence: tuple[str, str] | None = None,
) -> Wait[None]:
    """Read a JSON object and tell the call.

    Raises:
        MalformedCallError: there is none.
    """
    source = sink.source
    yield from source.blanks()
    if fence:
        yield from source.accept((fence[0],))
        yield from source.blanks()
    if (yield from source.peek()) != "{":
        raise MalformedCallError("no arguments")
    if not name:
        raise MalformedCallError("no name")
    sink.start(name, call_id)
    yield from pass_value(source, sink.arguments)
    sink.end()
    if fence:
        yield from source.blanks()
        yield from source.accept((fence[1],))
