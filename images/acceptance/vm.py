"""A virtual machine driven by a program: watch its consoles, plug sticks, cut its power.

QEMU runs without acceleration (TCG), so that the same test runs anywhere. Its network reaches
nothing: ``restrict=on`` keeps the guest inside, one port of loopback is forwarded in, and every
packet the guest sends is written to a file.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

_CONNECT_S = 30.0
_MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What the machine has.

    Attributes:
        arch: ``amd64`` or ``arm64``.
        disk: a raw image; written to.
        firmware: UEFI code, read-only.
        variables: UEFI variables, a copy that is written to.
        port: of loopback, forwarded to the guest's 11434.
        memory_mb: RAM in MiB.
        credentials: passed by SMBIOS, as a systemd credential each; name to text.
        kernel_arguments: added to the kernel's command line by SMBIOS; only without Secure Boot.
        qemu: the program; a wrapper that enters another root may stand before it.
    """

    arch: str
    disk: Path
    firmware: Path
    variables: Path
    port: int
    memory_mb: int = 2048
    credentials: dict[str, str] = field(default_factory=dict)
    kernel_arguments: str = ""
    qemu: Sequence[str] = ()

    def command(self, work: Path) -> list[str]:
        """The command line that starts it; sockets and captures lie in ``work``."""
        return [
            *(self.qemu or (f"qemu-system-{_QEMU[self.arch]}",)),
            *_MACHINE[self.arch],
            *("-smp", "2", "-m", str(self.memory_mb), "-nodefaults", "-display", "none"),
            *("-drive", f"if=pflash,format=raw,readonly=on,file={self.firmware}"),
            *("-drive", f"if=pflash,format=raw,file={self.variables}"),
            *("-drive", f"if=none,id=disk,format=raw,file={self.disk},cache=writeback"),
            *("-device", "virtio-blk-pci,drive=disk,bootindex=1"),
            *("-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:11434"),
            *("-device", "virtio-net-pci,netdev=net,romfile="),
            *("-object", f"filter-dump,id=dump,netdev=net,file={work / 'packets.pcap'}"),
            *("-object", "rng-random,id=rng,filename=/dev/urandom"),
            *("-device", "virtio-rng-pci,rng=rng"),
            *("-device", "qemu-xhci,id=usb"),
            *("-qmp", f"unix:{work / 'qmp.sock'},server=on,wait=off"),
            *("-chardev", f"socket,id=first,path={work / 'serial.sock'},server=on,wait=off"),
            *("-serial", "chardev:first"),
            *("-chardev", f"socket,id=second,path={work / 'shell.sock'},server=on,wait=off"),
            *(("-serial", "chardev:second") if self.arch == "amd64" else ()),
            *self._smbios(),
        ]

    def _smbios(self) -> list[str]:
        texts = [f"io.systemd.credential:{name}={text}" for name, text in self.credentials.items()]
        if self.kernel_arguments:
            texts.append(f"io.systemd.stub.kernel-cmdline-extra={self.kernel_arguments}")
        # A comma ends a value for QEMU; two stand for one.
        return [
            part
            for text in texts
            for part in ("-smbios", f"type=11,value={text.replace(',', ',,')}")
        ]


_QEMU = {"amd64": "x86_64", "arm64": "aarch64"}
_MACHINE = {
    # A watchdog, because the image arms one; no display needed, but tty1 should exist.
    "amd64": (
        *("-machine", "q35,smm=off", "-accel", "tcg,thread=multi", "-cpu", "max"),
        *("-device", "i6300esb", "-vga", "std"),
    ),
    "arm64": (
        *("-machine", "virt,gic-version=3", "-accel", "tcg,thread=multi", "-cpu", "cortex-a72"),
        *("-device", "virtio-gpu-pci"),
    ),
}


class Console:
    """A serial line: everything it said, with times, and what is typed into it."""

    def __init__(self, path: Path, log: Path, started_s: float) -> None:
        self._socket = _connect(path)
        self._log = log
        self._started_s = started_s
        self._said = b""
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, name=f"console-{path.name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._log.open("ab", buffering=0) as log:
            line = b""
            while True:
                try:
                    data = self._socket.recv(4096)
                except OSError:
                    data = b""
                if not data:
                    break
                with self._changed:
                    self._said += data
                    self._changed.notify_all()
                *whole, line = (line + data).split(b"\n")
                now_s = time.monotonic() - self._started_s
                log.write(b"".join(b"[%7.2f] %s\n" % (now_s, one) for one in whole))
            log.write(line)

    def position(self) -> int:
        """Where the console is now; what `expect` then sees comes after."""
        return len(self._said)

    def expect(self, pattern: str, *, timeout_s: float, since: int = 0) -> str:
        """Wait for a line.

        Returns:
            What matched.

        Raises:
            TimeoutError: it did not come; the last words are told.
        """
        wanted = re.compile(pattern.encode())
        until_s = time.monotonic() + timeout_s
        with self._changed:
            while True:
                found = wanted.search(self._said, since)
                if found:
                    return found.group().decode(errors="replace")
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    tail = self._said[-800:].decode(errors="replace")
                    raise TimeoutError(f"{pattern!r} was not said; last: {tail}")
                self._changed.wait(min(left_s, 1.0))

    def type(self, text: str) -> None:
        """Type something."""
        self._socket.sendall(text.encode())

    def open_shell(self, *, timeout_s: float) -> None:
        """Wait for a prompt, and put a shell in its place that neither echoes nor decorates."""
        self.expect("# ", timeout_s=timeout_s)
        self.type("exec env TERM=dumb PS1= PS2= sh -c 'stty -echo cols 500; exec sh'\n")
        self.type("echo rea''dy\n")
        self.expect("ready", timeout_s=timeout_s)

    def run(self, command: str, *, timeout_s: float = 120.0) -> tuple[int, str]:
        """Run a command in a shell that listens on this console.

        Returns:
            Its exit status and what it said.
        """
        mark = f"{time.monotonic_ns():x}"
        since = self.position()
        self.type(f"{command}; echo {mark}=$?=\n")
        self.expect(f"{mark}=[0-9]+=", timeout_s=timeout_s, since=since)
        text = self._said[since:].decode(errors="replace").replace("\r", "")
        said, _, status = text.partition(f"{mark}=")
        return int(status.partition("=")[0]), said

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


class Vm:
    """A started machine; use it as a context manager, and it is gone afterwards."""

    def __init__(self, hardware: Hardware, work: Path) -> None:
        self.hardware = hardware
        self.work = work
        self.started_s = time.monotonic()

    def __enter__(self) -> Self:
        self.work.mkdir(parents=True, exist_ok=True)
        for name in ("qmp.sock", "serial.sock", "shell.sock"):
            (self.work / name).unlink(missing_ok=True)
        self._output = (self.work / "qemu.log").open("ab")
        self._process = subprocess.Popen(
            self.hardware.command(self.work),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        try:
            self.console = Console(
                self.work / "serial.sock", self.work / "console.log", self.started_s
            )
            self.shell = Console(self.work / "shell.sock", self.work / "shell.log", self.started_s)
            self._monitor = _connect(self.work / "qmp.sock")
            self._replies = self._monitor.makefile("rb")
            self._replies.readline()
            self.monitor("qmp_capabilities")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._output.close()
        for name in ("console", "shell"):
            if hasattr(self, name):
                getattr(self, name).close()
        if hasattr(self, "_replies"):
            self._replies.close()
            self._monitor.close()

    def monitor(self, command: str, **arguments: Any) -> Any:
        """One QMP command.

        Raises:
            RuntimeError: QEMU refused it.
        """
        self._monitor.sendall(
            json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        )
        while True:
            reply = json.loads(self._replies.readline())
            if "error" in reply:
                raise RuntimeError(f"{command}: {reply['error']}")
            if "return" in reply:
                return reply["return"]

    def plug(self, stick: Path, name: str) -> None:
        """Put a stick, an image file, into the USB port; the guest can only read it."""
        self.monitor(
            "blockdev-add",
            **{"driver": "raw", "node-name": name, "read-only": True,
               "file": {"driver": "file", "filename": str(stick)}},
        )  # fmt: skip
        self.monitor(
            "device_add", driver="usb-storage", id=f"usb-{name}", bus="usb.0", drive=name,
            removable=True,
        )  # fmt: skip

    def pull(self, name: str) -> None:
        """Take a stick out, whatever the guest is doing with it."""
        self.monitor("device_del", id=f"usb-{name}")
        until_s = time.monotonic() + 60.0
        while True:
            try:
                self.monitor("blockdev-del", **{"node-name": name})
            except RuntimeError:
                if time.monotonic() > until_s:
                    raise
                time.sleep(0.2)
            else:
                return

    def cut_power(self) -> None:
        """End it without a word to the guest, as a pulled plug does."""
        self._process.kill()
        self._process.wait()

    def press_power_button(self, *, timeout_s: float) -> None:
        """Ask the guest to shut down, and wait until it has."""
        self.monitor("system_powerdown")
        self._process.wait(timeout_s)

    def wait_for(self, ready: Callable[[], bool], *, timeout_s: float, what: str) -> float:
        """Ask again and again.

        Returns:
            Seconds since the machine was started.

        Raises:
            TimeoutError: it did not become so, or the machine has ended.
        """
        until_s = time.monotonic() + timeout_s
        while not ready():
            if self._process.poll() is not None:
                raise TimeoutError(f"{what}: the machine ended: {self._process.returncode}")
            if time.monotonic() > until_s:
                raise TimeoutError(f"{what}: not within {timeout_s:.0f} s")
            time.sleep(0.5)
        return self.seconds()

    def seconds(self) -> float:
        """Seconds since the machine was started."""
        return time.monotonic() - self.started_s

    def processor_seconds(self) -> float:
        """Processor time QEMU has used."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def screen(self, target: Path) -> None:
        """Write what the monitor shows, as a PNG."""
        self.monitor("screendump", filename=str(target), format="png")


def _connect(path: Path) -> socket.socket:
    until_s = time.monotonic() + _CONNECT_S
    while True:
        made = socket.socket(socket.AF_UNIX)
        try:
            made.connect(str(path))
        except OSError:
            made.close()
            if time.monotonic() > until_s:
                raise
            time.sleep(0.05)
        else:
            return made
