"""One door to every kind of source: from what the packer named to `Material`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bundler.progress import Progress
from bundler.source.hub import open_hub
from bundler.source.local import open_path
from bundler.source.material import Material
from bundler.source.ollama_store import open_ollama
from bundler.source.reference import OllamaReference, Reference, RegistryReference
from bundler.source.registry import Login, Registry
from bundler.source.registry_image import open_registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How sources are reached.

    Attributes:
        stores: Ollama stores, the first with the model counts.
        cache: keeps what was downloaded between runs.
        logins: of registries, by host.
        plain_http: registries are asked without TLS.
        work: an empty directory for files that have to be made; the caller removes it.
    """

    stores: tuple[Path, ...]
    cache: Path
    logins: Mapping[str, Login]
    plain_http: bool = False
    work: Path


def open_source(named: Path | Reference, access: Access, progress: Progress) -> Material:
    """Find a model and check what can be checked before it is packed.

    Raises:
        SourceDamagedError: files are missing, cut off or changed.
        ForeignLayoutError: the weights are in a layout that llama.cpp does not load.
        GgufError: a file is not the GGUF it claims to be.
        NoSpaceError: there is no room for what has to be made.
        PackError: there is no such model, or it cannot be packed.
    """
    if isinstance(named, OllamaReference):
        return open_ollama(named.name, access.stores, progress)
    if isinstance(named, Path):
        return open_path(named, access.work, progress)
    if isinstance(named, RegistryReference):
        login = access.logins.get(named.host)
        registry = Registry(named.host, plain_http=access.plain_http, login=login)
        return open_registry(named, registry, access.cache, access.work, progress)
    return open_hub(named, access.work, progress)
