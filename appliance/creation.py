"""What a model made here is to be: the request, and the layers that come of it. Pure.

Rules, which are Ollama's:
 * parameters are laid over the base's, one by one; a list replaces a list;
 * a template and a system message replace the base's, messages replace them if there are any;
 * licences are added to the base's;
 * renderer, parser and required version are the base's unless given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from appliance.errors import RequestError
from appliance.model import LAYER_MEDIA, InstalledModel
from bundler.format.digest import Digest
from bundler.format.errors import FormatError
from bundler.format.name import ModelName

Text = tuple[str, bytes]
"""Kind of a small layer, and its bytes."""

INFO_TEXTS = ("model_family", "base_name", "quantization_level", "parameter_size")
INFO_NUMBERS = ("context_length", "embedding_length")
_INFO_KEYS = {"quantization_level": "file_type", "parameter_size": "model_type"}
"""Fields of ``info`` that have another name in the config blob."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """A model to make.

    Attributes:
        name: what it is to be called.
        base: an installed model to start from, or empty.
        files: pairs of file name and digest of blobs that are here: weights, projectors.
        adapters: likewise: one LoRA adapter.
        drafts: likewise: one small model that proposes tokens.
        quantize: name of a quantization, or empty; ``draft_quantize`` for the draft model.
        template: replaces the base's unless ``None``; so do the following.
        system: the system message.
        renderer: name of a built-in prompt renderer.
        parser: name of a built-in output parser.
        requires: least version of Ollama that is needed.
        licenses: full texts.
        parameters: options by name.
        messages: pairs of role and text.
        info: what to show instead of what the weights say.
    """

    name: str
    base: str = ""
    files: tuple[tuple[str, str], ...] = ()
    adapters: tuple[tuple[str, str], ...] = ()
    drafts: tuple[tuple[str, str], ...] = ()
    quantize: str = ""
    draft_quantize: str = ""
    template: str | None = None
    system: str | None = None
    renderer: str | None = None
    parser: str | None = None
    requires: str | None = None
    licenses: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[tuple[str, str], ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def brings_weights(self) -> bool:
        """Whether it holds weights that no installed model has."""
        return bool(self.files or self.adapters or self.drafts)

    @property
    def target(self) -> ModelName:
        """The name, read.

        Raises:
            RequestError: it is none.
        """
        return read_model_name(self.name, "invalid model name")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; ``CreateRequest.from_json(r.to_json()) == r``."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CreateRequest:
        """Read what `to_json` made."""
        pairs = {
            name: tuple((str(one), str(two)) for one, two in value[name])
            for name in ("files", "adapters", "drafts", "messages")
        }
        return cls(**{**value, **pairs, "licenses": tuple(value["licenses"])})


def read_model_name(text: str, refusal: str) -> ModelName:
    """A model name, or a refusal in these words.

    Raises:
        RequestError: it is none.
    """
    try:
        return ModelName.parse(text)
    except FormatError as error:
        raise RequestError(refusal, hint=error.hint) from error


def texts_of(request: CreateRequest, base: InstalledModel | None) -> tuple[Text, ...]:
    """The small layers of the model, in Ollama's order."""
    template = _given(request.template) or (base.template if base else None)
    system = _given(request.system) or (base.system if base else "")
    licenses = (*(base.licenses if base else ()), *request.licenses)
    parameters = {**(base.parameters if base else {}), **request.parameters}
    messages = request.messages or (base.messages if base else ())
    layers: list[Text] = []
    if template:
        layers.append(("template", template.encode()))
    if system:
        layers.append(("system", system.encode()))
    layers += [("license", text.encode()) for text in dict.fromkeys(licenses) if text]
    if parameters:
        layers.append(("params", _compact(dict(sorted(parameters.items())))))
    if messages:
        said = [{"role": role, "content": text} for role, text in messages]
        layers.append(("messages", _compact(said)))
    return tuple(layers)


def config_of(
    request: CreateRequest, config: Mapping[str, Any], weights: tuple[Digest, ...]
) -> dict[str, Any]:
    """The config blob's object: the base's or the weights' own, and what the request says.

    Args:
        request: the request.
        config: of the base, or what `appliance.gate.config_blob` says of the weights.
        weights: digests of the large files, in order.
    """
    changed = dict(config)
    for key in ("renderer", "parser", "requires"):
        value = getattr(request, key)
        if value:
            changed[key] = value
    for name, value in request.info.items():
        changed[_INFO_KEYS.get(name, name)] = value
        if name == "model_family":
            changed["model_families"] = [value]
    if isinstance(changed.get("rootfs"), dict):
        changed["rootfs"] = {"type": "layers", "diff_ids": [str(digest) for digest in weights]}
    return changed


def keeps_base(request: CreateRequest) -> bool:
    """Whether the request asks for nothing but another name of its base."""
    plain = CreateRequest(name=request.name, base=request.base)
    return bool(request.base) and replace(request, messages=()) == plain and not request.messages


def media_type(kind: str) -> str:
    """Ollama's media type of a layer of this kind."""
    return LAYER_MEDIA + kind


def _given(text: str | None) -> str:
    return text or ""


def _compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
