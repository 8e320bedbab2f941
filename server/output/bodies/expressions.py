"""Calls as expressions: ``call:name{key:…}`` of Gemma's, ``[name(key=…)]`` as in Python. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from server.chat import Tool
from server.output.bodies.literals import Literals
from server.output.bodies.named import read_name
from server.output.bodies.tagged import types_of
from server.output.jsontext import MalformedCallError, expect
from server.output.lark import Lark, declared
from server.output.layout import CallSink
from server.output.source import Wait

_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_PYTHON = Literals()


@dataclass(frozen=True, slots=True, kw_only=True)
class BraceBody:
    """Reads ``call:NAME{key:value,…}``; ``mark`` stands around strings."""

    mark: str

    def read(self, sink: CallSink) -> Wait[None]:
        """Read one call; see `Body`."""
        source = sink.source
        yield from source.blanks()
        yield from expect(source, "call:")
        parts: list[str] = []
        if not (yield from source.until(("{", "\n"), parts.append)):
            raise MalformedCallError("no arguments")
        name = "".join(parts).strip()
        if not _NAME.fullmatch(name) or (yield from source.peek()) != "{":
            raise MalformedCallError("no name")
        sink.start(name)
        yield from Literals(mark=self.mark, bare=True).object(source, sink.arguments)
        sink.end()

    def write(self, lark: Lark, tool: Tool) -> str:
        """The braces of one call; see `Body`."""
        required, optional = (
            [self._written(lark, *each, strict=tool.strict) for each in group]
            for group in declared(tool.parameters)
        )
        inner = lark.several(required, optional, ",")
        return " ".join([lark.text(f"call:{tool.name}{{"), inner, lark.text("}")])

    def _written(self, lark: Lark, key: str, schema: Any, *, strict: bool) -> str:
        types = types_of(schema)
        mark = lark.mark(self.mark)
        if types == frozenset({"string"}):
            enum = schema.get("enum")
            if enum:
                values = [lark.text(each) for each in enum if isinstance(each, str)]
                value = f"{mark} {lark.choice(values)} {mark}"
            else:
                value = f"{mark} {lark.until(self.mark)}"
        elif types and not types & {"string", "array", "object"}:
            value = lark.json(schema, strict=strict)
        else:
            value = lark.nested(mark, lark.until(self.mark))
        return f"{lark.text(key + ':')} {value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonBody:
    """Reads ``name(key=value, …)``, one or a list.

    Attributes:
        suffix: dropped from the name: Llama writes ``name.call(…)``.
    """

    suffix: str = ".call"

    def read(self, sink: CallSink) -> Wait[None]:
        """Read one call or a list of calls; see `Body`."""
        source = sink.source
        if not (yield from source.accept(("[",))):
            yield from self._call(sink)
            return
        while True:
            yield from source.blanks()
            yield from self._call(sink)
            yield from source.blanks()
            if (yield from source.accept((",",))):
                continue
            if (yield from source.peek()):
                yield from expect(source, "]")
            return

    def write(self, lark: Lark, tool: Tool) -> str:
        """The expression of one call; see `Body`. Values are JSON, which is understood, too."""
        required, optional = (
            [
                f"{lark.text(key + '=')} {lark.json(schema, strict=tool.strict)}"
                for key, schema in group
            ]
            for group in declared(tool.parameters)
        )
        inner = lark.several(required, optional, ", ")
        return " ".join([lark.text(tool.name + "("), inner, lark.text(")")])

    def _call(self, sink: CallSink) -> Wait[None]:
        source = sink.source
        name, _ = yield from read_name(source, ("(",))
        if not _NAME.fullmatch(name):
            raise MalformedCallError("no name")
        sink.start(name.removesuffix(self.suffix))
        sink.arguments("{")
        first = True
        yield from source.blanks()
        while not (yield from source.accept((")",))):
            key, _ = yield from read_name(source, ("=",))
            if not _NAME.fullmatch(key):
                raise MalformedCallError("no argument")
            sink.arguments(("" if first else ", ") + json.dumps(key) + ": ")
            first = False
            yield from _PYTHON.value(source, sink.arguments)
            yield from source.blanks()
            if (yield from source.accept((",",))):
                yield from source.blanks()
            elif (yield from source.peek()) != ")":
                raise MalformedCallError("no separator")
        sink.arguments("}")
        sink.end()
