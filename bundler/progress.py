"""What long work tells its caller about how far it is. The caller decides how it looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]
"""Called with the number of bytes done since the last call."""


class Progress(Protocol):
    """Shows stages of work, one after the other."""

    def stage(self, label: str, total_bytes: int) -> AbstractContextManager[Advance]:
        """A stage of so many bytes; leaving the block ends it."""


class Silent:
    """Shows nothing."""

    @contextmanager
    def stage(self, label: str, total_bytes: int) -> Iterator[Advance]:
        """A stage nobody sees."""
        del label, total_bytes
        yield lambda _: None
