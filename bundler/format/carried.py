"""An Ollama model's own manifest and config, carried so that it keeps its id on the target. Pure.

The extension ``ollama`` of the statement (docs/bundle-format.md, section 5.11) holds them as
texts. A reader that does not know it installs the same files under an id of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bundler.format.limits import MAX_MODELS, MAX_STRING_BYTES
from bundler.format.strict import Reader

EXTENSION: Final = "ollama"


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedImage:
    """What a variant was in Ollama's store.

    Attributes:
        model: short name of the model in this bundle, and ``variant`` the id of the variant.
        manifest: the manifest file, and ``config`` the config blob, byte for byte.
    """

    model: str
    variant: str
    manifest: bytes
    config: bytes


def can_carry(manifest: bytes, config: bytes) -> bool:
    """Whether these bytes fit into a statement: UTF-8 of at most 64 KiB each."""
    try:
        texts = [manifest.decode(), config.decode()]
    except UnicodeDecodeError:
        return False
    return all(len(data) <= MAX_STRING_BYTES for data in (manifest, config)) and all(texts)


def write_images(images: Iterable[CarriedImage]) -> dict[str, Any]:
    """Members for ``extensions``; none when there are no images."""
    listed = [
        {
            "model": one.model,
            "variant": one.variant,
            "manifest": one.manifest.decode(),
            "config": one.config.decode(),
        }
        for one in images
    ]
    return {EXTENSION: listed} if listed else {}


def read_images(extensions: Mapping[str, Any]) -> tuple[CarriedImage, ...]:
    """The inverse of `write_images`; empty when the extension is not there.

    Raises:
        ManifestError: the extension is there, and malformed.
    """
    if EXTENSION not in extensions:
        return ()
    only = {EXTENSION: extensions[EXTENSION]}
    with Reader(only, "predicate.extensions") as reader:
        return reader.objects(EXTENSION, _read_image, at_most=MAX_MODELS)


def _read_image(reader: Reader) -> CarriedImage:
    def text(name: str) -> bytes:
        value = reader.take(name)
        if not isinstance(value, str):
            reader.refuse(name, "a text", value)
        return value.encode()

    return CarriedImage(
        model=text("model").decode(),
        variant=text("variant").decode(),
        manifest=text("manifest"),
        config=text("config"),
    )
