"""What every request for anything but text needs: a model by its name, and a runner for a while.

The order of the checks is Ollama's: name, existence, options, load.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from server.admission import Admission
from server.catalogue import Catalogue, ServedModel, read_reference
from server.deadline import Deadline
from server.errors import BadRequestError, ClientGoneError, ModelNotFoundError
from server.generation import Gone
from server.options import resolve_options, resolve_timeout
from server.planner import Planner
from server.scheduler import Demand, Lease, Scheduler
from server.telling import told


class Asking(Protocol):
    """What all requests have."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Options, of which those of loading have an effect."""

    @property
    def keep_alive_s(self) -> float | None:
        """How long the model stays; ``None`` leaves it to the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what a request waits and runs."""

    demand: Demand
    deadline: Deadline
    gone: Gone

    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.gone() or self.deadline.passed


class Desk:
    """Finds models and lends runners. All methods may be called from any thread.

    Attributes:
        admission: counts the requests that hold a thread, those that generate included.
        isolated: requests of different API keys share nothing that was computed.
        now_s: monotonic time in seconds.
    """

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        scheduler: Scheduler,
        planner: Planner,
        admission: Admission,
        request_timeout_s: float = 0.0,
        isolated: bool = True,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Put the parts together.

        Args:
            catalogue: finds models.
            scheduler: lends runners.
            planner: knows how to load.
            admission: see above, as ``isolated`` and ``now_s``.
            request_timeout_s: longest time for any request; 0 means no limit.
            isolated: see above.
            now_s: see above.
        """
        self.admission = admission
        self.isolated = isolated
        self.now_s = now_s
        self._catalogue = catalogue
        self._scheduler = scheduler
        self._planner = planner
        self._request_timeout_s = request_timeout_s

    def find(self, text: str) -> ServedModel:
        """The model a client named.

        Raises:
            BadRequestError: it named none.
            ModelNotFoundError: there is none of this name.
            ForbiddenError: it was revoked, and the site refuses such models.
        """
        name = read_reference(text)
        if name is None:
            raise BadRequestError("model is required")
        model = self._catalogue.find(name)
        if model is None:
            raise ModelNotFoundError(f'model "{text}" not found, try pulling it first')
        self._catalogue.check_may_answer(model)
        return model

    def terms(
        self,
        model: ServedModel,
        request: Asking,
        started_s: float,
        gone: Gone,
    ) -> Terms:
        """How a request waits and for what.

        Raises:
            BadRequestError: an option is wrong.
        """
        _, load = resolve_options(model.installed.parameters, request.options)
        limits_s = (self._request_timeout_s, resolve_timeout(request.options))
        return Terms(
            demand=self._planner.demand(model, load, keep_alive_s=request.keep_alive_s),
            deadline=Deadline.after(started_s, limits_s, self.now_s),
            gone=gone,
        )

    def acquire(self, terms: Terms) -> Lease:
        """Wait for a runner; to be closed by the caller.

        Raises:
            ServerError: there will be none.
        """
        try:
            return self._scheduler.acquire(terms.demand, gone=terms.over)
        except ClientGoneError as error:
            raise told(error, terms.deadline, terms.gone) from error

    def unload(self, model: ServedModel) -> None:
        """Let a model go once nobody uses it."""
        self._scheduler.unload(model.key)
