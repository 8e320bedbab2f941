"""Check an answer against its schema, in a child process: parent side.

Rules:
 * only schemas of which keywords were left out are checked: the rest is enforced while it is said;
 * schemas and answers may be hostile, so a check has a process of its own, `WAIT_S` and a size;
 * a check that comes to no end says so: neither that the answer fits, nor that it does not.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterable

from server.chunks import Conformity
from server.wishes import Constraint

LOG = logging.getLogger("satchel.server")

MAX_ANSWER_BYTES = 1 << 20
"""Why: far more than a model says; a process takes some hundred times as much to check it."""

WAIT_S = 5.0
"""For a place, and again for the check. Why: to start takes some tenths of a second."""

AT_ONCE = 2
"""Checks at a time. Why: each takes a processor from the engine."""

MOST_NAMES = 32
"""Keywords that are told: they stand in a header."""

MOST_CHARACTERS = 100
"""Of a keyword that is told, and of an error."""

_PLACES = threading.BoundedSemaphore(AT_ONCE)


def is_to_be_checked(constraint: Constraint | None) -> bool:
    """Whether keywords of this constraint may be left out."""
    return constraint is not None and constraint.kind == "json_schema" and not constraint.strict


def conformity(schema: str, answer: str, relaxed: Iterable[str]) -> Conformity:
    """Whether an answer fits its schema.

    Args:
        schema: as JSON text.
        answer: all visible text.
        relaxed: keywords that were left out.
    """
    names = tuple(name[:MOST_CHARACTERS] for name in relaxed)[:MOST_NAMES]
    if len(answer) > MAX_ANSWER_BYTES or not _PLACES.acquire(timeout=WAIT_S):
        return Conformity(relaxed=names)
    try:
        said = _ask(schema, answer)
    finally:
        _PLACES.release()
    if said is None:
        LOG.warning("an answer could not be checked against its schema")
        return Conformity(relaxed=names)
    valid, error = said
    return Conformity(relaxed=names, valid=valid, error=error[:MOST_CHARACTERS])


def _ask(schema: str, answer: str) -> tuple[bool, str] | None:
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "server.conformance"],
            input=json.dumps({"schema": schema, "answer": answer}).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=WAIT_S,
            check=True,
            start_new_session=True,
        )
        said = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return bool(said["valid"]), str(said["error"])
