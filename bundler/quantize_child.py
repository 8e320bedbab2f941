"""Quantize one file: the engine's child process. Run as ``python -P -m bundler.quantize_child``.

One JSON request on stdin: ``{"source", "target", "file_type", "threads"}``. The exit status is
the answer; the last line of output says why it is not zero. It dies with its parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

import llama_cpp

_PR_SET_PDEATHSIG = 1
_INFO = 2
_OOM_SCORE = "500"


def _log(level: int, text: bytes, _: ctypes.c_void_p) -> None:
    """Pass on warnings and errors, which come after info in ggml's levels."""
    if level > _INFO:
        os.write(2, text)


# The engine keeps the pointer: the object must live as long as the process.
_CALLBACK = llama_cpp.llama_log_callback(_log)


def main() -> int:
    """Read the request, quantize, and return the exit status."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    request = json.load(sys.stdin)
    llama_cpp.llama_log_set(_CALLBACK, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = request["file_type"]
    parameters.nthread = request["threads"]
    status = llama_cpp.llama_model_quantize(
        os.fsencode(request["source"]), os.fsencode(request["target"]), ctypes.byref(parameters)
    )
    return 1 if status else 0


if __name__ == "__main__":
    sys.exit(main())
