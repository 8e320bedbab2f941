"""A real import that kills itself with SIGKILL at the N-th call that changes a file system.

    python -m tests.appliance.killed_import N BUNDLE STORE

Counts the calls of every thread, before each is made. With N = 0 nothing is killed and the number
of calls is printed. Chunks are marked often, so that resuming is met as well.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from appliance import copying
from appliance.importer import import_bundle
from appliance.layout import Paths
from appliance.site import Request, Site
from appliance.store import Store
from tests.appliance.sites import NOW, ROOMY, Silent, load_config

WATCHED = {
    os.open,
    os.write,
    os.pwrite,
    os.fsync,
    os.fdatasync,
    os.ftruncate,
    os.posix_fallocate,
    os.fchmod,
    os.rename,
    os.link,
    os.replace,
    os.unlink,
    os.mkdir,
    os.rmdir,
}
SYNC_BYTES = 1 << 20


def counting(limit: int, work: Callable[[], object]) -> int:
    """Do some work, and die at the N-th call; returns how many there were."""
    calls = 0
    lock = threading.Lock()

    def count(_: FrameType, event: str, function: Any) -> None:
        nonlocal calls
        if event == "c_call" and function in WATCHED:
            with lock:
                calls += 1
                if calls == limit:
                    os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(count)
    sys.setprofile(count)
    work()
    sys.setprofile(None)
    return calls


def main() -> None:
    """Import, and die on the way."""
    limit, bundle, root = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    copying.SYNC_BYTES = SYNC_BYTES
    store = Store(Paths(root))
    site = Site(store=store, config=load_config(root), machine=ROOMY, now=NOW, version="0.1.0")
    print(counting(limit, lambda: import_bundle(Request(medium=bundle), site, Silent())))  # noqa: T201 - the caller reads it


if __name__ == "__main__":
    main()
