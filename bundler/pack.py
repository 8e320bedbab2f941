"""Pack a model into a signed bundle.

Rules:
 * room is checked before anything is written;
 * a variant is made, stored and removed again before the next one is made;
 * the envelope is the commit marker: it is written last, after everything else was flushed and
   read back from the medium;
 * a failure removes what was written; a finished bundle is never changed;
 * equal inputs and a given time make equal bytes.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from bundler.accepting import make_checks
from bundler.committing import (
    clear_unfinished,
    finish,
    make_directory,
    remove,
)
from bundler.delta import Sources, file_delta
from bundler.errors import BundleExistsError, PackError
from bundler.format import envelope
from bundler.format.cutting import Cut
from bundler.format.digest import Digest
from bundler.format.manifest import Artifact, GgufFacts, Manifest, Variant, volume_count
from bundler.format.statement import parse_manifest
from bundler.format.volume import ENVELOPE_NAME, BundleDirectory
from bundler.hashing import source_digest
from bundler.layers import over
from bundler.medium import Sink, read_back
from bundler.plan import PackRequest, Plan, PlannedVariant, check_room, listed_profile
from bundler.progress import Progress
from bundler.quantize import quantize
from bundler.recipe import recipe_digest
from bundler.source.gguf_file import open_companion, open_gguf
from bundler.source.material import Material
from bundler.stating import make_statement
from bundler.storing import choose_encoding, store_artifact
from hwprobe.gguf import ModelProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A finished bundle.

    Attributes:
        directory: where it is.
        manifest: what it says.
        payload_digest: the identity of the bundle.
        was_there: it had been packed before, and was only checked.
        request: what was packed, with everything that was decided meanwhile.
    """

    directory: Path
    manifest: Manifest
    payload_digest: Digest
    was_there: bool
    request: PackRequest


def with_material(request: PackRequest, material: Material) -> PackRequest:
    """A request for what a source gave; what was given beside it stands in its place."""
    own = material.image
    beside = request.projector or request.draft or request.adapters
    if request.layers or beside or request.modelfile:
        own = None  # another model than the source's, so another id
    return replace(
        request,
        source=material.weights,
        origin=material.origin,
        layers=over(material.layers, request.layers),
        projector=request.projector or material.projector,
        adapters=request.adapters or material.adapters,
        image=own,
    )


def pack(
    request: PackRequest, plan: Plan, progress: Progress, *, source: Digest | None = None
) -> Packed:
    """Carry out a plan.

    Args:
        request: what to pack.
        plan: what `make_plan` made of it.
        progress: where stages are shown.
        source: digest of the source file, when the caller has read it already.

    Raises:
        BundleExistsError: another bundle has this channel and sequence number.
        NoSpaceError: the medium or the work directory is or becomes too full.
        QuantizeError: the engine failed.
        BundleError: anything else; in each case no unfinished bundle is left.
    """
    recipe = recipe_digest(request, source or source_digest(request.source, progress))
    if there := _already_there(request, recipe, progress):
        return there
    check_room(plan, request.out, request.work)
    clear_unfinished(request)
    sink = _sink(request, plan)
    try:
        make_directory(request.out, sink.directory)
        manifest = _store(request, plan, recipe, sink, progress)
        payload = finish(request, manifest, sink, progress)
    except BaseException:
        remove(request)
        raise
    return Packed(
        directory=request.directory,
        manifest=manifest,
        payload_digest=Digest.of(payload),
        was_there=False,
        request=request,
    )


def _already_there(request: PackRequest, recipe: Digest, progress: Progress) -> Packed | None:
    """The finished bundle of this recipe, after every byte of it was checked.

    Raises:
        BundleExistsError: there is a finished bundle, and it is another one.
        BundleError: it is this one, but damaged.
    """
    if not (request.directory / ENVELOPE_NAME).exists():
        return None
    bundle = BundleDirectory(request.directory)
    data = bundle.read_envelope()
    keys = {key.public_key.key_id: key.public_key for key in request.keys}
    manifest = parse_manifest(envelope.parse(data).payload)
    if manifest.builder.recipe != recipe:
        raise BundleExistsError(
            f"{request.directory}: another bundle {request.channel} {request.seq} is already there",
            hint=f"give a higher number, such as --seq {request.seq + 1}",
        )
    if keys:
        envelope.verify(data, keys=keys, threshold=len(keys))
    total = manifest.totals.stored_bytes
    with progress.stage("checking the bundle that is there", total) as advance:
        for number in range(1, volume_count(manifest) + 1):
            volume = BundleDirectory(request.volume_directory(number))
            if envelope.parse(volume.read_envelope()).payload != envelope.parse(data).payload:
                raise BundleExistsError(f"{volume.path}: expected volume {number} of this bundle")
            read_back(volume.path / "blobs" / "sha256", signed_files(manifest, number), advance)
    return Packed(
        directory=request.directory,
        manifest=manifest,
        payload_digest=Digest.of(envelope.parse(data).payload),
        was_there=True,
        request=request,
    )


def signed_files(manifest: Manifest, volume: int) -> dict[Digest, int]:
    """Every file the statement names for a volume, with its size in bytes."""
    files = {one.digest: one.size_bytes for one in manifest.blobs}
    for artifact in manifest.artifacts:
        segments = artifact.segments
        files[artifact.index.digest] = artifact.index.size_bytes
        if artifact.parity is not None:
            segments += artifact.parity.segments
            files[artifact.parity.index.digest] = artifact.parity.index.size_bytes
        files.update((one.digest, one.size_bytes) for one in segments if one.volume == volume)
    return files


def _sink(request: PackRequest, plan: Plan) -> Sink:
    """Where files go: one directory, or one after the other as volumes fill."""
    below = Path("blobs") / "sha256"
    if not request.volume_bytes:
        return Sink(request.directory / below)

    def following(number: int) -> Path:
        directory = request.volume_directory(number) / below
        make_directory(request.out, directory)
        return directory

    return Sink(
        request.directory / below,
        volume_bytes=plan.room_bytes(request.volume_bytes),
        following=following,
    )


def _store(
    request: PackRequest, plan: Plan, recipe: Digest, sink: Sink, progress: Progress
) -> Manifest:
    """Write every file but the envelope, and say what was written."""
    storing = _Storing(
        request=request,
        sink=sink,
        progress=progress,
        sources=Sources(request.against) if request.against else None,
    )
    with tempfile.TemporaryDirectory(prefix="satchel-pack-", dir=_work(request)) as work:
        stored = [storing.variant(planned, Path(work)) for planned in plan.variants]
    companions = [storing.companion(path) for path in request.companions]
    objects = storing.sources.objects if storing.sources else ()
    return make_statement(request, recipe, stored, companions, sink, objects=objects)


def _work(request: PackRequest) -> Path:
    try:
        request.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PackError(f"{request.work}: {error.strerror}") from error
    return request.work


@dataclass(frozen=True, slots=True, kw_only=True)
class _Storing:
    """What storing each large file needs."""

    request: PackRequest
    sink: Sink
    progress: Progress
    sources: Sources | None

    def companion(self, path: Path) -> Artifact:
        """Store a projector, a draft model or an adapter, once for all variants."""
        file = open_companion(path)
        size_bytes = path.stat().st_size
        return self._store(path, file.cuts, file.facts, f"storing {path.name[:24]}", size_bytes)

    def variant(self, planned: PlannedVariant, work: Path) -> tuple[Variant, Artifact]:
        """Make a variant if it is not the source, and store it."""
        request, path = self.request, self.request.source
        if not planned.is_source:
            path = work / f"{planned.id}.gguf"
            with self.progress.stage(f"quantizing {planned.id}", planned.size_bytes) as advance:
                quantize(
                    request.source,
                    path,
                    planned.quantization,
                    threads=request.threads,
                    advance=advance,
                )
        file = open_gguf(path)
        size_bytes = file.profile.file_size_bytes
        artifact = self._store(path, file.cuts, file.facts, f"storing {planned.id}", size_bytes)
        acceptance = self._accept(path, file.profile, planned.id)
        if not planned.is_source:
            path.unlink()
        variant = Variant(
            id=planned.id,
            quantization=planned.quantization,
            artifact=artifact.digest,
            profile=listed_profile(file.profile),
            acceptance=acceptance,
        )
        return variant, artifact

    def _accept(self, path: Path, profile: ModelProfile, name: str) -> Digest | None:
        """Measure what the target will measure again."""
        request = self.request
        if request.accept is None:
            return None
        with self.progress.stage(f"trying {name}", 0):
            data = make_checks(path, profile, request.accept, threads=request.threads)
        return self.sink.put(data).digest

    def _store(
        self, path: Path, cuts: tuple[Cut, ...], facts: GgufFacts, doing: str, size_bytes: int
    ) -> Artifact:
        with ExitStack() as stack:
            delta = None
            if self.request.against is not None and self.sources is not None:
                delta = stack.enter_context(
                    file_delta(path, cuts, self.request.against, self.sources)
                )
            return store_artifact(
                path,
                cuts,
                self.sink,
                encoding=choose_encoding(path, cuts),
                facts=facts,
                advance=stack.enter_context(self.progress.stage(doing, size_bytes)),
                delta=delta,
                parity=self.request.parity,
            )
