"""What a parser of model output gives out. Pure values.

Every event carries the text it was made from: of a whole answer, the ``raw`` of all events
concatenates to what the model wrote.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Some more visible text."""

    text: str
    raw: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """Some more reasoning."""

    text: str
    raw: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Text that only frames: tags, and the blanks beside them."""

    raw: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStart:
    """A call begins; ``id`` is empty where the model gives none."""

    name: str
    id: str = ""
    raw: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallArguments:
    """Some more of the arguments, as JSON text; of a whole call they make one object."""

    text: str
    raw: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnd:
    """The call is whole."""

    raw: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallBroken:
    """The call that began is none; ``text`` is all the model wrote of it, to be shown."""

    text: str
    raw: str = ""


Event = Content | Thinking | Mark | CallStart | CallArguments | CallEnd | CallBroken
