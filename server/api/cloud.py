"""Ollama's calls that would go to its cloud, answered here: nothing leaves this machine."""

from __future__ import annotations

from typing import Any

import falcon

from server.api.framing import JSON_TYPE, json_bytes
from server.catalogue import Catalogue, ServedModel, details
from server.errors import ForbiddenError

Json = dict[str, Any]

SEARCH_DISABLED = "ollama cloud is disabled: web search is unavailable"
FETCH_DISABLED = "ollama cloud is disabled: web fetch is unavailable"
NOT_SIGNED_IN = "you are not currently signed in"


class Status:
    """``/api/status``: whether there is a cloud."""

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """There is none."""
        _answer(resp, {"cloud": {"disabled": True, "source": "config"}})


class Me:
    """``/api/me``: who is signed in at the cloud."""

    def on_post(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Nobody, and there is no place to do it."""
        _answer(resp, {"error": "unauthorized", "signin_url": ""}, falcon.HTTP_401)


class SignOut:
    """``/api/signout``: leave the cloud."""

    def on_post(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Nobody is there."""
        _answer(resp, {"error": NOT_SIGNED_IN}, falcon.HTTP_401)


class UserKey:
    """``/api/user/keys/{key}``: forget a key of the cloud."""

    def on_delete(self, _req: falcon.Request, resp: falcon.Response, key: str) -> None:
        """There are none."""
        del key
        _answer(resp, {"error": NOT_SIGNED_IN}, falcon.HTTP_401)


class Disabled:
    """A call of the cloud that has no answer here."""

    def __init__(self, text: str) -> None:
        self._text = text

    def on_post(self, _req: falcon.Request, _resp: falcon.Response) -> None:
        """Refuse it.

        Raises:
            ForbiddenError: always.
        """
        raise ForbiddenError(self._text)


class Recommendations:
    """``/api/experimental/model-recommendations``: what is installed, instead of what is sold."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Every model that answers, newest first."""
        models = [model for model in self._catalogue.all() if model.can("completion")]
        _answer(resp, {"recommendations": [_recommendation(model) for model in models]})


def _recommendation(model: ServedModel) -> Json:
    known = details(model)
    parts = (known["family"], known["parameter_size"], known["quantization_level"])
    return {
        "model": model.installed.name.short(),
        "description": " ".join(str(part) for part in parts if part),
        "context_length": model.installed.profile.context_length,
    }


def _answer(resp: falcon.Response, body: Json, status: str = falcon.HTTP_200) -> None:
    resp.status = status
    resp.content_type = JSON_TYPE
    resp.data = json_bytes(body)
