"""``push`` where nothing reaches a network: into a directory that carries models out.

What is written there is a store of the same layout: Ollama reads it, ``--store`` reads it, and
``satchel-bundle pack --from ollama:NAME`` makes a signed bundle of it on the connected side. Each
file is hashed on its way; the name moves last.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from appliance.creation import read_model_name
from appliance.errors import AppError, ModelMissingError, PushError, SwitchedOffError
from appliance.journal import Journal
from appliance.layout import Paths
from appliance.outgoing import Advance, into_store
from appliance.store import Store
from bundler.format.digest import Descriptor

Tell = Callable[[Mapping[str, Any]], None]

_TELL_S = 0.06


def push(text: str, store: Store, directory: Path | None, tell: Tell) -> None:
    """Copy a model into the export directory.

    Args:
        text: the model's name.
        store: where it is installed.
        directory: ``exchange.export``; it must be there, as a medium that is not mounted is not.
        tell: told of each step.

    Raises:
        RequestError: the name is none.
        SwitchedOffError: there is no export directory.
        PushError: the model is not installed, or the directory is not there.
        StoreError: a file is not what its name says, or cannot be read or written.
        NoSpaceError: the directory's file system is full.
    """
    name = read_model_name(text, "invalid model name")
    if directory is None:
        raise SwitchedOffError(
            "push: models leave this machine only through a directory, and none is configured",
            hint="name one in exchange.export",
        )
    tell({"status": "retrieving manifest"})
    try:
        model = store.resolve(name)
        manifest = store.manifest(model.name)
    except ModelMissingError as error:
        raise PushError("couldn't retrieve manifest") from error
    if not directory.is_dir():
        raise PushError(
            f"push: {directory} is not there", hint="mount the medium, or make the directory"
        )
    target = Store(Paths(directory))
    target.make_directories()
    for part in store.parts(model.name):
        _copy(part, store, target, tell)
    tell({"status": "pushing manifest"})
    with target.writing(wait_s=60.0) as writer:
        writer.point(model.name, manifest)
    try:
        Journal(store.paths.journal).record("pushed", name=model.name.full())
    except AppError:
        tell({"status": "warning: the journal could not be written"})
    tell({"status": "success"})


def _copy(part: Descriptor, store: Store, target: Store, tell: Tell) -> None:
    with telling(f"pushing {part.digest.short()}", part, tell) as advance:
        into_store(part, store, target, advance)


@contextlib.contextmanager
def telling(status: str, part: Descriptor, tell: Tell) -> Iterator[Advance]:
    """Tell of one file's copying in Ollama's words: at its beginning, now and then, at its end.

    Yields:
        What takes the number of bytes just done.
    """
    event = {"status": status, "digest": str(part.digest), "total": part.size_bytes}
    done, told_s = 0, time.monotonic()

    def advance(size_bytes: int) -> None:
        nonlocal done, told_s
        done += size_bytes
        if time.monotonic() - told_s >= _TELL_S:
            told_s = time.monotonic()
            tell({**event, "completed": done})

    tell({**event, "completed": 0})
    yield advance
    tell({**event, "completed": part.size_bytes})
