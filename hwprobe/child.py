"""The parent's side of the engine's child process: hand it one request, read how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

MAX_ANSWER_BYTES: Final = 8 << 20
"""Why: one measured configuration takes about 200 bytes of JSON."""
STDERR_TAIL_BYTES: Final = 4096
LIBRARY_VARIABLE: Final = "LLAMA_CPP_LIB_PATH"
"""Which folder the engine's bindings load from, if not their own. Source: llama_cpp.py."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child process ended without an answer."""

    crashed_by: str
    message: str


def asked_child(
    request: dict[str, Any],
    timeout_s: float,
    libraries: Path | None = None,
    *,
    module: str = "hwprobe.dryrun",
) -> dict[str, Any] | Ended:
    """Start the child, hand it the request, wait for its answer or its end."""
    chosen = {LIBRARY_VARIABLE: str(libraries)} if libraries is not None else {}
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            env={**os.environ, **chosen},
        )
        try:
            child.communicate(json.dumps(request).encode(), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return Ended("timeout", f"the engine gave no answer within {timeout_s:g} s")
        finally:
            _end(child)
        stdout.seek(0)
        answer = stdout.read(MAX_ANSWER_BYTES)
        if child.returncode == 0:
            return _parsed(answer)
        size = stderr.seek(0, os.SEEK_END)
        stderr.seek(max(0, size - STDERR_TAIL_BYTES))
        return _crash(child.returncode, stderr.read().decode(errors="replace"))


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the child's process group if it still runs, and reap it."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    if child.stdin is not None:
        child.stdin.close()
    child.wait()


def _parsed(answer: bytes) -> dict[str, Any] | Ended:
    try:
        parsed = json.loads(answer)
    except ValueError:
        return Ended("no answer", "the engine's child process ended without an answer")
    if not isinstance(parsed, dict) or not isinstance(parsed.get("ok"), bool):
        return Ended("no answer", "the engine's child process gave no usable answer")
    return parsed


def _crash(status: int, stderr: str) -> Ended:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = f": {lines[-1][:300]}" if lines else ""
    if status > 0:
        return Ended(f"exit {status}", f"the engine's child process failed{last}")
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return Ended(name, f"the engine crashed{last}")
