"""From a Modelfile on this machine to a request that a server can carry out, and back.

The server reads no paths: files are hashed here and sent as blobs, and the request names digests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.errors import RequestError
from appliance.model import InstalledModel
from bundler.format.errors import FormatError
from bundler.format.modelfile import PARAMETERS, SEMVER, Modelfile, ParameterValue
from bundler.format.name import ModelName

_BLOB = re.compile(r"(?:@?sha256:|sha256-)([0-9a-f]{64})")
_NOT_GGUF = (".safetensors", ".bin", ".pth", ".pt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """What a Modelfile asks for.

    Attributes:
        base: a model's name, or empty.
        files: weights and projectors by the name they are sent under.
        adapters: LoRA adapters likewise.
        drafts: a draft model likewise.
        blobs: digests of files the server is expected to have, by name.
    """

    base: str
    files: Mapping[str, Path]
    adapters: Mapping[str, Path]
    blobs: Mapping[str, str]
    drafts: Mapping[str, Path] = field(default_factory=dict)
    draft_blobs: Mapping[str, str] = field(default_factory=dict)


def gather(modelfile: Modelfile, directory: Path) -> Gathered:
    """Find what FROM, ADAPTER and DRAFT name: files if they are there, else blobs and models.

    Args:
        modelfile: the file.
        directory: where it lies; relative paths start there.

    Raises:
        RequestError: a path has no weights, or a name is none.
    """
    base = ""
    files: list[Path] = []
    blobs: dict[str, str] = {}
    for value in modelfile.from_:
        path = _path(value, directory)
        match = _BLOB.fullmatch(value)
        if path.exists():
            files += _weights(path)
        elif match:
            blobs[f"{match[1]}.gguf"] = f"sha256:{match[1]}"
        else:
            base = _model(value)
    adapters = [
        one for value in modelfile.adapters[-1:] for one in _weights(_path(value, directory))
    ]
    drafts: list[Path] = []
    draft_blobs: dict[str, str] = {}
    for value in modelfile.drafts[-1:]:
        match = _BLOB.fullmatch(value)
        if match and not _path(value, directory).exists():
            draft_blobs[f"{match[1]}.gguf"] = f"sha256:{match[1]}"
        else:
            drafts += _weights(_path(value, directory))
    return Gathered(
        base=base,
        files=_named(files),
        adapters=_named(adapters),
        blobs=blobs,
        drafts=_named(drafts),
        draft_blobs=draft_blobs,
    )


def _path(value: str, directory: Path) -> Path:
    try:
        return directory / Path(value).expanduser()
    except RuntimeError:  # no such user
        return directory / value


def _model(value: str) -> str:
    if value.startswith((".", "/", "~")) or value.endswith(".gguf"):
        raise RequestError(f"FROM {value}: no such file")
    try:
        ModelName.parse(value)
    except FormatError as error:
        raise RequestError(
            f"FROM {value}: expected a file, a directory or a model, found none of them"
        ) from error
    return value


def _weights(path: Path) -> list[Path]:
    """A file, or the GGUF files of a directory."""
    if not path.exists():
        raise RequestError(f"{path}: no such file")
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.gguf"))
    for file in found:
        if not file.resolve().is_relative_to(path.resolve()):
            raise RequestError(f"insecure path: {file.name}")
    if not found:
        others = [file for file in path.iterdir() if file.suffix in _NOT_GGUF]
        hint = "convert it on a connected machine: satchel-bundle pack" if others else ""
        raise RequestError("no Modelfile or safetensors files found", hint=hint)
    return found


def _named(paths: Iterable[Path]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in paths:
        name = path.name
        while name in named:
            name = f"_{name}"
        named[name] = path
    return named


def request_of(
    modelfile: Modelfile,
    gathered: Gathered,
    digests: Mapping[Path, str],
    *,
    model: str,
    quantize: str,
    draft_quantize: str = "",
) -> dict[str, Any]:
    """The body of ``/api/create``.

    Args:
        modelfile: the file.
        gathered: what it names.
        digests: of every file, as sent.
        model: what the model is to be called.
        quantize: a quantization, or empty.
        draft_quantize: likewise, of the draft model.
    """
    body: dict[str, Any] = {
        "model": model,
        "from": gathered.base,
        "files": {name: digests[path] for name, path in gathered.files.items()}
        | dict(gathered.blobs),
        "adapters": {name: digests[path] for name, path in gathered.adapters.items()},
        "draft_files": {name: digests[path] for name, path in gathered.drafts.items()}
        | dict(gathered.draft_blobs),
        "quantize": quantize,
        "draft_quantize": draft_quantize,
        "template": modelfile.template,
        "system": modelfile.system,
        "renderer": modelfile.renderer,
        "parser": modelfile.parser,
        "requires": modelfile.requires,
        "license": list(modelfile.licenses),
        "parameters": modelfile.parameter_object(),
        "messages": [{"role": role, "content": text} for role, text in modelfile.messages],
    }
    return {name: value for name, value in body.items() if value}


def contents_of(model: InstalledModel, named: Callable[[Path], str]) -> Modelfile:
    """The model as a Modelfile that makes it again.

    Parameters that no Modelfile can hold are left out: ``logit_bias`` and mirostat.

    Args:
        model: the model.
        named: what FROM, ADAPTER and DRAFT say for a file.
    """
    requires = _config_text(model, "requires")
    return Modelfile(
        from_=tuple(named(path) for path in (model.model_path, *model.projectors)),
        adapters=tuple(named(path) for path in model.adapters),
        drafts=tuple(named(path) for path in model.drafts[:1]),
        parameters=tuple(_parameters(model.parameters)),
        template=model.template,
        system=model.system or None,
        licenses=tuple(text for text in model.licenses if text),
        messages=model.messages,
        renderer=_config_text(model, "renderer"),
        parser=_config_text(model, "parser"),
        requires=requires if requires and SEMVER.fullmatch(requires) else None,
    )


def _parameters(parameters: Mapping[str, Any]) -> Iterator[tuple[str, ParameterValue]]:
    for name, values in sorted(parameters.items()):
        for value in values if isinstance(values, list) else [values]:
            if name in PARAMETERS and isinstance(value, str | int | float):
                yield name, value


def _config_text(model: InstalledModel, key: str) -> str | None:
    value = model.config.get(key)
    return value if isinstance(value, str) and value else None
