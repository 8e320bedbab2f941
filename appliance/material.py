"""The large files a model is made of: what each is, told by its header and not by its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appliance.creation import media_type
from appliance.errors import RequestError, UnusableModelError, store_io
from bundler.format.digest import Descriptor, Digest
from hwprobe.draft import check_draft
from hwprobe.errors import DraftError, GgufError
from hwprobe.gguf import GgufHeader, ModelProfile, model_profile, read_header

LARGE = ("model", "projector", "draft", "adapter")
"""Kinds of layer that are GGUF files, in the order a manifest has them."""

_MAGIC = b"GGUF"
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")


@dataclass(frozen=True, slots=True, kw_only=True)
class LargeFile:
    """One large file of a model.

    Attributes:
        kind: ``model``, ``projector``, ``draft`` or ``adapter``.
        digest: of its bytes.
        size_bytes: its size.
        new: no installed model brought it.
        shard: its place among so many files that are one model, from 0, or ``None``.
    """

    kind: str
    digest: Digest
    size_bytes: int
    new: bool = False
    shard: tuple[int, int] | None = None

    @property
    def descriptor(self) -> Descriptor:
        """Its line in a manifest."""
        return Descriptor(
            media_type=media_type(self.kind), digest=self.digest, size_bytes=self.size_bytes
        )


def read_sent(path: Path, called: str, digest: Digest) -> LargeFile:
    """What a file is that a client sent: keys that llama.cpp's converters write say it.

    Args:
        path: the file.
        called: what its sender called it.
        digest: of its bytes.

    Raises:
        RequestError: it is no GGUF file.
        UnusableModelError: it is a malformed one, or an adapter of another kind than LoRA.
    """
    header = read_gguf(path, called)
    shards = header.integer("split.count", 0)
    return LargeFile(
        kind=_kind(header, called),
        digest=digest,
        size_bytes=header.file_size_bytes,
        new=True,
        shard=(header.integer("split.no", 0), shards) if shards > 1 else None,
    )


def _kind(header: GgufHeader, called: str) -> str:
    kind = header.metadata.get("general.type")
    if kind == "adapter" or "adapter.type" in header.metadata:
        if header.metadata.get("adapter.type") != "lora":
            raise UnusableModelError(f"{called}: expected an adapter of type lora, found another")
        return "adapter"
    if kind == "mmproj" or header.metadata.get("general.architecture") == "clip":
        return "projector"
    return "model"


def read_gguf(path: Path, called: str) -> GgufHeader:
    """The header of a GGUF file; raises as `read_sent`."""
    with store_io(f"read {called}"):
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
        if magic != _MAGIC:
            hint = "convert it on a connected machine, with satchel-bundle or llama.cpp's converter"
            raise RequestError(
                "supplied file was not in GGUF format",
                hint=hint if called.endswith(_OTHER_WEIGHTS) else "",
            )
        try:
            return read_header(path)
        except GgufError as error:
            raise UnusableModelError(f"{called}: {error}") from error


def read_weights(path: Path, called: str) -> tuple[GgufHeader, ModelProfile]:
    """Header and profile of a model's weights; raises as `read_sent`."""
    header = read_gguf(path, called)
    try:
        return header, model_profile(header)
    except GgufError as error:
        raise UnusableModelError(f"{called}: {error}") from error


def in_order(shards: tuple[LargeFile, ...]) -> tuple[Digest, ...]:
    """The shards of one model in their order, whatever their names are.

    Raises:
        RequestError: some are missing, or they do not belong together.
    """
    places = {file.shard[0]: file.digest for file in shards if file.shard}
    counts = {file.shard[1] for file in shards if file.shard}
    expected = max(counts)
    if len(counts) != 1 or len(places) != len(shards) or set(places) != set(range(expected)):
        raise RequestError(
            f"files: expected {expected} shards of one model, found {len(places)}",
            hint="send every file of the split model",
        )
    return tuple(places[place] for place in range(expected))


def check_adapter(path: Path, profile: ModelProfile) -> None:
    """Refuse an adapter for another architecture.

    Raises:
        UnusableModelError: it is.
    """
    architecture = read_gguf(path, "adapter").metadata.get("general.architecture")
    if architecture != profile.architecture:
        raise UnusableModelError(
            f"adapter: expected one for {profile.architecture}, found one for {architecture}"
        )


def check_draft_model(path: Path, model: GgufHeader) -> None:
    """Refuse a draft model that does not go with a model.

    Raises:
        UnusableModelError: it does not.
    """
    try:
        check_draft(read_gguf(path, "draft"), model)
    except (DraftError, GgufError) as error:
        raise UnusableModelError(str(error)) from error


def put_together(base: tuple[LargeFile, ...], sent: tuple[LargeFile, ...]) -> tuple[LargeFile, ...]:
    """The base's files with those that were sent in their place or beside them, in order.

    Raises:
        RequestError: that does not make one model.
    """
    models = [file for file in (*base, *sent) if file.kind == "model"]
    if len(models) != 1:
        found = "none" if not models else str(len(models))
        raise RequestError(f"expected one model among the files, found {found}")
    replaced = {file.kind for file in sent}
    kept = [file for file in base if file.kind not in replaced]
    return tuple(sorted((*kept, *sent), key=lambda file: LARGE.index(file.kind)))
