"""One door to every kind of source: from what the packer named to `Material`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from bundler.convert.directory import CONFIG, convert_directory, is_checkpoint
from bundler.errors import PackError
from bundler.format.manifest import Source
from bundler.progress import Progress
from bundler.recipe import source_digest
from bundler.source.layouts import check_layout, layout_warnings
from bundler.source.licences import licence_layers
from bundler.source.material import Material
from bundler.source.ollama_store import open_ollama
from bundler.source.reference import OllamaReference, Reference
from bundler.source.split import merge, merged_name, read_shards


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How sources are reached.

    Attributes:
        stores: Ollama stores, the first with the model counts.
        work: an empty directory for files that have to be made; the caller removes it.
    """

    stores: tuple[Path, ...]
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
    raise PackError(f"from: {named} is not read by this release")


def open_path(path: Path, work: Path, progress: Progress) -> Material:
    """A GGUF file, one shard of a split one, or a checkpoint's directory."""
    if path.is_dir():
        return open_checkpoint(path, work, progress)
    shards = read_shards(path)
    check_layout(shards[0].header, str(path))
    weights = path
    if len(shards) > 1:
        weights = work / "merged.gguf"
        merge(shards, weights, progress)
    return Material(
        weights=weights,
        origin=Source(
            # Of a path only the name goes into the statement: the rest is this computer's affair.
            uri=f"file:{quote(merged_name(path.name))}",
            revision="",
            digest=source_digest(weights, progress),
        ),
        warnings=layout_warnings(shards[0].header),
    )


def open_checkpoint(directory: Path, work: Path, progress: Progress) -> Material:
    """A directory of safetensors, tokenizer and configuration, converted to GGUF."""
    if not is_checkpoint(directory):
        raise PackError(
            f"{directory}: expected a GGUF file or a directory with {CONFIG}, found neither",
            hint="of a split GGUF file name one of the shards",
        )
    weights = work / "converted.gguf"
    made = convert_directory(directory, weights, progress)
    return Material(
        weights=weights,
        origin=Source(
            uri=f"file:{quote(directory.resolve().name)}/",
            revision="",
            digest=source_digest(weights, progress),
        ),
        layers=licence_layers(directory),
        warnings=made.warnings,
    )
