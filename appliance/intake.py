"""What an import is to do: which variants, under which names, and which files are not here yet.

Step 6 of docs/bundle-format.md, section 8. Reads the medium and the store; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from appliance import copying, gate
from appliance.admission import Admitted, check_owner
from appliance.choice import Choice, Install, choose, profile_of, wish_for
from appliance.errors import RequestError, UnusableModelError
from appliance.evidence import read_evidence
from appliance.local import check_local
from appliance.reading import Source
from appliance.room import check_room
from appliance.site import Observer, Request, Site
from appliance.store import Store
from bundler.format.acceptance import MAX_ACCEPTANCE_BYTES, Check, parse_checks
from bundler.format.carried import CarriedImage, read_images
from bundler.format.digest import Descriptor, Digest
from bundler.format.index import check_index, parse_index
from bundler.format.manifest import Artifact, Manifest, Variant
from bundler.format.name import ModelName
from bundler.format.volume import BundleDirectory
from hwprobe.settings import EngineSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One name, and everything it needs.

    Attributes:
        checks: its signed acceptance checks, if any.
        settings: how it will be served, where that is known.
        documents: what came with it besides, by name.
    """

    name: ModelName
    variant: Variant
    artifact: Artifact
    companions: tuple[tuple[str, Artifact], ...]
    layers: tuple[tuple[Descriptor, bytes], ...]
    config: bytes
    manifest: bytes
    checks: tuple[Check, ...] = ()
    settings: EngineSettings | None = None
    documents: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """Every large file, the weights first."""
        return (self.artifact, *(artifact for _, artifact in self.companions))


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """What is to be done: names to set, and of their weights those that are not here yet."""

    names: tuple[Arrival, ...]
    missing: tuple[Source, ...]

    @property
    def need_bytes(self) -> int:
        """Plain bytes that come from the medium."""
        small = sum(len(data) for planned in self.names for _, data in planned.layers)
        return sum(source.artifact.size_bytes for source in self.missing) + small


def read_source(
    bundle: BundleDirectory, artifact: Artifact, manifest: Manifest, store: Store
) -> Source:
    """The checked chunk index of an artifact, and where the store holds what it copies from.

    Raises:
        FormatError: it is missing, damaged, or unlike the statement.
        MediumError: the medium cannot be read.
    """
    data = bundle.read_blob(
        artifact.index.digest,
        max_bytes=artifact.index.size_bytes,
        size_bytes=artifact.index.size_bytes,
    )
    index = parse_index(data)
    check_index(index, artifact, manifest.requires.objects)
    objects = tuple(store.paths.blob(one.digest) for one in manifest.requires.objects)
    return Source(bundle=bundle, artifact=artifact, index=index, objects=objects)


def plan_intake(admitted: Admitted, request: Request, site: Site, observer: Observer) -> Intake:
    """Choose variants and names, and make sure that what they need can be read and has room.

    Raises:
        BundleError: an index or a layer is not as it was signed, or a file is missing.
        AppError: the machine, the channel or the store says no.
    """
    # 6. Which variant, whether it is here already, its index, and room for it.
    manifest, wanted = admitted.manifest, request.wanted
    gate.check_layers(manifest)
    choices = tuple(
        choose(model, site.machine, wish_for(site.config, model.name), wanted)
        for model in manifest.models
        if not wanted.models or model.name in wanted.models
    )
    for choice in choices:
        observer.chosen(choice)
    names = tuple(_planned(admitted.bundle, manifest, choices))
    # Further variants take names of their own, which may be another channel's as well.
    channel, allowed = manifest.bundle.channel, request.allow_channel
    check_owner((one.name for one in names), channel, site.store, allowed=allowed)
    weights = {one.digest: one for planned in names for one in planned.artifacts}
    here = _present(site.store, weights.values(), observer)
    missing = tuple(
        read_source(admitted.bundle, artifact, manifest, site.store)
        for digest, artifact in weights.items()
        if digest not in here
    )
    plan = Intake(names=names, missing=missing)
    for source in missing:
        check_local(source, manifest, observer)
    _check_room(plan, site)
    return plan


def _planned(
    bundle: BundleDirectory, manifest: Manifest, choices: tuple[Choice, ...]
) -> Iterable[Arrival]:
    taken: set[tuple[str, ...]] = set()
    images = {(one.model, one.variant): one for one in read_images(manifest.extensions)}
    for choice in choices:
        layers = gate.read_layers(bundle, manifest, choice.model)
        documents = read_evidence(bundle, manifest, choice.model)
        for install in choice.installs:
            if install.name.folded() in taken:
                raise RequestError(
                    f"{install.name.short()}: expected one model of this name, found two",
                    hint="import without --all and name the variant you want",
                )
            taken.add(install.name.folded())
            arrival = _planned_variant(
                install,
                manifest,
                layers,
                images.get((choice.model.name.short(), install.variant.id)),
            )
            place = choice.placement if install is choice.installs[0] else None
            yield replace(
                arrival,
                checks=_checks(bundle, manifest, install.variant),
                settings=place.settings if place else None,
                documents=documents,
            )


def _checks(bundle: BundleDirectory, manifest: Manifest, variant: Variant) -> tuple[Check, ...]:
    """What the variant must do here; read before anything large is copied."""
    if variant.acceptance is None:
        return ()
    size_bytes = manifest.blob(variant.acceptance).size_bytes
    if size_bytes > MAX_ACCEPTANCE_BYTES:
        raise UnusableModelError(
            f"variant {variant.id}: acceptance: expected at most {MAX_ACCEPTANCE_BYTES} bytes, "
            f"found {size_bytes}"
        )
    data = bundle.read_blob(variant.acceptance, max_bytes=size_bytes, size_bytes=size_bytes)
    return parse_checks(data)


def _planned_variant(
    install: Install,
    manifest: Manifest,
    layers: tuple[tuple[Descriptor, bytes], ...],
    image: CarriedImage | None,
) -> Arrival:
    variant = install.variant
    artifact = manifest.artifact(variant.artifact)
    companions = gate.companions(manifest, variant)
    if image is not None:
        gate.check_image(image, artifact, companions, layers)
        config, written = image.config, image.manifest
    else:
        config = gate.config_blob(profile_of(variant), artifact.digest)
        written = gate.model_manifest(artifact, layers, config, companions)
    return Arrival(
        name=install.name,
        variant=variant,
        artifact=artifact,
        companions=companions,
        layers=layers,
        config=config,
        manifest=written,
    )


def _present(store: Store, artifacts: Iterable[Artifact], observer: Observer) -> set[Digest]:
    """The weights that are here already; their bytes are checked, not trusted."""
    here = set()
    for artifact in artifacts:
        described = Descriptor(
            media_type=artifact.media, digest=artifact.digest, size_bytes=artifact.size_bytes
        )
        if store.has_blob(described):
            observer.begins(f"checking {artifact.digest.short()}", artifact.size_bytes)
            path = store.paths.blob(artifact.digest)
            if copying.file_digest(path, progress=observer.advances) == artifact.digest:
                here.add(artifact.digest)
    return here


def _check_room(plan: Intake, site: Site) -> None:
    if not plan.missing:
        return
    paths = site.store.paths
    staged = sum(_allocated(paths.staged(source.artifact.digest)) for source in plan.missing)
    check_room(paths, plan.need_bytes, site.config.store.reserve_bytes, taken_bytes=staged)


def _allocated(path: Path) -> int:
    """What an interrupted import's staging file already takes; it will be used again."""
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0
