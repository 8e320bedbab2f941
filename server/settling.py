"""Wait until a GPU's counters show the memory that a runner gave back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from hwprobe.estimate import HOST

SETTLE_S = 5.0
"""How long to wait for a GPU's memory counters after a runner has ended; the same as Ollama's."""

SETTLE_POLL_S = 0.05
SETTLED_SHARE = 0.75
"""Of the predicted need: predictions err, and others may take memory meanwhile."""

_LOG = logging.getLogger(__name__)


def wait_for_memory(
    need_bytes: Mapping[str, int],
    before: Mapping[str, int],
    free_bytes: Callable[[], Mapping[str, int]],
) -> None:
    """Wait, `SETTLE_S` at most, for the memory of a runner that has ended.

    Args:
        need_bytes: what it was predicted to take from each pool.
        before: free memory of each GPU before it ended; pools left out are not waited for.
        free_bytes: free memory of each GPU now.
    """
    expected = {
        pool: before[pool] + int(SETTLED_SHARE * size)
        for pool, size in need_bytes.items()
        if pool != HOST and pool in before
    }
    end_s = time.monotonic() + SETTLE_S
    while expected and time.monotonic() < end_s:
        free = free_bytes()
        if all(free.get(pool, 0) >= size for pool, size in expected.items()):
            return
        time.sleep(SETTLE_POLL_S)
    if expected:
        _LOG.warning("memory of a runner that ended has not come back: %s", sorted(expected))
