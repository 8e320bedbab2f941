"""Turn texts into vectors, and rank documents: find the model, load it, count the cost.

The order of the checks is Ollama's: name, existence, options, load, load-only, texts.

Rules:
 * a job is computed whole or refused whole: one text that is too long refuses all;
 * a runner that dies is tried once more on a fresh one;
 * texts and vectors are never logged.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from server.catalogue import ServedModel
from server.desk import Desk, Terms
from server.errors import (
    BadRequestError,
    RunnerCrashedError,
)
from server.generation import Gone, Outcome, rows
from server.runner import protocol
from server.scheduler import Lease
from server.telling import crashed

LOG = logging.getLogger("satchel.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """Texts or token ids that are to become vectors; neither only loads the model.

    Attributes:
        model: as the client spelled it.
        texts: what to embed.
        tokens: token ids to embed as they are, instead of ``texts``.
        options: load options; the others have no effect here.
        keep_alive_s: ``None`` leaves it to the server.
        truncate: cut texts that are too long instead of refusing them.
        dimensions: length of the vectors; 0, or more than there are, leaves them whole.
        normalize: scale them to length one; ``None`` does what the model's users are used to.
        form: how they are written.
        tenant: the label of the API key it came with.
    """

    model: str
    texts: tuple[str, ...] = ()
    tokens: tuple[tuple[int, ...], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    keep_alive_s: float | None = None
    truncate: bool = True
    dimensions: int = 0
    normalize: bool | None = True
    form: protocol.VectorForm = "float32"
    tenant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankRequest:
    """Documents that are to be put in order of their relevance to a query.

    Attributes:
        model, options, keep_alive_s, tenant: see `EmbedRequest`.
        truncate: cut documents that are too long instead of refusing them.
    """

    model: str
    query: str
    documents: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    keep_alive_s: float | None = None
    truncate: bool = True
    tenant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """What a job came to.

    Attributes:
        vectors: one text per vector, in the form that was asked for.
        prompt_tokens: tokens computed, those around the texts included.
        load_s: seconds until the model was there.
        total_s: seconds in all.
    """

    vectors: tuple[str, ...] = ()
    prompt_tokens: int = 0
    load_s: float = 0.0
    total_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """Scores of documents, in the order of the documents; higher is more relevant."""

    scores: tuple[float, ...]
    prompt_tokens: int


class Embedder:
    """Embeds and ranks. All methods may be called from any thread."""

    def __init__(self, desk: Desk) -> None:
        """Work with the models and runners of this desk."""
        self._desk = desk

    def embed(self, request: EmbedRequest, gone: Gone) -> Embedded:
        """Turn texts into vectors.

        Raises:
            ServerError: there will be no vectors.
        """
        started_s = self._desk.now_s()
        model = self._desk.find(request.model)
        if model.ranks:
            raise BadRequestError(f'"{request.model}" does not support embed: it ranks documents')
        terms = self._desk.terms(model, request, started_s, gone)
        if not (request.texts or request.tokens):
            return self._only_load(model, terms, unload=request.keep_alive_s == 0)
        normalize = request.normalize
        command = protocol.Embed(
            id=0,
            texts=request.texts,
            tokens=request.tokens,
            truncate=request.truncate,
            dimensions=request.dimensions,
            normalize=model.normalizes if normalize is None else normalize,
            form=request.form,
            tenant=request.tenant,
            scope=request.tenant if self._desk.isolated else "",
        )
        done = self._run(terms, command)
        return replace(done, total_s=self._desk.now_s() - started_s)

    def rerank(self, request: RerankRequest, gone: Gone) -> Ranked:
        """Score documents.

        Raises:
            ServerError: there will be no scores.
        """
        started_s = self._desk.now_s()
        model = self._desk.find(request.model)
        if not model.ranks:
            raise BadRequestError(f'"{request.model}" does not support rerank')
        command = protocol.Embed(
            id=0,
            texts=request.documents,
            query=request.query,
            truncate=request.truncate,
            normalize=False,
            tenant=request.tenant,
        )
        done = self._run(self._desk.terms(model, request, started_s, gone), command)
        scores = tuple(float(json.loads(vector)[0]) for vector in done.vectors)
        return Ranked(scores=scores, prompt_tokens=done.prompt_tokens)

    def _only_load(self, model: ServedModel, terms: Terms, *, unload: bool) -> Embedded:
        if unload:
            self._desk.unload(model)
            return Embedded()
        with self._desk.admission.enter(), self._desk.acquire(terms):
            return Embedded()

    def _run(self, terms: Terms, command: protocol.Embed) -> Embedded:
        """Let a runner compute; once more if the first dies."""
        with self._desk.admission.enter():
            try:
                with self._desk.acquire(terms) as lease:
                    return _compute(lease, command, terms, again=False)
            except RunnerCrashedError as error:
                LOG.warning("%s: %s; trying once more", terms.demand.name, error)
            try:
                with self._desk.acquire(terms) as lease:
                    return _compute(lease, command, terms, again=True)
            except RunnerCrashedError as error:
                raise crashed(error) from error


def _compute(lease: Lease, command: protocol.Embed, terms: Terms, *, again: bool) -> Embedded:
    vectors: list[str] = []
    outcome = Outcome(deadline=terms.deadline)
    mark = lease.coroner.mark(lease.key, command)
    with lease.coroner.watching(
        lease.runner.pid, mark, again=again, model=lease.key, gone=terms.over
    ):
        for row in rows(lease.runner.generate(command), terms.gone, outcome):
            vectors += row.vectors
    lease.coroner.answered(mark)
    assert outcome.row is not None
    return Embedded(
        vectors=tuple(vectors), prompt_tokens=outcome.row.prompt_tokens, load_s=lease.load_s
    )
