"""Run the suite in a network namespace of its own: only loopback, no way out.

    .venv/bin/python tests/offline.py [pytest arguments]

What passes here needs no network. Where the kernel refuses namespaces the suite runs without
one, and this says so.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1  # Source: linux/sockios.h, linux/if.h


def namespace() -> list[str]:
    """The command that cuts the network; root keeps its rights, so that tests may mount."""
    return ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]


def bring_loopback_up() -> None:
    """Switch ``lo`` on; a new namespace has it, but down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack_from("h", fcntl.ioctl(sock, SIOCGIFFLAGS, request), 16)[0]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def only_loopback() -> bool:
    """Whether this process sees no interface but ``lo``."""
    return [name for _, name in socket.if_nameindex()] == ["lo"]


def run(*command: str) -> int:
    """Run one command to its end."""
    return subprocess.run(command, check=False).returncode


def main() -> None:
    """Re-run this file inside the namespace, or the suite when already there."""
    arguments = sys.argv[1:]
    suite = [sys.executable, "-m", "pytest"]
    if arguments[:1] == ["--inside"]:
        bring_loopback_up()
        assert only_loopback(), socket.if_nameindex()
        sys.exit(run(*suite, *arguments[1:]))
    cut = subprocess.run([*namespace(), "true"], check=False, capture_output=True)
    if cut.returncode:
        print("offline: this machine allows no network namespace; the network stays on", flush=True)
        sys.exit(run(*suite, *arguments))
    print("offline: only loopback exists from here on", flush=True)
    sys.exit(run(*namespace(), sys.executable, __file__, "--inside", *arguments))


if __name__ == "__main__":
    main()
