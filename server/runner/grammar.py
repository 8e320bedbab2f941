"""From what a request wants its answer to look like, to a GBNF grammar.

JSON schemas go through the converter that comes with the engine's bindings. It enforces types,
properties, enums, lengths and patterns; it does not enforce number ranges, formats other than
dates, times and UUIDs, or uniqueness. What it cannot convert is refused.
"""

from __future__ import annotations

import json
import re

from llama_cpp.llama_grammar import json_schema_to_gbnf

from server.chat import Constraint
from server.errors import EngineRefusedError

MAX_SCHEMA_BYTES = 64 << 10
"""64 KiB. Why: real schemas are a few KiB; the grammar grows faster than the schema."""

MAX_GRAMMAR_BYTES = 256 << 10
"""256 KiB. Why: the engine parses a grammar recursively and keeps every alternative."""

MAX_ALTERNATIVES = 512
"""In one rule. Why: the engine's time for a token grows with their square: 28 ms for 1,000."""

_COUNTED = frozenset("*+{")
_OPTIONAL = re.compile(r"[?*]|\{0")

JSON = r"""
root    ::= object
value   ::= object | array | string | number | "true" | "false" | "null"
object  ::= "{" ws ( member ( "," ws member )* )? "}"
member  ::= string ws ":" ws value ws
array   ::= "[" ws ( element ( "," ws element )* )? "]"
element ::= value ws
string  ::= "\"" char* "\""
char    ::= [^"\\\x00-\x1F\x7F] | "\\" ( ["\\/bfnrt] | "u" hex hex hex hex )
hex     ::= [0-9a-fA-F]
number  ::= "-"? ( "0" | [1-9] [0-9]{0,15} ) ( "." [0-9]{1,16} )? ( [eE] [-+]? [0-9]{1,3} )?
ws      ::= ( " " | "\n" [ \t]{0,20} )?
"""
"""Any JSON object. White space and numbers are bounded: models get lost in them."""


def gbnf(wanted: Constraint) -> str:
    """The grammar for a constraint.

    Raises:
        EngineRefusedError: the kind is unknown, or the schema or grammar is not accepted.
    """
    if wanted.after or wanted.reasoning:
        raise EngineRefusedError("grammar: expected one for the whole answer")
    match wanted.kind:
        case "json":
            return JSON
        case "json_schema":
            return _from_schema(wanted.source)
        case "gbnf":
            return _bounded(wanted.source)
        case _:
            raise EngineRefusedError(
                f"grammar: expected json, json_schema or gbnf, found {wanted.kind!r}"
            )


def _from_schema(text: str) -> str:
    if len(text.encode("utf-8", "replace")) > MAX_SCHEMA_BYTES:
        raise EngineRefusedError(f"json schema: expected at most {MAX_SCHEMA_BYTES} bytes")
    try:
        _check_schema(json.loads(text))
        return _bounded(json_schema_to_gbnf(text))
    except RecursionError as error:
        raise EngineRefusedError("json schema: nested too deep, or refers to itself") from error
    # The converter has no error type of its own: what it cannot convert ends in any of these.
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError,
            NotImplementedError) as error:  # fmt: skip
        reason = f"{type(error).__name__}: {error}"
        raise EngineRefusedError(f"json schema: it cannot be enforced: {reason}") from error


def _check_schema(schema: object) -> None:
    """Only references into the schema itself: nothing is ever fetched. No explosive patterns."""
    if isinstance(schema, dict):
        reference, pattern = schema.get("$ref"), schema.get("pattern")
        if isinstance(reference, str) and not reference.startswith("#/"):
            raise EngineRefusedError(f"json schema: expected $ref to start with #/: {reference!r}")
        if isinstance(pattern, str) and repeats_what_may_be_empty(pattern):
            raise EngineRefusedError(
                f"json schema: pattern: a repeated group holds something optional: {pattern!r}"
            )
        for value in schema.values():
            _check_schema(value)
    elif isinstance(schema, list):
        for value in schema:
            _check_schema(value)


def repeats_what_may_be_empty(pattern: str) -> bool:
    """Whether a group with ``*``, ``+`` or ``{}`` behind it has something optional inside.

    The engine follows each way through such a group apart: their number explodes.
    """
    begins: list[int] = []
    escaped = False
    for at, char in enumerate(pattern):
        if escaped or char == "\\":
            escaped = not escaped
        elif char == "(":
            begins.append(at)
        elif char == ")" and begins:
            inside = pattern[begins.pop() + 1 : at].removeprefix("?:")
            if pattern[at + 1 : at + 2] in _COUNTED and _OPTIONAL.search(inside):
                return True
    return False


def _bounded(grammar: str) -> str:
    if len(grammar.encode("utf-8", "replace")) > MAX_GRAMMAR_BYTES:
        raise EngineRefusedError(f"grammar: expected at most {MAX_GRAMMAR_BYTES} bytes")
    if any(line.count("|") > MAX_ALTERNATIVES for line in grammar.splitlines()):
        raise EngineRefusedError(
            f"grammar: expected at most {MAX_ALTERNATIVES} alternatives a rule"
        )
    return grammar
