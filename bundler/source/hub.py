"""A model of Hugging Face. Owner of the package ``huggingface_hub``, which downloads and caches.

A name is resolved to a commit first; everything after is of that commit. The token is the
library's affair: its variable or its login, never an argument.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from bundler.errors import PackError, SourceDamagedError
from bundler.format.manifest import Source
from bundler.hashing import source_digest
from bundler.progress import Progress
from bundler.source.licences import is_licence, licence_layers
from bundler.source.local import open_directory, open_path
from bundler.source.material import Material
from bundler.source.reference import HubReference
from bundler.source.split import merged_name, shard_names

_USUAL: Final = "Q4_K_M"
"""What llama.cpp and Ollama take when nothing is named."""
_PROJECTORS: Final = ("f16", "bf16", "f32", "q8_0")
_CHECKPOINT: Final = re.compile(
    r"(?:config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens)\.json"
    r"|tokenizer\.model|chat_template\.jinja|1_Pooling/config\.json"
    r"|model(?:-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """One file of a repository; ``sha256`` is empty for small ones, which the hub names otherwise.

    Attributes:
        name: its path in the repository.
        size_bytes: as the hub says; 0 when it does not.
        sha256: of its bytes.
    """

    name: str
    size_bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubChoice:
    """What is downloaded: the model's files, and beside them projector and licences."""

    model: tuple[HubFile, ...]
    projector: HubFile | None = None
    licences: tuple[HubFile, ...] = ()
    is_checkpoint: bool = False

    @property
    def files(self) -> tuple[HubFile, ...]:
        """All of them."""
        projector = () if self.projector is None else (self.projector,)
        return (*self.model, *projector, *self.licences)


def choose_files(files: Sequence[HubFile], quantization: str, called: str) -> HubChoice:
    """Decide what of a repository makes a model. Pure.

    Args:
        files: everything in it.
        quantization: as asked for, or empty.
        called: the repository, for refusals.

    Raises:
        PackError: nothing fits, or several do and none was named.
    """
    licences = tuple(one for one in files if is_licence(one.name))
    ggufs = [one for one in files if one.name.lower().endswith(".gguf")]
    projectors = [one for one in ggufs if "mmproj" in one.name.lower()]
    models: dict[str, list[HubFile]] = {}
    for one in ggufs:
        if one not in projectors:
            models.setdefault(merged_name(one.name), []).append(one)
    if not models:
        return _checkpoint(files, licences, quantization, called)
    name = _named(sorted(models), quantization, called)
    shards = sorted(models[name], key=lambda one: one.name)
    missing = set(shard_names(shards[0].name)) - {one.name for one in shards}
    if missing:
        raise PackError(f"{called}: {name}: {len(missing)} shards are not in the repository")
    return HubChoice(model=tuple(shards), projector=_projector(projectors), licences=licences)


def _named(names: list[str], quantization: str, called: str) -> str:
    wanted = quantization or (_USUAL if len(names) > 1 else "")
    found = [name for name in names if not wanted or _has_word(name, wanted)]
    if len(found) == 1:
        return found[0]
    expected = f"one GGUF file of {quantization}" if quantization else "one GGUF file"
    raise PackError(
        f"{called}: expected {expected}, found {len(found) or 'none'} among {len(names)}",
        hint=f"name one with :QUANT; there are {', '.join((found or names)[:12])}",
    )


def _has_word(name: str, word: str) -> bool:
    """Whether a file name has this word between separators, whatever the case."""
    return bool(re.search(rf"(?:^|[-._/]){re.escape(word)}(?=[-./]|$)", name, re.IGNORECASE))


def _projector(found: list[HubFile]) -> HubFile | None:
    for kind in _PROJECTORS:
        if named := [one for one in found if _has_word(one.name, kind)]:
            return named[0]
    return found[0] if found else None


def _checkpoint(
    files: Sequence[HubFile], licences: tuple[HubFile, ...], quantization: str, called: str
) -> HubChoice:
    chosen = tuple(one for one in files if _CHECKPOINT.fullmatch(one.name))
    names = {one.name for one in chosen}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise PackError(
            f"{called}: expected GGUF files, or config.json with safetensors; found neither",
            hint="models in other formats are not packed",
        )
    if quantization:
        raise PackError(
            f"{called}: expected GGUF files to choose {quantization} from, found safetensors",
            hint=f"leave :{quantization} out and make it here: --quantize {quantization}",
        )
    return HubChoice(model=chosen, licences=licences, is_checkpoint=True)


def open_hub(reference: HubReference, work: Path, progress: Progress) -> Material:
    """Download a model, or take it from the library's cache, and check its digests.

    Raises:
        SourceDamagedError: the hub gives other bytes than it lists.
        PackError: the package is missing, the repository is not there or not open to this login.
    """
    hub = _library()
    called = f"hf:{reference.repository}"
    with _told(called):
        info = hub.HfApi().model_info(
            reference.repository, revision=reference.revision or None, files_metadata=True
        )
    files = [_file(one) for one in info.siblings or ()]
    choice = choose_files(files, reference.quantization, called)
    commit = str(info.sha)
    total = sum(one.size_bytes for one in choice.files)
    places: dict[str, Path] = {}
    with progress.stage("downloading", total) as advance:
        for one in choice.files:
            with _told(f"{called}: {one.name}"):
                path = hub.hf_hub_download(reference.repository, one.name, revision=commit)
            places[one.name] = Path(path)
            advance(one.size_bytes)
    _check_digests(choice.files, places, progress)
    first = choice.model[0]
    if choice.is_checkpoint:
        found = open_directory(places["config.json"].parent, work, progress)
        where = ""
    else:
        found = open_path(places[first.name], work, progress)
        beside = places[choice.licences[0].name].parent if choice.licences else None
        found = replace(found, layers=licence_layers(beside) if beside else ())
        where = f"/{merged_name(first.name)}"
    return replace(
        found,
        origin=Source(
            uri=f"hf://{reference.repository}{where}", revision=commit, digest=found.origin.digest
        ),
        name=reference.model_name,
        projector=places[choice.projector.name] if choice.projector else None,
    )


def _file(sibling: Any) -> HubFile:
    lfs = sibling.lfs
    return HubFile(
        name=str(sibling.rfilename),
        size_bytes=int(sibling.size or 0),
        sha256=str(lfs.sha256) if lfs is not None else "",
    )


def _check_digests(files: Sequence[HubFile], places: dict[str, Path], progress: Progress) -> None:
    for one in files:
        if one.sha256 and source_digest(places[one.name], progress).hex != one.sha256:
            raise SourceDamagedError(
                f"{places[one.name]}: other bytes than the hub lists for {one.name}",
                hint=f"remove {places[one.name].resolve()} and run the same command again",
            )


def _library() -> ModuleType:
    try:
        import huggingface_hub  # noqa: PLC0415 - connected side only
    except ImportError as error:
        raise PackError(
            "hf: the Python package huggingface_hub is not installed",
            hint="on the connected computer: pip install 'satchel[connected]'",
        ) from error
    return huggingface_hub


@contextlib.contextmanager
def _told(called: str) -> Iterator[None]:
    """The library's errors in our words."""
    from huggingface_hub import errors  # noqa: PLC0415 - see _library

    try:
        yield
    except errors.GatedRepoError as error:
        raise PackError(
            f"{called}: its owner lets in only who agreed to its terms",
            hint="agree on the model's page, then: hf auth login",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise PackError(
            f"{called}: no such repository, or it is private",
            hint="if it is private: hf auth login",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise PackError(f"{called}: no such revision", hint="see its commits and tags") from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise PackError(
            f"{called}: {first[:300]}",
            hint="what was downloaded is kept; run the same command again to go on",
        ) from error
    except Exception as error:
        # The library passes on the errors of its HTTP client, whichever that is.
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "hf_xet"):
            raise
        raise PackError(
            f"{called}: {type(error).__name__}: {error}", hint="is the hub reachable?"
        ) from error
