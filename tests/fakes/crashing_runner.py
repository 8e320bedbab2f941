"""The real runner and engine, with a decode that fails as the tokens of the batch say.

Started as ``python -P crashing_runner.py FD PIPE``. Eight times `ABORT` in one batch breaks an
assertion of the engine, `FAULT` reads address zero, `HANG` never returns.
"""

from __future__ import annotations

import ctypes
import sys
import time

from server.runner import __main__ as program

ABORT, FAULT, HANG = 301, 302, 303
TIMES = 8


def poison(token: int) -> tuple[int, ...]:
    """A prompt that makes the runner fail."""
    return (token,) * (TIMES + 1)


def main() -> int:
    """Put the hook in, then be the runner."""
    from server.runner import library, service
    from server.runner.native import LIB

    class Engine(library.Engine):
        def decode(self) -> int:
            tokens = self.batch._tokens[: self.batch.size]
            if (tokens == FAULT).sum() >= TIMES:
                ctypes.string_at(0)
            if (tokens == HANG).sum() >= TIMES:
                time.sleep(3600)
            if (tokens == ABORT).sum() >= TIMES:
                LIB.llama_memory_seq_rm(self._memory, 10_000, 0, -1)
            return super().decode()

    vars(service)["Engine"] = Engine
    return program.main()


if __name__ == "__main__":
    sys.exit(main())
