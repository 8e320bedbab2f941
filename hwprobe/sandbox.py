"""Give up what a process that reads a foreign model has no use for: Linux, x86-64 and ARM64.

A filter on system calls (seccomp) refuses the network, other programs, other processes' memory,
mounts and keys, and with ``read_only`` every opening of a file for writing. Refused calls fail with
EPERM. It cannot be taken back, and holds for all threads, those that run already included.

Source: linux/seccomp.h, linux/filter.h, and the system call tables of both architectures.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from collections.abc import Mapping
from typing import Final

_NUMBERS: Final[Mapping[str, Mapping[str, int]]] = {
    "x86_64": {
        "audit": 0xC000003E, "seccomp": 317, "openat": 257, "open": 2, "creat": 85,
        "socket": 41, "socketpair": 53, "connect": 42, "bind": 49, "execve": 59, "execveat": 322,
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "mount": 165,
        "umount2": 166, "pivot_root": 155, "unshare": 272, "setns": 308, "bpf": 321,
        "init_module": 175, "finit_module": 313, "kexec_load": 246, "keyctl": 250, "add_key": 248,
        "unlink": 87, "unlinkat": 263, "rename": 82, "renameat": 264, "renameat2": 316,
        "truncate": 76, "openat2": 437, "io_uring_setup": 425, "userfaultfd": 323,
        "open_by_handle_at": 304,
    },
    "aarch64": {
        "audit": 0xC00000B7, "seccomp": 277, "openat": 56,
        "socket": 198, "socketpair": 199, "connect": 203, "bind": 200, "execve": 221,
        "execveat": 281, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271,
        "mount": 40, "umount2": 39, "pivot_root": 41, "unshare": 97, "setns": 268, "bpf": 280,
        "init_module": 105, "finit_module": 273, "kexec_load": 104, "keyctl": 219, "add_key": 217,
        "unlinkat": 35, "renameat": 38, "renameat2": 276, "truncate": 45, "openat2": 437,
        "io_uring_setup": 425, "userfaultfd": 282, "open_by_handle_at": 265,
    },
}  # fmt: skip
_WRITES: Final = (
    "unlink", "unlinkat", "rename", "renameat", "renameat2", "truncate", "creat",
)  # fmt: skip
_OPENS: Final = {"open": 1, "openat": 2}
"""Calls that open by path, and which argument holds the flags."""
_NEVER: Final = (
    "connect", "bind", "execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev",
    "mount", "umount2", "pivot_root", "unshare", "setns", "bpf", "init_module", "finit_module",
    "kexec_load", "keyctl", "add_key", "openat2", "io_uring_setup", "userfaultfd",
    "open_by_handle_at",
)  # fmt: skip
_PR_SET_NO_NEW_PRIVS: Final = 38
_SET_FILTER: Final = 1
_ALL_THREADS: Final = 1
_ALLOW: Final = 0x7FFF0000
_REFUSE: Final = 0x00050000 | 1
"""SECCOMP_RET_ERRNO with EPERM."""
_LOAD: Final = 0x20
_EQUAL: Final = 0x15
_ANY_BIT: Final = 0x45
_RETURN: Final = 0x06
_NUMBER_AT: Final = 0
_ARCHITECTURE_AT: Final = 4
_ARGUMENTS_AT: Final = 16
_AF_UNIX: Final = 1
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_FILE_BYTES: Final = 16 << 20
_OPEN_FILES: Final = 256


class _Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def enter(*, read_only: bool) -> bool:
    """Give up, for good, what is not needed.

    Args:
        read_only: also refuse to open files for writing, and local sockets; not with a GPU, whose
            driver does both.

    Returns:
        Whether system calls are filtered; on other architectures only limits are set.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, _FILE_BYTES))
    if read_only:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    code = program(numbers, read_only=read_only)
    buffer = ctypes.create_string_buffer(code, len(code))
    filled = _Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    status: int = libc.syscall(numbers["seccomp"], _SET_FILTER, _ALL_THREADS, ctypes.byref(filled))
    return status == 0


def program(numbers: Mapping[str, int], *, read_only: bool) -> bytes:
    """The filter as the kernel reads it: eight bytes per instruction."""
    refused = [name for name in (*_NEVER, *(_WRITES if read_only else ())) if name in numbers]
    code = [
        _instruction(_LOAD, _ARCHITECTURE_AT),
        _instruction(_EQUAL, numbers["audit"], yes=1),
        _instruction(_RETURN, _REFUSE),  # system calls of another architecture
        _instruction(_LOAD, _NUMBER_AT),
    ]
    for name in refused:
        code += [_instruction(_EQUAL, numbers[name], no=1), _instruction(_RETURN, _REFUSE)]
    for name in ("socket", "socketpair"):
        allowed = [] if read_only else [
            _instruction(_LOAD, _ARGUMENTS_AT),
            _instruction(_EQUAL, _AF_UNIX, no=1),
            _instruction(_RETURN, _ALLOW),
        ]  # fmt: skip
        code.append(_instruction(_EQUAL, numbers[name], no=len(allowed) + 1))
        code += [*allowed, _instruction(_RETURN, _REFUSE)]
    for name, argument in _OPENS.items() if read_only else ():
        if name in numbers:
            code += [
                _instruction(_EQUAL, numbers[name], no=4),
                _instruction(_LOAD, _ARGUMENTS_AT + 8 * argument),
                _instruction(_ANY_BIT, _WRITING, no=1),
                _instruction(_RETURN, _REFUSE),
                _instruction(_RETURN, _ALLOW),
            ]
    code.append(_instruction(_RETURN, _ALLOW))
    return b"".join(code)


def _instruction(code: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    """``struct sock_filter``: what to do, how far to skip then or else, and a constant."""
    return struct.pack("<HBBI", code, yes, no, value)
