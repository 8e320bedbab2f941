"""Calls with a tag for each argument: ``<function=n><parameter=k>v</parameter></function>``. Pure.

Rules:
 * a value becomes JSON as the tool's schema says: a string, or whatever the text is as JSON;
 * where the schema says nothing, text that is JSON and no string is taken as JSON;
 * strings go out while they are written, other values when they are whole;
 * text that does not fit its type stays a string: the tool may tell the model what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.chat import Tool
from server.output.bodies.named import read_name
from server.output.jsontext import MAX_DEPTH, MAX_NAME_CHARACTERS, MalformedCallError, is_finite
from server.output.lark import Lark, declared
from server.output.layout import CallSink
from server.output.source import Wait


@dataclass(frozen=True, slots=True, kw_only=True)
class TaggedBody:
    """Reads a name and then keys and values between tags.

    Attributes:
        name_end: text behind the name; empty where it ends with its line, or at a key or the end.
        key: texts before and behind a key.
        value: text between the key's end and the value; empty if nothing is there.
        value_end: texts that end a value.
        end: texts that end the call. Without one it may have had more arguments.
        string_mark: an attribute behind the key that tells whether the value is a string:
            the texts between which ``true`` or ``false`` stands.
        lines: values stand on lines of their own: a line break at each side is no part of them.
    """

    name_end: str
    key: tuple[str, str]
    value_end: tuple[str, ...]
    end: tuple[str, ...]
    value: str = ""
    string_mark: tuple[str, str] | None = None
    lines: bool = False

    def read(self, sink: CallSink) -> Wait[None]:
        """Read one call; see `Body`."""
        source = sink.source
        yield from source.blanks()
        name = yield from self._name(sink)
        schema = properties_of(sink.tools, name)
        sink.start(name)
        sink.arguments("{")
        first = True
        while True:
            yield from source.blanks()
            if not (yield from source.accept((self.key[0],))):
                break
            yield from self._argument(sink, schema, first=first)
            first = False
        if not (yield from source.accept(self.end)):
            raise MalformedCallError("neither an argument nor the end")
        sink.arguments("}")
        sink.end()

    def write(self, lark: Lark, tool: Tool) -> str:
        """The name and the tagged arguments of one call; see `Body`."""
        required, optional = declared(tool.parameters)
        arguments = [self._written(lark, *each, strict=tool.strict) for each in required]
        arguments += [f"({self._written(lark, *each, strict=tool.strict)})?" for each in optional]
        name = lark.text(tool.name) + (" " + lark.mark(self.name_end) if self.name_end else "")
        line = lark.pattern("\\n?")
        return " ".join([name, line, *arguments, lark.mark(self.end[0])])

    def _written(self, lark: Lark, key: str, schema: Any, *, strict: bool) -> str:
        text = types_of(schema) == frozenset({"string"})
        line, end = lark.pattern("\\n?"), self.value_end[0]
        parts = [lark.mark(self.key[0]), lark.text(key), lark.mark(self.key[1])]
        if self.string_mark:
            told = " " + self.string_mark[0] + ("true" if text else "false") + self.string_mark[1]
            parts.append(lark.text(told))
        if self.value:
            parts += [line, lark.mark(self.value)]
        if self.lines:
            parts.append(lark.text("\n"))
        closing = ("\n" + end,) if self.lines else (end,)
        enum = schema.get("enum") if isinstance(schema, Mapping) else None
        if text and enum:
            values = [lark.text(each) for each in enum if isinstance(each, str)]
            parts += [lark.choice(values), *map(lark.mark, closing)]
        elif text:
            parts.append(lark.until(*closing))
        else:
            parts += [lark.json(schema, strict=strict), *map(lark.mark, closing)]
        return " ".join([*parts, line])

    def _name(self, sink: CallSink) -> Wait[str]:
        source = sink.source
        if self.name_end:
            name, _ = yield from read_name(source, (self.name_end,))
            return name
        parts: list[str] = []
        stop = yield from source.until(("\n", self.key[0], *self.end), parts.append)
        name = "".join(parts).strip()
        if not name or len(name) > MAX_NAME_CHARACTERS or not stop:
            raise MalformedCallError("no name")
        return name

    def _argument(self, sink: CallSink, schema: Mapping[str, Any], *, first: bool) -> Wait[None]:
        source = sink.source
        key, _ = yield from read_name(source, (self.key[1],))
        types = types_of(schema.get(key))
        if self.string_mark:
            yield from source.blanks()
            if (yield from source.accept((self.string_mark[0],))):
                told, _ = yield from read_name(source, (self.string_mark[1],))
                types = frozenset({"string"}) if told == "true" else frozenset()
        if self.value:
            yield from source.blanks()
            if not (yield from source.accept((self.value,))):
                raise MalformedCallError("no value")
        if self.lines:
            yield from source.accept(("\n",))
        sink.arguments(("" if first else ", ") + _json(key) + ": ")
        stops = (*("\n" + end for end in self.value_end if self.lines), *self.value_end)
        if types == frozenset({"string"}):
            sink.arguments('"')
            found = yield from source.until(stops, lambda text: sink.arguments(_json(text)[1:-1]))
            if found:
                sink.arguments('"')
        else:
            parts: list[str] = []
            found = yield from source.until(stops, parts.append)
            if found:
                sink.arguments(value_json("".join(parts), types))
        if not found:
            raise MalformedCallError("a value without an end")
        source.take(len(found))


def properties_of(tools: Any, name: str) -> Mapping[str, Any]:
    """The schemas of a tool's arguments; empty if it is not known."""
    for tool in tools:
        if isinstance(tool, Tool) and tool.name == name:
            properties = tool.parameters.get("properties")
            return properties if isinstance(properties, Mapping) else {}
    return {}


def types_of(schema: Any) -> frozenset[str]:
    """The JSON types a schema allows; empty if it does not say."""
    if not isinstance(schema, Mapping):
        return frozenset()
    kind = schema.get("type")
    if isinstance(kind, str):
        return frozenset({kind})
    if isinstance(kind, list | tuple):
        return frozenset(name for name in kind if isinstance(name, str))
    enum = schema.get("enum")
    if isinstance(enum, list) and enum and all(isinstance(each, str) for each in enum):
        return frozenset({"string"})
    found: set[str] = set()
    for choice in schema.get("anyOf") or schema.get("oneOf") or ():
        found |= types_of(choice)
    return frozenset(found)


def value_json(text: str, types: frozenset[str]) -> str:
    """A value as JSON text, by the types it may have."""
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        lowered = text.strip().lower()
        if lowered in {"true", "false"} and "boolean" in types:
            return lowered
        return "null" if lowered in {"none", "null"} and "null" in types else _json(text)
    if _kind(value) == "string" or (types and not _fits(value, types)):
        return _json(value if isinstance(value, str) and "string" not in types else text)
    return text.strip() if _depth(value) <= MAX_DEPTH else _json(text)


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "boolean"),
    (int, "integer"),
    (float, "number"),
    (str, "string"),
    (list, "array"),
    (dict, "object"),
)


def _kind(value: Any) -> str:
    return next((name for kind, name in _KINDS if isinstance(value, kind)), "null")


def _fits(value: Any, types: frozenset[str]) -> bool:
    kind = _kind(value)
    if kind == "integer":
        return bool(types & {"integer", "number"})
    return kind in types or (kind == "number" and "integer" in types and value == int(value))


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for each in level
            if isinstance(each, list | dict)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return depth


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    if not is_finite(text):
        raise ValueError("no number that readers can hold")
    return float(text)
