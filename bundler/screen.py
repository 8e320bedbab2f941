"""Progress on a terminal, or as plain lines where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from bundler.progress import Advance
from hwprobe.quantity import Bytes


class Bars:
    """One bar per stage, on stderr."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    @contextmanager
    def stage(self, label: str, total_bytes: int) -> Iterator[Advance]:
        """A bar that goes away when the stage ends."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(label, total=max(total_bytes, 1))
            yield lambda size: bars.advance(task, size)


class Lines:
    """One line per stage, when it ends."""

    @contextmanager
    def stage(self, label: str, total_bytes: int) -> Iterator[Advance]:
        """A line when the stage ends; how many bytes it did is counted, not foretold."""
        del total_bytes
        done = [0]
        started_s = time.monotonic()

        def advance(size: int) -> None:
            done[0] += size

        yield advance
        took_s = time.monotonic() - started_s
        sys.stderr.write(f"{label}: {Bytes(done[0])} in {took_s:.1f} s\n")
        sys.stderr.flush()


def screen_progress() -> Bars | Lines:
    """What suits this process's stderr."""
    return Bars() if sys.stderr.isatty() else Lines()
