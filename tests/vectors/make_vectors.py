"""Write test vectors that do not exist yet. Existing ones are never touched.

python -m tests.vectors.make_vectors
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from bundler.format import envelope
from bundler.format.digest import Digest
from bundler.format.index import encode_index, parse_index
from bundler.format.manifest import BlobRef, sum_totals
from tests.fakes.forge import SECOND, STRANGER, TRUSTED, Forged, forge
from tests.fakes.gguf_writer import Tensor, llama_tensors, tiny_llama_metadata, write_gguf

HERE: Final = Path(__file__).parent / "v1"
NAMED_KEYS: Final = {"trusted": TRUSTED, "second": SECOND, "stranger": STRANGER}


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """One case: what stands on the medium, and what a reader has to say of it.

    Attributes:
        why: one sentence.
        outcome: ``ok``, or the class of the refusal.
        trusted: names of the trusted keys.
        data: other bytes than the signed envelope.
        after: what happens to the medium after the bundle was written.
    """

    why: str
    bundle: Forged
    outcome: str = "ok"
    exit_code: int = 0
    trusted: tuple[str, ...] = ("trusted",)
    threshold: int = 1
    data: Callable[[bytes], bytes] | None = None
    after: Callable[[Path], object] | None = None


def small_model(seed: int = 0, dims: int = 8) -> bytes:
    """A whole GGUF file of about three kilobytes."""
    shapes = llama_tensors(
        blocks=1, embedding=dims, heads=1, kv_heads=1, head=dims, feed_forward=dims, vocabulary=4,
        ggml_type="F32",
    )  # fmt: skip
    tensors = [
        Tensor(one.name, one.dimensions, "F32", data=_weights(f"{seed}{one.name}", one.size_bytes))
        for one in shapes
    ]
    overrides: dict[str, Any] = {
        "llama.embedding_length": dims,
        "llama.feed_forward_length": dims,
        "llama.attention.head_count": 1,
        "llama.attention.head_count_kv": 1,
        "llama.rope.dimension_count": dims,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.gguf"
        write_gguf(path, tiny_llama_metadata(**overrides), tensors)
        return path.read_bytes()


def _weights(seed: str, size: int) -> bytes:
    """Bytes that look a little like weights: every fourth one is nearly constant."""
    data = bytearray(hashlib.shake_256(seed.encode()).digest(size))
    data[3::4] = bytes([0x3F]) * len(data[3::4])
    return bytes(data)


def _honest(**options: Any) -> Forged:
    weights = {"F32": small_model()}
    return forge(weights, **{"chunk_bytes": 1024, **options})


def _json(edit: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        members = json.loads(data)
        edit(members)
        return json.dumps(members, separators=(",", ":")).encode()

    return changed


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def _lying_index() -> Forged:
    """A signer whose index gives a chunk another plain digest."""
    bundle = _honest(encoding="zstd-frames")
    (artifact,) = bundle.manifest.artifacts
    index = parse_index(bundle.files[artifact.index.digest.hex])
    first = replace(index.records[0], plain_digest=bytes(32))
    return _with_index(bundle, encode_index(replace(index, records=(first, *index.records[1:]))))


def _with_index(bundle: Forged, data: bytes) -> Forged:
    (artifact,) = bundle.manifest.artifacts
    digest = Digest.of(data)
    artifacts = (replace(artifact, index=BlobRef(digest=digest, size_bytes=len(data))),)
    changed = bundle.with_manifest(
        artifacts=artifacts, totals=sum_totals(artifacts, bundle.manifest.blobs)
    )
    return changed.without_file(artifact.index.digest).with_file(data, named=digest)


def vectors() -> Mapping[str, Vector]:
    """Every case by name."""
    plain = _honest()
    packed = _honest(encoding="zstd-frames")
    layers = _honest(
        layers=(("template", b"{{ .Prompt }}"), ("params", b"{}"), ("license", b"MIT"))
    )
    (artifact,) = plain.manifest.artifacts
    (stored,) = packed.manifest.artifacts
    several = forge(
        {"Q8_0": small_model(1), "F32": small_model(2)}, chunk_bytes=1024, encoding="zstd-frames"
    )
    index_bytes = plain.files[artifact.index.digest.hex]

    def predicate(edit: Callable[[dict[str, Any]], object]) -> Forged:
        return plain.edited(lambda statement: edit(statement["predicate"]))

    cases: dict[str, Vector] = {
        "honest-identity": Vector(why="One model, stored as it is.", bundle=plain),
        "honest-zstd-planes": Vector(why="Compressed, with byte planes.", bundle=packed),
        "honest-segments": Vector(
            why="Stored bytes in several segments.", bundle=_honest(segment_bytes=1500)
        ),
        "honest-variants": Vector(why="Two variants of one model.", bundle=several),
        "honest-layers": Vector(why="Small files beside the weights.", bundle=layers),
        "honest-two-signatures": Vector(
            why="Two of two keys signed.",
            bundle=plain.signed_by(TRUSTED, SECOND),
            trusted=("trusted", "second"),
            threshold=2,
        ),
        "honest-extra-signature": Vector(
            why="A stranger's signature beside ours does no harm.",
            bundle=plain.signed_by(STRANGER, TRUSTED),
        ),
        "honest-other-spelling": Vector(
            why="Another spelling of the same values is accepted.",
            bundle=plain,
            data=lambda _: envelope.sign(_spelled_otherwise(plain.payload()), [TRUSTED]),
        ),
        "honest-extension": Vector(
            why="Extensions that are not critical are ignored.",
            bundle=plain.with_manifest(extensions={"later": {"x": [1, None]}}),
        ),
        "unsigned": Vector(
            why="There is no signature.",
            bundle=plain.signed_by(),
            outcome="UnsignedError",
            exit_code=11,
        ),
        "stranger": Vector(
            why="Signed by a key nobody here trusts.",
            bundle=plain.signed_by(STRANGER),
            outcome="UntrustedKeyError",
            exit_code=11,
        ),
        "stranger-under-our-key-id": Vector(
            why="A stranger's signature that names a trusted key.",
            bundle=plain.signed_by(STRANGER),
            data=_json(lambda e: e["signatures"][0].update(keyid=TRUSTED.public_key.key_id)),
            outcome="BadSignatureError",
            exit_code=11,
        ),
        "payload-changed": Vector(
            why="The statement was changed after it was signed.",
            bundle=plain,
            data=_json(lambda e: e.update(payload=_other_payload(plain))),
            outcome="BadSignatureError",
            exit_code=11,
        ),
        "below-threshold": Vector(
            why="One of two needed keys signed.",
            bundle=plain,
            trusted=("trusted", "second"),
            threshold=2,
            outcome="ThresholdError",
            exit_code=11,
        ),
        "same-key-twice": Vector(
            why="One key's signature is there twice, under two key ids.",
            bundle=plain,
            data=_json(lambda e: e["signatures"].append(e["signatures"][0] | {"keyid": "0" * 64})),
            trusted=("trusted", "second"),
            threshold=2,
            outcome="ThresholdError",
            exit_code=11,
        ),
        "payload-type": Vector(
            why="The envelope claims another payload type.",
            bundle=plain,
            data=_json(lambda e: e.update(payloadType="application/json")),
            outcome="FieldError",
            exit_code=10,
        ),
        "truncated-envelope": Vector(
            why="The envelope is cut off.",
            bundle=plain,
            data=lambda data: data[:-20],
            outcome="JsonError",
            exit_code=10,
        ),
        "junk-envelope": Vector(
            why="The envelope is no JSON.",
            bundle=plain,
            data=lambda data: bytes(len(data)),
            outcome="JsonError",
            exit_code=10,
        ),
        "duplicate-member": Vector(
            why="A member stands twice in the envelope.",
            bundle=plain,
            data=lambda data: data[:-1] + b',"payloadType":"application/vnd.in-toto+json"}',
            outcome="JsonError",
            exit_code=10,
        ),
        "unfinished": Vector(
            why="There is no commit marker.",
            bundle=plain,
            after=lambda directory: (directory / "bundle.dsse.json").unlink(),
            outcome="LayoutError",
            exit_code=10,
        ),
        "statement-float": Vector(
            why="A number with a fraction in the statement.",
            bundle=predicate(lambda p: p["bundle"].update(seq=1.5)),
            outcome="JsonError",
            exit_code=10,
        ),
        "statement-unknown-member": Vector(
            why="A member the format does not define.",
            bundle=predicate(lambda p: p.update(more=1)),
            outcome="ManifestError",
            exit_code=10,
        ),
        "statement-dangling-reference": Vector(
            why="A variant names weights that are not listed.",
            bundle=predicate(
                lambda p: p["models"][0]["variants"][0].update(artifact="sha256:" + "0" * 64)
            ),
            outcome="ManifestError",
            exit_code=10,
        ),
        "statement-wrong-totals": Vector(
            why="The sums are not the sums.",
            bundle=predicate(lambda p: p["totals"].update(plain=1)),
            outcome="ManifestError",
            exit_code=10,
        ),
        "statement-path-as-channel": Vector(
            why="A channel that would leave its directory.",
            bundle=predicate(lambda p: p["bundle"].update(channel="../../etc")),
            outcome="ManifestError",
            exit_code=10,
        ),
        "newer-format": Vector(
            why="A newer reader is needed.",
            bundle=predicate(lambda p: p["format"].update(version=2, min_reader=2)),
            outcome="UnsupportedError",
            exit_code=10,
        ),
        "unknown-critical": Vector(
            why="A critical feature this reader does not know.",
            bundle=predicate(lambda p: p["format"].update(critical=["later"])),
            outcome="UnsupportedError",
            exit_code=10,
        ),
        "reserved-delta": Vector(
            why="A delta, which version 1 defines and this release does not carry out.",
            bundle=predicate(lambda p: p["bundle"].update(kind="delta")),
            outcome="UnsupportedError",
            exit_code=10,
        ),
        "index-missing": Vector(
            why="The chunk index is not on the medium.",
            bundle=plain.without_file(artifact.index.digest),
            outcome="MissingBlobError",
            exit_code=10,
        ),
        "index-flipped": Vector(
            why="One bit of the index is wrong.",
            bundle=plain,
            after=lambda directory: _flip(
                directory / "blobs" / "sha256" / artifact.index.digest.hex, 200
            ),
            outcome="DamagedError",
            exit_code=10,
        ),
        "index-of-another-file": Vector(
            why="A signed index that belongs to other weights.",
            bundle=_with_index(
                plain, _honest_index_of(forge({"F32": small_model(9)}, chunk_bytes=1024))
            ),
            outcome="ChunkIndexError",
            exit_code=10,
        ),
        "index-cut": Vector(
            why="A signed index with a record missing.",
            bundle=_with_index(plain, index_bytes[:-104]),
            outcome="ChunkIndexError",
            exit_code=10,
        ),
        "index-wrong-plain-digest": Vector(
            why="A signed index that gives a chunk another plain digest.",
            bundle=_lying_index(),
            outcome="DamagedError",
            exit_code=10,
        ),
        "segment-missing": Vector(
            why="A segment is not on the medium.",
            bundle=plain.without_file(artifact.segments[0].digest),
            outcome="MissingBlobError",
            exit_code=10,
        ),
        "segment-truncated": Vector(
            why="A segment is shorter than it was signed.",
            bundle=plain,
            after=lambda directory: os.truncate(
                directory / "blobs" / "sha256" / artifact.segments[0].digest.hex, 100
            ),
            outcome="LayoutError",
            exit_code=10,
        ),
        "segment-oversized": Vector(
            why="A segment is longer than it was signed.",
            bundle=plain,
            after=lambda directory: os.truncate(
                directory / "blobs" / "sha256" / artifact.segments[0].digest.hex, 9999
            ),
            outcome="LayoutError",
            exit_code=10,
        ),
        "segment-flipped": Vector(
            why="One bit of the stored weights is wrong.",
            bundle=plain,
            after=lambda directory: _flip(
                directory / "blobs" / "sha256" / artifact.segments[0].digest.hex, 2000
            ),
            outcome="DamagedError",
            exit_code=10,
        ),
        "segment-flipped-compressed": Vector(
            why="One bit of a compressed chunk is wrong.",
            bundle=packed,
            after=lambda directory: _flip(
                directory / "blobs" / "sha256" / stored.segments[0].digest.hex, 600
            ),
            outcome="DamagedError",
            exit_code=10,
        ),
        "blob-flipped": Vector(
            why="One bit of a licence is wrong.",
            bundle=layers,
            after=lambda directory: _flip(
                directory / "blobs" / "sha256" / Digest.of(b"MIT").hex, 0
            ),
            outcome="DamagedError",
            exit_code=10,
        ),
    }
    return cases


def _other_payload(bundle: Forged) -> str:
    return base64.b64encode(bundle.payload().replace(b'"seq":1', b'"seq":2')).decode()


def _spelled_otherwise(payload: bytes) -> bytes:
    members = json.loads(payload)
    return json.dumps(dict(reversed(members.items())), indent=1).encode().replace(b"-", b"\\u002d")


def _honest_index_of(bundle: Forged) -> bytes:
    return bundle.files[bundle.manifest.artifacts[0].index.digest.hex]


def _digests(bundle: Forged) -> list[str]:
    weights = [str(one.digest) for one in bundle.manifest.artifacts]
    return sorted([*weights, *(str(one.digest) for one in bundle.manifest.blobs)])


def _add_sums(root: Path, added: Sequence[str]) -> None:
    """Sums of what was added; those of older vectors stay as they were."""
    path = root / "SHA256SUMS"
    lines = path.read_text().splitlines() if path.exists() else []
    lines += [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(root)}"
        for name in added
        for file in sorted((root / name).rglob("*"))
        if file.is_file()
    ]
    path.write_text("".join(line + "\n" for line in sorted(lines, key=lambda line: line[66:])))


def write(root: Path) -> list[str]:
    """Write every missing vector, and bring the list of expectations up to date."""
    listing = root / "expectations.json"
    expectations: dict[str, Any] = (
        json.loads(listing.read_bytes()) if listing.exists() else {"keys": {}, "cases": {}}
    )
    for name, key in NAMED_KEYS.items():
        expectations["keys"].setdefault(name, key.public_key.text())
    added: list[str] = []
    for name, vector in vectors().items():
        if name in expectations["cases"]:
            continue
        medium = root / name
        data = vector.data(vector.bundle.envelope()) if vector.data else None
        directory = vector.bundle.write(medium, data=data)
        if vector.after:
            vector.after(directory)
        expectations["cases"][name] = {
            "why": vector.why,
            "trusted": list(vector.trusted),
            "threshold": vector.threshold,
            "outcome": vector.outcome,
            "exit_code": vector.exit_code,
            "files": _digests(vector.bundle) if vector.outcome == "ok" else [],
        }
        added.append(name)
    listing.write_text(json.dumps(expectations, indent=1, sort_keys=True) + "\n")
    _add_sums(root, added)
    return added


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    sys.stdout.write("\n".join(write(HERE)) + "\n")
