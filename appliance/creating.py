"""Make a model here: from an installed one, or from blobs that a client sent.

Rules:
 * large files are read, checked and made first, without the store's lock, in a place of their
   own; under the lock everything the manifest names is put into the store, and the name moves last;
 * a crash or a full disk leaves the store as it was, but for files the next writer removes;
 * weights that no installed model has pass the same header check as imported ones, and the engine
   is asked in a child process whether it takes them;
 * a model made of signed weights remembers their bundle; any other says that nobody signed it.

This runs in a process of its own: see `appliance.job`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from appliance import gate, weights
from appliance.copying import file_digest
from appliance.creation import CreateRequest, config_of, keeps_base, media_type, texts_of
from appliance.errors import (
    AppError,
    ModelMissingError,
    RequestError,
    SwitchedOffError,
)
from appliance.journal import Journal
from appliance.material import (
    LARGE,
    LargeFile,
    check_adapter,
    check_draft_model,
    in_order,
    put_together,
    read_sent,
    read_weights,
)
from appliance.model import (
    CONFIG_MEDIA,
    Creation,
    InstalledModel,
    Origin,
    encode_image,
    parse_image,
)
from appliance.pruning import prune_locked
from appliance.room import check_room
from appliance.store import Store, StoreWriter
from appliance.uploads import renew
from appliance.workplace import Workplace, workplace
from bundler.format.digest import Descriptor, Digest
from bundler.format.name import ModelName
from hwprobe.gguf import GgufHeader, ModelProfile

Tell = Callable[[Mapping[str, Any]], None]
"""Is told of each step in Ollama's words."""

LOCK_WAIT_S = 120.0
"""How long another writer is waited for: most finish in seconds, an import may not."""

_NO_DIGEST = "0" * 19
"""What Ollama sends as the digest of a file that has none yet."""
_TEXTS = ("template", "prompt", "system", "license", "params", "messages")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """Where models are made.

    Attributes:
        store: what is written.
        allowed: ``trust.create``.
        reserve_bytes: free space that must be left.
        grace_s: how long unused blobs are kept.
        threads: CPU threads for quantizing.
        now_s: wall time in seconds since the epoch.
        now: the same, RFC 3339 in UTC.
    """

    store: Store
    allowed: Literal["any", "signed", "off"]
    reserve_bytes: int
    grace_s: float
    threads: int
    now_s: float
    now: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    """An installed model, and its manifest."""

    model: InstalledModel
    manifest: bytes

    def files(self) -> tuple[LargeFile, ...]:
        image = parse_image(self.manifest)
        return tuple(
            LargeFile(kind=kind, digest=part.digest, size_bytes=part.size_bytes)
            for kind in LARGE
            for part in (image.of(kind)[-1:] if kind == "model" else image.of(kind))
        )

    def others(self) -> tuple[Descriptor, ...]:
        """Layers of kinds this release has no use for; they are kept."""
        known = {media_type(kind) for kind in (*LARGE, *_TEXTS)}
        image = parse_image(self.manifest)
        return tuple(layer for layer in image.layers if layer.media_type not in known)


def create(request: CreateRequest, shop: Workshop, tell: Tell) -> Digest:
    """Make the model; its name stands for it when this returns.

    Returns:
        Digest of its manifest.

    Raises:
        RequestError: the request makes no sense.
        ModelMissingError: the base is not installed.
        SwitchedOffError: the site does not allow it.
        UnusableModelError: a file is not one the engine can be given.
        QuantizeError: the engine failed at quantizing.
        NoSpaceError: there is too little room.
        StoreError: the store cannot be read or written.
    """
    _ = request.target
    if shop.allowed == "off":
        raise SwitchedOffError("creating models is switched off here: trust.create")
    shop.store.make_directories()
    with workplace(shop.store.paths) as place:
        base = _base(request, shop.store, place)
        signed = base is not None and base.model.signed and not request.brings_weights
        if shop.allowed == "signed" and not signed:
            raise SwitchedOffError(
                "models are made here only from models that came in a signed bundle: trust.create"
            )
        making = _Making(request=request, base=base, shop=shop, place=place, tell=tell)
        if base is not None and keeps_base(request):
            making.copy(base.model.name)
            return base.model.digest
        files, profile = making.finished(making.files())
        return making.install(files, profile)


def _base(request: CreateRequest, store: Store, place: Workplace) -> _Base | None:
    if not request.base:
        return None
    name = ModelName.parse(request.base)
    model = store.resolve(name)
    manifest = store.manifest(model.name)
    try:
        for part in parse_image(manifest).parts:
            place.hold(part.digest)
    except FileNotFoundError as error:  # removed since it was looked up
        raise ModelMissingError(f"model '{name.short()}' not found") from error
    return _Base(model=model, manifest=manifest)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Making:
    """One model on its way."""

    request: CreateRequest
    base: _Base | None
    shop: Workshop
    place: Workplace
    tell: Tell

    def copy(self, source: ModelName) -> None:
        """Another name and nothing else: the same manifest, and so the same id and origin."""
        self.tell({"status": "writing manifest"})
        target = self.request.target
        with self.shop.store.writing(wait_s=LOCK_WAIT_S) as writer:
            writer.copy(source, target)
            Journal(self.shop.store.paths.journal).record(
                "copied", source=source.full(), destination=target.full()
            )
        self.tell({"status": "success"})

    def files(self) -> tuple[LargeFile, ...]:
        """The large files: the base's, and in their place or beside them those that were sent."""
        if len(self.request.adapters) > 1:
            raise RequestError("only one adapter is currently supported")
        sent = [self._sent(name, digest) for name, digest in self.request.files]
        if any(file.kind == "adapter" for file in sent):
            raise RequestError("files: expected a model, found an adapter: give it with adapters")
        adapters = [self._sent(name, digest) for name, digest in self.request.adapters]
        if any(file.kind != "adapter" for file in adapters):
            raise RequestError("adapters: expected a LoRA adapter in GGUF form, found another file")
        return put_together(
            self.base.files() if self.base else (),
            (*self._merged(sent), *adapters, *self._drafts()),
        )

    def _drafts(self) -> list[LargeFile]:
        """The draft model that was sent, if one was."""
        if len(self.request.drafts) > 1:
            raise RequestError("only one draft model is supported")
        sent = [self._sent(name, digest) for name, digest in self.request.drafts]
        if any(file.kind != "model" or file.shard for file in sent):
            raise RequestError("draft_files: expected a model in one GGUF file, found another")
        return [replace(file, kind="draft") for file in sent]

    def _sent(self, name: str, digest_text: str) -> LargeFile:
        digest = Digest.parse(digest_text)
        renew(self.place.paths, digest)
        try:
            path = self.place.hold(digest)
        except FileNotFoundError as error:
            raise RequestError(
                f'{name}: blob "{digest}" not found', hint="send it first: POST /api/blobs/DIGEST"
            ) from error
        self.tell({"status": "parsing GGUF"})
        return read_sent(path, name, digest)

    def _merged(self, sent: list[LargeFile]) -> list[LargeFile]:
        """The files, those of a split model put together into one."""
        shards = tuple(file for file in sent if file.shard)
        if not shards:
            return sent
        if any(file.kind != "model" for file in shards):
            raise RequestError("files: expected shards of a model, found others")
        ordered = in_order(shards)
        check_room(
            self.shop.store.paths,
            sum(file.size_bytes for file in shards),
            self.shop.reserve_bytes,
        )
        names = weights.shard_names(len(ordered))
        paths = [self.place.hold(*named) for named in zip(ordered, names, strict=True)]
        target = self.place.directory / "merged.gguf"
        status = {"status": f"merging {len(ordered)} shards", "digest": _NO_DIGEST}
        weights.merge(paths[0], target, lambda done, total: self.tell(
            {**status, "total": total, "completed": done}
        ))  # fmt: skip
        digest = file_digest(target, progress=lambda _: None)
        self.place.keep(target, digest)
        whole = LargeFile(kind="model", digest=digest, size_bytes=target.stat().st_size, new=True)
        return [whole, *(file for file in sent if not file.shard)]

    def finished(self, files: tuple[LargeFile, ...]) -> tuple[tuple[LargeFile, ...], ModelProfile]:
        """The files as they will be stored, and what the weights say."""
        model, *rest = files
        path = self.place.path(model.digest)
        header, profile = read_weights(path, "weights")
        for file in rest:
            if file.kind == "adapter" and (file.new or model.new):
                check_adapter(self.place.path(file.digest), profile)
        rest = [
            self._checked_draft(file, header) if file.kind == "draft" else file for file in rest
        ]
        wanted = self.request.quantize
        wanted = weights.read_quantization(wanted) if wanted else ""
        if model.new:
            self.tell({"status": "validating GGUF model"})
            weights.check_layout(header, "weights")
            weights.check_engine(path, header, profile)
        if wanted and wanted != profile.quantization:
            model, profile = self._quantized(model, profile, wanted)
        return (model, *rest), profile

    def _checked_draft(self, file: LargeFile, model: GgufHeader) -> LargeFile:
        """The draft model as it will be stored, if it goes with the weights."""
        path = self.place.path(file.digest)
        check_draft_model(path, model)
        header, profile = read_weights(path, "draft")
        if file.new:
            self.tell({"status": "validating GGUF model"})
            weights.check_layout(header, "draft")
            weights.check_engine(path, header, profile)
        wanted = self.request.draft_quantize
        wanted = weights.read_quantization(wanted) if wanted else ""
        if file.new and wanted and wanted != profile.quantization:
            file, _profile = self._quantized(file, profile, wanted)
        return file

    def _quantized(
        self, model: LargeFile, profile: ModelProfile, wanted: str
    ) -> tuple[LargeFile, ModelProfile]:
        total = weights.quantized_bytes(profile, wanted)
        check_room(self.shop.store.paths, total, self.shop.reserve_bytes)
        status = f"quantizing {profile.quantization} model to {wanted}"
        done = 0

        def advance(size_bytes: int) -> None:
            nonlocal done
            done = min(done + size_bytes, total)
            self.tell({"status": status, "digest": _NO_DIGEST, "total": total, "completed": done})

        advance(0)
        target = self.place.directory / f"quantized-{model.kind}.gguf"
        source = self.place.path(model.digest)
        weights.quantize(
            source, profile, target, wanted, threads=self.shop.threads, advance=advance
        )
        advance(total)
        _, made = read_weights(target, f"{wanted} weights")
        digest = file_digest(target, progress=lambda _: None)
        self.place.keep(target, digest)
        file = replace(model, digest=digest, size_bytes=target.stat().st_size)
        return file, made

    def install(self, files: tuple[LargeFile, ...], profile: ModelProfile) -> Digest:
        """Put everything into the store, the name last."""
        texts = texts_of(self.request, self.base.model if self.base else None)
        config = self._config(files, profile)
        small = tuple(
            Descriptor(media_type=media_type(kind), digest=Digest.of(data), size_bytes=len(data))
            for kind, data in texts
        )
        described = Descriptor(
            media_type=CONFIG_MEDIA, digest=Digest.of(config), size_bytes=len(config)
        )
        others = self.base.others() if self.base else ()
        layers = (*(file.descriptor for file in files), *small, *others)
        for layer in (*layers, described):
            here = self.shop.store.paths.blob(layer.digest).exists()
            verb = "using existing layer" if here else "creating new layer"
            self.tell({"status": f"{verb} {layer.digest}"})
        manifest = encode_image(config=described, layers=layers)
        large = (*(file.digest for file in files), *(layer.digest for layer in others))
        with self.shop.store.writing(wait_s=LOCK_WAIT_S) as writer:
            self.tell({"status": "writing manifest"})
            self._commit(writer, large, (*(data for _, data in texts), config))
            signed = not any(file.new for file in files)
            self._point(writer, manifest, signed=signed)
            self._prune()
        self.tell({"status": "success"})
        return Digest.of(manifest)

    def _commit(
        self,
        writer: StoreWriter,
        large: tuple[Digest, ...],
        small: tuple[bytes, ...],
    ) -> None:
        """Everything the manifest names; nothing of it stays where there is no room for all."""
        installed: list[Digest] = []
        try:
            installed.extend(digest for digest in large if self.place.install(digest))
            for data in small:
                writer.put(data)
        except AppError:
            for digest in installed:
                with suppress(OSError):
                    self.place.paths.blob(digest).unlink()
            raise

    def _point(self, writer: StoreWriter, manifest: bytes, *, signed: bool) -> None:
        digest = Digest.of(manifest)
        base = self.base.model if self.base else None
        origin = Origin(
            provenance=base.provenance if base else None,
            creation=Creation(
                base=base.name.short() if base else "",
                weights="signed" if signed and base is not None and base.signed else "unsigned",
                created_at=self.shop.now,
            ),
        )
        known = self.shop.store.origin(digest) != Origin()
        writer.point(self.request.target, manifest, origin=None if known else origin)
        Journal(self.shop.store.paths.journal).record(
            "created",
            name=self.request.target.full(),
            base=base.name.full() if base else "",
            manifest=str(digest),
        )

    def _prune(self) -> None:
        """Remove what nobody came back for; the model is made, whatever becomes of that."""
        with suppress(AppError):
            prune_locked(self.shop.store, now_s=self.shop.now_s, grace_s=self.shop.grace_s)

    def _config(self, files: tuple[LargeFile, ...], profile: ModelProfile) -> bytes:
        model = files[0]
        own: Mapping[str, Any] = json.loads(gate.config_blob(profile, model.digest))
        config = own
        if self.base is not None:
            same = self.base.model.model_digest == model.digest
            config = (
                {**own, **self.base.model.config} if same else {**self.base.model.config, **own}
            )
        changed = config_of(self.request, config, tuple(file.digest for file in files))
        return json.dumps(changed, separators=(",", ":")).encode()
