"""``/api/create``: read what is asked for; what makes no sense is refused before work begins."""

from __future__ import annotations

import re
from typing import Any

import falcon

from appliance.creation import INFO_NUMBERS, INFO_TEXTS, CreateRequest
from bundler.format import modelfile
from bundler.format.errors import FormatError, ModelfileError
from bundler.format.modelfile import DEPRECATED_PARAMETERS, ROLES, SEMVER
from bundler.format.name import ModelName
from server.api.blobs import CreatePolicy, read_digest
from server.api.body import Fields, read_object, whole_number
from server.api.progress import deliver_job
from server.api.request_body import read_body
from server.catalogue import read_reference
from server.errors import BadRequestError
from server.jobs import Jobs
from server.options import OPTIONS, UNUSED, resolve_options
from server.prompt.gotemplate.prompt import PromptTemplate
from server.prompt.gotemplate.template import TemplateError

_BLOB_REFERENCE = re.compile(r"(?:@?sha256:|(?:.*/)?sha256-)([0-9a-fA-F]{64})")
"""How a Modelfile text may name a blob: ``@sha256:…`` of Ollama's older clients, a blob's file."""


class Create:
    """``/api/create``."""

    def __init__(self, *, jobs: Jobs, policy: CreatePolicy, max_body_bytes: int) -> None:
        self._jobs = jobs
        self._policy = policy
        self._max_body_bytes = max_body_bytes

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Make a model, in a process of its own."""
        fields = read_object(read_body(req, self._max_body_bytes))
        stream = fields.boolean("stream", default=True)
        request = read_create(fields)
        self._policy.refuse_unless(files=request.brings_weights)
        deliver_job(resp, self._jobs.start("create", request.to_json()), stream=stream)


def read_create(fields: Fields) -> CreateRequest:
    """What the body asks for; today's fields lie over those of a Modelfile text.

    Raises:
        BadRequestError: it makes no sense.
    """
    name = fields.string("model") or fields.string("name")
    if not name or _name(name) is None:
        raise BadRequestError("invalid model name")
    if fields.string("path"):
        raise BadRequestError("path: expected modelfile, or files that were sent as blobs")
    if fields.string("remote_host"):
        raise BadRequestError("remote_host: there are no remote models here")
    legacy = _legacy(name, fields.string("modelfile"))
    request = _overlaid(legacy, fields)
    if request.draft_quantize and not request.drafts:
        raise BadRequestError("--draft-quantize requires a DRAFT model")
    if not request.base and not request.files:
        raise BadRequestError("neither 'from' or 'files' was specified")
    return request


def _overlaid(legacy: CreateRequest, fields: Fields) -> CreateRequest:
    base = fields.string("from")
    if base and _name(base) is None:
        raise BadRequestError("invalid model name")
    template = fields.string("template") or legacy.template
    if template:
        try:
            PromptTemplate(template)
        except TemplateError as error:
            raise BadRequestError(f"template error: {error}") from error
    requires = fields.string("requires") or legacy.requires
    if requires and not SEMVER.fullmatch(requires):
        raise BadRequestError("requires must be a valid semver (e.g. 0.14.0)")
    return CreateRequest(
        name=legacy.name,
        base=base or legacy.base,
        files=_blobs(fields, "files") or legacy.files,
        adapters=_blobs(fields, "adapters") or legacy.adapters,
        drafts=_blobs(fields, "draft_files") or legacy.drafts,
        quantize=fields.string("quantize") or fields.string("quantization"),
        draft_quantize=fields.string("draft_quantize"),
        template=template,
        system=fields.string("system") or legacy.system,
        renderer=fields.string("renderer") or legacy.renderer,
        parser=fields.string("parser") or legacy.parser,
        requires=requires,
        licenses=(*legacy.licenses, *_licenses(fields)),
        parameters={**legacy.parameters, **_parameters(fields.object("parameters"))},
        messages=_messages(fields) or legacy.messages,
        info=_info(fields.object("info")),
    )


def _name(text: str) -> ModelName | None:
    return read_reference(text)


def _blobs(fields: Fields, field: str) -> tuple[tuple[str, str], ...]:
    """Names of files and digests of their blobs, in order of name."""
    pairs = []
    for name, digest in fields.object(field).values.items():
        if not isinstance(digest, str):
            raise BadRequestError("invalid digest format")
        if not name or name.startswith(("/", "~")) or ".." in name.split("/") or "\\" in name:
            raise BadRequestError("file path must be relative")
        pairs.append((name, str(read_digest(digest))))
    if fields.values.get(field) == {}:
        raise BadRequestError("no files provided to convert")
    return tuple(sorted(pairs))


def _licenses(fields: Fields) -> tuple[str, ...]:
    """A text, or a list of texts."""
    value = fields.values.get("license")
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRequestError("license: expected string or array of strings")
    return tuple(text for text in texts if text)


def _parameters(fields: Fields) -> dict[str, Any]:
    """Options that have an effect, of the right type and in range; others of Ollama's are dropped.

    Raises:
        BadRequestError: unknown, of the wrong type, or out of range.
    """
    values = {name: value for name, value in fields.values.items() if value is not None}
    if isinstance(values.get("stop"), str):
        values["stop"] = [values["stop"]]
    kept = {}
    for name, value in values.items():
        if name in DEPRECATED_PARAMETERS and name not in OPTIONS:
            continue
        if name not in OPTIONS and name not in UNUSED:
            raise BadRequestError(f"unknown parameter '{name}'")
        kept[name] = value
    resolve_options({}, kept)
    integers = {name for name, rule in OPTIONS.items() if rule.kind == "integer"}
    return {name: int(value) if name in integers else value for name, value in kept.items()}


def _messages(fields: Fields) -> tuple[tuple[str, str], ...]:
    messages = []
    for message in fields.objects("messages"):
        role = message.string("role")
        if role not in ROLES:
            raise BadRequestError('message role must be one of "system", "user", or "assistant"')
        messages.append((role, message.string("content")))
    return tuple(messages)


def _info(fields: Fields) -> dict[str, Any]:
    """What to show instead of what the weights say; unknown fields are ignored."""
    info: dict[str, Any] = {}
    for name in INFO_TEXTS:
        value = fields.values.get(name)
        if value is None:
            continue
        if not isinstance(value, str):
            raise BadRequestError(f'info field "{name}" must be a string')
        info[name] = value
    for name in INFO_NUMBERS:
        value = fields.values.get(name)
        if value is None:
            continue
        whole = whole_number(value)
        if whole is None or whole < 0:
            raise BadRequestError(f'info field "{name}" must be a non-negative integer')
        info[name] = whole
    return info


def _referred(instruction: str, values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Blobs that a Modelfile text names; raises as `_legacy`."""
    pairs = []
    for value in values:
        match = _BLOB_REFERENCE.fullmatch(value)
        if match is None:
            raise BadRequestError(f"{instruction} {value}: expected @sha256:DIGEST, found a path")
        pairs.append((f"{match[1].lower()}.gguf", f"sha256:{match[1].lower()}"))
    return tuple(pairs)


def _legacy(name: str, text: str) -> CreateRequest:
    """What a Modelfile text says; it can name models and blobs, but no files.

    Raises:
        BadRequestError: it is malformed, or names a file.
    """
    if not text:
        return CreateRequest(name=name)
    try:
        read = modelfile.parse(text)
    except (ModelfileError, FormatError) as error:
        raise BadRequestError(str(error)) from error
    base, files = "", []
    for value in read.from_:
        match = _BLOB_REFERENCE.fullmatch(value)
        if match:
            files.append((f"{match[1].lower()}.gguf", f"sha256:{match[1].lower()}"))
        elif _name(value) is None or value.startswith((".", "/", "~")):
            raise BadRequestError(f"FROM {value}: expected a model or @sha256:DIGEST, found a path")
        else:
            base = value
    return CreateRequest(
        name=name,
        base=base,
        files=tuple(files),
        adapters=_referred("ADAPTER", read.adapters[-1:]),
        drafts=_referred("DRAFT", read.drafts[-1:]),
        template=read.template,
        system=read.system,
        renderer=read.renderer,
        parser=read.parser,
        requires=read.requires,
        licenses=read.licenses,
        parameters=_parameters(Fields(values=read.parameter_object(), at="parameters")),
        messages=read.messages,
    )
