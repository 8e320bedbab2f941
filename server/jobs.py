"""Long work on the store, done by a child process: parent side of `appliance.job`.

Rules:
 * the child's lines are passed on as they come, without the place of the store in them;
 * closing a job ends its child at once, which the store survives at any moment;
 * a few jobs run at a time; another one is refused, not queued.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from appliance.job import MODULE, JobRequest, Verb
from server.errors import BusyError

MAX_JOBS = 4
"""Why: each reads and writes whole models, and they wait for one another's lock in the end."""

_MAX_LINE_BYTES = 1 << 20
Event = dict[str, Any]


class Job:
    """One child; iterate over its events, then close it."""

    def __init__(self, request: JobRequest, *, hidden: str, release: threading.Semaphore) -> None:
        self._hidden = hidden
        self._release = release
        self._closed = False
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._child.stdin:
            self._child.stdin.write(json.dumps(asdict(request)).encode())

    def events(self) -> Iterator[Event]:
        """Every step, and last how it went; a child that dies without a word is a failure."""
        assert self._child.stdout is not None
        ended = False
        while line := self._child.stdout.readline(_MAX_LINE_BYTES):
            try:
                event = json.loads(line)
            except ValueError:
                break
            if "error" in event:
                event["error"] = event["error"].replace(self._hidden, "the store")
            ended = "error" in event or event.get("status") == "success"
            yield event
        if not ended:
            self.close()
            yield {"error": f"the work on the store {_ending(self._child.returncode)}"}

    def close(self) -> None:
        """End the child and what it started."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()
        self._release.release()


def _ending(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return "ended without a result"


@dataclass(frozen=True, slots=True)
class Jobs:
    """Starts jobs with the server's own configuration.

    Attributes:
        config_file: the file the server was started with, or ``None``.
        flags: settings of its command line, by name; the store's path is one of them.
        free: how many more may run.
    """

    config_file: Path | None
    flags: Mapping[str, Any]
    free: threading.Semaphore

    @classmethod
    def of(cls, config_file: Path | None, flags: Mapping[str, Any]) -> Jobs:
        """With room for `MAX_JOBS`."""
        return cls(config_file, dict(flags), threading.BoundedSemaphore(MAX_JOBS))

    def start(self, verb: Verb, body: Mapping[str, Any]) -> Job:
        """Start one.

        Raises:
            BusyError: enough are running.
        """
        if not self.free.acquire(blocking=False):
            raise BusyError(f"{MAX_JOBS} models are being made or carried already, try again later")
        request = JobRequest(
            verb=verb,
            body=body,
            config_file=str(self.config_file.absolute()) if self.config_file else None,
            flags={name: value for name, value in self.flags.items() if value is not None},
        )
        try:
            return Job(request, hidden=str(self.flags["store.path"]), release=self.free)
        except BaseException:
            self.free.release()
            raise
