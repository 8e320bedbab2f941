"""How many requests may generate or wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import BusyError
from server.residency import BUSY_TEXT


class Admission:
    """Counts the requests that generate or wait, because each holds a thread of the listener."""

    def __init__(self, most: int) -> None:
        self._free = threading.BoundedSemaphore(most)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Stay inside while the request lasts.

        Raises:
            BusyError: there are too many.
        """
        if not self._free.acquire(blocking=False):
            raise BusyError(BUSY_TEXT)
        try:
            yield
        finally:
            self._free.release()
