"""A real creation that kills itself with SIGKILL at the N-th call that changes a file system.

    python -m tests.appliance.killed_create N REQUEST STORE

With N = 0 nothing is killed and the number of calls is printed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from appliance.creating import Workshop, create
from appliance.creation import CreateRequest
from appliance.layout import Paths
from appliance.store import Store
from tests.appliance.killed_import import counting


def workshop(root: Path) -> Workshop:
    """A place without a reserve, where everything may be made."""
    return Workshop(
        store=Store(Paths(root)),
        allowed="any",
        reserve_bytes=0,
        grace_s=86400,
        threads=1,
        now_s=time.time(),
        now="2026-11-25T00:00:00Z",
    )


def main() -> None:
    """Create, and die on the way."""
    limit, request, root = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    wanted = CreateRequest.from_json(json.loads(request))
    print(counting(limit, lambda: create(wanted, workshop(root), lambda _: None)))  # noqa: T201 - the caller reads it


if __name__ == "__main__":
    main()
