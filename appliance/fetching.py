"""Bundles from a registry of the site's own, for the operator's ``satchel pull``.

Rules:
 * only the operator's command does this: the server, and what works for it, opens no connection;
 * the envelope comes first, and nothing else unless its signatures let the bundle in;
 * what comes then is what the signed statement names, and of it what this machine takes;
 * what arrived is a bundle directory like one on a stick, and is imported like one;
 * what an interrupted pull has brought stays, and the next one goes on from there.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from appliance.choice import Wanted, choose, wish_for
from appliance.errors import PullError, store_io
from appliance.gate import companions
from appliance.room import check_room
from appliance.site import Site
from bundler.errors import PackError
from bundler.format.digest import Descriptor, Digest
from bundler.format.manifest import Artifact, Manifest, Model
from bundler.format.name import ModelName
from bundler.format.published import PublishedFile, read_published, repository_of
from bundler.format.volume import BundleDirectory
from bundler.source.reference import RegistryReference
from bundler.source.registry import Login, Registry

Tell = Callable[[Mapping[str, Any]], None]

_TELL_S = 0.06
_NOT_FOUND = 404
_PAUSES_S = (0.2, 1.0)
"""Before each further try that brought nothing; a registry of the site answers or is down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRegistry:
    """Where the site keeps its bundles.

    Attributes:
        client: asks it.
        host: of it, for messages.
        prefix: of its repositories, empty or with a slash at its end.
    """

    client: Registry
    host: str
    prefix: str

    @classmethod
    def of(cls, url: str, authority: Path | None, logins: Mapping[str, Login]) -> SiteRegistry:
        """The registry at an address; nothing is asked yet.

        Args:
            url: ``https://HOST[:PORT][/PREFIX]``; over ``http`` no password is sent.
            authority: certificates that alone may vouch for it.
            logins: by host.

        Raises:
            PackError: ``authority`` holds no certificates.
        """
        parts = urlsplit(url)
        plain = parts.scheme == "http"
        client = Registry(
            parts.netloc,
            plain_http=plain,
            secure=not plain,
            login=None if plain else logins.get(parts.netloc),
            pauses_s=_PAUSES_S,
            authority=authority,
        )
        prefix = parts.path.strip("/")
        return cls(client=client, host=parts.netloc, prefix=f"{prefix}/" if prefix else "")

    @contextmanager
    def offer(self, name: ModelName, folder: Path) -> Iterator[Fetched | None]:
        """What it holds under this name: the envelope and the roots, or nothing.

        The folder is removed when the block ends, unless a download broke off.

        Raises:
            PackError: it does not answer.
            LayoutError: what it holds is no bundle.
            PullError: another pull is under way.
        """
        repository, tag = repository_of(name)
        reference = RegistryReference(
            host=self.host, repository=f"{self.prefix}{repository.lower()}", tag=tag
        )
        try:
            files = read_published(self.client.manifest(reference))
        except PackError as error:
            cause = error.__cause__
            if not isinstance(cause, urllib.error.HTTPError) or cause.code != _NOT_FOUND:
                raise
            yield None
            return
        with store_io("make room for what a registry sends"):
            folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            fetched = Fetched(self.client, reference.repository, folder)
            broken = False
            try:
                fetched.begin(files)
                yield fetched
            except (PackError, KeyboardInterrupt):
                broken = True
                raise
            finally:
                if not broken:
                    shutil.rmtree(folder, ignore_errors=True)


class Fetched:
    """A bundle that is on its way from a registry."""

    def __init__(self, client: Registry, repository: str, folder: Path) -> None:
        self._client = client
        self._repository = repository
        self._folder = folder
        self.bundle = BundleDirectory(folder / "bundle")

    def begin(self, files: tuple[PublishedFile, ...]) -> None:
        """Bring what signatures are checked with.

        Raises:
            PackError: the registry does not give it.
        """
        root = self.bundle.path
        shutil.rmtree(root / "root", ignore_errors=True)
        with store_io("make room for what a registry sends"):
            (root / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
            (root / "root").mkdir()
        for file in files:
            self._bring(file.digest, file.size_bytes, root / file.path, lambda _: None)

    def complete(self, manifest: Manifest, model: Model, site: Site, tell: Tell) -> None:
        """Bring what this machine takes of a model.

        Raises:
            PackError: the registry does not give it.
            NoSpaceError: it would not leave ``store.reserve`` free.
            AppError: nothing of it fits this machine.
        """
        artifacts = self._needed(manifest, model, site)
        files = {blob.digest: blob.size_bytes for blob in manifest.blobs}
        for artifact in artifacts:
            files[artifact.index.digest] = artifact.index.size_bytes
            files |= {segment.digest: segment.size_bytes for segment in artifact.segments}
        plain_bytes = sum(artifact.size_bytes for artifact in artifacts)
        check_room(
            site.store.paths,
            sum(files.values()) + plain_bytes,
            site.config.store.reserve_bytes,
            taken_bytes=_size(self._folder),
        )
        for digest, size_bytes in files.items():
            place = self.bundle.path / "blobs" / "sha256" / digest.hex
            self._bring(digest, size_bytes, place, _Told(tell, digest, size_bytes))

    def _needed(self, manifest: Manifest, model: Model, site: Site) -> tuple[Artifact, ...]:
        """The large files of the variant that fits, less those that are here."""
        wish = wish_for(site.config, model.name)
        choice = choose(model, site.machine, wish, Wanted(models=(model.name,)))
        found: dict[Digest, Artifact] = {}
        for install in choice.installs:
            weights = manifest.artifact(install.variant.artifact)
            beside = (artifact for _, artifact in companions(manifest, install.variant))
            found |= {artifact.digest: artifact for artifact in (weights, *beside)}
        return tuple(
            artifact
            for artifact in found.values()
            if not site.store.has_blob(
                Descriptor(
                    media_type=artifact.media,
                    digest=artifact.digest,
                    size_bytes=artifact.size_bytes,
                )
            )
        )

    def _bring(
        self, digest: Digest, size_bytes: int, place: Path, advance: Callable[[int], None]
    ) -> None:
        if place.is_file() and place.stat().st_size == size_bytes and place.name == digest.hex:
            advance(size_bytes)
            return
        arrived = self._client.blob(
            self._repository, digest, size_bytes, self._folder / "partial", advance
        )
        with store_io("put away what a registry sent"):
            arrived.replace(place)


class _Told:
    """Tells of a download in Ollama's words."""

    def __init__(self, tell: Tell, digest: Digest, total_bytes: int) -> None:
        self._tell = tell
        self._event = {
            "status": f"pulling {digest.hex[:12]}",
            "digest": str(digest),
            "total": total_bytes,
        }
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._told_s = 0.0

    def __call__(self, size_bytes: int) -> None:
        self._done_bytes += size_bytes
        now_s = time.monotonic()
        if self._done_bytes >= self._total_bytes or now_s - self._told_s >= _TELL_S:
            self._told_s = now_s
            self._tell({**self._event, "completed": self._done_bytes})


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One pull at a time: two would write the same files."""
    with store_io("lock what a registry sends"):
        descriptor = os.open(folder.parent / "registry.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PullError("another pull from the registry is under way") from error
        yield
    finally:
        os.close(descriptor)


def _size(folder: Path) -> int:
    """Bytes an interrupted pull has left, which are used again."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
