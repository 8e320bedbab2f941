"""Steps of long work in Ollama's words, shown to a person: a bar per file, a line per step."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import typer
from rich.progress import Progress, TaskID

from appliance import human
from appliance.cli.bar import transfer_bar


class Steps:
    """Tells on stderr what happens: bars on a terminal, one line per new step elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said = ""

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            self._bar = transfer_bar()
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tell(self, event: Mapping[str, Any]) -> None:
        """Show one step."""
        status = human.printable(str(event.get("status", "")))
        total = event.get("total")
        if self._bar is not None and isinstance(total, int) and total:
            if status not in self._tasks:
                self._tasks[status] = self._bar.add_task(status, total=total)
            self._bar.update(self._tasks[status], completed=int(event.get("completed", 0)))
            return
        if self._quiet or status == self._said:
            return
        self._said = status
        if self._bar is not None:
            self._bar.console.print(status, markup=False, highlight=False)
        else:
            typer.echo(status, err=True)
