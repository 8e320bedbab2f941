"""A model that stands on this computer: a GGUF file, shards of one, or safetensors."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from bundler.convert.adapter import convert_adapter, is_adapter
from bundler.convert.directory import CONFIG, convert_directory, is_checkpoint
from bundler.errors import PackError
from bundler.format.manifest import Source
from bundler.hashing import source_digest
from bundler.progress import Progress
from bundler.source.layouts import check_layout, layout_warnings
from bundler.source.licences import licence_layers
from bundler.source.material import Material
from bundler.source.split import merge, merged_name, read_shards
from hwprobe.gguf import read_header


def open_path(path: Path, work: Path, progress: Progress) -> Material:
    """A GGUF file, one shard of a split one, or a checkpoint's directory."""
    if path.is_dir():
        return open_directory(path, work, progress)
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


def open_directory(directory: Path, work: Path, progress: Progress) -> Material:
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


def open_adapter(path: Path, weights: Path, work: Path, progress: Progress) -> Path:
    """An adapter in GGUF as it is; one of PEFT's layout converted for these weights.

    Raises:
        PackError: it is neither, or not made for this model.
    """
    if not path.is_dir():
        return path
    if not is_adapter(path):
        raise PackError(f"{path}: expected an adapter in GGUF or of PEFT's layout, found neither")
    target = work / f"adapter-{len(list(work.iterdir()))}.gguf"
    convert_adapter(path, read_header(weights), target, progress)
    return target
