"""The answer to one request, as it arrives from a runner. Parent side."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING

from server.errors import RunnerCrashedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.runner import protocol


class Stream:
    """The rows of one request. One thread at a time may call `next`; any may call `cancel`.

    Attributes:
        ended: the last row, or the runner's death, has been handed out.
    """

    def __init__(self, *, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._items: queue.SimpleQueue[protocol.Row | RunnerCrashedError] = queue.SimpleQueue()
        self.ended = False

    def next(self, timeout_s: float | None = None) -> protocol.Row | None:
        """The next row, or ``None`` when none came in time or the stream has ended.

        The last row has ``done`` or ``fault``; after it ``ended`` is true.

        Args:
            timeout_s: seconds to wait; ``None`` waits as long as it takes.

        Raises:
            RunnerCrashedError: the child died; the stream has ended.
        """
        if self.ended:
            return None
        try:
            item = self._items.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(item, RunnerCrashedError):
            self.ended = True
            raise item
        self.ended = item.done is not None or item.fault is not None
        return item

    def cancel(self) -> None:
        """Ask the runner to end this request now; its last row says ``cancelled``."""
        self._cancel()

    def put(self, item: protocol.Row | RunnerCrashedError) -> None:
        """For the reader thread."""
        self._items.put(item)
