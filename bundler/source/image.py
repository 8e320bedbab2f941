"""The manifest of an image, as Ollama's stores and OCI registries hold it. Pure.

Ollama's layers say by their media type what they are. Other tools push plain GGUF layers: the
CNCF's ModelPack with a media type of its own, ORAS with a file name in an annotation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bundler.errors import PackError, SourceDamagedError
from bundler.format.digest import Digest
from bundler.format.errors import DigestFormatError

OLLAMA_LAYER: Final = "application/vnd.ollama.image."
MANIFEST_TYPES: Final = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
)
INDEX_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_TITLE: Final = "org.opencontainers.image.title"
_FILE_PATHS: Final = (_TITLE, "org.cncf.model.filepath", "org.cnai.model.filepath")
_WEIGHTS: Final = (
    "application/vnd.cncf.model.weight.v1.raw",
    "application/vnd.cnai.model.weight.v1.raw",
    "application/vnd.docker.ai.gguf.v3",
    "application/vnd.gguf",
    "application/gguf",
)
"""Layers that are one bare file of weights. Source: ModelPack model-spec, Docker Model Runner."""
_PROJECTORS: Final = ("application/vnd.docker.ai.mmproj",)
_LICENCES: Final = (
    "application/vnd.docker.ai.license",
    "application/vnd.cncf.model.doc.v1.raw",
)
_USED: Final = (
    "model",
    "projector",
    "adapter",
    "template",
    "prompt",
    "system",
    "params",
    "messages",
    "license",
)
_SMALL: Final = ("template", "prompt", "system", "params", "messages", "license", "config")
_SINGLE: Final = ("model", "projector", "template", "prompt", "system", "params", "messages")
_MAX_PARTS: Final = 1_024
_MAX_BYTES: Final = 4 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One file of an image.

    Attributes:
        kind: ``model``, ``projector``, ``license`` and so on; ``config``; or the media type.
        digest: of its bytes, and ``size_bytes`` how many there are.
        title: its file name, where one is given.
    """

    kind: str
    digest: Digest
    size_bytes: int
    title: str = ""

    @property
    def is_small(self) -> bool:
        """Whether it is held in memory when packed."""
        return self.kind in _SMALL


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A parsed manifest.

    Attributes:
        data: its bytes.
        config: the config blob, if there is one.
        layers: those a bundle can carry, in order.
        is_ollama: every layer has one of Ollama's media types.
        is_plain: Ollama's, and every layer is carried as it is: the id can be kept.
        warnings: what is left out.
    """

    data: bytes
    config: Layer | None
    layers: tuple[Layer, ...]
    is_ollama: bool
    is_plain: bool
    warnings: tuple[str, ...] = ()

    @property
    def weights(self) -> Layer:
        """The last layer of kind ``model``: Ollama uses that one."""
        return self.every("model")[-1]

    @property
    def parts(self) -> tuple[Layer, ...]:
        """Every file that is needed."""
        config = () if self.config is None else (self.config,)
        return (*config, *self.layers)

    def every(self, kind: str) -> tuple[Layer, ...]:
        """All layers of a kind."""
        return tuple(layer for layer in self.layers if layer.kind == kind)

    def one(self, kind: str) -> Layer | None:
        """The first layer of a kind: Ollama uses only the first projector."""
        return next(iter(self.every(kind)), None)

    def last(self, *kinds: str) -> tuple[Layer, ...]:
        """The last layer of these kinds, as a tuple of at most one."""
        return tuple(layer for layer in self.layers if layer.kind in kinds)[-1:]


def parse_image(data: bytes, called: str) -> Image:
    """Read a manifest; unknown members are ignored, as other tools write such.

    Args:
        data: the manifest's bytes.
        called: where they are from, for refusals.

    Raises:
        SourceDamagedError: it is no manifest.
        PackError: it is one, but of no GGUF model.
    """
    try:
        value = json.loads(data)
        config = _layer(value["config"], "config") if value.get("config") else None
        listed = value["layers"]
        layers = [_layer(one) for one in listed[:_MAX_PARTS]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceDamagedError(
            f"{called}: not a model manifest: {type(error).__name__}: {error}",
            hint="it was cut off or overwritten; fetch the model again",
        ) from error
    except DigestFormatError as error:
        raise SourceDamagedError(f"{called}: {error}") from error
    used = tuple(layer for layer in layers if layer.kind in _USED)
    left_out = tuple(dict.fromkeys(one.kind for one in layers if one.kind not in _USED))
    if not any(layer.kind == "model" for layer in used):
        raise PackError(f"{called}: {_no_weights(value, left_out)}")
    kinds = [layer.kind for layer in used]
    ollama = all(str(one["mediaType"]).startswith(OLLAMA_LAYER) for one in listed)
    single = all(kinds.count(kind) < 2 for kind in _SINGLE)  # noqa: PLR2004 - once at most
    both = "template" in kinds and "prompt" in kinds
    return Image(
        data=data,
        config=config if ollama else None,
        layers=used,
        is_ollama=ollama,
        is_plain=ollama and single and not both and "prompt" not in kinds and not left_out,
        warnings=tuple(f"the {kind} layer is left out" for kind in left_out),
    )


def _no_weights(value: Mapping[str, Any], left_out: tuple[str, ...]) -> str:
    if "tensor" in left_out:
        return "a model of single tensors for MLX, which llama.cpp does not load"
    if not value.get("layers"):
        return "no layers: a cloud model has no weights on this computer"
    return f"expected a GGUF layer, found {', '.join(left_out) or 'none'}"


def _layer(value: Mapping[str, Any], kind: str = "") -> Layer:
    size = value["size"]
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_BYTES:
        raise ValueError(f"size {size!r}")
    digest = Digest.parse(str(value["digest"]).lower().replace("sha256-", "sha256:"))
    media = str(value["mediaType"])
    annotations = value.get("annotations") or {}
    title = next((str(annotations[key]) for key in _FILE_PATHS if key in annotations), "")
    return Layer(kind=kind or _kind(media, title), digest=digest, size_bytes=size, title=title)


def _kind(media: str, title: str) -> str:
    """What a layer is, by its media type, else by the file name it was pushed with."""
    name = title.rpartition("/")[2].lower()
    if media.startswith(OLLAMA_LAYER):
        return media.removeprefix(OLLAMA_LAYER)
    if media in _PROJECTORS or (name.endswith(".gguf") and "mmproj" in name):
        return "projector"
    if name.endswith(".adapter.gguf"):  # as satchel export calls them
        return "adapter"
    if media in _WEIGHTS[2:] or name.endswith(".gguf") or (media in _WEIGHTS and not name):
        return "model"
    if media == _LICENCES[0] or name.startswith(("license", "licence", "copying")):
        return "license"
    return media
