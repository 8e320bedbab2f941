"""Acceptance checks: what a model must still do when it has arrived. Pure.

They are made with the engine where the model is packed, signed with its weights, and repeated on
the target before the model gets its name. Form: docs/bundle-format.md, section 5.9. Numbers that
are not integers are decimal text, because signed documents hold integers only.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from bundler.format.errors import AcceptanceError
from bundler.format.strict import Reader, encode_json, parse_json
from hwprobe.trial import Outcome, Trial

CheckKind = Literal["teacher_forced", "greedy_prefix", "json_schema", "embedding_cosine"]
KINDS: Final[tuple[CheckKind, ...]] = (
    "teacher_forced",
    "greedy_prefix",
    "json_schema",
    "embedding_cosine",
)
MAX_ACCEPTANCE_BYTES: Final = 1 << 20
MAX_CHECKS: Final = 64
MAX_TEXT_BYTES: Final = 32 << 10
MAX_TOKENS: Final = 512
NLL_TOLERANCE: Final = 0.05
"""Nats per token. Why: room for the rounding of other kernels, which has not been measured across
machines; a packer who knows better gives a tolerance of their own."""
COSINE_AT_LEAST: Final = 0.99
CLEAR_MARGIN: Final = 0.5
"""A token whose logit is less far ahead may be another one on another machine."""
_VERSION: Final = 1
_DECIMAL: Final = r"-?\d{1,9}(?:\.\d{1,12})?"
_ID_PATTERN: Final = r"[a-z0-9][a-z0-9._+-]{0,63}"
_MAX_TOKEN: Final = 1 << 31
_FLOAT: Final = struct.Struct("<f")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check.

    Attributes:
        id: a name, unique among the checks of a variant.
        kind: what is measured.
        text: what the model is given, special tokens included.
        mean_nll: for ``teacher_forced``, nats per token, with ``tolerance`` to either side.
        tokens: for ``greedy_prefix``, the likeliest tokens after the text, of which the first
            ``at_least`` must come again.
        schema: for ``json_schema``, a JSON schema as text, that the likeliest ``max_tokens``
            tokens must fit.
        vector: for ``embedding_cosine``, of length one, and ``cosine`` the least it must reach.
    """

    id: str
    kind: CheckKind
    text: str
    mean_nll: float = 0.0
    tolerance: float = 0.0
    tokens: tuple[int, ...] = ()
    at_least: int = 0
    schema: str = ""
    max_tokens: int = 0
    vector: tuple[float, ...] = ()
    cosine: float = 0.0

    def trial(self) -> Trial:
        """What the engine is asked."""
        match self.kind:
            case "teacher_forced":
                return Trial(kind="likelihood", text=self.text)
            case "greedy_prefix":
                return Trial(kind="greedy", text=self.text, max_tokens=len(self.tokens))
            case "json_schema":
                return Trial(
                    kind="greedy", text=self.text, max_tokens=self.max_tokens, schema=self.schema
                )
            case "embedding_cosine":
                return Trial(kind="vector", text=self.text)

    def judge(self, outcome: Outcome) -> Result:
        """Whether a measurement is what was signed."""
        match self.kind:
            case "teacher_forced":
                off = abs(outcome.mean_nll - self.mean_nll)
                return Result(
                    id=self.id,
                    kind=self.kind,
                    passed=off <= self.tolerance,
                    expected=f"{self.mean_nll:.4f} nats per token, {self.tolerance:.4f} either way",
                    found=f"{outcome.mean_nll:.4f}",
                )
            case "greedy_prefix":
                pairs = zip(self.tokens, outcome.tokens, strict=False)
                alike = next(
                    (place for place, (one, other) in enumerate(pairs) if one != other),
                    min(len(self.tokens), len(outcome.tokens)),
                )
                return Result(
                    id=self.id,
                    kind=self.kind,
                    passed=alike >= self.at_least,
                    expected=f"the first {self.at_least} of {len(self.tokens)} tokens",
                    found=f"the first {alike}",
                )
            case "json_schema":
                return Result(
                    id=self.id,
                    kind=self.kind,
                    passed=not outcome.fits_schema,
                    expected="JSON of the schema",
                    found=outcome.fits_schema or "JSON of the schema",
                )
            case "embedding_cosine":
                same = len(self.vector) == len(outcome.vector)
                found = _cosine(self.vector, outcome.vector) if same else -1.0
                return Result(
                    id=self.id,
                    kind=self.kind,
                    passed=found >= self.cosine,
                    expected=f"a cosine of at least {self.cosine:.4f}",
                    found=f"{found:.4f}" if same else f"a vector of {len(outcome.vector)} numbers",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of one check."""

    id: str
    kind: CheckKind
    passed: bool
    expected: str
    found: str


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    lengths = math.sqrt(sum(x * x for x in one)) * math.sqrt(sum(x * x for x in other))
    dot = sum(x * y for x, y in zip(one, other, strict=True))
    return dot / lengths if lengths else -1.0


def encode_checks(checks: Sequence[Check]) -> bytes:
    """The blob; equal checks give equal bytes.

    Raises:
        JsonError: a text is too long.
    """
    members = {"v": _VERSION, "checks": [_members(check) for check in checks]}
    return encode_json(members, max_string_bytes=MAX_ACCEPTANCE_BYTES)


def _members(check: Check) -> dict[str, Any]:
    own: dict[str, Any] = {"id": check.id, "kind": check.kind, "text": check.text}
    match check.kind:
        case "teacher_forced":
            own |= {"mean_nll": f"{check.mean_nll:.6f}", "tol": f"{check.tolerance:.6f}"}
        case "greedy_prefix":
            own |= {"tokens": list(check.tokens), "at_least": check.at_least}
        case "json_schema":
            own |= {"schema": check.schema, "max_tokens": check.max_tokens}
        case "embedding_cosine":
            packed = b"".join(map(_FLOAT.pack, check.vector))
            vector = base64.b64encode(packed).decode("ascii")
            own |= {"vector": vector, "at_least": f"{check.cosine:.6f}"}
    return own


def parse_checks(data: bytes) -> tuple[Check, ...]:
    """Read the blob.

    Raises:
        JsonError: it is not strict JSON.
        AcceptanceError: a field is wrong, or of a kind that this release does not know.
    """
    members = parse_json(
        data, max_bytes=MAX_ACCEPTANCE_BYTES, max_string_bytes=MAX_ACCEPTANCE_BYTES
    )
    with Reader(members, "", error=AcceptanceError) as reader:
        reader.integer("v", at_least=_VERSION, at_most=_VERSION)
        checks = reader.objects("checks", _read_check, at_most=MAX_CHECKS, at_least=1)
    if len({check.id for check in checks}) != len(checks):
        raise AcceptanceError(at="checks", expected="distinct ids", found="one twice")
    return checks


def _read_check(reader: Reader) -> Check:
    name = reader.text("id", pattern=_ID_PATTERN)
    kind = cast("CheckKind", reader.choice("kind", KINDS))
    text = _free_text(reader, "text", MAX_TEXT_BYTES)
    match kind:
        case "teacher_forced":
            return Check(
                id=name,
                kind=kind,
                text=text,
                mean_nll=_decimal(reader, "mean_nll"),
                tolerance=_decimal(reader, "tol"),
            )
        case "greedy_prefix":
            tokens = reader.items("tokens", _token, at_most=MAX_TOKENS, at_least=1)
            least = reader.integer("at_least", at_least=1, at_most=len(tokens))
            return Check(id=name, kind=kind, text=text, tokens=tokens, at_least=least)
        case "json_schema":
            return Check(
                id=name,
                kind=kind,
                text=text,
                schema=_schema(reader),
                max_tokens=reader.integer("max_tokens", at_least=1, at_most=MAX_TOKENS),
            )
        case "embedding_cosine":
            return Check(
                id=name,
                kind=kind,
                text=text,
                vector=_vector(reader),
                cosine=_decimal(reader, "at_least"),
            )


def _free_text(reader: Reader, name: str, max_bytes: int) -> str:
    """A text that may hold anything: it is given to a tokenizer, and never shown."""
    value = reader.take(name)
    if not isinstance(value, str) or not value:
        reader.refuse(name, "text that is not empty", value)
    if len(value.encode()) > max_bytes:
        reader.refuse(name, f"at most {max_bytes} bytes of text", len(value))
    return value


def _schema(reader: Reader) -> str:
    text = _free_text(reader, "schema", MAX_TEXT_BYTES)
    parse_json_schema(text)
    return text


def parse_json_schema(text: str) -> None:
    """Refuse a schema that is no JSON object.

    Raises:
        JsonError: it is none.
    """
    parse_json(text.encode(), max_bytes=MAX_TEXT_BYTES)


def _token(reader: Reader, name: str) -> int:
    return reader.integer(name, at_most=_MAX_TOKEN)


def _decimal(reader: Reader, name: str) -> float:
    text = reader.text(name)
    if not re.fullmatch(_DECIMAL, text, re.ASCII):
        reader.refuse(name, "a decimal number as text", text)
    return float(text)


def _vector(reader: Reader) -> tuple[float, ...]:
    encoded = reader.text("vector", max_bytes=MAX_ACCEPTANCE_BYTES)
    try:
        packed = base64.b64decode(encoded.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        reader.refuse("vector", "base64", encoded[:40])
    if not packed or len(packed) % _FLOAT.size:
        reader.refuse("vector", "32-bit numbers", len(packed))
    values = tuple(value for (value,) in _FLOAT.iter_unpack(packed))
    if not all(map(math.isfinite, values)):
        reader.refuse("vector", "finite numbers", "others")
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A check that is to be made: a text, and what is to be measured of it.

    Attributes:
        max_tokens: for ``greedy_prefix`` and ``json_schema``.
        schema: for ``json_schema``.
        tolerance: for ``teacher_forced``, nats per token; for ``embedding_cosine`` the cosine.
    """

    id: str
    kind: CheckKind
    text: str
    max_tokens: int = 16
    schema: str = ""
    tolerance: float = 0.0

    def trial(self) -> Trial:
        """What the engine is asked."""
        match self.kind:
            case "teacher_forced":
                return Trial(kind="likelihood", text=self.text)
            case "embedding_cosine":
                return Trial(kind="vector", text=self.text)
            case "greedy_prefix" | "json_schema":
                return Trial(
                    kind="greedy", text=self.text, max_tokens=self.max_tokens, schema=self.schema
                )

    def check(self, outcome: Outcome) -> Check | None:
        """The check that holds others to this outcome; `None` where it says too little.

        Raises:
            AcceptanceError: the model fails the check where it is packed already.
        """
        own: dict[str, Any] = {"id": self.id, "kind": self.kind, "text": self.text}
        match self.kind:
            case "teacher_forced":
                tolerance = self.tolerance or NLL_TOLERANCE
                # Through the text form, so that what is judged is what is signed.
                nll = float(f"{outcome.mean_nll:.6f}")
                return Check(**own, mean_nll=nll, tolerance=tolerance)
            case "greedy_prefix":
                clear = next(
                    (n for n, margin in enumerate(outcome.margins) if margin < CLEAR_MARGIN),
                    len(outcome.margins),
                )
                if not clear:
                    return None
                return Check(**own, tokens=outcome.tokens, at_least=clear)
            case "json_schema":
                if outcome.fits_schema:
                    raise AcceptanceError(
                        at=self.id,
                        expected="JSON of the schema where the model is packed",
                        found=outcome.fits_schema,
                    )
                return Check(**own, schema=self.schema, max_tokens=self.max_tokens)
            case "embedding_cosine":
                vector = tuple(_FLOAT.unpack(_FLOAT.pack(value))[0] for value in outcome.vector)
                return Check(**own, vector=vector, cosine=self.tolerance or COSINE_AT_LEAST)


def read_wanted(data: bytes) -> tuple[Wanted, ...]:
    """Read a packer's own list: ``{"checks": [{"id", "kind", "text", …}]}``.

    Raises:
        JsonError: it is not strict JSON.
        AcceptanceError: a field is wrong.
    """
    members = parse_json(
        data, max_bytes=MAX_ACCEPTANCE_BYTES, max_string_bytes=MAX_ACCEPTANCE_BYTES
    )
    with Reader(members, "", error=AcceptanceError) as reader:
        wanted = reader.objects("checks", _read_wanted, at_most=MAX_CHECKS, at_least=1)
    if len({one.id for one in wanted}) != len(wanted):
        raise AcceptanceError(at="checks", expected="distinct ids", found="one twice")
    return wanted


def _read_wanted(reader: Reader) -> Wanted:
    name = reader.text("id", pattern=_ID_PATTERN)
    kind = cast("CheckKind", reader.choice("kind", KINDS))
    text = _free_text(reader, "text", MAX_TEXT_BYTES)
    names = reader.names()
    generates = kind in ("greedy_prefix", "json_schema")
    tolerance = {"teacher_forced": "tol", "embedding_cosine": "at_least"}.get(kind, "")
    return Wanted(
        id=name,
        kind=kind,
        text=text,
        max_tokens=reader.integer("max_tokens", at_least=1, at_most=MAX_TOKENS)
        if generates and "max_tokens" in names
        else 16,
        schema=_schema(reader) if kind == "json_schema" else "",
        tolerance=_decimal(reader, tolerance) if tolerance in names else 0.0,
    )


BUILT_IN: Final[tuple[Wanted, ...]] = (
    Wanted(
        id="likelihood-en",
        kind="teacher_forced",
        text="Water boils at a lower temperature on a mountain, because the air presses less on "
        "it. So food that is cooked in water takes longer there.",
    ),
    Wanted(
        id="likelihood-de",
        kind="teacher_forced",
        text="Wer eine Nachricht verschickt, sollte sie vorher noch einmal lesen.",
    ),
    Wanted(
        id="likelihood-code",
        kind="teacher_forced",
        text="def mean(values):\n    return sum(values) / len(values)\n",
    ),
    Wanted(id="greedy-en", kind="greedy_prefix", text="One, two, three, four, five,"),
)
"""What is measured of a model that generates, unless the packer brings a list."""

BUILT_IN_VECTORS: Final[tuple[Wanted, ...]] = (
    Wanted(id="vector-en", kind="embedding_cosine", text="How long does rice cook?"),
    Wanted(
        id="vector-de", kind="embedding_cosine", text="Der Zug hat eine halbe Stunde Verspätung."
    ),
)
"""What is measured of an embedding model."""
