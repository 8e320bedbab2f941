"""A model that stands on disk as one GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bundler.cutting import Cut, cut_gguf
from bundler.errors import PackError
from bundler.format.digest import Digest
from bundler.format.manifest import GgufFacts
from hwprobe.gguf import ModelProfile, model_profile, read_header


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


def open_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file.

    Raises:
        GgufError: it is no language model in GGUF.
        PackError: it cannot be read.
    """
    try:
        header = read_header(path)
        profile = model_profile(header)
        with path.open("rb") as file:
            head = file.read(header.data_offset_bytes)
    except OSError as error:
        raise PackError(f"{path}: {(error.strerror or 'unreadable').lower()}") from error
    return GgufFile(
        path=path,
        profile=profile,
        facts=GgufFacts(
            tensors=len(header.tensors),
            metadata_digest=Digest.of(head),
            architecture=profile.architecture,
        ),
        cuts=cut_gguf(header),
    )
