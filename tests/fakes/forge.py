"""Forge bundles, honest ones and every kind of lie, in a few lines.

    honest = forge()                                    # one tiny model, signed by TRUSTED
    honest.write(medium)                                # medium/satchel/prod-000001
    forge(seq=7).signed_by(STRANGER).write(medium)      # a lie of its own
    honest.edited(lambda statement: statement["predicate"].pop("totals")).write(medium)
    flip(honest.segment_path(medium), 100)              # damage after signing

Nothing here uses the packer, so that the packer's mistakes do not cancel the reader's.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bundler.format import envelope
from bundler.format.chunks import ChunkEncoder, decode_chunk
from bundler.format.digest import Digest
from bundler.format.errors import DamagedError
from bundler.format.index import (
    ChunkIndex,
    ChunkRecord,
    Codec,
    Filter,
    SegmentEntry,
    check_index,
    encode_index,
    parse_index,
)
from bundler.format.keys import KeyId, PublicKey, SigningKey
from bundler.format.manifest import (
    Artifact,
    BlobRef,
    Builder,
    BundleInfo,
    Encoding,
    GgufFacts,
    Layer,
    Manifest,
    Model,
    Role,
    Segment,
    Variant,
    encode_manifest,
    identified,
    sum_totals,
)
from bundler.format.name import ModelName
from bundler.format.volume import find_bundles
from hwprobe.gguf import GgufHeader, model_profile, read_header
from tests.fakes.gguf_writer import tiny_llama_metadata, tiny_llama_tensors, write_gguf

TRUSTED = SigningKey.from_seed(b"T" * 32)
SECOND = SigningKey.from_seed(b"2" * 32)
STRANGER = SigningKey.from_seed(b"S" * 32)

SMALL_CHUNK_BYTES = 4096
"""So that a model of a few kilobytes has several chunks."""


def trusting(*keys: SigningKey) -> dict[KeyId, PublicKey]:
    """The trusted keys as `envelope.verify` wants them."""
    return {key.public_key.key_id: key.public_key for key in keys}


def tiny_model(
    seed: int = 0, ggml_type: str = "F32", metadata: Mapping[str, Any] | None = None
) -> bytes:
    """A whole GGUF file of a few kilobytes; its weights differ with the seed."""
    tensors = [
        replace(tensor, data=_noise(f"{seed} {tensor.name}", tensor.size_bytes))
        for tensor in tiny_llama_tensors(ggml_type)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = write_gguf(
            Path(folder) / "tiny.gguf", tiny_llama_metadata(**(metadata or {})), tensors
        )
        return path.read_bytes()


def _noise(seed: str, size: int) -> bytes:
    return hashlib.shake_256(seed.encode()).digest(size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forged:
    """A bundle in memory.

    Attributes:
        manifest: what the statement says.
        files: content of ``blobs/sha256`` by hex digest.
        signers: who signs it.
        edits: changes of the statement's JSON after it was written and before it is signed.
    """

    manifest: Manifest
    files: Mapping[str, bytes]
    signers: tuple[SigningKey, ...] = (TRUSTED,)
    edits: tuple[Callable[[dict[str, Any]], object], ...] = ()

    def signed_by(self, *signers: SigningKey) -> Forged:
        """The same bundle with other signatures, or none."""
        return replace(self, signers=signers)

    def edited(self, edit: Callable[[dict[str, Any]], object]) -> Forged:
        """The same bundle with another statement, signed as it then stands."""
        return replace(self, edits=(*self.edits, edit))

    def with_manifest(self, **fields: Any) -> Forged:
        """The same bundle with other fields of the manifest."""
        return replace(self, manifest=replace(self.manifest, **fields))

    def with_bundle(self, **fields: Any) -> Forged:
        """The same bundle with other fields of ``bundle``: channel, seq, audience and so on."""
        return self.with_manifest(bundle=replace(self.manifest.bundle, **fields))

    def with_file(self, data: bytes, *, named: Digest) -> Forged:
        """The same bundle with other bytes under a digest: a lie unless they belong together."""
        return replace(self, files={**self.files, named.hex: data})

    def without_file(self, digest: Digest) -> Forged:
        """The same bundle with a file missing."""
        return replace(self, files={k: v for k, v in self.files.items() if k != digest.hex})

    def payload(self) -> bytes:
        """The statement as it is signed."""
        written = encode_manifest(identified(self.manifest))
        if not self.edits:
            return written
        statement = json.loads(written)
        for edit in self.edits:
            edit(statement)
        return json.dumps(statement, separators=(",", ":"), sort_keys=True).encode()

    def envelope(self) -> bytes:
        """The signed envelope."""
        return envelope.sign(self.payload(), self.signers)

    def directory(self, medium: Path) -> Path:
        """Where `write` puts the bundle on a medium."""
        bundle = self.manifest.bundle
        return medium / "satchel" / f"{bundle.channel}-{bundle.seq:06d}"

    def blob_path(self, medium: Path, digest: Digest) -> Path:
        """Where a file of the bundle stands on a medium."""
        return self.directory(medium) / "blobs" / "sha256" / digest.hex

    def segment_path(self, medium: Path, artifact: int = 0, segment: int = 0) -> Path:
        """Where a segment stands on a medium."""
        digest = self.manifest.artifacts[artifact].segments[segment].digest
        return self.blob_path(medium, digest)

    def index_path(self, medium: Path, artifact: int = 0) -> Path:
        """Where a chunk index stands on a medium."""
        return self.blob_path(medium, self.manifest.artifacts[artifact].index.digest)

    def write(self, medium: Path, *, data: bytes | None = None) -> Path:
        """Put the bundle on a medium and return its directory.

        Args:
            medium: the root of the medium.
            data: other bytes than the signed envelope, for ``bundle.dsse.json``.
        """
        directory = self.directory(medium)
        blobs = directory / "blobs" / "sha256"
        blobs.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (blobs / name).write_bytes(content)
        (directory / "bundle.dsse.json").write_bytes(self.envelope() if data is None else data)
        return directory


def spread(bundle: Forged, folder: Path, volumes: int) -> tuple[Forged, list[Path]]:
    """The bundle planned for so many volumes, and the media: each whole but for its segments."""
    artifacts = []
    where: dict[str, int] = {}
    for artifact in bundle.manifest.artifacts:
        count = len(artifact.segments)
        planned = tuple(
            replace(one, volume=1 + place * volumes // count)
            for place, one in enumerate(artifact.segments)
        )
        where.update((one.digest.hex, one.volume) for one in planned)
        artifacts.append(replace(artifact, segments=planned))
    planned_bundle = bundle.with_manifest(artifacts=tuple(artifacts))
    media = []
    for number in range(1, volumes + 1):
        held = {k: v for k, v in bundle.files.items() if where.get(k, number) == number}
        media.append(folder / f"stick-{number}")
        replace(planned_bundle, files=held).write(media[-1])
    return planned_bundle, media


def forge(
    weights: Mapping[str, bytes] | None = None,
    *,
    name: str = "demo",
    channel: str = "prod",
    seq: int = 1,
    layers: Sequence[tuple[Role, bytes]] = (),
    encoding: Encoding = "identity",
    chunk_bytes: int = SMALL_CHUNK_BYTES,
    segment_bytes: int = 1 << 30,
) -> Forged:
    """An honest bundle of one model, signed by `TRUSTED`.

    Args:
        weights: GGUF files by quantization, best last; one `tiny_model` unless given.
        name: of the model.
        channel: of the bundle.
        seq: of the bundle.
        layers: small files of the model, with their roles.
        encoding: of every artifact.
        chunk_bytes: most plain bytes of a chunk.
        segment_bytes: where segments are closed.
    """
    files: dict[str, bytes] = {}
    artifacts: dict[Digest, Artifact] = {}
    variants: list[Variant] = []
    for place, (quantization, data) in enumerate((weights or {"F32": tiny_model()}).items()):
        artifact = _artifact(data, encoding, chunk_bytes, segment_bytes, files)
        artifacts[artifact.digest] = artifact
        profile = _profile(data)
        variants.append(
            Variant(
                id=quantization.lower(),
                quantization=quantization,
                artifact=artifact.digest,
                prefer=10 * (place + 1),
                profile=profile,
            )
        )
    blobs: dict[Digest, BlobRef] = {}
    for _, data in layers:
        blobs[Digest.of(data)] = BlobRef(digest=Digest.of(data), size_bytes=len(data))
        files[Digest.of(data).hex] = data
    model = Model(
        name=ModelName.parse(name),
        family="llama",
        variants=tuple(variants),
        layers=tuple(Layer(role=role, digest=Digest.of(data)) for role, data in layers),
    )
    listed = tuple(artifacts[digest] for digest in sorted(artifacts))
    small = tuple(blobs[digest] for digest in sorted(blobs))
    manifest = Manifest(
        bundle=BundleInfo(channel=channel, seq=seq, issued="2026-11-21T02:00:00Z"),
        models=(model,),
        artifacts=listed,
        blobs=small,
        totals=sum_totals(listed, small),
        builder=Builder(tool="forge", reproducible=True, recipe=Digest.of(b"forge")),
    )
    return Forged(manifest=manifest, files=files)


def _header(data: bytes) -> GgufHeader:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        path.write_bytes(data)
        return read_header(path)


def _facts(data: bytes) -> GgufFacts:
    header = _header(data)
    return GgufFacts(
        tensors=len(header.tensors),
        metadata_digest=Digest.of(data[: header.data_offset_bytes]),
        architecture=header.string("general.architecture"),
    )


def _profile(data: bytes) -> dict[str, Any]:
    profile = model_profile(_header(data)).to_json()
    del profile["chat_template"]
    return profile


def _artifact(
    data: bytes, encoding: Encoding, chunk_bytes: int, segment_bytes: int, files: dict[str, bytes]
) -> Artifact:
    """Cut a file into chunks and segments, and add its segments and index to ``files``."""
    codec = Codec.RAW if encoding == "identity" else Codec.ZSTD
    kind = Filter.NONE if encoding == "identity" else Filter.PLANES_4
    records: list[ChunkRecord] = []
    segments: list[bytes] = [b""]
    for start in range(0, len(data), chunk_bytes):
        plain = data[start : start + chunk_bytes]
        stored = bytes(ChunkEncoder().encode(plain, codec, kind))
        if segments[-1] and len(segments[-1]) + len(stored) > segment_bytes:
            segments.append(b"")
        records.append(
            ChunkRecord(
                plain_off=start,
                plain_len=len(plain),
                stored_len=len(stored),
                segment=len(segments) - 1,
                seg_off=len(segments[-1]),
                codec=codec,
                filter=kind,
                stored_digest=hashlib.sha256(stored).digest(),
                plain_digest=hashlib.sha256(plain).digest(),
            )
        )
        segments[-1] += stored
    table = tuple(SegmentEntry(digest=Digest.of(one), size_bytes=len(one)) for one in segments)
    index = encode_index(
        ChunkIndex(
            file_size_bytes=len(data),
            file_digest=Digest.of(data),
            chunk_max_bytes=chunk_bytes,
            at_tensors=False,
            segments=table,
            records=tuple(records),
        )
    )
    for content in (*segments, index):
        files[Digest.of(content).hex] = content
    return Artifact(
        digest=Digest.of(data),
        size_bytes=len(data),
        encoding=encoding,
        index=BlobRef(digest=Digest.of(index), size_bytes=len(index)),
        gguf=_facts(data),
        segments=tuple(Segment(digest=one.digest, size_bytes=one.size_bytes) for one in table),
    )


def unpack(medium: Path, keys: Mapping[KeyId, PublicKey], threshold: int = 1) -> dict[str, bytes]:
    """Read a bundle as an importer must, and give every plain file by digest.

    Raises:
        BundleError: at the first thing that is not as it should be.
    """
    (bundle,) = find_bundles(medium)
    manifest = envelope.verify(bundle.read_envelope(), keys=keys, threshold=threshold).manifest
    plain = {
        str(blob.digest): bundle.read_blob(blob.digest, size_bytes=blob.size_bytes)
        for blob in manifest.blobs
    }
    for artifact in manifest.artifacts:
        ref = artifact.index
        index = parse_index(bundle.read_blob(ref.digest, size_bytes=ref.size_bytes))
        check_index(index, artifact)
        data = bytearray()
        for record in index.records:
            entry = index.segments[record.segment]
            with bundle.open_segment(entry.digest, size_bytes=entry.size_bytes) as file:
                file.seek(record.seg_off)
                data += decode_chunk(record, file.read(record.stored_len))
        if Digest.of(data) != artifact.digest:
            raise DamagedError(f"{artifact.digest}: expected these bytes, found others")
        plain[str(artifact.digest)] = bytes(data)
    return plain


def flip(path: Path, offset: int, mask: int = 1) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.chmod(0o644)
    path.write_bytes(data)
