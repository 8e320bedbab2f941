"""Rebuild frozen dataclasses from the JSON they were written as. Pure."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hwprobe.errors import ProbeError


def parsed(data: bytes, where: str) -> object:
    """The JSON value in ``data``; ``where`` names it in errors.

    Raises:
        ProbeError: it is no JSON, or nested too deeply.
    """
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProbeError(f"{where}: no JSON: {error}") from error
    return value


def decoded(kind: Any, value: object, where: str) -> object:
    """Build a value of the annotated type ``kind`` from JSON; ``where`` names it in errors.

    Fields the type does not know are ignored, fields that are missing take their default.

    Raises:
        ProbeError: a value has another type, or a field without a default is missing.
    """
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        hints = get_type_hints(kind)
        given = {
            field.name: decoded(hints[field.name], value[field.name], f"{where}.{field.name}")
            for field in fields(kind)
            if field.name in value
        }
        try:
            return kind(**given)
        except TypeError as error:
            raise ProbeError(f"{where}: a field is missing: {error}") from error
    origin, options = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(value, list | tuple):
        inner = options[:1] * len(value) if options[-1] is Ellipsis else options
        if len(inner) == len(value):
            pairs = enumerate(zip(inner, value, strict=True))
            return tuple(decoded(one, item, f"{where}[{at}]") for at, (one, item) in pairs)
    elif origin in (Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return decoded(next(one for one in options if one is not type(None)), value, where)
    elif (origin is Literal and value in options) or _is_plain(kind, value):
        return value
    raise ProbeError(f"{where}: expected {kind}, found {value!r:.80}")


def _is_plain(kind: Any, value: object) -> bool:
    if kind is float:
        if isinstance(value, float):
            return math.isfinite(value)
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return kind in (str, bool) and isinstance(value, kind)
