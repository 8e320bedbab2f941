"""A model that stands on disk as one GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bundler.errors import PackError
from bundler.format.cutting import Cut, cut_gguf
from bundler.format.digest import Digest
from bundler.format.manifest import GgufFacts
from hwprobe.gguf import GgufHeader, ModelProfile, model_profile, read_header


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """A GGUF file whose header was read and accepted.

    Attributes:
        path: where it stands.
        profile: what placement needs to know.
        facts: what a statement says of it.
        cuts: where it is cut into chunks.
    """

    path: Path
    profile: ModelProfile
    facts: GgufFacts
    cuts: tuple[Cut, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Companion:
    """A GGUF file beside a model's weights: a projector, a draft model or an adapter."""

    path: Path
    facts: GgufFacts
    cuts: tuple[Cut, ...]


def open_companion(path: Path) -> Companion:
    """Read the header of a projector, a draft model or an adapter.

    Raises:
        GgufError: it is no GGUF file.
        PackError: it cannot be read.
    """
    header, head = _read(path)
    return Companion(path=path, facts=_facts(header, head), cuts=cut_gguf(header))


def open_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file.

    Raises:
        GgufError: it is no language model in GGUF.
        PackError: it cannot be read.
    """
    header, head = _read(path)
    return GgufFile(
        path=path,
        profile=model_profile(header),
        facts=_facts(header, head),
        cuts=cut_gguf(header),
    )


def _read(path: Path) -> tuple[GgufHeader, bytes]:
    """The header, and the bytes before the tensor data."""
    try:
        header = read_header(path)
        with path.open("rb") as file:
            return header, file.read(header.data_offset_bytes)
    except OSError as error:
        raise PackError(f"{path}: {(error.strerror or 'unreadable').lower()}") from error


def _facts(header: GgufHeader, head: bytes) -> GgufFacts:
    return GgufFacts(
        tensors=len(header.tensors),
        metadata_digest=Digest.of(head),
        architecture=header.string("general.architecture"),
    )
