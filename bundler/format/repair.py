"""A repair request: which chunks of a bundle a site still lacks. Pure.

It is an envelope as a bundle's, of a type of its own, signed by the site's device key or by nobody.
The answer is no new statement: the chunks lie as files of their own, under their signed digests,
beside the envelope they belong to. So anyone with a good copy can answer, and nobody need be
trusted for it. Form and rules: docs/bundle-format.md, section 13.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from bundler.format import envelope
from bundler.format.digest import Digest
from bundler.format.envelope import Envelope
from bundler.format.errors import RepairRequestError
from bundler.format.keys import SigningKey
from bundler.format.limits import MAX_ARTIFACTS, MAX_PAYLOAD_BYTES
from bundler.format.statement import CHANNEL_PATTERN, LOGICAL_NAME_PATTERN, TIME_PATTERN
from bundler.format.strict import Reader, encode_json, parse_json

PAYLOAD_TYPE: Final = "application/vnd.satchel.repair-request.v1+json"
_VERSION: Final = 1
_MAX_RUNS: Final = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Following chunks: from ``first`` to the one before ``end``, by their place in the index."""

    first: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LackedFile:
    """What is missing of one large file.

    Attributes:
        digest: of the plain file.
        index: of its chunk index.
        missing: runs of chunks, in ascending order.
    """

    digest: Digest
    index: Digest
    missing: tuple[Run, ...]

    def places(self) -> tuple[int, ...]:
        """Every missing chunk."""
        return tuple(place for run in self.missing for place in range(run.first, run.end))


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairRequest:
    """What a site asks for; ``parse_request(encode_request(r)) == r``.

    Attributes:
        site: the site's name, or empty.
        made_at: when, RFC 3339 in UTC.
        statement: digest of the bundle's payload, with its ``channel`` and ``seq`` for people.
        files: by digest.
    """

    site: str
    made_at: str
    statement: Digest
    channel: str
    seq: int
    files: tuple[LackedFile, ...]


def encode_request(request: RepairRequest) -> bytes:
    """The payload; equal requests give equal bytes."""
    members: dict[str, Any] = {
        "version": _VERSION,
        "site": request.site,
        "made_at": request.made_at,
        "statement": str(request.statement),
        "channel": request.channel,
        "seq": request.seq,
        "files": [
            {
                "digest": str(file.digest),
                "index": str(file.index),
                "missing": [{"first": run.first, "end": run.end} for run in file.missing],
            }
            for file in request.files
        ],
    }
    return encode_json(members)


def write_request(request: RepairRequest, key: SigningKey | None) -> bytes:
    """The file: an envelope, signed by the device key if there is one.

    Raises:
        EnvelopeError: it is too large.
    """
    empty = Envelope(payload_type=PAYLOAD_TYPE, payload=encode_request(request), signatures=())
    return envelope.encode(envelope.add_signatures(empty, () if key is None else (key,)))


def read_request(data: bytes) -> RepairRequest:
    """Read the file. Its signature is not judged: what it asks for is no secret of anyone.

    Raises:
        JsonError: envelope or payload is not strict JSON.
        EnvelopeError: it is no envelope of a repair request.
        RepairRequestError: a field is wrong.
    """
    return parse_request(envelope.parse(data, payload_type=PAYLOAD_TYPE).payload)


def parse_request(payload: bytes) -> RepairRequest:
    """Read the payload.

    Raises:
        JsonError: it is not strict JSON.
        RepairRequestError: a field is wrong.
    """
    members = parse_json(payload, max_bytes=MAX_PAYLOAD_BYTES)
    with Reader(members, "", error=RepairRequestError) as reader:
        reader.integer("version", at_least=_VERSION, at_most=_VERSION)
        return RepairRequest(
            site=reader.text("site", pattern=rf"(?:{LOGICAL_NAME_PATTERN})?", empty=True),
            made_at=reader.text("made_at", pattern=TIME_PATTERN),
            statement=reader.digest("statement"),
            channel=reader.text("channel", pattern=CHANNEL_PATTERN),
            seq=reader.integer("seq", at_least=1),
            files=reader.objects("files", _read_file, at_most=MAX_ARTIFACTS, at_least=1),
        )


def _read_file(reader: Reader) -> LackedFile:
    runs = reader.objects("missing", _read_run, at_most=_MAX_RUNS, at_least=1)
    last = 0
    for run in runs:
        if not last <= run.first < run.end:
            reader.refuse("missing", "runs in ascending order", f"{run.first} to {run.end}")
        last = run.end
    return LackedFile(digest=reader.digest("digest"), index=reader.digest("index"), missing=runs)


def _read_run(reader: Reader) -> Run:
    return Run(first=reader.integer("first"), end=reader.integer("end", at_least=1))
