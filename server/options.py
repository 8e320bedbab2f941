"""What ``options`` may hold, and what a request's options come to. Pure.

Rules:
 * built-in defaults lie below the model's parameters, these below the request's options;
 * ``null`` is skipped, zero counts, a list replaces a list;
 * an unknown name is ignored; `UNUSED` names are known to have no effect;
 * an integer written as ``2.0`` counts, ``2.7`` is cut to 2;
 * a wrong type is refused in Ollama's words, with status 400 instead of its 500.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from server.errors import BadRequestError
from server.wishes import Constraint, ConstraintKind, LoadOptions, SamplingOptions

Kind = Literal["integer", "float32", "boolean", "array", "bias", "lora"]

INT32_MAX = (1 << 31) - 1
RANDOM_SEED = -1
_UINT32 = 1 << 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One option.

    Attributes:
        kind: its JSON type, in Ollama's words.
        at_least: smallest value; smaller ones are refused.
        at_most: largest value; larger ones are refused.
        at_load: it is fixed when the model is loaded.
        positive: zero is refused, too.
    """

    kind: Kind
    at_least: float = -(1 << 31)
    at_most: float = INT32_MAX
    at_load: bool = False
    positive: bool = False


OPTIONS: Mapping[str, Rule] = {
    "num_ctx": Rule(kind="integer", at_least=1, at_load=True),
    "num_batch": Rule(kind="integer", at_least=1, at_load=True),
    "num_gpu": Rule(kind="integer", at_least=-1, at_load=True),
    "num_thread": Rule(kind="integer", at_least=0, at_load=True),
    "use_mmap": Rule(kind="boolean", at_load=True),
    "num_keep": Rule(kind="integer"),
    "num_predict": Rule(kind="integer"),
    "seed": Rule(kind="integer", at_least=-(1 << 63), at_most=(1 << 63) - 1),
    "temperature": Rule(kind="float32"),
    "top_k": Rule(kind="integer"),
    "top_p": Rule(kind="float32"),
    "min_p": Rule(kind="float32"),
    "typical_p": Rule(kind="float32"),
    "repeat_last_n": Rule(kind="integer", at_least=-1),
    "repeat_penalty": Rule(kind="float32", at_least=0, positive=True),
    "presence_penalty": Rule(kind="float32"),
    "frequency_penalty": Rule(kind="float32"),
    "mirostat": Rule(kind="integer", at_least=0, at_most=2),
    "mirostat_tau": Rule(kind="float32"),
    "mirostat_eta": Rule(kind="float32"),
    "dry_multiplier": Rule(kind="float32", at_least=0),
    "dry_base": Rule(kind="float32", at_least=1),
    "dry_allowed_length": Rule(kind="integer", at_least=0),
    "dry_penalty_last_n": Rule(kind="integer", at_least=-1),
    "dry_sequence_breakers": Rule(kind="array"),
    "xtc_probability": Rule(kind="float32", at_least=0, at_most=1),
    "xtc_threshold": Rule(kind="float32", at_least=0, at_most=1),
    "top_n_sigma": Rule(kind="float32"),
    "stop": Rule(kind="array"),
    "logit_bias": Rule(kind="bias"),
    "lora": Rule(kind="lora"),
    "speculate": Rule(kind="boolean"),
    "draft_num_predict": Rule(kind="integer", at_least=-1),
}
"""Every option that has an effect.

``logit_bias``, ``lora``, ``speculate``, DRY, XTC, top-n-sigma and mirostat are ours.
"""

REQUEST_TIMEOUT = "request_timeout"
"""Seconds after which the request is ended with what has been said. Ours; a request's alone."""

_TIMEOUT = Rule(kind="float32", at_least=0, positive=True)

GRAMMARS: Mapping[str, ConstraintKind] = {"grammar": "gbnf", "lark": "lark", "regex": "regex"}
"""What an answer may look like. Ours; a request's alone. ``grammar`` is llama-server's."""

STRICT_FORMAT = "strict_format"
"""A schema that cannot be enforced in full is refused. Ours; a request's alone."""

UNUSED = frozenset(
    {
        "f16_kv",
        "logits_all",
        "low_vram",
        "main_gpu",
        "numa",
        "penalize_newline",
        "use_mlock",
        "vocab_only",
    }
)
"""Options clients still send that have no effect here; their values are not looked at."""

_MOST_SCALE = 1e6
"""Of an adapter. Why: far beyond any use, and far from where 32-bit numbers end."""

_MIN_NUM_CTX = 4
"""Ollama raises a smaller context to this."""


def resolve_options(
    parameters: Mapping[str, Any], request: Mapping[str, Any]
) -> tuple[SamplingOptions, LoadOptions]:
    """Lay a request's options over the model's parameters over the defaults.

    Raises:
        BadRequestError: an option has the wrong type or is out of range.
    """
    sampling: dict[str, Any] = {}
    load: dict[str, Any] = {}
    for layer in (parameters, request):
        for name, value in layer.items():
            rule = OPTIONS.get(name)
            if rule is None or value is None:
                continue
            (load if rule.at_load else sampling)[name] = _read(name, rule, value)
    if "num_ctx" in load:
        load["num_ctx"] = max(load["num_ctx"], _MIN_NUM_CTX)
    if "seed" in sampling:
        sampling["seed"] = _seed(sampling["seed"])
    return SamplingOptions(**sampling), LoadOptions(**load)


def resolve_timeout(request: Mapping[str, Any]) -> float | None:
    """The seconds a request gives itself, if any.

    Raises:
        BadRequestError: it is no positive number.
    """
    value = request.get(REQUEST_TIMEOUT)
    return None if value is None else float(_number(REQUEST_TIMEOUT, _TIMEOUT, value))


def resolve_constraint(
    constraint: Constraint | None, request: Mapping[str, Any]
) -> Constraint | None:
    """What an answer may look like: by a field of the request, or by its options.

    Raises:
        BadRequestError: two things say it, or an option has the wrong type.
    """
    strict = _read(STRICT_FORMAT, Rule(kind="boolean"), request.get(STRICT_FORMAT) or False)
    given = [constraint] if constraint is not None else []
    names = ["format"] if given else []
    for name, kind in GRAMMARS.items():
        source = request.get(name)
        if source is None or source == "":
            continue
        if not isinstance(source, str):
            raise BadRequestError(f'option "{name}" must be of type string')
        given.append(Constraint(kind=kind, source=source))
        names.append(name)
    if len(given) > 1:
        raise BadRequestError(f"expected one of {' and '.join(names)}, found {len(given)}")
    if not given:
        return None
    return replace(given[0], strict=given[0].strict or strict)


def _read(name: str, rule: Rule, value: Any) -> Any:
    match rule.kind:
        case "boolean":
            if not isinstance(value, bool):
                raise BadRequestError(f'option "{name}" must be of type boolean')
            return value
        case "array":
            return _texts(name, value)
        case "bias":
            return _bias(name, value)
        case "lora":
            return _scales(name, value)
        case "integer" | "float32":
            return _number(name, rule, value)


def _number(name: str, rule: Rule, value: Any) -> int | float:
    if not is_number(value):
        raise BadRequestError(f'option "{name}" must be of type {rule.kind}')
    if not rule.at_least <= value <= rule.at_most:
        raise BadRequestError(
            f'option "{name}" must be between {rule.at_least:g} and {rule.at_most:g}'
        )
    number = int(value) if rule.kind == "integer" else float(value)
    if rule.positive and not number:
        raise BadRequestError(f'option "{name}" must be more than 0')
    return number


def is_number(value: object) -> bool:
    """Whether this is a JSON number that a float can hold; texts such as ``1e999`` are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise BadRequestError(f'option "{name}" must be of type array')
    if not all(isinstance(item, str) for item in value):
        raise BadRequestError(f'option "{name}" must be of an array of strings')
    return tuple(item for item in value if item)


def _bias(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    """OpenAI's form: token ids as texts, each with a number."""
    if not isinstance(value, Mapping):
        raise BadRequestError(f'option "{name}" must be an object of token ids and numbers')
    pairs = []
    for token, bias in value.items():
        numeric = token.isascii() and token.isdigit() and len(token) <= 10  # noqa: PLR2004 - ten digits hold any 32-bit id
        if not (numeric and is_number(bias)):
            raise BadRequestError(f'option "{name}" must be an object of token ids and numbers')
        pairs.append((int(token), float(bias)))
    return tuple(pairs)


def _scales(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    """llama-server's form: a list of objects with ``id`` and ``scale``."""
    pairs = []
    for item in value if isinstance(value, list) else (None,):
        number = item.get("id") if isinstance(item, Mapping) else None
        scale = item.get("scale") if isinstance(item, Mapping) else None
        whole = isinstance(number, int) and not isinstance(number, bool)
        if not whole or not is_number(scale) or not abs(float(scale or 0)) <= _MOST_SCALE:
            raise BadRequestError(f'option "{name}" must be an array of adapter ids and scales')
        pairs.append((int(number or 0), float(scale or 0)))
    return tuple(pairs)


def check_adapters(lora: tuple[tuple[int, float], ...] | None, count: int) -> None:
    """Refuse adapters a model does not have.

    Raises:
        BadRequestError: one of them is.
    """
    for number, _ in lora or ():
        if not 0 <= number < count:
            have = f"below {count}" if count else "of a model with adapters"
            raise BadRequestError(f'option "lora": expected an adapter id {have}, found {number}')


def _seed(seed: int) -> int:
    """A seed in 32 bits; -1, and what the engine takes for it, stay random."""
    reduced = seed % _UINT32
    return RANDOM_SEED if reduced == _UINT32 - 1 else reduced
