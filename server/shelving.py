"""Which files of computed prompts a runner may use. Pure, but for the folder's name.

A state means something only to an engine that would compute the same: so the files are bound to
the model with its adapters and projector, the build of the engine, and every setting that changes
what a cell holds. The requests' scopes, made from API keys, stand in the files themselves.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from hwprobe.settings import EngineSettings
from server.runner import protocol

FORMAT = 1
"""Raised when equal settings would no longer mean equal states."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelving:
    """The tier of computed prompts that outlives runners.

    Attributes:
        folder: where the files are.
        limit_bytes: most that they may take; 0 keeps none.
        engine_build: identifies the engine's libraries, its variant included.
    """

    folder: Path
    limit_bytes: int
    engine_build: str

    def keepsakes(
        self, key: str, settings: EngineSettings, adapters: tuple[tuple[str, float], ...]
    ) -> protocol.Keepsakes | None:
        """What to tell a runner; ``None`` if it is to keep nothing.

        Args:
            key: digest of the weights, the adapters and the projector.
            settings: what they are loaded with.
            adapters: paths and scales.
        """
        if not self.limit_bytes or settings.pooled:
            return None
        return protocol.Keepsakes(
            folder=str(self.folder),
            binding=self._binding(key, settings, [scale for _path, scale in adapters]),
            limit_bytes=self.limit_bytes,
        )

    def _binding(self, key: str, settings: EngineSettings, scales: list[float]) -> str:
        facts = {
            "format": FORMAT,
            "model": key,
            "engine": self.engine_build,
            "kv_type": settings.kv_type,
            "flash_attention": settings.flash_attention,
            "num_gpu": settings.num_gpu,
            "tensor_split": settings.tensor_split,
            "repack": settings.repack,
            "scales": scales,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
