"""What an import looks like: who signed it, what was chosen and why, how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import typer
from rich.progress import Progress, TaskID

from appliance.admission import Admitted
from appliance.choice import Choice
from appliance.cli.bar import transfer_bar
from hwprobe.machine import Machine
from hwprobe.quantity import Bytes
from hwprobe.report import placement_lines

_PLAIN_STEP_S = 2.0
"""Without a terminal, at most one line in so many seconds."""


class Screen:
    """Tells a person what happens: on stderr, as a bar on a terminal and as lines elsewhere."""

    def __init__(self, machine: Machine, *, quiet: bool) -> None:
        self._machine = machine
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._doing, self._total, self._done, self._said_s = "", 0, 0, 0.0

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

    def verified(self, admitted: Admitted) -> None:
        """Say which bundle it is and who signed it."""
        info = admitted.manifest.bundle
        labels = admitted.policy.labels()
        names = ", ".join(labels[key] for key in sorted(admitted.verified.signed_by))
        self._say(f"bundle {info.channel} {info.seq}, issued {info.issued}, signed by {names}")
        for warning in admitted.warnings:
            self._say(f"warning: {warning}")

    def chosen(self, choice: Choice) -> None:
        """Say what will be installed of a model, and why."""
        self._say("")
        self._say(f"{choice.model.name.short()}:")
        if choice.placement is not None:
            self._lines(placement_lines(choice.placement, self._machine))
        if choice.warning:
            self._say(f"  warning: {choice.warning}")
        for install in choice.installs:
            size = Bytes(install.variant.profile.get("file_size_bytes", 0))
            self._say(f"  installs {install.variant.id} ({size}) as {install.name.short()}")
        self._say("")

    def begins(self, doing: str, total_bytes: int) -> None:
        """Start a bar, or say that something longer begins."""
        self._doing, self._total, self._done = doing, total_bytes, 0
        self._said_s = time.monotonic()
        if self._bar is not None:
            self._task = self._bar.add_task(doing, total=total_bytes)
        else:
            self._say(f"{doing}: {Bytes(total_bytes)}")

    def advances(self, size_bytes: int) -> None:
        """Move the bar, or say how far it is, now and then."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, size_bytes)
            return
        self._done += size_bytes
        if self._total and time.monotonic() - self._said_s >= _PLAIN_STEP_S:
            self._said_s = time.monotonic()
            self._say(f"{self._doing}: {self._done * 100 // self._total}%")

    def asks(self, need: str) -> bool:
        """Ask the person at the terminal for another medium; without one nobody is asked."""
        if self._quiet or not (sys.stdin.isatty() and sys.stderr.isatty()):
            return False
        if self._bar is not None:
            self._bar.stop()
        typer.echo(need, err=True)
        typer.echo(
            "press Enter when it is there, or type q to go on another time: ", nl=False, err=True
        )
        answer = sys.stdin.readline()
        if self._bar is not None:
            self._bar.start()
        return bool(answer) and not answer.strip().lower().startswith("q")

    def _lines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._say(f"  {line}")

    def _say(self, line: str) -> None:
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            typer.echo(line, err=True)
