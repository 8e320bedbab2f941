"""Verdicts on what the engine does here, and how they are kept."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from hwprobe.profile import ModelProfile
from hwprobe.settings import EngineSettings

_LASTING_CRASHES: Final = ("SIGSEGV", "SIGILL", "SIGABRT", "SIGBUS", "SIGFPE")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineVerdict:
    """Whether the engine works with one model and one set of settings.

    Attributes:
        ok: it decoded a batch and single tokens into finite numbers.
        crashed_by: signal name such as ``SIGSEGV``, ``timeout`` or ``exit 1``; empty when the
            child ended by itself.
        message: one line for a person; empty when ``ok``.
        memory: bytes per buffer type as the engine accounts for them.
    """

    ok: bool
    crashed_by: str = ""
    message: str = ""
    memory: dict[str, int] = field(default_factory=dict)


class EngineRecords:
    """Verdicts on disk, one JSON file each; written atomically, damage reads as absence.

    A verdict holds for one build of the engine, one machine, one kind of model and one set of
    settings; context and slots do not change which code runs and are left out.
    """

    def __init__(self, directory: Path, *, build_id: str, machine_id: str = "") -> None:
        self._directory = directory
        self._identity = (build_id, machine_id)

    def get(self, profile: ModelProfile, settings: EngineSettings) -> EngineVerdict | None:
        """The verdict kept for this configuration, or ``None``."""
        try:
            record = json.loads(self._path(profile, settings).read_bytes())
            return EngineVerdict(
                ok=record["ok"] is True,
                crashed_by=str(record["crashed_by"]),
                message=str(record["message"]),
                memory={str(name): int(size) for name, size in record["memory"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def put(self, profile: ModelProfile, settings: EngineSettings, verdict: EngineVerdict) -> None:
        """Keep a verdict; one that cannot be kept is asked for again.

        Only a success or a crash is kept. A timeout, a kill for memory or a file the engine
        refuses says nothing about the configuration.
        """
        if not (verdict.ok or verdict.crashed_by in _LASTING_CRASHES):
            return
        path = self._path(profile, settings)
        record = {**asdict(verdict), "configuration": self._configuration(profile, settings)}
        temporary = None
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._directory, delete=False) as file:
                temporary = Path(file.name)
                file.write(json.dumps(record, indent=1, sort_keys=True).encode())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            if temporary is not None:
                temporary.unlink(missing_ok=True)

    def _configuration(self, profile: ModelProfile, settings: EngineSettings) -> dict[str, Any]:
        kept = {**asdict(settings), "num_ctx": 0, "slots": 0}
        if settings.pooled:  # the batch follows the context
            kept |= {"num_batch": 0, "num_ubatch": 0}
        return {
            "build": self._identity[0],
            "machine": self._identity[1],
            "architecture": profile.architecture,
            "quantization": profile.quantization,
            "settings": kept,
        }

    def _path(self, profile: ModelProfile, settings: EngineSettings) -> Path:
        text = json.dumps(self._configuration(profile, settings), sort_keys=True)
        return self._directory / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
