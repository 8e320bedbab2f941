"""The read half of the store: names to models.

Readers need no lock: blobs never change, and a name changes by one rename. Whatever cannot be
read is reported with its path and never stops the rest.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import (
    AppError,
    ModelMissingError,
    StoreAccessError,
    StoreCorruptError,
    store_io,
)
from appliance.layout import Paths
from appliance.model import (
    MAX_MANIFEST_BYTES,
    MAX_TEXT_BYTES,
    Image,
    InstalledModel,
    Origin,
    Provenance,
    parse_config,
    parse_image,
    parse_messages,
    parse_origin,
    parse_parameters,
)
from bundler.format.digest import Descriptor, Digest
from bundler.format.errors import FormatError
from bundler.format.name import ModelName

_LEVELS = 4
"""Host, namespace, model, tag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFault:
    """Something in the store that is not usable: where, and why in one line."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Everything the store holds: usable models, newest first, and what is not usable."""

    models: tuple[InstalledModel, ...]
    faults: tuple[StoreFault, ...]


class Catalogue:
    """The models below one root, read-only; the root need not exist yet."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths

    def survey(self) -> Survey:
        """Read every manifest.

        Raises:
            StoreAccessError: the manifests' directory itself cannot be listed.
        """
        models, faults = [], []
        for name in self.names():
            path = self.paths.reference(name)
            try:
                models.append(self._load(name))
            except ModelMissingError:
                continue  # removed since it was listed
            except AppError as error:
                faults.append(StoreFault(path=path, reason=str(error)))
        models.sort(key=lambda model: (-model.modified_at_s, model.name.full()))
        return Survey(models=tuple(models), faults=tuple(faults))

    def list(self) -> tuple[InstalledModel, ...]:
        """Every usable model, newest first; `survey` also tells what is not usable."""
        return self.survey().models

    def origins(self) -> tuple[Provenance, ...]:
        """Where the usable models came from, and removed ones whose bundle is not counted yet."""
        found = [model.provenance for model in self.list()]
        found += [_origin(path).provenance for path in self.paths.all_uncounted()]
        return tuple(origin for origin in found if origin is not None)

    def names(self) -> tuple[ModelName, ...]:
        """Every name that has a manifest file, readable or not, in order.

        Files whose path is no model name (``.DS_Store``) are passed over.

        Raises:
            StoreAccessError: a directory cannot be listed.
        """
        with store_io("list the models"):
            found = sorted(_walk(self.paths.manifests, _LEVELS))
        names = []
        for host, namespace, model, tag in found:
            with contextlib.suppress(FormatError):
                names.append(ModelName(host=host, namespace=namespace, model=model, tag=tag))
        return tuple(names)

    def resolve(self, name: ModelName) -> InstalledModel:
        """The model of this name, whatever its case.

        Raises:
            ModelMissingError: there is none.
            StoreCorruptError: its manifest or a file of it is damaged or missing.
            StoreAccessError: they cannot be read.
        """
        with store_io(f"look for {name.short()}"):
            is_here = self.paths.reference(name).is_file()
        if is_here:
            return self._load(name)
        wanted = name.folded()
        for existing in self.names():
            if existing.folded() == wanted:
                return self._load(existing)
        raise ModelMissingError(f"model '{name.short()}' not found")

    def canonical(self, name: ModelName) -> ModelName:
        """The spelling a new name takes: each part as an existing name already spells it."""
        existing = self.names()
        if name in existing:
            return name
        for other in existing:
            if other.folded() == name.folded():
                return other
        parts = []
        for index, part in enumerate(name.parts()):
            spellings = [other.parts()[index] for other in existing]
            same = [text for text in spellings if text.casefold() == part.casefold()]
            parts.append(part if part in same or not same else same[0])
        host, namespace, model, tag = parts
        return ModelName(host=host, namespace=namespace, model=model, tag=tag)

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether a blob of this name and size is there; its bytes are not read."""
        try:
            return self.paths.blob(descriptor.digest).stat().st_size == descriptor.size_bytes
        except OSError:
            return False

    def manifest(self, name: ModelName) -> bytes:
        """The manifest file of a name in exactly this spelling.

        Raises:
            ModelMissingError: there is none.
            StoreAccessError: it cannot be read.
            StoreCorruptError: it is too large to be one.
        """
        try:
            return _read(self.paths.reference(name), MAX_MANIFEST_BYTES)
        except FileNotFoundError as error:
            raise ModelMissingError(f"model '{name.short()}' not found") from error

    def parts(self, name: ModelName) -> tuple[Descriptor, ...]:
        """Every file of a model in exactly this spelling, each once; raises as `manifest`."""
        parts = parse_image(self.manifest(name)).parts
        return tuple({part.digest: part for part in parts}.values())

    def _load(self, name: ModelName) -> InstalledModel:
        data = self.manifest(name)
        image = parse_image(data)
        for part in image.parts:
            self._check(part)
        digest = Digest.of(data)
        model = image.of("model")[-1]
        with store_io(f"read the manifest of {name.short()}"):
            modified_at_s = self.paths.reference(name).stat().st_mtime
        origin = self.origin(digest)
        template = self._texts(image, "template") or self._texts(image, "prompt")
        system = self._texts(image, "system")
        messages = self._texts(image, "messages")
        return InstalledModel(
            name=name,
            digest=digest,
            size_bytes=image.size_bytes,
            modified_at_s=modified_at_s,
            model_path=self.paths.blob(model.digest),
            model_digest=model.digest,
            template=_decode(template[-1]) if template else None,
            system=_decode(system[-1]) if system else "",
            parameters=parse_parameters(self._texts(image, "params")),
            licenses=tuple(_decode(text) for text in self._texts(image, "license")),
            messages=parse_messages(messages[-1]) if messages else (),
            adapters=self._files(image, "adapter"),
            projectors=self._files(image, "projector"),
            drafts=self._files(image, "draft"),
            config=parse_config(self._text(image.config)) if image.config else {},
            provenance=origin.provenance,
            creation=origin.creation,
        )

    def _check(self, part: Descriptor) -> None:
        path = self.paths.blob(part.digest)
        try:
            found = path.stat().st_size
        except FileNotFoundError as error:
            raise StoreCorruptError(
                f"blob {path.name} is missing", hint="import the model again, or remove it"
            ) from error
        except OSError as error:
            raise StoreAccessError(f"blob {path.name}: {error.strerror}") from error
        if found != part.size_bytes:
            raise StoreCorruptError(
                f"blob {path.name}: expected {part.size_bytes} bytes, found {found}",
                hint="import the model again, or remove it",
            )

    def _text(self, part: Descriptor) -> bytes:
        try:
            return _read(self.paths.blob(part.digest), MAX_TEXT_BYTES)
        except FileNotFoundError as error:
            raise StoreCorruptError(f"blob {part.digest.short()} is missing") from error

    def _texts(self, image: Image, kind: str) -> tuple[bytes, ...]:
        return tuple(self._text(part) for part in image.of(kind))

    def _files(self, image: Image, kind: str) -> tuple[Path, ...]:
        return tuple(self.paths.blob(part.digest) for part in image.of(kind))

    def origin(self, digest: Digest) -> Origin:
        """Where the model with this manifest came from.

        A damaged record of origin is no reason not to serve the model: it counts as none.
        """
        return _origin(self.paths.provenance(digest))


def _origin(path: Path) -> Origin:
    try:
        return parse_origin(_read(path, MAX_MANIFEST_BYTES))
    except (OSError, AppError):
        return Origin()


def _walk(directory: Path, levels: int) -> Iterator[tuple[str, ...]]:
    """Path components of every file exactly ``levels`` below; links are followed, as Ollama does.

    Raises:
        OSError: a directory cannot be listed.
    """
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except FileNotFoundError:
        return  # no store yet, or removed since it was listed
    for entry in entries:
        if levels == 1:
            if entry.is_file():
                yield (entry.name,)
        elif entry.is_dir():
            for rest in _walk(Path(entry.path), levels - 1):
                yield (entry.name, *rest)


def _read(path: Path, max_bytes: int) -> bytes:
    """A whole small file of the store.

    Raises:
        FileNotFoundError: there is none.
        StoreAccessError: it cannot be read.
        StoreCorruptError: it is larger than ``max_bytes``.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = (error.strerror or "unknown error").lower()
        raise StoreAccessError(f"{path}: cannot be read: {reason}") from error
    if len(data) > max_bytes:
        raise StoreCorruptError(f"{path}: expected at most {max_bytes} bytes, found more")
    return data


def _decode(text: bytes) -> str:
    """Texts of other tools may hold any bytes; what is not UTF-8 shows as a replacement mark."""
    return text.decode("utf-8", errors="replace")
