"""The route table, the error handler, and one log line per request."""

from __future__ import annotations

import importlib.metadata
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import falcon

from server.api import (
    anthropic,
    blobs,
    cloud,
    completions,
    create,
    describe,
    embeddings,
    exchange,
    health,
    infill,
    models,
    ollama,
    openai,
    rerank,
    responses,
    tokens,
)
from server.api.blobs import CreatePolicy
from server.api.framing import JSON_TYPE, TEXT_TYPE, json_bytes
from server.api.guard import Guard, GuardPolicy
from server.api.health import Readiness
from server.api.refusal import refusal
from server.embedder import Embedder
from server.errors import HeldBackError, ServerError, UnauthorizedError
from server.tokenizing import Tokenizing

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from appliance.store import Store
    from server.answer import Answerer
    from server.catalogue import Catalogue
    from server.desk import Desk
    from server.jobs import Jobs
    from server.scheduler import LoadedModel

LOG = logging.getLogger("satchel.server")
REQUEST_LOG = logging.getLogger("satchel.server.requests")


def create_app(
    *,
    answerer: Answerer,
    desk: Desk,
    catalogue: Catalogue,
    store: Store,
    loaded: Callable[[], tuple[LoadedModel, ...]],
    readiness: Readiness,
    guard: GuardPolicy,
    version: str,
    max_body_bytes: int,
    creation: CreatePolicy,
    jobs: Jobs,
    now_ns: Callable[[], int] = time.time_ns,
) -> falcon.App[falcon.Request, falcon.Response]:
    """Put the application together.

    No answer tells where the store lies: its root is cut out of every error's text.

    Args:
        answerer: generates.
        desk: lends runners for anything but text.
        catalogue: finds models.
        store: copies and deletes them.
        loaded: what is in memory, for ``ps``.
        readiness: what stands in the way of answering.
        guard: who may ask.
        version: what ``/api/version`` says.
        max_body_bytes: largest request body, but for blobs.
        creation: what clients may add to the store.
        jobs: does long work on it.
        now_ns: wall time in nanoseconds since the epoch.
    """
    app = _bare_app(guard, _Errors(hidden=str(store.paths.root)))
    shared: dict[str, Any] = {
        "answerer": answerer,
        "now_ns": now_ns,
        "max_body_bytes": max_body_bytes,
    }
    vectors: dict[str, Any] = {"embedder": Embedder(desk), "max_body_bytes": max_body_bytes}
    lexing: dict[str, Any] = {"tokenizing": Tokenizing(desk), "max_body_bytes": max_body_bytes}
    ranking = rerank.Rerank(**vectors)
    routes: dict[str, object] = {
        "/": ollama.Heartbeat(),
        "/api/version": ollama.Version(version),
        "/api/generate": ollama.Generate(**shared),
        "/api/chat": ollama.Chat(**shared),
        "/api/status": cloud.Status(),
        "/api/me": cloud.Me(),
        "/api/signout": cloud.SignOut(),
        "/api/user/keys/{key}": cloud.UserKey(),
        "/api/experimental/web_search": cloud.Disabled(cloud.SEARCH_DISABLED),
        "/api/experimental/web_fetch": cloud.Disabled(cloud.FETCH_DISABLED),
        "/api/experimental/model-recommendations": cloud.Recommendations(catalogue),
        "/api/embed": embeddings.Embed(**vectors),
        "/api/embeddings": embeddings.Embeddings(**vectors),
        "/api/tokenize": tokens.Tokenize(**lexing, durations=True),
        "/api/detokenize": tokens.Detokenize(**lexing, durations=True),
        "/tokenize": tokens.Tokenize(**lexing, durations=False),
        "/detokenize": tokens.Detokenize(**lexing, durations=False),
        "/apply-template": tokens.ApplyTemplate(answerer=answerer, max_body_bytes=max_body_bytes),
        "/api/tags": models.Tags(catalogue),
        "/api/ps": models.Ps(catalogue=catalogue, loaded=loaded, now_ns=now_ns),
        "/api/show": models.Show(catalogue=catalogue, max_body_bytes=max_body_bytes),
        "/api/copy": models.Copy(store=store, max_body_bytes=max_body_bytes),
        "/api/delete": models.Delete(store=store, max_body_bytes=max_body_bytes),
        "/api/pull": exchange.Exchange(
            "pull", jobs=jobs, allowed=creation.pull, max_body_bytes=max_body_bytes
        ),
        "/api/push": exchange.Exchange(
            "push", jobs=jobs, allowed=True, max_body_bytes=max_body_bytes
        ),
        "/api/create": create.Create(jobs=jobs, policy=creation, max_body_bytes=max_body_bytes),
        "/api/blobs/{digest:path}": blobs.Blob(store=store, policy=creation),
        "/infill": infill.InfillCall(answerer=answerer, max_body_bytes=max_body_bytes),
        "/v1/completions": completions.Completions(**shared),
        "/v1/chat/completions": openai.ChatCompletions(**shared),
        "/v1/responses": responses.Responses(**shared),
        "/v1/embeddings": embeddings.OpenAiEmbeddings(**vectors),
        "/v1/rerank": ranking,
        "/rerank": ranking,
        "/v1/messages": anthropic.Messages(answerer=answerer, max_body_bytes=max_body_bytes),
        "/v1/messages/count_tokens": anthropic.CountTokens(
            answerer=answerer, max_body_bytes=max_body_bytes
        ),
        "/v1/models": openai.Models(catalogue),
        "/v1/models/{model:path}": openai.Model(catalogue),
        "/openapi.json": describe.Describe(importlib.metadata.version("satchel")),
        "/healthz": health.Healthz(),
        "/readyz": health.Readyz(readiness),
    }
    for path, resource in routes.items():
        app.add_route(path, resource)
    return app


def create_admin_app(
    *, readiness: Readiness, guard: GuardPolicy
) -> falcon.App[falcon.Request, falcon.Response]:
    """The application of the second listener: it answers while the first is full."""
    app = _bare_app(guard, _Errors())
    app.add_route("/healthz", health.Healthz())
    app.add_route("/readyz", health.Readyz(readiness))
    return app


def _bare_app(guard: GuardPolicy, errors: _Errors) -> falcon.App[falcon.Request, falcon.Response]:
    app = falcon.App(middleware=[Guard(guard)])
    app.add_error_handler(Exception, errors.on_surprise)
    app.add_error_handler(falcon.HTTPError, errors.on_http_error)
    app.add_error_handler(falcon.HTTPNotFound, errors.on_not_found)
    app.add_error_handler(falcon.HTTPMethodNotAllowed, errors.on_method_not_allowed)
    app.add_error_handler(ServerError, errors.on_server_error)
    return app


Params = Mapping[str, Any]


class _Errors:
    """What went wrong, as an answer in the dialect of the path."""

    def __init__(self, *, hidden: str = "") -> None:
        self._hidden = hidden

    def on_server_error(
        self, req: falcon.Request, resp: falcon.Response, error: Exception, _params: Params
    ) -> None:
        """An error of ours has its status."""
        assert isinstance(error, ServerError)
        if isinstance(error, UnauthorizedError):
            resp.set_header("WWW-Authenticate", "Bearer")
        if isinstance(error, HeldBackError):
            resp.set_header("Retry-After", str(math.ceil(error.retry_after_s)))
        self._answer(req, resp, error.status, str(error))

    def on_not_found(
        self,
        _req: falcon.Request,
        resp: falcon.Response,
        _error: Exception,
        _params: Params,
    ) -> None:
        """No such path."""
        resp.status = falcon.HTTP_404
        resp.content_type = TEXT_TYPE
        resp.text = "404 page not found"

    def on_method_not_allowed(
        self, _req: falcon.Request, resp: falcon.Response, error: Exception, _params: Params
    ) -> None:
        """The path is known, the method is not."""
        assert isinstance(error, falcon.HTTPMethodNotAllowed)
        resp.status = falcon.HTTP_405
        resp.content_type = TEXT_TYPE
        resp.text = "405 method not allowed"
        resp.set_headers(error.headers or {})

    def on_http_error(
        self, req: falcon.Request, resp: falcon.Response, error: Exception, _params: Params
    ) -> None:
        """What the framework refuses, such as a header that makes no sense."""
        assert isinstance(error, falcon.HTTPError)
        self._answer(req, resp, error.status_code, (error.description or error.title or "").lower())

    def on_surprise(
        self, req: falcon.Request, resp: falcon.Response, error: Exception, _params: Params
    ) -> None:
        """The outermost edge: a mistake of ours is logged, the client learns only that it was."""
        LOG.error("internal error in %s %s", req.method, req.path, exc_info=error)
        self._answer(req, resp, 500, "internal server error")

    def _answer(
        self, req: falcon.Request, resp: falcon.Response, status: int, message: str
    ) -> None:
        if self._hidden:
            message = message.replace(self._hidden, "the store")
        resp.status = falcon.code_to_http_status(status)
        resp.content_type = JSON_TYPE
        resp.data = json_bytes(refusal(req.path, message, status))


class Traffic:
    """A WSGI layer that counts requests in flight and, if wanted, logs one line for each.

    A request is in flight until the last byte of its answer was handed over or its client left.
    Neither bodies nor query strings are logged.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        log_requests: bool,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._log_requests = log_requests
        self._now_s = now_s
        self._in_flight: set[int] = set()

    @property
    def in_flight(self) -> int:
        """Requests that have begun and not ended."""
        return len(self._in_flight)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        begun_s = self._now_s()
        status = ["-"]

        def note_status(text: str, headers: Any, *rest: Any) -> Any:
            status[0] = text[:3]
            return start_response(text, headers, *rest)

        def end() -> None:
            self._in_flight.discard(ticket)
            if self._log_requests:
                REQUEST_LOG.info(
                    "%s %s %s %d ms",
                    environ["REQUEST_METHOD"],
                    _printable(environ["PATH_INFO"]),
                    status[0],
                    round((self._now_s() - begun_s) * 1000),
                )

        ticket = id(end)
        self._in_flight.add(ticket)
        try:
            return _Body(self._app(environ, note_status), end)
        except BaseException:
            end()
            raise


class _Body:
    """An answer's body that tells when it is closed, as WSGI servers must close it."""

    def __init__(self, body: Iterable[bytes], end: Callable[[], None]) -> None:
        self._body = body
        self._end = end

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        """Close the body, then tell."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._end()


def _printable(path: str) -> str:
    """A path without what could forge another log line."""
    return "".join(c if c.isprintable() else "?" for c in path[:200])
