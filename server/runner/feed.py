"""Texts that a generating model turns into vectors, beside the answers it gives. Pure.

A text is a prompt without an answer: its vector is what the model computed for its last token.

Rules:
 * texts enter one by one, and only where a slot is free and nobody waits: an answer waits for one
   text at most, however long the job;
 * requests take turns, one text each;
 * the last token of a text is computed in a step that holds single tokens only, because the
   engine then outputs every token of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from server.runner.embedding import Job, Vector
from server.runner.work import Chunk, Work


class TextFeed:
    """The jobs of one runner and which of their texts are computed."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}
        self._next: dict[int, int] = {}  # jobs with texts to start, and the first of these
        self._started: dict[int, tuple[int, int]] = {}  # work → job and text
        self._last = 0

    @property
    def waiting(self) -> bool:
        """Whether a text could be started."""
        return bool(self._next)

    def add(self, job: Job) -> None:
        """Queue a job."""
        self._jobs[job.id] = job
        self._next[job.id] = 0

    def start(self) -> Work:
        """The next text as work; works have negative ids, so that no request has the same."""
        request = next(iter(self._next))
        index = self._next.pop(request)
        job = self._jobs[request]
        if index + 1 < len(job.texts):
            self._next[request] = index + 1
        self._last -= 1
        self._started[self._last] = (request, index)
        return Work(
            id=self._last,
            prompt=job.texts[index],
            most_tokens=0,
            tenant=job.tenant,
            scope=job.scope,
        )

    def owns(self, work: int) -> bool:
        """Whether a work is a text."""
        return work in self._started

    def owner(self, work: int) -> int:
        """The request behind a work: a text's job, or the work itself."""
        return self._started[work][0] if work in self._started else work

    def finish(self, work: int, vector: Vector) -> Job:
        """Hand a text's vector to its job.

        Raises:
            EngineRefusedError: it holds a number that is none.
        """
        request, index = self._started.pop(work)
        job = self._jobs[request]
        job.put(index, vector)
        return job

    def drop(self, request: int) -> tuple[Job | None, tuple[int, ...]]:
        """Forget a job; returns it and its works that were started, which are to be ended."""
        works = tuple(work for work, (owner, _) in self._started.items() if owner == request)
        for work in works:
            del self._started[work]
        self._next.pop(request, None)
        return self._jobs.pop(request, None), works

    def shape(self, chunks: Sequence[Chunk]) -> tuple[tuple[Chunk, ...], bool]:
        """Fit a planned step to the texts in it; returns whether it computes vectors.

        Either the last tokens of texts are computed, beside single tokens of others, or the
        texts' other tokens are.
        """
        if any(self.owns(chunk.id) and _is_last(chunk) for chunk in chunks):
            return tuple(chunk for chunk in chunks if _is_last(chunk)), True
        return tuple(self._without_last(chunk) for chunk in chunks), False

    def _without_last(self, chunk: Chunk) -> Chunk:
        if not (chunk.output and self.owns(chunk.id)):
            return chunk
        return replace(chunk, tokens=chunk.tokens[:-1], output=False)


def _is_last(chunk: Chunk) -> bool:
    return chunk.output and len(chunk.tokens) == 1
