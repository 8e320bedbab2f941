"""A model of an Ollama store on this computer. Nothing is ever written there.

A store has no checks of its own after a download, so every file the model uses is read and
hashed here, and everything wrong is told at once, file by file, with what to do about it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from bundler.errors import PackError, SourceDamagedError
from bundler.format.carried import can_carry
from bundler.format.digest import Digest
from bundler.format.errors import ModelNameError
from bundler.format.manifest import Role, Source
from bundler.format.name import ModelName
from bundler.progress import Progress
from bundler.source.image import Image, Layer, parse_image
from bundler.source.layouts import check_layout, layout_warnings
from bundler.source.material import Material, OllamaImage
from hwprobe.errors import GgufError
from hwprobe.gguf import read_header

_MAX_SMALL_BYTES: Final = 16 << 20
_READ_BYTES: Final = 4 << 20
_SERVICE_STORE: Final = Path("/usr/share/ollama/.ollama/models")
"""Where the Linux service keeps its store: the home of its user ``ollama``."""


def default_stores(environ: Mapping[str, str], home: Path) -> tuple[Path, ...]:
    """Where Ollama would look on this computer, likeliest first.

    Args:
        environ: ``OLLAMA_MODELS`` alone counts when it is set.
        home: the user's home directory; the same place on Linux and macOS.
    """
    if chosen := environ.get("OLLAMA_MODELS", "").strip():
        return (Path(chosen),)
    return (home / ".ollama" / "models", _SERVICE_STORE)


def open_ollama(name: ModelName, stores: tuple[Path, ...], progress: Progress) -> Material:
    """Find a model, check every file of it, and give what is to be packed.

    Args:
        name: as Ollama knows it.
        stores: directories that hold ``manifests`` and ``blobs``; the first with the model counts.
        progress: hashing is shown.

    Raises:
        SourceDamagedError: files are missing, cut off or changed; the message names each.
        ForeignLayoutError: the weights are in a layout only Ollama's engine reads.
        PackError: no such model, or one that cannot be packed.
    """
    path = _find(name, stores)
    data = _read_manifest(path, name)
    store = path.parents[4]
    image = parse_image(data, str(path))
    blobs = _Blobs(store / "blobs", name)
    files = blobs.check(image, progress)
    return image_material(
        image,
        files,
        origin=Source(
            uri=f"ollama:{name.full()}",
            revision=str(Digest.of(data)),
            digest=image.weights.digest,
        ),
        name=name,
    )


def image_material(
    image: Image, files: Mapping[Digest, Path], *, origin: Source, name: ModelName | None
) -> Material:
    """Material of an image whose files were checked.

    Args:
        image: the parsed manifest.
        files: path by digest; only a missing config is tolerated.
        origin: for the statement.
        name: what the model is called, if that is a model name.

    Raises:
        ForeignLayoutError: the weights are in a layout only Ollama's engine reads.
        PackError: a small file is not what its layer says.
    """
    warnings = list(image.warnings)
    weights = files[image.weights.digest]
    try:
        header = read_header(weights)
    except GgufError as error:
        raise PackError(
            f"{origin.uri}: the model layer is no GGUF file: {error}",
            hint="only GGUF models can be packed; MLX ones cannot",
        ) from error
    check_layout(header, origin.uri)
    warnings += layout_warnings(header)
    config = _config(image, files, warnings) if image.is_ollama else None
    layers = tuple(_small_layers(image, files))
    kept = None
    if config is not None and image.is_plain and can_carry(image.data, config):
        kept = OllamaImage(manifest=image.data, config=config)
    elif image.is_ollama:
        warnings.append("the model gets another id on the target; its files keep their digests")
    projector = image.one("projector")
    return Material(
        weights=weights,
        origin=origin,
        name=name,
        layers=layers,
        projector=files[projector.digest] if projector else None,
        adapters=tuple(files[layer.digest] for layer in image.every("adapter")),
        image=kept,
        warnings=tuple(warnings),
    )


def _config(image: Image, files: Mapping[Digest, Path], warnings: list[str]) -> bytes | None:
    """The config blob; ``None`` with a warning when it is not there or no JSON object."""
    if image.config is None or image.config.digest not in files:
        warnings.append("the config blob is missing; sizes and family are told by the GGUF header")
        return None
    data = files[image.config.digest].read_bytes()
    try:
        values: Any = json.loads(data)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        warnings.append("the config blob is no JSON object and is left out")
        return None
    if renderer := values.get("renderer"):
        warnings.append(
            f"prompts of this model are made by Ollama's built-in renderer {renderer}; "
            "here the model's own chat template makes them"
        )
    return data


def _small_layers(image: Image, files: Mapping[Digest, Path]) -> Iterator[tuple[Role, bytes]]:
    """Template, system, params, messages, licences: of each but the last the last one counts."""
    chosen: list[tuple[Role, tuple[Layer, ...]]] = [
        ("template", image.last("template", "prompt")),
        ("system", image.last("system")),
        ("params", image.every("params")),
        ("messages", image.last("messages")),
        ("license", image.every("license")),
    ]
    for role, layers in chosen:
        texts = [_text(files[layer.digest], role) for layer in layers]
        if role == "params" and len(texts) > 1:
            texts = [_merged(texts)]
        yield from ((role, text) for text in dict.fromkeys(texts))


def _text(path: Path, role: Role) -> bytes:
    data = path.read_bytes()
    try:
        value = json.loads(data) if role in ("params", "messages") else data.decode()
    except (ValueError, RecursionError) as error:
        expected = "JSON" if role in ("params", "messages") else "UTF-8 text"
        raise PackError(f"{path}: {role} layer: expected {expected}, found something else") from (
            error
        )
    if role == "params" and not isinstance(value, dict):
        raise PackError(f"{path}: params layer: expected a JSON object, found something else")
    return data


def _merged(texts: list[bytes]) -> bytes:
    """Several params layers as one; a later one wins, as in Ollama."""
    merged: dict[str, Any] = {}
    for text in texts:
        merged.update(json.loads(text))
    return json.dumps(merged, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def _find(name: ModelName, stores: tuple[Path, ...]) -> Path:
    """The manifest file of a name; case does not count where there is no exact match."""
    for store in stores:
        exact = store.joinpath("manifests", *name.parts())
        if exact.is_file():
            return exact
        place: Path | None = store / "manifests"
        for part in name.parts():
            place = _entry(place, part) if place else None
        if place is not None and place.is_file():
            return place
    shown = ", ".join(map(str, stores)) or "nowhere"
    there = sorted({found for store in stores for found in list_ollama(store)})
    raise PackError(
        f"ollama: no model {name.short()} in {shown}",
        hint=f"there are: {', '.join(there[:12])}"
        if there
        else "name the store with --store DIR; the service's own needs its user's rights",
    )


def _entry(place: Path, part: str) -> Path | None:
    try:
        entries = sorted(place.iterdir())
    except OSError:
        return None
    return next((one for one in entries if one.name.casefold() == part.casefold()), None)


def list_ollama(store: Path) -> tuple[str, ...]:
    """Short names of all models of a store; what is no model name is passed over."""
    names = []
    for path in sorted((store / "manifests").glob("*/*/*/*")):
        host, namespace, model, tag = path.parts[-4:]
        try:
            found = ModelName(host=host, namespace=namespace, model=model, tag=tag)
        except ModelNameError:
            continue  # other files lie about in stores
        if path.is_file():
            names.append(found.short())
    return tuple(names)


def _read_manifest(path: Path, name: ModelName) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1 << 20)
    except OSError as error:
        raise SourceDamagedError(
            f"{path}: {(error.strerror or 'unreadable').lower()}",
            hint=f"read it as the user Ollama runs as, or fetch it again: ollama pull {name}",
        ) from error


class _Blobs:
    """The directory ``blobs`` of a store, in any of the spellings Ollama has used."""

    def __init__(self, directory: Path, name: ModelName) -> None:
        self._directory = directory
        self._name = name
        try:
            self._names = {entry.name.casefold(): entry.name for entry in directory.iterdir()}
        except OSError as error:
            raise SourceDamagedError(
                f"{directory}: {(error.strerror or 'unreadable').lower()}",
                hint="a store holds the directories manifests and blobs; see --store",
            ) from error

    def check(self, image: Image, progress: Progress) -> dict[Digest, Path]:
        """Hash every file the image uses; path by digest.

        Raises:
            SourceDamagedError: with every file that is not as the manifest says.
        """
        parts = {part.digest: part for part in image.parts}
        faults: list[str] = []
        remedies: dict[str, None] = {}
        found: dict[Digest, Path] = {}
        with progress.stage(
            "reading source", sum(part.size_bytes for part in parts.values())
        ) as advance:
            for part in parts.values():
                path = self._path(part.digest)
                fault = self._fault(part, path, advance)
                if fault is None and path is not None:
                    found[part.digest] = path
                elif part is not image.config or path is not None:
                    faults.append(f"{part.kind} sha256-{part.digest.short()}: {fault}")
                    remedies[self._remedy(path)] = None
        if faults:
            raise SourceDamagedError(
                f"ollama:{self._name}: {len(faults)} of {len(parts)} files are damaged: "
                + "; ".join(faults),
                hint="; ".join(remedies),
            )
        return found

    def _path(self, digest: Digest) -> Path | None:
        for spelling in (f"sha256-{digest.hex}", f"sha256:{digest.hex}"):
            if spelling in self._names:
                return self._directory / self._names[spelling]
        return None

    def _fault(self, part: Layer, path: Path | None, advance: Any) -> str | None:
        """What is wrong with a file, or ``None``."""
        if path is None:
            partial = any(
                name.startswith(f"sha256-{part.digest.hex}-partial") for name in self._names
            )
            return "missing; its download was interrupted" if partial else "missing"
        try:
            size_bytes = path.stat().st_size
            if size_bytes != part.size_bytes:
                return f"{size_bytes} bytes where {part.size_bytes} are expected"
            found = _hash(path, advance)
        except OSError as error:
            return (error.strerror or "unreadable").lower()
        if found != part.digest:
            return "the bytes are not those of its name"
        if part.is_small and size_bytes > _MAX_SMALL_BYTES:
            return f"{size_bytes} bytes are too many for a {part.kind} layer"
        return None

    def _remedy(self, path: Path | None) -> str:
        if path is None:
            return f"ollama pull {self._name} fetches what is missing"
        # Ollama believes a blob that is there: pulling alone would not replace it.
        return f"remove {path}, then: ollama pull {self._name}"


def _hash(path: Path, advance: Any) -> Digest:
    hasher = hashlib.sha256()
    buffer = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while got := file.readinto(buffer):
            hasher.update(buffer[:got])
            advance(got)
    return Digest(hasher.hexdigest())
