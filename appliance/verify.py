"""Check everything about a bundle without writing anything: the import's steps, all findings.

The signatures come first, as in an import: while they are not enough, nothing else is looked at.
After that every byte of every file is read, and every fault is collected instead of the first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from appliance import gate
from appliance.admission import (
    Admitted,
    check_admission,
    check_owner,
    known_policy,
    newer_roots,
    verify_envelope,
    with_roots,
)
from appliance.choice import Choice, choose, wish_for
from appliance.errors import AppError
from appliance.intake import read_source
from appliance.local import check_local
from appliance.media import open_media
from appliance.permits import permit_for
from appliance.reading import Source, plain_chunks
from appliance.rebuilding import rebuilt_chunks
from appliance.site import Observer, Request, Site
from bundler.format.errors import BundleError, DamagedError
from bundler.format.index import parse_index
from bundler.format.manifest import Artifact, Variant
from bundler.format.parity import check_parity

MAX_FINDINGS = 200
"""A stick that is all noise would otherwise fill the screen and the memory."""
_HEAD_BYTES = 32 << 20
"""Most of a file that is kept for the header check; a vocabulary of 256k takes about 12 MiB."""

Finding = AppError | BundleError


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found.

    Attributes:
        admitted: the bundle, whose signatures were enough.
        choices: what an import would install.
        findings: everything that is wrong, in the order of the steps; at most 200.
        checked_bytes: plain bytes of weights that were read and hashed.
    """

    admitted: Admitted
    choices: tuple[Choice, ...]
    findings: tuple[Finding, ...]
    checked_bytes: int


def verify_bundle(request: Request, site: Site, observer: Observer) -> Report:
    """Check a bundle as an import would, to the last byte; neither store nor medium is written.

    Raises:
        BundleError: there is no bundle, or its signatures or statement are not right.
        NobodyTrustedError: no key is trusted here.
    """
    findings: list[Finding] = []
    bundle = open_media(request.media).bundle
    policy = known_policy(site.store)
    policy = with_roots(policy, newer_roots(bundle, policy))
    verified = verify_envelope(bundle, policy, site.config.trust)
    warnings: tuple[str, ...] = ()
    with _collecting(findings):
        permit = permit_for(bundle, verified, policy, site.config.trust, now=site.now)
        warnings = check_admission(
            verified,
            policy,
            site.config.trust,
            now=site.now,
            version=site.version,
            allow_rollback=request.allow_rollback,
            permit=permit,
        )
    with _collecting(findings):
        names = tuple(model.name for model in verified.manifest.models)
        warnings += check_owner(
            names, verified.manifest.bundle.channel, site.store, allowed=request.allow_channel
        )
    admitted = Admitted(bundle=bundle, verified=verified, policy=policy, warnings=warnings)
    observer.verified(admitted)
    choices: list[Choice] = []
    for model in admitted.manifest.models:
        with _collecting(findings):
            wish = wish_for(site.config, model.name)
            choices.append(choose(model, site.machine, wish, request.wanted))
            observer.chosen(choices[-1])
    with _collecting(findings):
        gate.check_layers(admitted.manifest)
        for model in admitted.manifest.models:
            with _collecting(findings):
                gate.read_layers(bundle, admitted.manifest, model)
    _check_blobs(admitted, findings)
    checked = sum(
        _check_artifact(admitted, artifact, site, observer, findings)
        for artifact in admitted.manifest.artifacts
    )
    return Report(
        admitted=admitted,
        choices=tuple(choices),
        findings=tuple(findings[:MAX_FINDINGS]),
        checked_bytes=checked,
    )


@contextmanager
def _collecting(findings: list[Finding]) -> Iterator[None]:
    try:
        yield
    except (AppError, BundleError) as error:
        findings.append(error)


def _check_blobs(admitted: Admitted, findings: list[Finding]) -> None:
    """Every small file; the layers among them were read already, which costs little."""
    for blob in admitted.manifest.blobs:
        with _collecting(findings):
            admitted.bundle.read_blob(
                blob.digest, max_bytes=blob.size_bytes, size_bytes=blob.size_bytes
            )


def _check_artifact(
    admitted: Admitted,
    artifact: Artifact,
    site: Site,
    observer: Observer,
    findings: list[Finding],
) -> int:
    """Stream one artifact; returns the number of plain bytes that were right."""
    observer.begins(f"verifying {artifact.digest.short()}", artifact.size_bytes)
    before = len(findings)
    gaps: dict[int, BundleError] = {}
    checked = 0
    hasher = hashlib.sha256()
    with _collecting(findings), _head_file(artifact.size_bytes) as (head, keep):
        source = read_source(admitted.bundle, artifact, admitted.manifest, site.store)
        check_local(source, admitted.manifest, observer)
        with contextlib.closing(plain_chunks(source)) as chunks:
            for place, (record, plain) in enumerate(chunks):
                if isinstance(plain, BundleError):
                    gaps[place] = plain
                    if len(findings) + len(gaps) >= MAX_FINDINGS:
                        break
                    continue
                hasher.update(plain)
                keep(plain, record.plain_off)
                checked += record.plain_len
                observer.advances(record.plain_len)
        findings += _explained(source, gaps)
        _check_parity(source, observer, findings)
        if len(findings) == before:
            _check_whole(admitted, artifact, hasher, head)
    return checked


def _explained(source: Source, gaps: Mapping[int, BundleError]) -> Iterator[BundleError]:
    """What is wrong with each chunk, and whether an import could do without it."""
    rebuilt = {place for place, _ in rebuilt_chunks(source, gaps)}
    for place, error in gaps.items():
        if place in rebuilt:
            error.hint = "parity gives this chunk back: an import goes on by itself"
        yield error


def _check_parity(source: Source, observer: Observer, findings: list[Finding]) -> None:
    """Every block of parity, too: it is no use if it is found rotten on the day it is needed."""
    parity = source.artifact.parity
    if parity is None or len(findings) >= MAX_FINDINGS:
        return
    size = parity.index.size_bytes
    data = source.bundle.read_blob(parity.index.digest, max_bytes=size, size_bytes=size)
    own = parse_index(data)
    check_parity(parity, own, source.index)
    observer.begins("verifying parity", own.file_size_bytes)
    with contextlib.closing(plain_chunks(replace(source, index=own, objects=()))) as blocks:
        for record, block in blocks:
            if isinstance(block, BundleError):
                block.hint = "a block of parity; the model itself is not concerned"
                findings.append(block)
                if len(findings) >= MAX_FINDINGS:
                    return
            observer.advances(record.plain_len)


def _check_whole(admitted: Admitted, artifact: Artifact, hasher: hashlib._Hash, head: Path) -> None:
    if hasher.digest() != artifact.digest.raw:
        raise DamagedError(
            f"{artifact.digest}: expected a file of this digest, found another",
            hint="every chunk is as signed, the whole is not; ask who signed this bundle",
        )
    for variant in _variants(admitted, artifact):
        if variant.artifact == artifact.digest:
            gate.check_weights(head, artifact, variant)
        else:
            gate.check_companion(head, artifact, variant)


def _variants(admitted: Admitted, artifact: Artifact) -> Iterator[Variant]:
    for model in admitted.manifest.models:
        yield from (one for one in model.variants if artifact.digest in one.artifacts())


@contextmanager
def _head_file(size_bytes: int) -> Iterator[tuple[Path, Callable[[memoryview, int], None]]]:
    """A file of the full size in memory that holds the beginning and zeros: enough for the gate.

    Yields:
        Its path, and a function that keeps what lies within the beginning.
    """
    descriptor = os.memfd_create("satchel-verify", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, size_bytes)

        def keep(plain: memoryview, offset: int) -> None:
            if offset < _HEAD_BYTES:
                os.pwrite(descriptor, plain, offset)

        yield Path(f"/proc/self/fd/{descriptor}"), keep
    finally:
        os.close(descriptor)
