r"""What a dead runner left behind, as values. Pure, parent side.

A runner has a pipe for its last words besides what it prints: the text of a failed assertion as
one line ``assert: …``, then what Python's fault handler writes about a fatal signal. No other line
is written there, so it holds no prompt and no answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

ASSERTION = b"assert: "
"""How the line with a failed assertion begins."""

MAX_STACK_LINES = 40
MAX_ASSERTION_CHARACTERS = 500

OUTSIDE = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
"""Signals that no instruction raises: the kernel short of memory, or a person, sent them."""

_FRAME = re.compile(r'File "(?P<path>[^"]+)", line (?P<line>\d+) in (?P<name>\S+)')
_PLACE = re.compile(r"^(?P<path>\S+/)(?=[^/\s]+:\d+: )")
_CLIENTS = re.compile(r"gramm|schema|gbnf", re.IGNORECASE)
"""Lines about these can quote what a client sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastWords:
    """What came through the pipe.

    Attributes:
        assertion: text of the failed assertion, with file name and line; empty without one.
        stack: Python's frames of each thread, innermost first, one line each.
    """

    assertion: str = ""
    stack: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Autopsy:
    """How a runner ended that nobody told to.

    Attributes:
        pid: its process id.
        cause: ``SIGSEGV``, ``exit 3``, or ``stalled`` and the like where the server killed it.
        text: the same in one line for clients.
        assertion: see `LastWords`.
        stack: see `LastWords`.
        log: the last lines it printed, oldest first.
        steps: its step counter as last heard of.
        requests: ids of the requests in flight.
        ready: it had loaded its model.
        lived_s: seconds from its start to its end.
    """

    pid: int
    cause: str
    text: str
    assertion: str = ""
    stack: tuple[str, ...] = ()
    log: tuple[str, ...] = ()
    steps: int = 0
    requests: tuple[int, ...] = ()
    ready: bool = False
    lived_s: float = 0.0

    @property
    def from_outside(self) -> bool:
        """Whether it was ended by a signal from outside, which says little about its requests."""
        return self.cause in OUTSIDE


def read_last_words(data: bytes) -> LastWords:
    """Take apart what came through the pipe; folders are left out of paths."""
    assertion = ""
    stack: list[str] = []
    for line in data.splitlines():
        text = _printable(line.decode(errors="replace"))
        if line.startswith(ASSERTION):
            found = _PLACE.sub("", text[len(ASSERTION) :])
            assertion = assertion or found[:MAX_ASSERTION_CHARACTERS]
        elif found_frame := _FRAME.search(text):
            where = "/".join(PurePath(found_frame["path"]).parts[-3:])
            stack.append(f"{where}:{found_frame['line']} {found_frame['name']}")
        elif text.startswith(("Fatal Python error", "Thread ", "Current thread ")):
            stack.append(text)
    return LastWords(assertion=assertion, stack=tuple(stack[:MAX_STACK_LINES]))


def keepable(lines: tuple[str, ...], *, hide: str) -> tuple[str, ...]:
    """The printed lines a record may hold: none that quotes a client, no folder of models."""
    return tuple(
        "(a line about a client's grammar)" if _CLIENTS.search(line) else line.replace(hide, "")
        for line in lines
    )


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text).strip()
