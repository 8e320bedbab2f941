"""What a runner prints about an exception nobody caught: where, and of which kind.

Never its message, unless it is one of ours: other messages can quote a prompt or an answer.
"""

from __future__ import annotations

import sys
import traceback

from server.errors import ServerError


class MisuseError(ValueError):
    """A call that would have ended the process was refused; the message holds numbers only."""


def print_frames() -> None:
    """Print the exception being handled to stderr, innermost frame last, then its kind."""
    _kind, error, trace = sys.exc_info()
    if error is None:
        return
    lines = [
        f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)
    ]
    message = f": {error}" if isinstance(error, ServerError | MisuseError) else ""
    sys.stderr.write("\n".join([*lines, f"{type(error).__name__}{message}", ""]))
    sys.stderr.flush()
