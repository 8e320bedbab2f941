"""Write a Lark grammar, in the dialect of llguidance, for text with tokens in it. Pure.

Control tokens cannot be written as text there: a grammar names them by their ids.
Source: llguidance's documentation of its Lark syntax.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from server.chat import Tool

Special = Callable[[str], int | None]
"""The id of a control token by its text; ``None`` for what is ordinary text."""

_INNER = re.compile("(｜DSML｜)")
"""Control tokens that stand inside longer marks."""

_SCHEMA_OPTIONS = {"coerce_one_of": False, "whitespace_flexible": True}


class Lark:
    """A grammar that grows.

    Its methods give expressions, which may be put together with blanks between them.
    """

    def __init__(self, special: Special) -> None:
        """Begin; ``special`` knows the model's control tokens."""
        self._special = special
        self._rules: list[str] = []
        self._names: dict[str, str] = {}

    def grammar(self, start: str) -> str:
        """The whole grammar, beginning with this expression."""
        return "\n".join([f"start: {start}", *self._rules, ""])

    def text(self, text: str) -> str:
        """Just this text."""
        return json.dumps(text, ensure_ascii=False)

    def mark(self, text: str) -> str:
        """This text, as the control tokens it is made of where it is any."""
        parts = [text] if self._special(text) is not None else _INNER.split(text)
        return " ".join(self._piece(part) for part in parts if part)

    def pattern(self, pattern: str) -> str:
        """Text that matches a regular expression."""
        return self._rule(f"/{pattern}/")

    def json(self, schema: Any, *, strict: bool = False) -> str:
        """JSON by a schema; any JSON where it is none.

        Keywords that cannot be enforced are left out, as they are for formats; ``strict`` makes a
        grammar that is refused for them.
        """
        if not isinstance(schema, dict):
            schema = {}
        options = {"lenient": not strict, **_SCHEMA_OPTIONS}
        return self._rule(f"%json {json.dumps({**schema, 'x-guidance': options})}")

    def arguments(self, tool: Tool) -> str:
        """A JSON object by the schema of a tool's arguments."""
        known = tool.parameters if isinstance(tool.parameters, dict) else {}
        return self.json({"type": "object", **known}, strict=tool.strict)

    def until(self, *end: str) -> str:
        """Any text up to an end and this itself, in one or several marks.

        Where a control token stands inside the last mark, the text cannot hold its first character.
        """
        marks = list(map(self.mark, end))
        if self._special(end[0]) is not None:
            return " ".join([self._rule(r"/(.|\n)*/"), *marks])
        if any("<[" in mark for mark in marks):
            return " ".join([self._rule(f"/[^{_escaped(end[-1][0])}]*/"), *marks])
        return self._rule(rf"/(.|\n)*{_escaped(''.join(end))}/", attribute="[lazy]")

    def choice(self, expressions: Sequence[str]) -> str:
        """One of these."""
        return "(" + " | ".join(expressions) + ")"

    def several(self, required: Sequence[str], optional: Sequence[str], between: str) -> str:
        """All of the first and any of the second in their order, with a text between them."""
        comma = self.text(between)
        tail = "".join(f" ({comma} {each})?" for each in optional)
        if required:
            return f" {comma} ".join(required) + tail
        starts = [
            each + "".join(f" ({comma} {other})?" for other in optional[at + 1 :])
            for at, each in enumerate(optional)
        ]
        return self.choice(starts) + "?" if starts else ""

    def nested(self, mark: str, text: str) -> str:
        """Any value of a dialect whose strings stand between marks and whose keys are bare.

        Args:
            mark: what a string begins with.
            text: the rest of it.
        """
        plain = self.json({"type": ["number", "boolean", "null"]})
        key = self.pattern("[A-Za-z_][A-Za-z0-9_]*")
        self._names.setdefault("nested", "nested")
        rule = (
            f"nested: {mark} {text} | {plain}"
            ' | "[" (nested ("," nested)*)? "]"'
            f' | "{{" ({key} ":" nested ("," {key} ":" nested)*)? "}}"'
        )
        if rule not in self._rules:
            self._rules.append(rule)
        return "nested"

    def _piece(self, text: str) -> str:
        found = self._special(text)
        return self.text(text) if found is None else f"<[{found}]>"

    def _rule(self, definition: str, attribute: str = "") -> str:
        """The name of a rule; the same definition gets the same name."""
        key = attribute + definition
        if key not in self._names:
            self._names[key] = f"r{len(self._names)}"
            self._rules.append(f"{self._names[key]}{attribute}: {definition}")
        return self._names[key]


def _escaped(text: str) -> str:
    return re.sub(r"([.^$*+?()\[\]{}|\\/])", r"\\\1", text).replace("\n", r"\n")


def declared(parameters: Any) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """Names and schemas of the arguments that are required, and of the others."""
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    named = properties if isinstance(properties, dict) else {}
    wanted = parameters.get("required") if isinstance(parameters, dict) else ()
    required = {name for name in wanted or () if isinstance(name, str)}
    return (
        [(name, schema) for name, schema in named.items() if name in required],
        [(name, schema) for name, schema in named.items() if name not in required],
    )
