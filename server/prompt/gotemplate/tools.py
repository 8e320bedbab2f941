"""Tools and tool calls as a Go template sees them. Pure.

A template can go through their fields, or print them whole, which gives JSON. Two styles:

 * ``Style.OLLAMA``: what Ollama's structs hold, in their order, written as Go writes JSON. Of a
   property's schema only the keywords that Ollama knows are left.
 * ``Style.AS_SENT``: what the client sent, in its order, written as models' own templates write
   JSON, on which they were trained.

In both, a number without a fraction stays an integer; Ollama makes it a float, so that 1000000
prints as ``1e+06``. A whole function prints as JSON, as widely used templates expect;
newer releases of Ollama print a Go struct there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, TypedDict

from server.chat import JsonObject, Tool, ToolCall
from server.prompt.gotemplate.json import GO_FIELDS, MODEL, plain_json
from server.prompt.gotemplate.values import Map, Slice, Struct, Value, from_python

_PROPERTY_KEYWORDS = (
    "anyOf",
    "type",
    "items",
    "description",
    "enum",
    "properties",
    "required",
)
"""What Ollama keeps of a property's schema, in the order it writes them."""

_TYPESCRIPT = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "array": "any[]",
    "object": "Record<string, any>",
    "null": "null",
}


class Style(Enum):
    """How tools and arguments are written; see the module."""

    OLLAMA = "ollama"
    AS_SENT = "as-sent"


def tools_value(tools: Sequence[Tool], style: Style) -> Slice:
    """``.Tools``; nil if there are none.

    Raises:
        TemplateError: a schema is nested too deep, or is not JSON-like.
    """
    for tool in tools:
        # Refuses what is nested too deep before anything here goes down into it.
        from_python(tool.raw)
        from_python(tool.parameters)
    values = tuple(_tool(tool, style) for tool in tools)
    forms = [_written_tool(tool, style) for tool in tools]
    return Slice(
        items=values,
        type_name="api.Tools",
        nil=not values,
        **_printing(forms or None, style),
    )


def calls_value(calls: Sequence[ToolCall], style: Style) -> Slice:
    """``.ToolCalls`` of a message; nil if there are none.

    Raises:
        TemplateError: arguments are nested too deep, or are not JSON-like.
    """
    items = tuple(_call(index, call, style) for index, call in enumerate(calls))
    return Slice(items=items, type_name="[]api.ToolCall", nil=not items)


def written_calls(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Calls in the form they have on the wire."""
    return [_written_call(index, call) for index, call in enumerate(calls)]


def _call(index: int, call: ToolCall, style: Style) -> Struct:
    arguments = _arguments(call.arguments, style)
    function = Struct(
        type_name="api.ToolCallFunction",
        fields={"Index": index, "Name": _text(call.name), "Arguments": arguments},
        json=_writer(_written_call(index, call)["function"], style),
    )
    return Struct(
        type_name="api.ToolCall",
        fields={"ID": _text(call.id), "Function": function},
        json=_writer(_written_call(index, call), style),
    )


def _arguments(arguments: JsonObject, style: Style) -> Map:
    value = from_python(arguments)
    assert isinstance(value, Map)  # a mapping becomes one
    return Map(
        entries=value.entries,
        type_name="api.ToolCallFunctionArguments",
        **_printing(_sorted(arguments) if style is Style.OLLAMA else arguments, style),
    )


def _written_call(index: int, call: ToolCall) -> dict[str, Any]:
    function = {"index": index, "name": call.name, "arguments": _sorted(call.arguments)}
    return {**({"id": call.id} if call.id else {}), "function": function}


def _tool(tool: Tool, style: Style) -> Struct:
    form = _written_tool(tool, style)
    function = form["function"]
    parameters = Struct(
        type_name="api.ToolFunctionParameters",
        fields={
            "Type": _text(tool.parameters.get("type")),
            "Defs": from_python(tool.parameters.get("$defs")),
            "Items": from_python(tool.parameters.get("items")),
            "Required": _texts(tool.parameters.get("required")),
            "Properties": _properties(tool.parameters.get("properties"), style),
        },
        **_printing(function.get("parameters"), style),
    )
    return Struct(
        type_name="api.Tool",
        fields={
            "Type": _text(form.get("type")),
            "Items": from_python(form.get("items")),
            "Function": Struct(
                type_name="api.ToolFunction",
                fields={
                    "Name": _text(tool.name),
                    "Description": _text(tool.description),
                    "Parameters": parameters,
                },
                **_printing(function, style),
            ),
        },
        **_printing(form, style),
    )


def _properties(properties: Any, style: Style) -> Map:
    known = properties if isinstance(properties, Mapping) else {}
    return Map(
        entries={_text(name): _property(schema, style) for name, schema in known.items()},
        type_name="map[string]api.ToolProperty",
        missing=_property({}, style) if known else None,
        **_printing(_written_properties(known, style), style),
    )


def _property(schema: Any, style: Style) -> Struct:
    schema = schema if isinstance(schema, Mapping) else {}
    types = _texts(schema.get("type"), type_name="api.PropertyType", text=_bare)
    choices = _sequence(schema.get("anyOf"))
    enum = from_python(_sequence(schema.get("enum")))
    return Struct(
        type_name="api.ToolProperty",
        fields={
            "AnyOf": Slice(
                items=tuple(_property(choice, style) for choice in choices), nil=not choices
            ),
            "Type": types,
            "Items": from_python(schema.get("items")),
            "Description": _text(schema.get("description")),
            "Enum": enum,
            "Properties": _properties(schema.get("properties"), style),
            "Required": _texts(schema.get("required")),
        },
        methods={"ToTypeScriptType": typescript(schema)},
        **_printing(_written_property(schema, style), style),
    )


def typescript(schema: Mapping[str, Any]) -> str:
    """A property's type as TypeScript writes it; ``any`` where the schema does not say."""
    choices = _sequence(schema.get("anyOf"))
    if choices:
        return " | ".join(typescript(choice) for choice in choices if isinstance(choice, Mapping))
    names = _names(schema.get("type"))
    return " | ".join(_TYPESCRIPT.get(name, "any") for name in names) or "any"


# What is written when they are printed whole.


def _written_tool(tool: Tool, style: Style) -> dict[str, Any]:
    sent = dict(tool.raw) or {"type": "function"}
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    if style is Style.AS_SENT:
        return {**sent, "function": sent.get("function", function)}
    parameters = tool.parameters
    kept = {key: _sorted(parameters[key]) for key in ("$defs", "items") if parameters.get(key)}
    required = _names(parameters.get("required"))
    properties = parameters.get("properties")
    function["parameters"] = {
        "type": _text(parameters.get("type")),
        **kept,
        **({"required": required} if required else {}),
        "properties": _written_properties(
            properties if isinstance(properties, Mapping) else {}, style
        ),
    }
    items = {"items": _sorted(sent["items"])} if sent.get("items") else {}
    return {"type": _text(sent.get("type")), **items, "function": function}


def _written_properties(properties: Mapping[str, Any], style: Style) -> Mapping[str, Any]:
    if style is Style.AS_SENT:
        return properties
    return {
        name: _written_property(properties[name], style) for name in sorted(properties, key=str)
    }


def _written_property(schema: Any, style: Style) -> Any:
    if style is Style.AS_SENT:
        return schema
    schema = schema if isinstance(schema, Mapping) else {}
    written: dict[str, Any] = {}
    for keyword in _PROPERTY_KEYWORDS:
        value = schema.get(keyword)
        if not value:
            continue
        if keyword == "type" and isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        if keyword == "anyOf":
            value = [_written_property(choice, style) for choice in _sequence(value)]
        elif keyword == "properties" and isinstance(value, Mapping):
            value = _written_properties(value, style)
        written[keyword] = value if keyword in ("anyOf", "properties") else _sorted(value)
    return written


def _sorted(value: Any) -> Any:
    """JSON-like data with the keys of all its objects in order."""
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [_sorted(item) for item in value]
    return value


class _Printing(TypedDict):
    text: Callable[[], str]
    json: Callable[[], str]


def _printing(form: Any, style: Style) -> _Printing:
    """Print as JSON; written when it is first asked for, and once."""
    write = _writer(form, style)
    return {"text": write, "json": write}


def _writer(form: Any, style: Style) -> Callable[[], str]:
    layout = GO_FIELDS if style is Style.OLLAMA else MODEL
    return functools.cache(lambda: plain_json(form, layout))


# Reading schemas, which come from clients and may hold anything.


def _text(value: Any) -> str:
    text = from_python(value) if isinstance(value, str) else ""
    return text if isinstance(text, str) else ""


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _names(value: Any) -> list[str]:
    if isinstance(value, str):
        return [_text(value)]
    return [_text(item) for item in _sequence(value) if isinstance(item, str)]


def _texts(
    value: Any,
    *,
    type_name: str = "[]string",
    text: Callable[[list[str]], str] | None = None,
) -> Slice:
    names = _names(value)
    items: tuple[Value, ...] = tuple(names)
    printed = None if text is None else functools.partial(text, names)
    return Slice(items=items, type_name=type_name, nil=not items, text=printed)


def _bare(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"[{' '.join(names)}]" if names else ""
