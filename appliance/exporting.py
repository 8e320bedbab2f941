"""Installed models as other tools read them: plain GGUF files, an Ollama store, an OCI layout.

Rules:
 * everything is looked at before the first byte is copied: names, files in the way, free space;
 * every file is hashed on its way (`appliance.outgoing`); nothing is written over;
 * the files that make the rest count move last: the Modelfile, the name, ``index.json``. What a
   crash leaves before that is taken up, or replaced, by the next export to the same place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from appliance import outgoing
from appliance.copying import file_digest
from appliance.errors import AppError, PushError, RequestError, StoreCorruptError
from appliance.evidence import kept_evidence
from appliance.journal import Journal
from appliance.layout import Paths
from appliance.model import InstalledModel, parse_image
from appliance.modelfiles import contents_of
from appliance.modelpack import (
    DOCUMENT,
    LAYOUT,
    WEIGHTS,
    NamedFile,
    config_of,
    manifest_of,
    with_entry,
)
from appliance.pushing import telling
from appliance.store import Store
from bundler.format import fsio
from bundler.format.digest import Descriptor, Digest
from bundler.format.errors import ModelfileError
from bundler.format.modelfile import render
from bundler.format.name import ModelName

Tell = Callable[[Mapping[str, Any]], None]
Form = Literal["gguf", "ollama", "oci"]
FORMS: tuple[Form, ...] = get_args(Form)

_LARGE = ("model", "projector", "draft", "adapter")
_MAX_INDEX_BYTES = 16 << 20
_WAIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """One model that was carried out.

    Attributes:
        name: what it is called there.
        size_bytes: all its large files.
        files: what to look at: GGUF files and the Modelfile, the manifest, or the index.
    """

    name: str
    size_bytes: int
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leaving:
    """A model, its manifest, its large files under names of their own, and its Modelfile."""

    model: InstalledModel
    manifest: bytes
    stem: str
    files: tuple[NamedFile, ...]
    modelfile: bytes | None


def export(
    names: Sequence[ModelName], form: Form, out: Path, store: Store, tell: Tell
) -> tuple[Exported, ...]:
    """Copy models out.

    Args:
        names: as typed.
        form: what to write.
        out: an existing directory, as a medium that is not mounted is not.
        store: where they are installed.
        tell: told of each step.

    Raises:
        ModelMissingError: one is not installed.
        RequestError: two would get one name, or something else is in the way.
        PushError: the directory is not there.
        StoreError: a file of the store is damaged.
        NoSpaceError: there is too little room.
        BundleError: the directory cannot be written.
    """
    if not out.is_dir():
        raise PushError(
            f"export: {out} is not there", hint="mount the medium, or make the directory"
        )
    leaving = [_leaving(name, store, tell) for name in names]
    _check_names(leaving)
    write = {"gguf": _write_gguf, "ollama": _write_ollama, "oci": _write_oci}[form]
    done = write(leaving, out, store, tell)
    try:
        Journal(store.paths.journal).record(
            "exported", form=form, names=[one.model.name.full() for one in leaving]
        )
    except AppError:
        tell({"status": "warning: the journal could not be written"})
    tell({"status": "success"})
    return done


def _leaving(name: ModelName, store: Store, tell: Tell) -> _Leaving:
    model = store.resolve(name)
    manifest = store.manifest(model.name)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", model.name.short())
    image = parse_image(manifest)
    files: list[NamedFile] = []
    for kind in _LARGE:
        # Of several weights the last counts, as for Ollama.
        parts = image.of(kind)[-1:] if kind == "model" else image.of(kind)
        for number, part in enumerate(parts, start=1):
            middle = "" if kind == "model" else f".{kind}" if number == 1 else f"-{number}.{kind}"
            files.append(NamedFile(name=f"{stem}{middle}.gguf", part=part))
    spelled = {store.paths.blob(file.part.digest): f"./{file.name}" for file in files}
    try:
        text = render(contents_of(model, lambda path: spelled[path])).encode()
    except ModelfileError as error:
        tell({"status": f"warning: {model.name.short()}: no Modelfile can hold it: {error}"})
        text = None
    return _Leaving(model=model, manifest=manifest, stem=stem, files=tuple(files), modelfile=text)


def _check_names(leaving: Iterable[_Leaving]) -> None:
    seen: dict[str, str] = {}
    for one in leaving:
        name, stem = one.model.name.short(), one.stem.lower()
        if stem in seen:
            raise RequestError(f"{name}: expected models of different names, found {seen[stem]}")
        seen[stem] = name


def _unique(files: Iterable[NamedFile]) -> tuple[Descriptor, ...]:
    return tuple({file.part.digest: file.part for file in files}.values())


def _size(files: Iterable[NamedFile]) -> int:
    return sum(file.part.size_bytes for file in files)


def _write_gguf(
    leaving: Sequence[_Leaving], out: Path, store: Store, tell: Tell
) -> tuple[Exported, ...]:
    texts = {one.stem: out / f"{one.stem}.Modelfile" for one in leaving if one.modelfile}
    papers = {
        one.stem: {
            out / f"{one.stem}.{name}": data
            for name, data in kept_evidence(store.paths, one.model.digest).items()
        }
        for one in leaving
    }
    places = [out / file.name for one in leaving for file in one.files] + list(texts.values())
    places += [place for found in papers.values() for place in found]
    for path in places:
        if path.is_symlink() or path.exists():
            raise outgoing.taken(path)
    outgoing.check_room(out, sum(_size(one.files) for one in leaving))
    done = []
    for one in leaving:
        staged = []
        for file in one.files:
            place = out / file.name
            with telling(f"writing {file.name}", file.part, tell) as advance:
                data = outgoing.pieces(file.part, store, advance)
                staged.append((outgoing.stage(data, place), place))
        if one.modelfile:
            staged.append((outgoing.stage([one.modelfile], texts[one.stem]), texts[one.stem]))
        staged += [
            (outgoing.stage([data], place), place) for place, data in papers[one.stem].items()
        ]
        for temporary, place in staged:
            outgoing.reveal(temporary, place)
        paths = tuple(place for _, place in staged)
        done.append(Exported(name=one.model.name.short(), size_bytes=_size(one.files), files=paths))
    return tuple(done)


def _write_ollama(
    leaving: Sequence[_Leaving], out: Path, store: Store, tell: Tell
) -> tuple[Exported, ...]:
    target = Store(Paths(out))
    for one in leaving:
        if target.canonical(one.model.name) in target.names() and (
            target.manifest(target.canonical(one.model.name)) != one.manifest
        ):
            raise outgoing.taken(target.paths.reference(target.canonical(one.model.name)))
    parts = {part.digest: part for one in leaving for part in parse_image(one.manifest).parts}
    missing = [part for part in parts.values() if not target.has_blob(part)]
    outgoing.check_room(out, sum(part.size_bytes for part in missing))
    target.make_directories()
    done = []
    for one in leaving:
        for part in {part.digest: part for part in parse_image(one.manifest).parts}.values():
            with telling(f"writing {part.digest.short()}", part, tell) as advance:
                if part in missing:
                    outgoing.into_store(part, store, target, advance)
                    missing.remove(part)
                else:
                    _check_there(target.paths.blob(part.digest), part, advance)
        tell({"status": "writing manifest"})
        with target.writing(wait_s=_WAIT_S) as writer:
            writer.point(one.model.name, one.manifest)
        reference = target.paths.reference(target.canonical(one.model.name))
        done.append(
            Exported(name=one.model.name.short(), size_bytes=_size(one.files), files=(reference,))
        )
    return tuple(done)


def _check_there(path: Path, part: Descriptor, advance: outgoing.Advance) -> None:
    """A file that is there already may have been so for years, on a stick."""
    if file_digest(path, progress=advance) != part.digest:
        raise StoreCorruptError(
            f"{path}: expected {part.digest}, found another digest",
            hint="the copy on that medium is damaged: remove it, and export again",
        )


def _write_oci(
    leaving: Sequence[_Leaving], out: Path, store: Store, tell: Tell
) -> tuple[Exported, ...]:
    blobs, index_path = out / "blobs" / "sha256", out / "index.json"
    index, texts = _read_index(out), []
    for one in leaving:
        artifact = _artifact(one)
        index = with_entry(index, one.model.name.short(), artifact[-1])
        texts += artifact
    parts = _unique(file for one in leaving for file in one.files)
    missing = [part for part in parts if not (blobs / part.digest.hex).exists()]
    outgoing.check_room(out, sum(part.size_bytes for part in missing))
    try:
        blobs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fsio.raise_io(error, blobs)
    for part in parts:
        place = blobs / part.digest.hex
        with telling(f"writing {part.digest.short()}", part, tell) as advance:
            if part in missing:
                data = outgoing.pieces(part, store, advance)
                outgoing.reveal(outgoing.stage(data, place), place)
            else:
                _check_there(place, part, advance)
    for text in texts:
        fsio.atomic_write(blobs / Digest.of(text).hex, text)
    tell({"status": "writing index"})
    fsio.atomic_write(out / "oci-layout", LAYOUT)
    fsio.atomic_write(index_path, index or b"")
    return tuple(
        Exported(name=one.model.name.short(), size_bytes=_size(one.files), files=(index_path,))
        for one in leaving
    )


def _artifact(one: _Leaving) -> list[bytes]:
    """The small blobs of a model's artifact: documents, its config and, last, its manifest."""
    small = _small_files(one)
    files = [
        *(NamedFile(name=file.name, part=replace(file.part, media_type=WEIGHTS))
          for file in one.files),
        *(file for file, _ in small),
    ]  # fmt: skip
    config = config_of(one.model, files)
    return [*(data for _, data in small), config, manifest_of(config, files)]


def _small_files(one: _Leaving) -> list[tuple[NamedFile, bytes]]:
    """The Modelfile and the licences, as documents."""
    texts = [] if one.modelfile is None else [("Modelfile", one.modelfile)]
    for number, text in enumerate(one.model.licenses, start=1):
        texts.append(("LICENSE" if number == 1 else f"LICENSE-{number}", text.encode()))
    return [
        (
            NamedFile(
                name=name,
                part=Descriptor(media_type=DOCUMENT, digest=Digest.of(data), size_bytes=len(data)),
            ),
            data,
        )
        for name, data in texts
    ]


def _read_index(out: Path) -> bytes | None:
    """The index of a layout that is there already; what has none is only a directory."""
    path = out / "index.json"
    if not path.exists():
        return None
    if not (out / "oci-layout").is_file():
        raise outgoing.taken(path)
    return fsio.read_bounded(path, max_bytes=_MAX_INDEX_BYTES)
