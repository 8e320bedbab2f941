"""Ollama's calls about models: tags, ps, show, copy, delete."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import falcon

from appliance.errors import AppError, ModelMissingError, StoreBusyError
from appliance.model import InstalledModel
from appliance.modelfiles import contents_of
from appliance.store import Store
from bundler.format import modelfile
from bundler.format.errors import FormatError
from bundler.format.name import ModelName
from server.api.body import Fields, read_object
from server.api.framing import (
    JSON_TYPE,
    LONGEST_DURATION_NS,
    NS_PER_S,
    json_bytes,
    local_timestamp,
)
from server.api.request_body import read_body
from server.catalogue import (
    CLOUD_DETAILS,
    Catalogue,
    ServedModel,
    details,
    header_values,
    read_reference,
    tensors,
)
from server.errors import BadRequestError, BusyError, ModelNotFoundError, ServerError
from server.scheduler import LoadedModel

Json = dict[str, Any]
Clock = Callable[[], int]

_KEY_WIDTH = 30
"""Columns of a parameter's name in ``show``."""


_LEFT_OUT = frozenset(
    {"license", "parameters", "system", "messages", "renderer", "parser", "requires"}
)
"""What ``show`` does not say of a model that has none."""

_COPILOT = "GitHubCopilotChat/"
"""A client that shows ``general.basename`` as the model's name; Ollama answers it the name it asked
for, so that two models of one base can be told apart."""


class Tags:
    """``/api/tags``: what is installed."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Newest first; an empty list when there is nothing."""
        models = [_tag(model) for model in self._catalogue.all()]
        resp.content_type = JSON_TYPE
        resp.data = json_bytes({"models": models})

    on_head = on_get


class Ps:
    """``/api/ps``: what is in memory."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        loaded: Callable[[], tuple[LoadedModel, ...]],
        now_ns: Clock,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalogue = catalogue
        self._loaded = loaded
        self._now_ns = now_ns
        self._now_s = now_s

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Latest expiry first."""
        ages = [(self._expires_ns(model), model) for model in self._loaded()]
        ages.sort(key=lambda age: -age[0])
        resp.content_type = JSON_TYPE
        resp.data = json_bytes({"models": [self._entry(model, at) for at, model in ages]})

    def _expires_ns(self, model: LoadedModel) -> int:
        """Wall time of the expiry; a model that stays for ever expires in 292 years."""
        if model.expires_at_s is None:
            return self._now_ns() + LONGEST_DURATION_NS
        return self._now_ns() + round((model.expires_at_s - self._now_s()) * NS_PER_S)

    def _entry(self, model: LoadedModel, expires_ns: int) -> Json:
        found = self._find(model)
        return {
            "name": model.name,
            "model": model.name,
            "size": model.size_bytes,
            "digest": found.installed.digest.hex if found else "",
            "details": details(found) if found else {},
            "expires_at": local_timestamp(expires_ns),
            "size_vram": model.vram_bytes,
            "context_length": model.num_ctx,
        }

    def _find(self, model: LoadedModel) -> ServedModel | None:
        """The model if it is still installed and whole; one in memory is listed either way.

        Its name may stand for other weights by now, which are not those in memory.
        """
        try:
            found = self._catalogue.find(ModelName.parse(model.name))
        except ServerError:
            return None
        return found if found is not None and found.key == model.key else None


class Show:
    """``/api/show``: everything about one model."""

    def __init__(self, *, catalogue: Catalogue, max_body_bytes: int) -> None:
        self._catalogue = catalogue
        self._max_body_bytes = max_body_bytes

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """One model; long arrays of its header only if ``verbose``."""
        fields = read_object(read_body(req, self._max_body_bytes))
        verbose = fields.boolean("verbose", default=False)
        system = fields.string("system")
        name = read_reference(_model_field(fields), cloud=CLOUD_DETAILS)
        if name is None:
            raise BadRequestError("model is required")
        model = self._catalogue.find(name)
        if model is None:
            raise ModelNotFoundError(f"model '{name.short()}' not found")
        resp.content_type = JSON_TYPE
        answer = _show(model, verbose=verbose, system=system)
        if (req.user_agent or "").startswith(_COPILOT):
            answer["model_info"]["general.basename"] = _model_field(fields)
        resp.data = json_bytes(answer)


class Copy:
    """``/api/copy``: one more name for a model."""

    def __init__(self, *, store: Store, max_body_bytes: int) -> None:
        self._store = store
        self._max_body_bytes = max_body_bytes

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with nothing when it is done."""
        fields = read_object(read_body(req, self._max_body_bytes))
        names = [
            _valid_name(fields.string(field), f'{field} "{fields.string(field)}" is invalid')
            for field in ("source", "destination")
        ]
        try:
            self._store.copy(*names)
        except ModelMissingError as error:
            text = f'model "{fields.string("source")}" not found'
            raise ModelNotFoundError(text) from error
        except AppError as error:
            raise _store_error(error) from error
        _nothing(resp)


class Delete:
    """``/api/delete``: remove a name, and the files nothing else needs."""

    def __init__(self, *, store: Store, max_body_bytes: int) -> None:
        self._store = store
        self._max_body_bytes = max_body_bytes

    def on_delete(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with nothing when it is done; a loaded model stays in memory until it expires."""
        text = _model_field(read_object(read_body(req, self._max_body_bytes)))
        name = _valid_name(text, f'name "{text}" is invalid')
        try:
            self._store.remove(name)
        except ModelMissingError as error:
            raise ModelNotFoundError(f"model '{text}' not found") from error
        except AppError as error:
            raise _store_error(error) from error
        _nothing(resp)


def _tag(model: ServedModel) -> Json:
    installed = model.installed
    name = installed.name.short()
    return {
        "name": name,
        "model": name,
        "modified_at": _modified_at(installed),
        "size": installed.size_bytes,
        "digest": installed.digest.hex,
        "details": details(model),
        "capabilities": list(model.capabilities),
    }


def _show(model: ServedModel, *, verbose: bool, system: str) -> Json:
    installed = model.installed
    answer: Json = {
        "license": "\n".join(installed.licenses),
        "modelfile": _modelfile(installed, system=system),
        "parameters": parameter_lines(installed.parameters),
        "template": model.template.text,
        "system": system or installed.system,
        "details": details(model),
        "messages": [{"role": role, "content": text} for role, text in installed.messages],
        "model_info": header_values(installed.model_path, verbose=verbose),
        "projector_info": _projector_info(installed),
        "tensors": tensors(installed.model_path),
        "capabilities": list(model.capabilities),
        "modified_at": _modified_at(installed),
        "template_source": model.template.source,
        "output_format": model.output.family.name,
    }
    said = contents_of(installed, lambda path: path.name)
    answer |= {"renderer": said.renderer, "parser": said.parser, "requires": said.requires}
    return {name: value for name, value in answer.items() if value or name not in _LEFT_OUT}


def _projector_info(installed: InstalledModel) -> Json:
    """The header of the projector, if there is one."""
    first = installed.projectors[:1]
    return header_values(first[0], verbose=False) if first else {}


def parameter_lines(parameters: Mapping[str, Any]) -> str:
    """One line per value, the names padded, texts quoted as Go quotes them; sorted by name."""
    lines = []
    for name, value in sorted(parameters.items()):
        for item in value if isinstance(value, list) else [value]:
            shown = json_bytes({"": item})[4:-1].decode()
            lines.append(f"{name:<{_KEY_WIDTH}} {shown}")
    return "\n".join(lines)


def _modelfile(installed: InstalledModel, *, system: str) -> str:
    """The Modelfile a model could be made from again.

    It names the blob, not its path: answers do not tell where the store lies.
    """
    content = contents_of(installed, lambda path: path.name)
    if system:
        content = replace(content, system=system)
    try:
        text = modelfile.render(content)
    except FormatError as error:
        text = f"# {error}\n"
    return (
        '# Modelfile generated by "ollama show"\n'
        "# To build a new Modelfile based on this, replace FROM with:\n"
        f"# FROM {installed.name.short()}\n\n{text}"
    )


def _modified_at(installed: InstalledModel) -> str:
    return local_timestamp(round(installed.modified_at_s * NS_PER_S))


def _model_field(fields: Fields) -> str:
    return fields.string("model") or fields.string("name")


def _valid_name(text: str, refusal: str) -> ModelName:
    try:
        return ModelName.parse(text)
    except FormatError as error:
        raise BadRequestError(refusal) from error


def _store_error(error: AppError) -> ServerError:
    if isinstance(error, StoreBusyError):
        return BusyError(str(error), hint=error.hint)
    return ServerError(str(error), hint=error.hint)


def _nothing(resp: falcon.Response) -> None:
    resp.content_type = JSON_TYPE
    resp.data = b""
