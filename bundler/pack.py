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

import contextlib
import shutil
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from bundler.errors import BundleExistsError, PackError
from bundler.format import envelope, fsio
from bundler.format.carried import CarriedImage, write_images
from bundler.format.digest import Digest
from bundler.format.manifest import (
    Artifact,
    BlobRef,
    Builder,
    BundleInfo,
    Evidence,
    Layer,
    Manifest,
    Model,
    Requires,
    Variant,
    encode_manifest,
    identified,
    sum_totals,
)
from bundler.format.root import file_name
from bundler.format.statement import format_time, parse_manifest
from bundler.format.volume import ENVELOPE_NAME, ROOT_DIRECTORY, BundleDirectory
from bundler.layers import over
from bundler.medium import Sink, read_back
from bundler.oci import OCI_LAYOUT, write_oci
from bundler.plan import PackRequest, Plan, PlannedVariant, check_room, listed_profile
from bundler.progress import Progress
from bundler.quantize import quantize
from bundler.recipe import recipe_digest, source_digest
from bundler.source.gguf_file import open_companion, open_gguf
from bundler.source.material import Material
from bundler.storing import choose_encoding, store_artifact

README_NAME: Final = "SATCHEL-README.txt"
_README: Final = b"""This medium carries signed model bundles for Satchel.

On the target machine:

    satchel verify  THIS-DIRECTORY      checks the signatures and every byte
    satchel import  THIS-DIRECTORY      the same, and installs the model that fits

Nothing on this medium is trusted because it is here: only signatures count, of keys that the
target's operator has added. This file itself is not signed.
"""
_LEFTOVERS: Final = frozenset({"blobs", "oci-layout", "index.json", ROOT_DIRECTORY})


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A finished bundle.

    Attributes:
        directory: where it is.
        manifest: what it says.
        payload_digest: the identity of the bundle.
        was_there: it had been packed before, and was only checked.
    """

    directory: Path
    manifest: Manifest
    payload_digest: Digest
    was_there: bool


def with_material(request: PackRequest, material: Material) -> PackRequest:
    """A request for what a source gave; what was given beside it stands in its place."""
    own = material.image
    if request.layers or request.projector or request.adapters or request.modelfile:
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
    _clear_unfinished(request.directory)
    sink = Sink(request.directory / "blobs" / "sha256")
    try:
        _make_directory(request.out, sink.directory)
        manifest = _store(request, plan, recipe, sink, progress)
        payload = _finish(request, manifest, sink, progress)
    except BaseException:
        _remove(request.directory, request.out / README_NAME)
        raise
    return Packed(
        directory=request.directory,
        manifest=manifest,
        payload_digest=Digest.of(payload),
        was_there=False,
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
    verified = envelope.verify(data, keys=keys, threshold=len(keys))
    files = signed_files(manifest)
    blobs = request.directory / "blobs" / "sha256"
    with progress.stage("checking the bundle that is there", sum(files.values())) as advance:
        read_back(blobs, files, advance)
    return Packed(
        directory=request.directory,
        manifest=manifest,
        payload_digest=verified.digest,
        was_there=True,
    )


def signed_files(manifest: Manifest) -> dict[Digest, int]:
    """Every file the statement names, with its size in bytes."""
    files = {one.digest: one.size_bytes for one in manifest.blobs}
    for artifact in manifest.artifacts:
        files[artifact.index.digest] = artifact.index.size_bytes
        files.update((one.digest, one.size_bytes) for one in artifact.segments)
    return files


def _store(
    request: PackRequest, plan: Plan, recipe: Digest, sink: Sink, progress: Progress
) -> Manifest:
    """Write every file but the envelope, and say what was written."""
    with tempfile.TemporaryDirectory(prefix="satchel-pack-", dir=_work(request)) as work:
        stored = [
            _store_variant(request, planned, Path(work), sink, progress)
            for planned in plan.variants
        ]
    companions = [_store_companion(path, sink, progress) for path in request.companions]
    return _statement(request, recipe, stored, companions, sink)


def _store_companion(path: Path, sink: Sink, progress: Progress) -> Artifact:
    """Store a projector or an adapter, once for all variants."""
    file = open_companion(path)
    with progress.stage(f"storing {path.name[:24]}", path.stat().st_size) as advance:
        return store_artifact(
            path,
            file.cuts,
            sink,
            encoding=choose_encoding(path, file.cuts),
            facts=file.facts,
            advance=advance,
        )


def _work(request: PackRequest) -> Path:
    try:
        request.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PackError(f"{request.work}: {error.strerror}") from error
    return request.work


def _store_variant(
    request: PackRequest, planned: PlannedVariant, work: Path, sink: Sink, progress: Progress
) -> tuple[Variant, Artifact]:
    path = request.source
    if not planned.is_source:
        path = work / f"{planned.id}.gguf"
        with progress.stage(f"quantizing {planned.id}", planned.size_bytes) as advance:
            quantize(
                request.source,
                path,
                planned.quantization,
                threads=request.threads,
                advance=advance,
            )
    file = open_gguf(path)
    with progress.stage(f"storing {planned.id}", file.profile.file_size_bytes) as advance:
        artifact = store_artifact(
            path,
            file.cuts,
            sink,
            encoding=choose_encoding(path, file.cuts),
            facts=file.facts,
            advance=advance,
        )
    if not planned.is_source:
        path.unlink()
    variant = Variant(
        id=planned.id,
        quantization=planned.quantization,
        artifact=artifact.digest,
        profile=listed_profile(file.profile),
    )
    return variant, artifact


def _statement(
    request: PackRequest,
    recipe: Digest,
    stored: list[tuple[Variant, Artifact]],
    companions: list[Artifact],
    sink: Sink,
) -> Manifest:
    layers = tuple(Layer(role=role, digest=sink.put(data).digest) for role, data in request.layers)
    blobs = {
        layer.digest: len(data) for layer, (_, data) in zip(layers, request.layers, strict=True)
    }
    modelfile = None
    if request.modelfile is not None:
        modelfile = sink.put(request.modelfile).digest
        blobs[modelfile] = len(request.modelfile)
    # More bits are closer to what was trained: the larger of two that fit is preferred.
    ranked = sorted(stored, key=lambda pair: pair[1].size_bytes)
    digests = [artifact.digest for artifact in companions]
    projector = digests[0] if request.projector else None
    variants = {
        variant.id: replace(
            variant,
            prefer=10 * (rank + 1),
            projector=projector,
            adapters=tuple(digests[bool(projector) :]),
        )
        for rank, (variant, _) in enumerate(ranked)
    }
    model = Model(
        name=request.name,
        version=request.version,
        family=stored[0][1].gguf.architecture if stored[0][1].gguf else "unknown",
        licences=request.licences,
        layers=layers,
        variants=tuple(variants[variant.id] for variant, _ in stored),
        modelfile=modelfile,
        evidence=Evidence(source=request.origin),
    )
    every = [*(artifact for _, artifact in stored), *companions]
    by_digest = {artifact.digest: artifact for artifact in every}
    artifacts = tuple(by_digest[digest] for digest in sorted(by_digest))
    small = tuple(BlobRef(digest=one, size_bytes=blobs[one]) for one in sorted(blobs))
    return identified(
        Manifest(
            bundle=BundleInfo(
                channel=request.channel,
                seq=request.seq,
                issued=format_time(request.issued),
                refresh_by=request.refresh_by,
                expires=request.expires,
                audience=request.audience,
                notes=request.notes,
            ),
            requires=Requires(root_version=len(request.roots)),
            models=(model,),
            artifacts=artifacts,
            blobs=small,
            totals=sum_totals(artifacts, small),
            builder=Builder(
                tool=f"satchel-bundle {version('satchel')}",
                reproducible=request.reproducible,
                recipe=recipe,
            ),
            extensions=_carried(request, stored),
        )
    )


def _carried(request: PackRequest, stored: list[tuple[Variant, Artifact]]) -> dict[str, Any]:
    """The source's own manifest, for the variant that is the source itself."""
    image = request.image
    if image is None:
        return {}
    named = request.origin.digest if request.origin else None
    return write_images(
        CarriedImage(
            model=request.name.short(),
            variant=variant.id,
            manifest=image.manifest,
            config=image.config,
        )
        for variant, artifact in stored
        if artifact.digest == named
    )


def _finish(request: PackRequest, manifest: Manifest, sink: Sink, progress: Progress) -> bytes:
    """Flush, read back, and only then sign and commit."""
    directory = request.directory
    payload = encode_manifest(manifest)
    data = envelope.sign(payload, request.keys)
    # What this release cannot read itself, it does not hand out.
    keys = {key.public_key.key_id: key.public_key for key in request.keys}
    envelope.verify(data, keys=keys, threshold=len(keys))
    _write_roots(request)
    fsio.atomic_write(directory / "oci-layout", OCI_LAYOUT)
    fsio.atomic_write(directory / "index.json", write_oci(manifest, sink))
    fsio.remove_leftovers(request.out / README_NAME)
    fsio.atomic_write(request.out / README_NAME, _README)
    for path in (sink.directory, sink.directory.parent, directory, directory.parent):
        fsio.fsync_dir(path)
    with progress.stage("reading back", sum(sink.written.values())) as advance:
        read_back(sink.directory, sink.written, advance)
    fsio.atomic_write(directory / ENVELOPE_NAME, data)
    _read_back_envelope(directory / ENVELOPE_NAME, data)
    return payload


def _write_roots(request: PackRequest) -> None:
    """The chain of trust roots, so that a site that is behind can follow it."""
    if not request.roots:
        return
    below = request.directory / ROOT_DIRECTORY
    _make_directory(request.out, below)
    for number, data in enumerate(request.roots, start=1):
        fsio.atomic_write(below / file_name(number), data)
        _read_back_envelope(below / file_name(number), data)


def _read_back_envelope(path: Path, data: bytes) -> None:
    with fsio.open_regular(path, size_bytes=len(data)) as file:
        fsio.drop_cache(file.fileno())
        if file.read() != data:
            raise PackError(
                f"{path}: the medium does not give back what was written to it",
                hint="the medium is faulty or counterfeit; use another one",
            )


def _make_directory(root: Path, path: Path) -> None:
    """Make a directory below the medium's root.

    Raises:
        PackError: a directory on the way is a link: it may lead anywhere on this computer.
        MediumError: it cannot be made.
    """
    below = path.relative_to(root)
    for part in [*below.parents, below]:
        if root / part != root and (root / part).is_symlink():
            raise PackError(f"{root / part}: expected a directory, found a link")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fsio.raise_io(error, path)


def _clear_unfinished(directory: Path) -> None:
    """Remove what an interrupted pack left, and nothing else.

    Raises:
        BundleExistsError: there is something else in the directory.
    """
    if not directory.exists():
        return
    found = {entry.name for entry in directory.iterdir()}
    foreign = {name for name in found - _LEFTOVERS if not name.endswith(".part")}
    if foreign:
        raise BundleExistsError(
            f"{directory}: expected leftovers of a pack, found {min(foreign)!r}",
            hint="look at it, and remove it by hand",
        )
    shutil.rmtree(directory, ignore_errors=True)


def _remove(directory: Path, readme: Path) -> None:
    """Take away an unfinished bundle, and what stands around it unless others need it."""
    shutil.rmtree(directory, ignore_errors=True)
    with contextlib.suppress(OSError):
        directory.parent.rmdir()
        readme.unlink()
