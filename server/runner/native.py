"""The engine's shared library: bindings, log, and the functions that keep the interpreter lock.

Native: imports llama.cpp. The other modules that do are `library`, `vocabulary`, `chain` and
`sight`; they are loaded only in a runner process.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from llama_cpp import llama_cpp as _bindings

from hwprobe.remote.devices import lost_workers
from server.runner.autopsy import ASSERTION

LIB: Any = _bindings
"""The bindings; every call releases the interpreter lock."""

_LEVEL_ERROR = 4
_LEVEL_CONTINUED = 5
"""Log levels of ggml.h: 1 debug, 2 info, 3 warning, 4 error, 5 goes on with the line before."""

_KEPT_LINES = 20
"""Error lines kept for a message. Why: the engine explains a refusal in two or three."""

_BUFFER = re.compile(
    r"(?P<name>\S+)\s+(?P<kind>model|KV|RS|compute|output|LoRA) buffer size"
    r"\s*=\s*(?P<mib>[\d.]+) MiB"
)
"""How the engine reports a buffer. Source: llama-context, llama-kv-cache, llama-model (.cpp)."""

_MIB_BYTES = 1 << 20


class Quick:
    """Functions of a few microseconds, bound so that they keep the interpreter lock.

    Giving the lock away costs more than they take, and with a busy thread beside them, much more.
    """

    def __init__(self) -> None:
        library = ctypes.PyDLL(LIB._lib._name)  # noqa: SLF001 - the bindings' own handle
        self.sampler_apply = _same(library, "llama_sampler_apply")
        self.sampler_accept = _same(library, "llama_sampler_accept")
        self.token_to_piece = _same(library, "llama_token_to_piece")
        self.get_logits = _same(library, "llama_get_logits")


class EngineLog:
    """What the engine says while it works: buffer sizes, and its last error lines.

    Attributes:
        memory: bytes per buffer type, as the engine reported them.
        errors: the last error lines, oldest first.
    """

    def __init__(self, sink: Callable[[str], None]) -> None:
        self.memory: dict[str, int] = {}
        self._computes: dict[str, int] = {}
        self.errors: deque[str] = deque(maxlen=_KEPT_LINES)
        self._sink = sink
        self._line = ""
        self._level = 0

    def write(self, level: int, text: str) -> None:
        """Take a piece of log; lines may come in parts."""
        if level != _LEVEL_CONTINUED:
            self._flush()
            self._level = level
        self._line += text
        if self._line.endswith("\n"):
            self._flush()

    def begin_model(self) -> None:
        """What is reported from now on is another model's, and comes on top."""
        self._computes = {}

    def last_errors(self) -> str:
        """The kept error lines as one, and forget them."""
        text = "; ".join(self.errors)
        self.errors.clear()
        return text

    def _count(self, name: str, kind: str, size: int) -> None:
        """Add a buffer; a new plan of the graph replaces the compute buffer of the last."""
        if kind == "compute":
            size, self._computes[name] = size - self._computes.get(name, 0), size
        self.memory[name] = self.memory.get(name, 0) + size

    def _flush(self) -> None:
        line, self._line = self._line.strip(), ""
        if not line:
            return
        if found := _BUFFER.search(line):
            size = int(float(found["mib"]) * _MIB_BYTES)
            self._count(found["name"], found["kind"], size)
        if self._level == _LEVEL_ERROR:
            self.errors.append(line)
            self._sink(line)


def _same(library: ctypes.PyDLL, name: str) -> Any:
    """The function ``name``, with the types the bindings gave it."""
    known = getattr(LIB, name)
    function = getattr(library, name)
    function.argtypes = known.argtypes
    function.restype = known.restype
    return function


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"engine: {line}\n")


def _attach(log: EngineLog) -> Any:
    def write(level: int, text: bytes | None, _data: object) -> None:
        log.write(level, (text or b"").decode(errors="replace"))

    callback = LIB.llama_log_callback(write)
    LIB.llama_log_set(callback, None)
    return callback


def log_to(*setters: Any) -> None:
    """Have other parts of the engine say what they do to the same log."""
    for setter in setters:
        setter(_LOG_CALLBACK, None)


def tell_aborts(descriptor: int) -> None:
    """Have the text of a failed assertion written to ``descriptor`` before the process aborts.

    The symbol is looked up through the library the bindings have loaded: the folder holds each
    library under several names, and opening another one would be a second, unused instance.
    """

    def write(text: bytes | None) -> None:
        said = (text or b"").replace(b"\n", b" ")
        if lost := lost_workers():  # what the engine says then does not name them
            said = f"{lost}: ".encode() + said
        os.write(descriptor, ASSERTION + said + b"\n")

    callback = _ABORT_CALLBACK(write)
    setter = LIB._lib.ggml_set_abort_callback  # noqa: SLF001 - the bindings' own handle
    setter.argtypes = [_ABORT_CALLBACK]
    setter.restype = ctypes.c_void_p
    setter(callback)
    _KEPT.append(callback)


_ABORT_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
_KEPT: list[object] = []
"""Call-backs the engine holds only the address of."""

QUICK = Quick()
TOKENIZE_ADDRESS: int = ctypes.cast(LIB._lib.llama_tokenize, ctypes.c_void_p).value or 0  # noqa: SLF001 - the bindings' own handle
"""The engine's tokenizer, for a library that calls it by its address."""
LOG = EngineLog(_to_stderr)
_LOG_CALLBACK = _attach(LOG)
"""Kept for the life of the process: the engine holds only its address."""
