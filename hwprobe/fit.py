"""Find the candidates that a path stands for: a GGUF file, a directory of them, or a bundle.

This package does not know bundles. Whoever does registers a function under the entry point group
`FIT_SOURCES`; it gets the directory and returns its candidates, or raises a `ProbeError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

from hwprobe.draft import check_draft, drafted
from hwprobe.errors import ProbeError
from hwprobe.gguf import model_profile, read_header
from hwprobe.machine import Machine
from hwprobe.placement import place
from hwprobe.verdict import Candidate, Placement, Wish

FIT_SOURCES: Final = "satchel.fit_sources"
"""Entry point group; each entry is a `FitSource`."""

FitSource = Callable[[Path], Sequence[Candidate]]
"""Candidates of the bundle in a directory. Raises `ProbeError` with a line for a person."""

_BUNDLE_MARKS: Final = ("bundle.dsse.json", "satchel")


def candidates_at(path: Path) -> tuple[Candidate, ...]:
    """The candidates in a file or directory; at least one.

    Raises:
        GgufError: a file is no usable GGUF.
        ProbeError: there is nothing to choose from.
        OSError: a file cannot be read.
    """
    if not path.is_dir():
        return (_candidate(path),)
    if any((path / mark).exists() for mark in _BUNDLE_MARKS):
        return _from_bundle(path)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf")
    if not files:
        raise ProbeError(
            f"{path} holds neither a bundle nor a .gguf file",
            hint="name a GGUF file, a directory of them, or a bundle",
        )
    return tuple(_candidate(file) for file in files)


def drafted_candidate(path: Path, draft: Path) -> Candidate:
    """The model in a file with a draft model beside it.

    Raises:
        DraftError: they do not go together.
        GgufError: a file is no usable GGUF.
        ProbeError: it is no file.
        OSError: a file cannot be read.
    """
    if path.is_dir():
        raise ProbeError("draft: expected one GGUF file to go with, found a directory")
    model, small = read_header(path), read_header(draft)
    check_draft(small, model)
    return Candidate(variant=path.stem, profile=drafted(model_profile(model), small))


def fit_candidates(
    machine: Machine,
    candidates: Sequence[Candidate],
    wish: Wish,
    *,
    reserved_bytes: Mapping[str, int] | None = None,
) -> Placement:
    """`hwprobe.placement.place`, under the name of the command.

    Raises:
        DoesNotFitError: none of them fits.
    """
    return place(machine, candidates, wish, reserved_bytes=reserved_bytes)


def _candidate(file: Path) -> Candidate:
    return Candidate(variant=file.stem, profile=model_profile(read_header(file)))


def _from_bundle(path: Path) -> tuple[Candidate, ...]:
    sources = sorted(entry_points(group=FIT_SOURCES), key=lambda entry: entry.name)
    if not sources:
        raise ProbeError(
            f"{path} is a bundle, and nothing installed here reads bundles",
            hint=f"an installation of satchel registers one under {FIT_SOURCES}",
        )
    source: FitSource = sources[0].load()
    candidates = tuple(source(path))
    if not candidates:
        raise ProbeError(f"{path} is a bundle without a model")
    return candidates
