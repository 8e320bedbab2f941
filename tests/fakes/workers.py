"""Workers on loopback ports of this machine, with keys made for the occasion."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bundler.format.certificates import make_certified
from hwprobe.remote.dialling import release
from hwprobe.remote.serving import Worker
from hwprobe.remote.terms import Offer, WorkerAddress
from hwprobe.remote.tls import Identity, Trust


@dataclass(frozen=True, slots=True)
class Keys:
    """Both sides' files."""

    worker: Identity
    user: Identity


def make_keys(folder: Path) -> Keys:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("worker", "user"):
        made = make_certified(name)
        (folder / f"{name}.key").write_bytes(made.private)
        (folder / f"{name}.crt").write_bytes(made.certificate)
    return Keys(
        worker=Identity(folder / "worker.key", folder / "user.crt"),
        user=Identity(folder / "user.key", folder / "worker.crt"),
    )


@dataclass(slots=True)
class Lent:
    """A worker that runs in this process; its children do not."""

    worker: Worker
    address: WorkerAddress
    said: list[str]


@contextmanager
def lending(
    identity: Identity, *, memory_bytes: int = 1 << 30, its_release: str | None = None
) -> Iterator[Lent]:
    listener = socket.create_server(("127.0.0.1", 0))
    said: list[str] = []
    offer = Offer(
        release=release() if its_release is None else its_release,
        memory_bytes=memory_bytes,
        threads=1,
    )
    trust = Trust(identity, server=True)
    worker = Worker(listener, trust, offer=lambda: offer, tell=said.append)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield Lent(worker, WorkerAddress("127.0.0.1", listener.getsockname()[1]), said)
    finally:
        worker.close()
        thread.join()
