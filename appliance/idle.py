"""Let this thread work only when nobody else wants to: lowest CPU priority, idle I/O class.

Both belong to a thread on Linux, so the rest of the process stays as it is.
Source: ioprio_set(2), nice(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30}
"""Number of the system call; glibc has no function for it."""
_WHO_PROCESS = 1
_CLASS_IDLE = 3 << 13
_LOWEST = 19


def become_idle() -> bool:
    """Lower the calling thread's priorities.

    Returns:
        Whether the kernel took the idle I/O class; the CPU priority can always be lowered.
    """
    with contextlib.suppress(OSError):
        os.nice(_LOWEST)
    number = _IOPRIO_SET.get(platform.machine())
    if number is None:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(number, _WHO_PROCESS, 0, _CLASS_IDLE)) == 0
