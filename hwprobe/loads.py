"""What loads have taught, on disk: margins for plans, and a record of each load.

``margins.json`` is small and replaced whole; ``loads.jsonl`` is appended to, one line per load, and
starts anew when it has grown to `MAX_RECORD_BYTES`; the one before it is kept beside it. Damage
reads as absence, and what cannot be written is forgotten: a full disk must not stop a model.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from hwprobe.decoding import decoded, parsed
from hwprobe.errors import ProbeError
from hwprobe.margins import UNTRIED, Margin, learned, margin_key
from hwprobe.profile import ModelProfile

MARGINS_FILE: Final = "margins.json"
LOADS_FILE: Final = "loads.jsonl"
OLD_LOADS_FILE: Final = "loads.old.jsonl"
MAX_RECORD_BYTES: Final = 1 << 20
"""Why: about 500 loads, each of about 2 KiB."""
MAX_MARGINS: Final = 256
"""Why: more models than one site keeps; the oldest are forgotten."""
_MAX_MARGINS_BYTES: Final = 1 << 18


class Loads:
    """Margins and records below one directory, for one build of the engine. Thread-safe."""

    def __init__(self, directory: Path, *, identity: str) -> None:
        """Nothing is read or written yet.

        Args:
            directory: where both files lie.
            identity: the engine's build; what another build taught is forgotten.
        """
        self._directory = directory
        self._identity = identity
        self._lock = threading.Lock()

    def margin(self, profile: ModelProfile) -> Margin:
        """What loads of a model have taught."""
        with self._lock:
            return self._margins().get(margin_key(profile), UNTRIED)

    def learn(self, profile: ModelProfile, *, predicted_bytes: int, measured_bytes: int) -> Margin:
        """Take one more measurement in; the margin from now on."""
        key = margin_key(profile)
        with self._lock:
            margins = self._margins()
            margin = learned(
                margins.pop(key, UNTRIED),
                predicted_bytes=predicted_bytes,
                measured_bytes=measured_bytes,
            )
            kept = [*list(margins.items())[-(MAX_MARGINS - 1) :], (key, margin)]
            record = {
                "identity": self._identity,
                "margins": {name: asdict(one) for name, one in kept},
            }
            _replace(self._directory / MARGINS_FILE, json.dumps(record, indent=1).encode())
        return margin

    def keep(self, record: Mapping[str, Any]) -> None:
        """Append one load's record."""
        line = json.dumps(dict(record), sort_keys=True).encode() + b"\n"
        path = self._directory / LOADS_FILE
        with self._lock, contextlib.suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size + len(line) > MAX_RECORD_BYTES:
                path.replace(self._directory / OLD_LOADS_FILE)
            with path.open("ab") as file:
                file.write(line)

    def last(self, model: str) -> dict[str, Any] | None:
        """The latest record of a model; ``None`` if there is none."""
        for name in (LOADS_FILE, OLD_LOADS_FILE):
            try:
                with (self._directory / name).open("rb") as file:
                    lines = file.read(2 * MAX_RECORD_BYTES).splitlines()
            except OSError:
                continue
            for line in reversed(lines):
                with contextlib.suppress(ProbeError):
                    record = parsed(line, name)
                    if isinstance(record, dict) and record.get("model") == model:
                        return record
        return None

    def _margins(self) -> dict[str, Margin]:
        try:
            with (self._directory / MARGINS_FILE).open("rb") as file:
                record = parsed(file.read(_MAX_MARGINS_BYTES), MARGINS_FILE)
            if not isinstance(record, dict) or record.get("identity") != self._identity:
                return {}
            found = {
                str(key): decoded(Margin, value, "margins")
                for key, value in dict(record.get("margins", {})).items()
            }
        except (OSError, ProbeError, TypeError, ValueError):
            return {}
        return {
            key: one
            for key, one in found.items()
            if isinstance(one, Margin) and 0 <= one.excess_share <= 1 and one.runs >= 0
        }


def _replace(path: Path, data: bytes) -> None:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
        temporary.replace(path)
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
