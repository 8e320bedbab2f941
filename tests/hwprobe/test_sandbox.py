"""What a process in the sandbox can still do, asked of the kernel."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from hwprobe.sandbox import enter, program

ATTEMPTS = """
import ctypes, os, socket, sys
from hwprobe.sandbox import enter
assert enter(read_only=sys.argv[1] == "closed") == (sys.argv[2] == "filtered")
def tell(name, attempt):
    try:
        attempt()
    except (OSError, PermissionError) as error:
        print(name, error.errno)
    else:
        print(name, 0)
def run():
    pid = os.fork()
    if pid == 0:
        try:
            os.execv("/bin/true", ["true"])
        except OSError as error:
            os._exit(error.errno)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise OSError(status, "refused")
here = sys.argv[3]
tell("internet", lambda: socket.socket(socket.AF_INET))
tell("local", lambda: socket.socket(socket.AF_UNIX))
tell("run", run)
tell("read", lambda: open(here + "/there", "rb").read())
tell("write", lambda: open(here + "/new", "wb"))
tell("append", lambda: os.open(here + "/there", os.O_RDWR))
tell("remove", lambda: os.unlink(here + "/there"))
tell("threads", lambda: __import__("threading").Thread(target=int).start())
"""


def attempts(folder: Path, mode: str) -> dict[str, int]:
    (folder / "there").write_bytes(b"x")
    filtered = "filtered" if platform.machine() in ("x86_64", "aarch64") else "free"
    done = subprocess.run(
        [sys.executable, "-P", "-c", ATTEMPTS, mode, filtered, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return {name: int(code) for name, code in map(str.split, done.stdout.splitlines())}


def test_a_model_on_the_cpu_reaches_nothing_but_files_to_read(tmp_path: Path) -> None:
    found = attempts(tmp_path, "closed")
    allowed = {name for name, code in found.items() if code == 0}
    assert allowed == {"read", "threads"}
    assert {code for code in found.values() if code} == {1}


def test_with_a_gpu_its_driver_may_open_what_it_needs(tmp_path: Path) -> None:
    found = attempts(tmp_path, "open")
    assert {name for name, code in found.items() if code} == {"internet", "run"}


def test_a_machine_of_another_kind_has_limits_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwprobe.sandbox.platform.machine", lambda: "riscv64")
    limits: list[int] = []
    monkeypatch.setattr("hwprobe.sandbox.resource.setrlimit", lambda kind, _: limits.append(kind))
    assert not enter(read_only=True)
    assert len(limits) == 3


@pytest.mark.parametrize("read_only", [True, False])
def test_every_jump_of_the_filter_lands_inside_it(read_only: bool) -> None:  # noqa: FBT001
    numbers = {"audit": 1, "seccomp": 2, "socket": 3, "socketpair": 4, "openat": 5, "execve": 6}
    code = program(numbers, read_only=read_only)
    count = len(code) // 8
    assert len(code) % 8 == 0
    for place in range(count):
        kind, yes, no = code[8 * place], code[8 * place + 2], code[8 * place + 3]
        assert place + 1 + max(yes, no) < count or kind == 0x06
    assert code[-8] == 0x06
