"""What a source gives the packer: files on this computer, and where they come from. A value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bundler.format.manifest import Source
from bundler.format.name import ModelName
from bundler.layers import Layers


@dataclass(frozen=True, slots=True, kw_only=True)
class OllamaImage:
    """An Ollama manifest and its config blob, byte for byte: a model's id is made of them."""

    manifest: bytes
    config: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """A model as it was found, ready to be packed.

    Attributes:
        weights: one GGUF file.
        origin: where it came from, for the statement.
        name: what it is called there, if that is a model name.
        layers: its small files.
        projector: a multimodal projector in GGUF, or ``None``.
        adapters: LoRA adapters in GGUF.
        image: what keeps its id on the target, or ``None``.
        warnings: what the packer should know, a line each.
    """

    weights: Path
    origin: Source
    name: ModelName | None = None
    layers: Layers = ()
    projector: Path | None = None
    adapters: tuple[Path, ...] = ()
    image: OllamaImage | None = None
    warnings: tuple[str, ...] = ()
