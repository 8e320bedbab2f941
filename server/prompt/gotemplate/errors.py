"""The errors of the Go template interpreter.

TemplateError            400  a template does not parse, does not fit its data, or asks too much
└── UnsupportedJsonError      a value has no JSON form; the function ``json`` makes it nothing
"""

from __future__ import annotations

from server.errors import BadRequestError

MAX_REASON_CHARS = 500
"""Longest message. Why: one may quote a literal of the template, which may be very long."""


class TemplateError(BadRequestError):
    """A template does not parse, does not fit the data it is given, or asks too much.

    The message has the form that Go's ``text/template`` gives it, ``template: :LINE: TEXT``,
    because clients show it to the author of the template.

    Attributes:
        line: line of the template, from 1; 0 where no line is to blame.
        reason: the message without its place.
    """

    def __init__(self, reason: str, *, line: int = 0) -> None:
        if len(reason) > MAX_REASON_CHARS:
            reason = f"{reason[:MAX_REASON_CHARS]}..."
        place = f"template: :{line}: " if line else "template: "
        super().__init__(f"{place}{reason}")
        self.line = line
        self.reason = reason


class UnsupportedJsonError(TemplateError):
    """A value has no JSON form, such as an infinite number."""
