"""Records of decisions: all that placement was asked and what it answered, to be replayed. Pure.

Placement is a function of values, so the same question gives the same answer, byte for byte; a
record whose answer differs was made by another release, or changed since.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from hwprobe.decoding import decoded, parsed
from hwprobe.errors import DoesNotFitError, ProbeError
from hwprobe.machine import Machine
from hwprobe.margins import Margin
from hwprobe.placement import place
from hwprobe.profile import ModelProfile
from hwprobe.report import (
    machine_from_json,
    machine_to_json,
    placement_to_json,
    rejection_to_json,
)
from hwprobe.verdict import Candidate, Placement, Wish

DECISION_FORMAT: Final = "satchel-decision/1"
"""Marks a record; raised when a field changes its meaning."""
MAX_RECORD_BYTES: Final = 16 << 20
"""Why: a candidate takes about 10 KiB, most of it its chat template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Everything a placement depends on.

    Attributes:
        machine: the snapshot.
        candidates: the variants to choose from.
        wish: what the user asked for.
        reserved_bytes: per pool, what other models take.
    """

    machine: Machine
    candidates: tuple[Candidate, ...]
    wish: Wish
    reserved_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What replaying a record gave.

    Attributes:
        question: the question of the record.
        answer: the answer of this release.
        same: it is the recorded one, byte for byte.
    """

    question: Question
    answer: Mapping[str, Any]
    same: bool


def decide(question: Question) -> Placement:
    """`hwprobe.placement.place` for a question.

    Raises:
        DoesNotFitError: no candidate fits.
    """
    return place(
        question.machine,
        question.candidates,
        question.wish,
        reserved_bytes=question.reserved_bytes,
    )


def answer_of(question: Question) -> dict[str, Any]:
    """The placement, or the refusal with every candidate's rejection, as JSON."""
    try:
        return {"fits": True, **placement_to_json(decide(question))}
    except DoesNotFitError as error:
        return {
            "fits": False,
            "message": str(error),
            "hint": error.hint,
            "rejected": [rejection_to_json(one) for one in error.rejected],
        }


def record_of(question: Question) -> bytes:
    """The question and its answer in canonical JSON, ending with a newline."""
    return _canonical(
        {
            "format": DECISION_FORMAT,
            "question": {
                "machine": machine_to_json(question.machine),
                "candidates": [_candidate_to_json(one) for one in question.candidates],
                "wish": asdict(question.wish),
                "reserved_bytes": dict(question.reserved_bytes),
            },
            "answer": answer_of(question),
        }
    )


def replayed(data: bytes) -> Replayed:
    """Ask the question of a record again.

    Raises:
        ProbeError: this is no record of a decision.
        GgufError: a model's profile in it is broken.
    """
    record = parsed(data, "record")
    if not isinstance(record, Mapping) or record.get("format") != DECISION_FORMAT:
        raise ProbeError(
            f"no record of a decision: expected format {DECISION_FORMAT!r}",
            hint="make one with: satchel-probe fit MODEL --record FILE",
        )
    question = _question(record.get("question"))
    answer = answer_of(question)
    return Replayed(
        question=question,
        answer=answer,
        same=_canonical(answer) == _canonical(record.get("answer")),
    )


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1).encode("ascii") + b"\n"


def _candidate_to_json(candidate: Candidate) -> dict[str, Any]:
    return {
        "variant": candidate.variant,
        "prefer": candidate.prefer,
        "margin": asdict(candidate.margin),
        "profile": candidate.profile.to_json(),
    }


def _question(value: object) -> Question:
    record = _mapping(value, "question")
    candidates = record.get("candidates")
    if not isinstance(candidates, Sequence) or isinstance(candidates, str):
        raise ProbeError(f"question.candidates: expected a list, found {candidates!r:.80}")
    wish = decoded(Wish, record.get("wish"), "question.wish")
    assert isinstance(wish, Wish)
    reserved = _mapping(record.get("reserved_bytes"), "question.reserved_bytes")
    return Question(
        machine=machine_from_json(record.get("machine")),
        candidates=tuple(
            _candidate(one, f"question.candidates[{index}]") for index, one in enumerate(candidates)
        ),
        wish=wish,
        reserved_bytes={
            str(pool): _integer(size, f"question.reserved_bytes.{pool}")
            for pool, size in reserved.items()
        },
    )


def _candidate(value: object, where: str) -> Candidate:
    record = _mapping(value, where)
    variant = record.get("variant")
    if not isinstance(variant, str):
        raise ProbeError(f"{where}.variant: expected a text, found {variant!r:.80}")
    margin = decoded(Margin, record.get("margin") or {}, f"{where}.margin")
    assert isinstance(margin, Margin)
    return Candidate(
        variant=variant,
        margin=margin,
        prefer=_integer(record.get("prefer"), f"{where}.prefer"),
        profile=ModelProfile.from_json(_mapping(record.get("profile"), f"{where}.profile")),
    )


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ProbeError(f"{where}: expected an object, found {value!r:.80}")
    return value


def _integer(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ProbeError(f"{where}: expected a whole number, found {value!r:.80}")
    return value
