"""Calls as JSON objects: ``{"name": …, "arguments": {…}}``, one or a list of them. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from server.chat import Tool
from server.output.jsontext import (
    MAX_NAME_CHARACTERS,
    MalformedCallError,
    expect,
    pass_value,
    read_string,
    read_value,
)
from server.output.lark import Lark
from server.output.layout import CallSink
from server.output.source import Wait

_WRAPPER = "function"
"""Some models write OpenAI's form, ``{"type": "function", "function": {…}}``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectBody:
    """Reads ``{"name": …, "arguments": {…}}``, and lists of it.

    The arguments may be JSON in a text; without any the call has none. The name may come last;
    then the arguments wait for it.

    Attributes:
        names: keys of the name.
        arguments: keys of the arguments.
        keyed: the object has one key, the name, and the arguments are its value.
        declared_only: an object counts only if it has arguments and names a tool that the request
            has, because it may as well be an answer.
    """

    names: tuple[str, ...] = ("name",)
    arguments: tuple[str, ...] = ("arguments", "parameters")
    keyed: bool = False
    declared_only: bool = False

    def read(self, sink: CallSink) -> Wait[None]:
        """Read one call or a list of calls; see `Body`."""
        source = sink.source
        if not (yield from source.accept(("[",))):
            yield from self._object(sink)
            return
        while True:
            yield from source.blanks()
            yield from self._object(sink)
            yield from source.blanks()
            if (yield from source.accept((",", ";"))):
                continue
            if (yield from source.peek()):
                yield from expect(source, "]")
            return

    def write(self, lark: Lark, tool: Tool) -> str:
        """The object of one call; see `Body`."""
        name, arguments = json.dumps(tool.name), lark.arguments(tool)
        if self.keyed:
            return f"{lark.text(f'{{{name}: ')} {arguments} {lark.text('}')}"
        head = f'{{"{self.names[0]}": {name}, "{self.arguments[0]}": '
        return f"{lark.text(head)} {arguments} {lark.text('}')}"

    def _object(self, sink: CallSink) -> Wait[None]:
        call = _Call(declared=self.declared_only)
        if self.keyed:
            yield from self._keyed(sink, call)
        else:
            yield from self._members(sink, call)
        if not call.name or (self.declared_only and not call.started):
            raise MalformedCallError("no name or no arguments")
        if not call.started:
            call.start(sink)
            sink.arguments(call.held or "{}")
        sink.end()

    def _members(self, sink: CallSink, call: _Call, *, inner: bool = False) -> Wait[None]:
        source = sink.source
        yield from expect(source, "{")
        yield from source.blanks()
        while not (yield from source.accept(("}",))):
            key = yield from read_string(source, most=MAX_NAME_CHARACTERS)
            yield from source.blanks()
            yield from expect(source, ":")
            yield from source.blanks()
            yield from self._member(sink, call, key, inner=inner)
            yield from source.blanks()
            if call.started and not (yield from source.peek()):
                return  # all that matters is there
            if not (yield from source.accept((",",))):
                yield from expect(source, "}")
                return
            yield from source.blanks()

    def _member(self, sink: CallSink, call: _Call, key: str, *, inner: bool) -> Wait[None]:
        source = sink.source
        first = yield from source.peek()
        if key in self.names or (key == _WRAPPER and first == '"'):
            call.name = yield from read_string(source, most=MAX_NAME_CHARACTERS)
            call.check(sink)
        elif key in self.arguments:
            yield from _arguments(sink, call, first)
        elif key == _WRAPPER and first == "{" and not inner:
            yield from self._members(sink, call, inner=True)
        elif self.declared_only and key not in {"type", "id"}:
            raise MalformedCallError("an object, but no call")
        else:
            yield from read_value(source)

    def _keyed(self, sink: CallSink, call: _Call) -> Wait[None]:
        source = sink.source
        yield from expect(source, "{")
        yield from source.blanks()
        call.name = yield from read_string(source, most=MAX_NAME_CHARACTERS)
        yield from source.blanks()
        yield from expect(source, ":")
        yield from source.blanks()
        yield from _arguments(sink, call, (yield from source.peek()))
        yield from source.blanks()
        yield from source.accept(("}",))


@dataclass(slots=True, kw_only=True)
class _Call:
    declared: bool
    name: str = ""
    held: str = ""
    started: bool = field(default=False)

    def start(self, sink: CallSink) -> None:
        self.check(sink)
        self.started = True
        sink.start(self.name)

    def check(self, sink: CallSink) -> None:
        if not self.name:
            raise MalformedCallError("no name")
        if self.declared and all(tool.name != self.name for tool in sink.tools):
            raise MalformedCallError("no such tool")


def _arguments(sink: CallSink, call: _Call, first: str) -> Wait[None]:
    """Pass the arguments on, or hold them until the name is known."""
    if call.started or call.held:
        raise MalformedCallError("arguments twice")
    source = sink.source
    if first == "{" and call.name:
        call.start(sink)
        yield from pass_value(source, sink.arguments)
        return
    if first == '"':
        text = as_object((yield from read_string(source)))
    elif first in ("{", "n"):
        text = yield from read_value(source)
        text = "{}" if text == "null" else text
    else:
        raise MalformedCallError("arguments are no object")
    if call.name:
        call.start(sink)
        sink.arguments(text)
    else:
        call.held = text


def as_object(text: str) -> str:
    """Arguments that were written as a text: a JSON object, written anew.

    Raises:
        MalformedCallError: they are none.
    """
    try:
        value = json.loads(text, parse_constant=_refuse)
        if not isinstance(value, dict):
            raise MalformedCallError("arguments are no object")
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise MalformedCallError("arguments are no JSON") from error


def _refuse(name: str) -> float:
    raise MalformedCallError(f"{name} is not JSON")
