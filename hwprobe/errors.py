"""The errors of this package.

ProbeError
├── GgufError            a file is not the GGUF it claims to be
├── AdapterError         an adapter does not go with its model
├── ProjectorError       a projector does not go with its model
├── DraftError           a draft model does not go with its model
├── WorkerError          a worker cannot be reached or used
├── EngineCheckError     the engine's child process crashed, hung or refused
├── DoesNotFitError      no candidate fits this machine
└── QuantityError        a text is not a byte quantity
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hwprobe.placement import Rejection


class ProbeError(Exception):
    """Root of this package's errors: one lower-case line, and a hint where one helps.

    A file may be quoted in a message, but never acts on a terminal or a log: characters that do
    not print become question marks.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(_printable(message))
        self.hint = _printable(hint)


class QuantityError(ProbeError):
    """A text is not a byte quantity such as ``24 GiB``."""


class GgufError(ProbeError):
    """A file is not a GGUF this reader accepts.

    Attributes:
        offset: where in the file the fault stands, in bytes.
        expected: what the format asks for there.
        found: what stands there instead.
    """

    def __init__(self, *, offset: int, expected: str, found: str) -> None:
        super().__init__(f"not a usable GGUF: at byte {offset}: expected {expected}, found {found}")
        self.offset = offset
        self.expected = expected
        self.found = found


class AdapterError(ProbeError):
    """An adapter is none, or does not go with the model; the message names what differs."""


class ProjectorError(ProbeError):
    """A projector is none, or does not go with its model; the message names what differs."""


class DraftError(ProbeError):
    """A draft model is none, or does not go with its model; the message names what differs."""


class WorkerError(ProbeError):
    """A worker on another machine cannot be reached, is none we know, or cannot be used."""


class EngineCheckError(ProbeError):
    """The engine's child process crashed, hung, or refused the model."""


class DoesNotFitError(ProbeError):
    """No candidate fits this machine; the message names the nearest miss.

    Attributes:
        rejected: a `hwprobe.placement.Rejection` per candidate.
    """

    def __init__(
        self, message: str, *, hint: str = "", rejected: tuple[Rejection, ...] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.rejected = rejected


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def io_sentence(error: OSError) -> str:
    """What the system says, as an error of ours reads: ``/x/y: no such file or directory``."""
    reason = (error.strerror or type(error).__name__).lower()
    return f"{error.filename}: {reason}" if error.filename else reason
