"""The two sides: `satchel-server` and `llama-server`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import client, models, store
from bench.server import POLL_S, SAMPLING, STOP_LIMIT_S, Ask, ServerError, Settings, Side, Usage
from bench.server import page as ask_page


class Ours(Side):
    """`satchel-server` of this interpreter, with a store made for the benchmark."""

    name = "satchel"
    health = "/healthz"

    def command(self, settings: Settings, port: int) -> tuple[list[str], dict[str, str]]:
        """The installed command; everything else is in its environment."""
        root = self._folder / "store"
        store.add(root, settings.model)
        environment = {
            "SATCHEL_STORE": str(root.resolve()),
            "SATCHEL_HOST": f"{client.HOST}:{port}",
            "SATCHEL_NUM_PARALLEL": str(settings.seats),
            "SATCHEL_KV_CACHE_TYPE": "f16",
            "SATCHEL_KEEP_ALIVE": "-1",
            # The peers have one build of the CPU backend, the portable one: so have we.
            "SATCHEL_ENGINE_VARIANT": "avx2",
        }
        return [str(Path(sys.executable).with_name("satchel-server"))], environment

    def request(self, ask: Ask) -> client.Request:
        """A raw completion, or a chat."""
        options = {**SAMPLING, **ask.sampling, **self._load_options(), "num_predict": ask.tokens}
        body: dict[str, Any] = {
            "model": self.settings.model,
            "stream": ask.stream,
            "options": options,
        }
        if ask.dialect == "openai":
            body |= chat(ask.prompt)
        else:
            body |= {"prompt": ask.prompt, "raw": True, "truncate": False, "shift": False}
            body |= {"format": ask.schema} if ask.schema is not None else {}
        path, stream = ("/api/generate", "ndjson")
        if ask.dialect == "openai":
            path, stream = ("/v1/chat/completions", "sse")
        return spoken(ask, self.process.port, path, body, stream)

    def embedding(
        self,
        texts: tuple[str, ...],
        *,
        id: str,  # noqa: A002 - the name of the request's field
        after: client.Trigger | None = None,
    ) -> client.Request:
        """Ollama's call."""
        body = {
            "model": self.settings.model,
            "input": texts,
            "truncate": False,
            "options": self._load_options(),
        }
        return client.Request(
            id=id, port=self.process.port, path="/api/embed", body=body, form="json", after=after
        )

    def embedder(self) -> Ours:
        """This same server."""
        return self

    def usage(self, exchange: client.Exchange) -> Usage:
        """The metrics of the last object, or OpenAI's usage."""
        last = exchange.last
        if usage := openai_usage(last):
            return usage
        if not last.get("done"):
            raise ServerError(f"{self.name}: {exchange.id}: no end: {exchange.fault or last}")
        return Usage(
            prompt=last.get("prompt_eval_count", 0),
            completion=last.get("eval_count", 0),
            cached=None,
        )

    def unload(self) -> None:
        """Have it unload the model, and wait until it has.

        Raises:
            ServerError: it does not.
        """
        body = {"model": self.settings.model, "keep_alive": 0}
        status, told = ask_page(self.process.port, "/api/generate", body)
        deadline_s = time.monotonic() + STOP_LIMIT_S
        while status == 200 and time.monotonic() < deadline_s:
            if not json.loads(ask_page(self.process.port, "/api/ps")[1])["models"]:
                return
            time.sleep(POLL_S)
        raise ServerError(f"{self.name}: the model was not unloaded: {status} {told[:200]!r}")

    def _load_options(self) -> dict[str, Any]:
        return {
            "num_ctx": self.settings.seat_tokens,
            "num_batch": self.settings.batch,
            "num_thread": self.settings.threads,
            "use_mmap": True,
        }


class Peer(Side):
    """`llama-server`, run with the engine libraries our side uses."""

    name = "llama-server"
    health = "/health"

    def __init__(
        self, folder: Path, *, programs: Path, libraries: Path, environment: Mapping[str, str]
    ) -> None:
        """Nothing is started yet.

        Args:
            folder: where its log goes.
            programs: where the program is.
            libraries: where the engine's libraries are.
            environment: more variables for it.
        """
        super().__init__(folder)
        self._programs = programs
        self._libraries = libraries
        self._environment = {**environment, **library_path(libraries, programs)}

    def command(self, settings: Settings, port: int) -> tuple[list[str], dict[str, str]]:
        """The program with every setting as an option."""
        options = {
            "--model": models.ensure(settings.model),
            "--host": client.HOST,
            "--port": port,
            "--threads": settings.threads,
            "--threads-batch": settings.threads,
            "--ctx-size": settings.seats * settings.seat_tokens,
            "--parallel": settings.seats,
            "--batch-size": settings.batch,
            "--ubatch-size": settings.ubatch,
            "--flash-attn": "on",
            "--cache-type-k": "f16",
            "--cache-type-v": "f16",
            "--load-mode": "mmap",
            "--cache-ram": settings.cache_mib,
        }
        command = [str(self._programs / "llama-server"), "--kv-unified", "--no-ui", "--offline"]
        for option, value in options.items():
            command += [option, str(value)]
        if settings.embeddings:
            command += ["--embeddings", "--pooling", "mean"]
        return command, self._environment

    def request(self, ask: Ask) -> client.Request:
        """A raw completion, or a chat."""
        body: dict[str, Any] = {**SAMPLING, **ask.sampling, "stream": ask.stream}
        path = "/completion"
        if ask.dialect == "openai":
            body |= {**chat(ask.prompt), "max_tokens": ask.tokens}
            path = "/v1/chat/completions"
        else:
            body |= {"prompt": ask.prompt, "n_predict": ask.tokens}
            body |= {"json_schema": ask.schema} if ask.schema is not None else {}
        return spoken(ask, self.process.port, path, body, "sse")

    def embedding(
        self,
        texts: tuple[str, ...],
        *,
        id: str,  # noqa: A002 - the name of the request's field
        after: client.Trigger | None = None,
    ) -> client.Request:
        """OpenAI's call."""
        body = {"input": texts, "model": self.settings.model}
        port = self.process.port
        return client.Request(
            id=id, port=port, path="/v1/embeddings", body=body, form="json", after=after
        )

    def embedder(self) -> Peer:
        """A second server: one for text refuses embeddings."""
        return Peer(
            self._folder / "embedder",
            programs=self._programs,
            libraries=self._libraries,
            environment=self._environment,
        )

    def usage(self, exchange: client.Exchange) -> Usage:
        """The timings of the last record, or OpenAI's usage."""
        last = exchange.last
        if usage := openai_usage(last):
            return usage
        if not last.get("stop"):
            raise ServerError(f"{self.name}: {exchange.id}: no end: {exchange.fault or last}")
        return Usage(
            prompt=last["tokens_evaluated"],
            completion=last["tokens_predicted"],
            cached=last["timings"]["cache_n"],
        )


def chat(prompt: str) -> dict[str, Any]:
    """OpenAI's fields for a prompt of one message, with the counts at the end."""
    return {
        "messages": [{"role": "user", "content": prompt}],
        "stream_options": {"include_usage": True},
    }


def spoken(ask: Ask, port: int, path: str, body: dict[str, Any], stream: str) -> client.Request:
    """The request for an ask whose path and body are known."""
    assert stream in {"sse", "ndjson"}
    form: client.Form = "json"
    if ask.stream:
        form = "sse" if stream == "sse" else "ndjson"
    return client.Request(
        id=ask.id,
        port=port,
        path=path,
        body=body,
        form=form,
        delay_s=ask.delay_s,
        after=ask.after,
        cut_after_s=ask.cut_after_s,
        cut_after_pieces=ask.cut_after_pieces,
    )


def openai_usage(record: Mapping[str, Any]) -> Usage | None:
    """OpenAI's ``usage`` in a record; ``None`` if it has none."""
    usage = record.get("usage")
    if not usage or "completion_tokens" not in usage:
        return None
    return Usage(
        prompt=usage["prompt_tokens"],
        completion=usage["completion_tokens"],
        cached=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
    )


def library_path(*folders: Path) -> dict[str, str]:
    """The environment that makes a program take its libraries from these folders, in order."""
    return {"LD_LIBRARY_PATH": os.pathsep.join(str(folder.resolve()) for folder in folders)}
