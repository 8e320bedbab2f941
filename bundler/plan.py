"""What will be packed, how large it will be, and whether there is room for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from bundler.delta import Against
from bundler.errors import PackError
from bundler.format.acceptance import Wanted
from bundler.format.errors import NoSpaceError
from bundler.format.fsio import raise_io
from bundler.format.keys import Signer
from bundler.format.limits import CHUNK_BYTES
from bundler.format.manifest import Source
from bundler.format.name import ModelName
from bundler.format.parity import GROUP
from bundler.format.statement import CHANNEL_PATTERN
from bundler.format.strict import Reader, encode_json
from bundler.layers import Layers
from bundler.omskey import OmsKey
from bundler.quantize import check_quantization, estimate_bytes, known_quantization
from bundler.source.material import OllamaImage
from bundler.volumes import LABEL, segments_room
from hwprobe.gguf import ModelProfile
from hwprobe.quantity import Bytes

_OVERHEAD_BYTES: Final = 4 << 20
"""Indexes, statement and OCI documents of an ordinary bundle, generously."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRequest:
    """Everything that decides a bundle, and where to put it.

    Attributes:
        source: the GGUF file.
        out: the root of the medium.
        quantizations: variants to make from the source.
        include_source: carry the source itself as a variant too.
        keys: who signs.
        unsigned: that nobody does yet; then there are no keys.
        layers: small files of the model.
        modelfile: the Modelfile to carry along, as it was given.
        licences: SPDX identifiers.
        issued: time of the statement, aware.
        reproducible: whether that time was given rather than taken from the clock.
        origin: where the source came from, for the statement.
        projector: a multimodal projector that goes with every variant.
        draft: a small model that proposes tokens, for every variant.
        adapters: LoRA adapters that go with every variant.
        roots: envelopes of the chain of trust roots, from version 1; often none.
        bom: carry a CycloneDX ML-BOM of what is packed.
        model_card: a document about the model, as it was given.
        oms_key: signs the files in the form of OpenSSF's model signing.
        accept: make acceptance checks, these or those that are built in; `None` makes none.
        against: what the target holds already; only the rest is packed.
        image: the source's manifest and config in Ollama's store: they keep its id.
        volume_bytes: size of the media the bundle is spread over; 0 for one without an end.
        parity: whether lost chunks shall come back from parity.
        work: directory for quantized files, removed one by one.
        threads: CPU threads for quantizing.
    """

    source: Path
    name: ModelName
    out: Path
    channel: str
    seq: int
    quantizations: tuple[str, ...] = ()
    include_source: bool = False
    keys: tuple[Signer, ...]
    unsigned: bool = False
    layers: Layers = ()
    modelfile: bytes | None = None
    licences: tuple[str, ...] = ()
    version: str = ""
    audience: tuple[str, ...] = ("*",)
    notes: str = ""
    refresh_by: str | None = None
    expires: str | None = None
    issued: datetime
    reproducible: bool = False
    origin: Source | None = None
    projector: Path | None = None
    draft: Path | None = None
    adapters: tuple[Path, ...] = ()
    roots: tuple[bytes, ...] = ()
    bom: bool = False
    model_card: bytes | None = None
    oms_key: OmsKey | None = None
    accept: tuple[Wanted, ...] | None = None
    against: Against | None = None
    image: OllamaImage | None = None
    volume_bytes: int = 0
    parity: bool = False
    work: Path
    threads: int = 1

    @property
    def directory(self) -> Path:
        """Where the bundle, or its first volume, goes."""
        return self.volume_directory(1)

    def volume_root(self, number: int) -> Path:
        """What becomes the root of a medium: ``out``, or one directory in it for each volume."""
        return self.out / LABEL.format(number) if self.volume_bytes else self.out

    def volume_directory(self, number: int) -> Path:
        """Where the bundle stands on that volume."""
        return self.volume_root(number) / "satchel" / f"{self.channel}-{self.seq:06d}"

    @property
    def companions(self) -> tuple[Path, ...]:
        """The large files that go with every variant: projector, draft model, adapters."""
        optional = tuple(one for one in (self.projector, self.draft) if one is not None)
        return (*optional, *self.adapters)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedVariant:
    """One variant to be packed; ``size_bytes`` is an estimate unless it is the source."""

    quantization: str
    size_bytes: int
    is_source: bool = False

    @property
    def id(self) -> str:
        """Its name in the bundle."""
        return self.quantization.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Variants in the order they are packed, and the room they need, in bytes.

    Attributes:
        is_delta: how much less a delta needs shows as it is written.
        chunks: of everything, about.
        small_bytes: of what stands on every volume besides indexes.
    """

    variants: tuple[PlannedVariant, ...]
    medium_bytes: int
    work_bytes: int
    is_delta: bool = False
    chunks: int = 0
    small_bytes: int = 0

    def room_bytes(self, volume_bytes: int) -> int:
        """Bytes of segments that go on one volume of this size.

        Raises:
            PackError: it is too small for what stands on every volume.
        """
        return segments_room(volume_bytes, self.chunks, self.small_bytes)

    def volumes(self, volume_bytes: int) -> int:
        """How many volumes of this size it takes, at most."""
        return -(-self.medium_bytes // self.room_bytes(volume_bytes))


def make_plan(request: PackRequest, profile: ModelProfile, *, chunks: int = 0) -> Plan:
    """Decide the variants and estimate their sizes.

    Raises:
        PackError: nothing to pack, a variant twice, or a source that cannot be quantized.
        JsonError: the model's metadata does not fit into a statement.
    """
    check_request(request)
    # A profile the statement cannot hold is found now, not after hours of work.
    encode_json(listed_profile(profile))
    planned = [
        PlannedVariant(quantization=name, size_bytes=estimate_bytes(profile, name))
        for name in (check_quantization(one, profile) for one in request.quantizations)
    ]
    if request.include_source or not planned:
        planned.insert(
            0,
            PlannedVariant(
                quantization=profile.quantization,
                size_bytes=profile.file_size_bytes,
                is_source=True,
            ),
        )
    ids = [variant.id for variant in planned]
    if len(set(ids)) != len(ids):
        raise PackError(f"quantize: expected each variant once, found {', '.join(ids)}")
    made = [variant.size_bytes for variant in planned if not variant.is_source]
    small = sum(len(data) for _, data in request.layers) + len(request.modelfile or b"")
    texts = small + sum(len(data) for data in request.roots)
    small += sum(path.stat().st_size for path in request.companions)
    large = sum(variant.size_bytes for variant in planned) + small
    if request.parity:
        # Blocks are as long as their group's longest chunk: one group more than chunks make.
        large += 2 * (large // GROUP + CHUNK_BYTES * (len(planned) + len(request.companions)))
    return Plan(
        variants=tuple(planned),
        medium_bytes=large + _OVERHEAD_BYTES,
        work_bytes=max(made, default=0),
        is_delta=request.against is not None,
        chunks=chunks * (len(planned) + len(request.companions)),
        small_bytes=texts,
    )


def listed_profile(profile: ModelProfile) -> dict[str, Any]:
    """The profile as the statement carries it: without the chat template, which can be long."""
    return {key: value for key, value in profile.to_json().items() if key != "chat_template"}


def check_request(request: PackRequest) -> None:
    """Refuse what the format would refuse later, after hours of work.

    Raises:
        PackError: no key, or a field out of its form.
        ManifestError: channel or sequence number out of their form.
    """
    if not request.keys and not request.unsigned:
        raise PackError(
            "key: expected at least one signing key, found none",
            hint="to sign later, on another machine: --unsigned",
        )
    if request.keys and request.unsigned:
        raise PackError("expected --key or --unsigned, found both")
    for name in request.quantizations:
        known_quantization(name)
    fields = {"channel": request.channel, "seq": request.seq}
    with Reader(fields, "") as reader:
        reader.text("channel", pattern=CHANNEL_PATTERN)
        reader.integer("seq", at_least=1)


def check_room(plan: Plan, out: Path, work: Path) -> None:
    """Refuse before anything is written when it cannot fit.

    Raises:
        NoSpaceError: the medium or the work directory is too full.
        MediumError: the free space cannot be read.
    """
    # A delta may be a hundredth of it: it is tried, and what was written goes when it is too much.
    needs = [] if plan.is_delta else [(out, plan.medium_bytes, "--out")]
    if plan.work_bytes:
        needs.append((work, plan.work_bytes, "--work"))
    devices: dict[int, int] = {}
    for path, need_bytes, option in needs:
        existing = nearest_existing(path)
        try:
            status = os.statvfs(existing)
            device = existing.stat().st_dev
        except OSError as error:
            raise_io(error, existing)
        devices[device] = devices.get(device, 0) + need_bytes
        free_bytes = status.f_bavail * status.f_frsize
        if devices[device] > free_bytes:
            raise NoSpaceError(
                f"{path}: expected {Bytes(devices[device])} free, found {Bytes(free_bytes)}",
                hint=f"give another place with {option}, or fewer variants",
            )


def nearest_existing(path: Path) -> Path:
    """The path itself, or its nearest ancestor that exists."""
    absolute = path.absolute()
    return next((one for one in (absolute, *absolute.parents) if one.exists()), Path("/"))


def plan_lines(plan: Plan, medium_rates: Sequence[int] = (30, 100, 400)) -> tuple[str, ...]:
    """The plan for people; minutes of copying at so many megabytes per second."""
    lines = [
        f"  {one.id:<10} {'' if one.is_source else 'about '}{Bytes(one.size_bytes)}"
        for one in plan.variants
    ]
    seconds = [(rate, plan.medium_bytes / rate / 1e6) for rate in medium_rates]
    times = ", ".join(f"{_duration(time)} at {rate} MB/s" for rate, time in seconds)
    return (
        *lines,
        f"  together at most {Bytes(plan.medium_bytes)} on the medium: {times}",
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{max(seconds, 1):.0f} s"  # noqa: PLR2004
