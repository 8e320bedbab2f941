"""Records of crashed runners: one JSON file each, written by the server, read by the operator.

Rules:
 * a record holds no prompt, no answer and no path; requests are numbers and keyed marks;
 * there are at most `MAX_RECORDS`, the oldest leave first;
 * only the server's account may read them (mode 0600);
 * a damaged record reads as absent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from appliance.errors import StoreAccessError
from bundler.format.errors import BundleError
from bundler.format.fsio import atomic_write, read_bounded

MAX_RECORDS = 50
MAX_RECORD_BYTES = 1 << 18
"""256 KiB. Why: 200 lines of 500 characters, as JSON escapes them at worst twice."""

_MODE = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashRecord:
    """One crash.

    Attributes:
        at: wall time, RFC 3339 in UTC.
        model: its name as ``ps`` shows it.
        cause: ``SIGSEGV``, ``exit 3``, ``killed by the server``.
        text: what clients were told.
        assertion: text of the failed assertion, if there was one.
        stack: Python's frames of each thread, innermost first.
        log: the last lines the runner printed.
        engine_build: digest of the engine's libraries.
        settings: what the model was loaded with.
        steps: decode steps since the load.
        requests: numbers of the requests in flight, counted since the load.
        marks: keyed marks of the requests in flight; the key ends with the server's process.
        held_back: marks of those that are refused for a while from now on.
        ready: the model had been loaded.
        lived_s: seconds from the runner's start to its end.
        pid: the runner's process id.
        load_held_until: wall time until which the model is not loaded again; empty if it is.
    """

    at: str
    model: str
    cause: str
    text: str
    assertion: str = ""
    stack: tuple[str, ...] = ()
    log: tuple[str, ...] = ()
    engine_build: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 0
    requests: tuple[int, ...] = ()
    marks: tuple[str, ...] = ()
    held_back: tuple[str, ...] = ()
    ready: bool = False
    lived_s: float = 0.0
    pid: int = 0
    load_held_until: str = ""


class CrashFolder:
    """The directory of the records."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, record: CrashRecord) -> str:
        """Keep a record; returns its name.

        Raises:
            StoreAccessError: it cannot be written.
        """
        stamp = record.at.translate({ord("-"): None, ord(":"): None})
        data = json.dumps(asdict(record), indent=1, ensure_ascii=True).encode()
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            name = f"{stamp}-{record.pid}"
            atomic_write(self._directory / f"{name}.json", data[:MAX_RECORD_BYTES], mode=_MODE)
            for old in self._paths()[MAX_RECORDS:]:
                old.unlink(missing_ok=True)
        except (OSError, BundleError) as error:
            raise StoreAccessError(f"a crash record cannot be written: {error}") from error
        return name

    def records(self) -> tuple[tuple[str, CrashRecord], ...]:
        """Names and records, the newest first.

        Raises:
            StoreAccessError: the directory or a record may not be read.
        """
        found = ((path.stem, self._read(path)) for path in self._paths())
        return tuple((name, record) for name, record in found if record is not None)

    def _paths(self) -> list[Path]:
        try:
            return sorted((Path(e.path) for e in os.scandir(self._directory)
                           if e.name.endswith(".json") and not e.name.startswith(".")),
                          reverse=True)  # fmt: skip
        except FileNotFoundError:
            return []
        except OSError as error:
            reason = (error.strerror or "unknown error").lower()
            raise StoreAccessError(f"crash records cannot be read: {reason}") from error

    def _read(self, path: Path) -> CrashRecord | None:
        try:
            values = json.loads(read_bounded(path, max_bytes=MAX_RECORD_BYTES))
            known = {one.name for one in fields(CrashRecord)}
            kept = {key: value for key, value in values.items() if key in known}
            for key, value in kept.items():
                kept[key] = tuple(value) if isinstance(value, list) else value
            record = CrashRecord(**kept)
        except (ValueError, TypeError, AttributeError):
            return None
        except (OSError, BundleError) as error:
            raise StoreAccessError(f"crash records cannot be read: {error}") from error
        return record if _is_sound(record) else None


def _is_sound(record: CrashRecord) -> bool:
    texts: tuple[Any, ...] = (record.at, record.model, record.cause, record.text)
    return all(isinstance(text, str) and text.isprintable() for text in texts)
