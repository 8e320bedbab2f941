"""The models this server may serve: names as clients type them, and what each model can do.

Nothing is kept between requests but what a blob's header says, and blobs never change: an import
is visible at once.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appliance.catalogue import Catalogue as StoredModels
from appliance.errors import AppError, ModelMissingError
from appliance.model import InstalledModel
from bundler.format.errors import FormatError
from bundler.format.name import ModelName
from hwprobe.errors import GgufError
from hwprobe.gguf import GgufArray, GgufHeader, model_profile, read_header
from hwprobe.together import can_see
from server.detection import detect_output
from server.errors import (
    BadRequestError,
    ForbiddenError,
    LoadFailedError,
    ServerError,
)
from server.infill import GapTokens, gap_tokens
from server.output.detect import Detected
from server.prompt.choice import Choice, GoTemplates, choose

NO_DRAFT = "off"
"""What the operator writes where a model is not to be drafted for."""

LOG = logging.getLogger("satchel.server")

CLOUD_INFERENCE = "remote inference is unavailable"
CLOUD_DETAILS = "remote model details are unavailable"


def _no_format(_: ModelName) -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What the header of the weights says beyond the numbers placement needs.

    Attributes:
        fim: ids of the fill-in-the-middle tokens (prefix, suffix, middle), or ``None``.
        jinja: the chat template, or ``None``.
        embeds: it makes embeddings and completes nothing.
        normalizes: the deprecated call for embeddings scales its vectors to length one.
        size_label: parameter count as ``8.0B``.
    """

    fim: tuple[int, int, int] | None
    jinja: str | None
    embeds: bool
    normalizes: bool
    size_label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """An installed model with its traits, the template of its prompts, and how it writes.

    Attributes:
        draft: a small model that proposes its tokens; ``None`` without one.
        constrains_calls: calls it begins of itself are bound to their schemas.
    """

    installed: InstalledModel
    traits: Traits
    template: Choice
    output: Detected
    draft: Path | None = None
    constrains_calls: bool = True

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What it can do, in Ollama's words and order.

        Text goes into a gap by the template, or by the vocabulary's fill-in-the-middle tokens.
        """
        if self.traits.embeds:
            return ("embedding",)
        has = self.template.capabilities | ({"insert"} if self.traits.fim else set())
        has |= {"vision"} if self.projector is not None else set()
        known = ("tools", "insert", "vision", "thinking")
        return ("completion", *(name for name in known if name in has))

    @property
    def inserts(self) -> bool:
        """Whether gaps can be filled, also by tokens that only their names tell."""
        can = self.can("completion")
        return can and (self.can("insert") or self.gap_tokens is not None)

    @property
    def gap_tokens(self) -> GapTokens | None:
        """What frames a gap in the vocabulary."""
        return _gap_tokens(self.installed.model_path)

    @property
    def key(self) -> str:
        """What a runner is shared by: the weights and all that is loaded beside them."""
        optional = tuple(path for path in (self.projector, self.draft) if path is not None)
        beside = (path.name for path in (*self.installed.adapters, *optional))
        return "+".join((self.installed.model_path.name, *beside))

    @property
    def projector(self) -> Path | None:
        """What shows it images, if anything does; only the first of several is used."""
        if not self.installed.projectors or self.traits.embeds:
            return None
        first = self.installed.projectors[0]
        return first if can_see(first) else None

    @property
    def ranks(self) -> bool:
        """Whether it scores documents instead of making vectors."""
        return self.installed.profile.pooling == "rank"

    @property
    def normalizes(self) -> bool:
        """Whether the deprecated call for embeddings scales its vectors to length one."""
        return self.traits.normalizes

    def can(self, capability: str) -> bool:
        """Whether the model has this capability, in Ollama's words."""
        return capability in self.capabilities


class Catalogue:
    """Finds models by the names clients type."""

    def __init__(
        self,
        store: StoredModels,
        *,
        go_templates: GoTemplates = "auto",
        output_format: Callable[[ModelName], str] = _no_format,
        draft: Callable[[ModelName], str] = _no_format,
        constrain_calls: Callable[[ModelName], bool] = lambda _name: True,
        refused: Callable[[InstalledModel], str] = lambda _model: "",
    ) -> None:
        """Take the store, and what the operator decided.

        Args:
            store: where the models are.
            go_templates: whether TEMPLATE layers are used.
            output_format: how a model writes reasoning and calls; empty lets its template decide.
            draft: the model whose weights propose a model's tokens, ``off`` for none; empty takes
                what the model brings.
            constrain_calls: whether calls that a model begins are bound to their schemas.
            refused: why an installed model may not answer; empty where it may.
        """
        self.store = store
        self._go_templates = go_templates
        self._output_format = output_format
        self._draft = draft
        self._constrain_calls = constrain_calls
        self._refused = refused

    def check_may_answer(self, model: ServedModel) -> None:
        """Refuse a model that this site does not let answer any more.

        Raises:
            ForbiddenError: it was revoked.
            LoadFailedError: whether it was cannot be read.
        """
        try:
            reason = self._refused(model.installed)
        except AppError as error:
            raise LoadFailedError(str(error), hint=error.hint) from error
        if reason:
            raise ForbiddenError(f"model '{model.installed.name.short()}': {reason}")

    def find(self, name: ModelName) -> ServedModel | None:
        """The model of this name, whatever its case; ``None`` if there is none.

        Raises:
            LoadFailedError: it is damaged, or not a model.
        """
        try:
            return self._served(self.store.resolve(name))
        except ModelMissingError:
            return None
        except AppError as error:
            raise LoadFailedError(str(error), hint=error.hint) from error

    def all(self) -> tuple[ServedModel, ...]:
        """Every usable model, newest first.

        Raises:
            ServerError: the store cannot be read.
        """
        try:
            survey = self.store.survey()
        except AppError as error:
            raise ServerError(str(error), hint=error.hint) from error
        models = []
        for model in survey.models:
            try:
                models.append(self._served(model))
            except LoadFailedError as error:
                LOG.warning("%s is not listed: %s", model.name.short(), error)
        return tuple(models)

    def _served(self, model: InstalledModel) -> ServedModel:
        found = served(model, self._go_templates, self._output_format(model.name))
        return replace(
            found,
            draft=None if found.traits.embeds else self._draft_of(model),
            constrains_calls=self._constrain_calls(model.name),
        )

    def _draft_of(self, model: InstalledModel) -> Path | None:
        wanted = self._draft(model.name)
        if not wanted:
            return next(iter(model.drafts), None)
        if wanted == NO_DRAFT:
            return None
        try:
            return self.store.resolve(ModelName.parse(wanted)).model_path
        except (AppError, FormatError) as error:
            raise LoadFailedError(
                f"{model.name.short()}: draft: {error}", hint='set draft = "off" for this model'
            ) from error


def served(
    model: InstalledModel, go_templates: GoTemplates, output_format: str = ""
) -> ServedModel:
    """Add what the header says.

    Raises:
        LoadFailedError: the weights are not a GGUF, or cannot be read.
    """
    try:
        traits = _traits(model.model_path)
        for path in model.projectors[:1]:
            _ = can_see(path)
        _ = model.profile  # read now, so that what uses it need not expect a damaged file
    except GgufError as error:
        raise LoadFailedError(f"{model.name.short()}: {error}") from error
    except OSError as error:
        raise LoadFailedError(f"{model.name.short()}: cannot be read: {error.strerror}") from error
    template = _choice(model.model_path, model.template, go_templates)
    parser = _text(model.config, "parser")
    output = _output(model.model_path, model.template, go_templates, output_format, parser)
    return ServedModel(installed=model, traits=traits, template=template, output=output)


def read_reference(text: str, *, cloud: str = CLOUD_INFERENCE) -> ModelName | None:
    """A model name as a client typed it; ``None`` where it is none.

    Args:
        text: the name, with an optional ``:local`` or ``:cloud``.
        cloud: the end of the refusal of a cloud model.

    Raises:
        ForbiddenError: it names a cloud model.
        BadRequestError: it asks for both.
    """
    name = text.strip()
    head, _, tag = name.rpartition(":")
    if tag == "local" and head:
        name = head
        if _is_cloud(name):
            raise BadRequestError(f'use either :local or :cloud, not both: "{text.strip()}"')
    elif _is_cloud(name):
        if name.removesuffix(":cloud").endswith(":local"):
            raise BadRequestError(f'use either :local or :cloud, not both: "{name}"')
        raise ForbiddenError(f"ollama cloud is disabled: {cloud}")
    try:
        return ModelName.parse(name)
    except FormatError:
        return None


def details(model: ServedModel) -> dict[str, Any]:
    """The ``details`` object of tags, ps and show."""
    config, profile = model.installed.config, model.installed.profile
    family = _text(config, "model_family") or profile.architecture
    families = config.get("model_families")
    return {
        "parent_model": "",
        "format": _text(config, "model_format") or "gguf",
        "family": family,
        "families": families if isinstance(families, list) and families else [family],
        "parameter_size": _text(config, "model_type") or model.traits.size_label,
        "quantization_level": _text(config, "file_type") or profile.quantization,
        "context_length": profile.context_length,
        "embedding_length": profile.embedding_length,
    }


def header_values(path: Path, *, verbose: bool) -> dict[str, Any]:
    """``model_info`` of show: the header's keys; long arrays are ``None`` unless ``verbose``.

    Raises:
        LoadFailedError: the file cannot be read.
    """
    try:
        header = read_header(path)
        values = {
            key: _header_value(value, verbose=verbose)
            for key, value in header.metadata.items()
            if key not in {"general.name", "tokenizer.chat_template"}
        }
    except (GgufError, OSError) as error:
        raise LoadFailedError(f"the model's header cannot be read: {error}") from error
    count = sum(tensor.element_count for tensor in header.tensors)
    return {**values, "general.parameter_count": count}


def tensors(path: Path) -> list[dict[str, Any]]:
    """``tensors`` of show.

    Raises:
        LoadFailedError: the file cannot be read.
    """
    try:
        header = read_header(path)
    except (GgufError, OSError) as error:
        raise LoadFailedError(f"the model's header cannot be read: {error}") from error
    return [
        {"name": tensor.name, "type": tensor.ggml_type, "shape": list(tensor.dimensions)}
        for tensor in header.tensors
    ]


_LONGEST_SHOWN_ARRAY = 5
"""Ollama shows arrays up to this length without ``verbose``."""


def _header_value(value: object, *, verbose: bool) -> Any:
    if isinstance(value, GgufArray | tuple):
        length = value.length if isinstance(value, GgufArray) else len(value)
        if length > _LONGEST_SHOWN_ARRAY and not verbose:
            return None
        return [
            item.decode("utf-8", errors="replace") if isinstance(item, bytes) else item
            for item in value
        ]
    return value


def _is_cloud(name: str) -> bool:
    _, colon, tag = name.rpartition(":")
    return bool(colon) and (tag == "cloud" or (tag.endswith("-cloud") and "/" not in tag))


@functools.lru_cache(maxsize=256)
def _traits(model_path: Path) -> Traits:
    """Cached by path: a blob's path holds its digest, and blobs never change."""
    header = read_header(model_path)
    template = header.metadata.get("tokenizer.chat_template")
    jinja = template if isinstance(template, str) and template.strip() else None
    architecture = header.string("general.architecture", "")
    pooling = f"{architecture}.pooling_type"
    return Traits(
        fim=_fim(header),
        jinja=jinja,
        embeds=pooling in header.metadata or model_profile(header).pools,
        normalizes=_normalizes(header, architecture),
        size_label=_size_label(sum(tensor.element_count for tensor in header.tensors)),
    )


@functools.lru_cache(maxsize=256)
def _choice(model_path: Path, layer: str | None, go_templates: GoTemplates) -> Choice:
    """Cached by path and layer: the probing takes some milliseconds."""
    choice = choose(layer=layer, jinja=_traits(model_path).jinja, use=go_templates)
    if choice.fault:
        LOG.warning("a template of %s cannot be used: %s", model_path.name, choice.fault)
    return choice


@functools.lru_cache(maxsize=256)
def _output(
    model_path: Path, layer: str | None, go_templates: GoTemplates, override: str, parser: str
) -> Detected:
    """Cached as `_choice`, and for its reason."""
    choice = _choice(model_path, layer, go_templates)
    return detect_output(choice, override=override, parser=parser)


@functools.lru_cache(maxsize=256)
def _gap_tokens(model_path: Path) -> GapTokens | None:
    """Cached as `_traits`; reads the whole vocabulary where keys are missing."""
    header = read_header(model_path)
    values: Any = header.metadata.get("tokenizer.ggml.tokens") or ()
    names = [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values]
    return gap_tokens(header.metadata, names)


def _normalizes(header: GgufHeader, architecture: str) -> bool:
    """As Ollama does: never without pooling; these two only if their file says so."""
    if not header.metadata.get(f"{architecture}.pooling_type"):
        return False
    if architecture in {"bert", "nomic-bert"}:
        return header.metadata.get(f"{architecture}.normalize_embeddings") is True
    return True


def _fim(header: GgufHeader) -> tuple[int, int, int] | None:
    ids = []
    for part, former in (("pre", "prefix"), ("suf", "suffix"), ("mid", "middle")):
        for key in (f"fim_{part}_token_id", f"{former}_token_id"):
            value = header.metadata.get(f"tokenizer.ggml.{key}")
            if isinstance(value, int):
                ids.append(value)
                break
    return (ids[0], ids[1], ids[2]) if len(ids) == 3 else None  # noqa: PLR2004 - the three parts


def _text(config: Mapping[str, Any], key: str) -> str:
    value = config.get(key)
    return value if isinstance(value, str) else ""


def _size_label(count: int) -> str:
    """A parameter count as Ollama writes it: ``8.0B``, ``135M``, ``3.07K``."""
    billion, million, thousand = 10**9, 10**6, 10**3
    if count >= 1000 * billion:
        return f"{count / 1000 / billion:.1f}T"
    if count >= billion:
        return f"{count / billion:.1f}B"
    if count >= million:
        return f"{count / million:.2f}M"
    if count >= thousand:
        return f"{count / thousand:.2f}K"
    return str(count)
