"""What the engine can do without a server: `llama-bench` and `llama-batched-bench`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import models
from bench.server import ServerError, Settings
from bench.sides import library_path

LIMIT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The engine's own programs, with the libraries our side uses."""

    programs: Path
    libraries: Path
    environment: Mapping[str, str]

    def prefill(self, settings: Settings, tokens: int) -> float:
        """Tokens per second of a prefill of ``tokens``.

        Raises:
            ServerError: the program failed.
        """
        return self._bench(settings, "-p", tokens, "-n", 0)

    def decode(self, settings: Settings, tokens: int, *, depth: int) -> float:
        """Tokens per second of one stream, behind ``depth`` tokens.

        Raises:
            ServerError: the program failed.
        """
        return self._bench(settings, "-p", 0, "-n", tokens, "-d", depth)

    def batched(
        self, settings: Settings, *, prompt: int, tokens: int, streams: int, shared: bool = False
    ) -> dict[str, float]:
        """One line of the program: ``t_pp``, ``t_tg``, ``t`` in seconds, ``speed_tg`` and so on.

        Args:
            settings: what the servers got.
            prompt: tokens of each prompt, or of the one all streams share.
            tokens: generated per stream.
            streams: how many.
            shared: all streams have the same prompt, computed once.

        Raises:
            ServerError: the program failed.
        """
        told = self._run(
            "llama-batched-bench",
            "-m", models.ensure(settings.model),
            "-c", settings.seats * settings.seat_tokens,
            "-b", settings.batch, "-ub", settings.ubatch,
            "-t", settings.threads, "-tb", settings.threads,
            "-npp", prompt, "-ntg", tokens, "-npl", streams,
            "-fa", "on", "-kvu", "--output-format", "jsonl",
            *(("-pps",) if shared else ()),
        )  # fmt: skip
        lines = [line for line in told.splitlines() if line.startswith("{")]
        record: dict[str, float] = json.loads(lines[-1])
        return record

    def _bench(self, settings: Settings, *what: Any) -> float:
        told = self._run(
            "llama-bench",
            "-m", models.ensure(settings.model), *what,
            "-b", settings.batch, "-ub", settings.ubatch,
            "-t", settings.threads, "-fa", "on", "-lm", "mmap", "-r", 1, "-o", "json",
        )  # fmt: skip
        return float(json.loads(told)[0]["avg_ts"])

    def _run(self, program: str, *arguments: Any) -> str:
        environment = {
            **os.environ,
            **self.environment,
            **library_path(self.libraries, self.programs),
        }
        try:
            done = subprocess.run(
                [self.programs / program, *map(str, arguments)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ServerError(f"{program}: {error}") from error
        return done.stdout
