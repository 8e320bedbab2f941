"""Run the suite once more in a network namespace of its own: only loopback, no way out.

    .venv/bin/python tests/offline.py [pytest arguments]

What passes here needs no network. Where the kernel refuses namespaces this says so and ends
with 0, because the machine cannot show it either way.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import subprocess
import sys

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1  # Source: linux/sockios.h, linux/if.h
NAMESPACE = ["unshare", "--map-root-user", "--net"]


def bring_loopback_up() -> None:
    """Switch ``lo`` on; a new namespace has it, but down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack_from("h", fcntl.ioctl(sock, SIOCGIFFLAGS, request), 16)[0]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def only_loopback() -> bool:
    """Whether this process sees no interface but ``lo``."""
    return [name for _, name in socket.if_nameindex()] == ["lo"]


def main() -> None:
    """Re-run this file inside the namespace, or the suite when already there."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["--inside"]:
        bring_loopback_up()
        assert only_loopback(), socket.if_nameindex()
        sys.exit(
            subprocess.run([sys.executable, "-m", "pytest", *arguments[1:]], check=False).returncode
        )
    if subprocess.run([*NAMESPACE, "true"], check=False, capture_output=True).returncode:
        print(
            "offline: this machine allows no network namespace; the suite ran with a network only"
        )
        return
    command = [*NAMESPACE, sys.executable, __file__, "--inside", *arguments]
    sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
