"""What happened to the store, one JSON line per event, in order, on disk before it is reported.

The journal is a record, never an input: deleting it changes no decision. Times are wall time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import StoreAccessError
from bundler.format.errors import BundleError
from bundler.format.fsio import fsync_dir

_FILE = "events.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line.

    Attributes:
        at: wall time, RFC 3339 in UTC.
        kind: ``imported``, ``refused``, ``created``, ``removed``, ``copied``, ``pushed``,
            ``exported``, ``staged``, ``approved``, ``rejected``, ``pruned``, ``scrubbed``,
            ``repaired``, ``trust``, ``device``, ``rolled-back``.
        details: JSON values.
    """

    at: str
    kind: str
    details: Mapping[str, Any]


def timestamp(at_s: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_s))


class Journal:
    """Append-only; every `record` is durable when it returns."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _FILE

    def record(self, kind: str, /, **details: Any) -> Event:
        """Append one event and wait until it is on disk.

        A line that a crash cut short is closed first, so that it spoils nothing but itself.

        Raises:
            StoreAccessError: the journal cannot be written.
        """
        event = Event(at=timestamp(time.time()), kind=kind, details=details)
        line = json.dumps({"at": event.at, "event": kind, **details}, ensure_ascii=True)
        try:
            self._append(line.encode() + b"\n")
        except OSError as error:
            raise StoreAccessError(
                f"journal {self._path}: cannot be written: {error.strerror}"
            ) from error
        except BundleError as error:
            raise StoreAccessError(f"journal {self._path}: cannot be written: {error}") from error
        return event

    def _append(self, line: bytes) -> None:
        is_new = not self._path.exists()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o640)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line
            view = memoryview(line)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            fsync_dir(self._path.parent)

    def events(self) -> tuple[Event, ...]:
        """Everything recorded, oldest first; lines that a crash cut short are left out."""
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return ()
        found = []
        for line in lines:
            try:
                value = json.loads(line)
                found.append(Event(at=value.pop("at"), kind=value.pop("event"), details=value))
            except (ValueError, KeyError, AttributeError):
                continue
        return tuple(found)
