"""``pull``: from bundles in directories, on mounted media, and in a registry of the site's own.

Rules:
 * the server's pull gets no registry: it opens no connection (docs/adr/0022);
 * only directories that ``exchange.sources`` names are looked at, and what is mounted below them;
 * a bundle counts only if `appliance.admission` lets it in: enough trusted signatures, meant for
   this site, not older than what was accepted;
 * of several the one with the latest date of issue is taken, and only the asked-for model of it;
 * a model that is installed and that no source offers is up to date.

The statuses are Ollama's, so that its clients' progress bars work.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.admission import (
    Admitted,
    check_admission,
    check_owner,
    known_policy,
    newer_roots,
    verify_envelope,
    with_roots,
)
from appliance.choice import Choice, Wanted
from appliance.creation import read_model_name
from appliance.errors import AppError, ModelMissingError, PullError
from appliance.fetching import SiteRegistry
from appliance.importer import import_bundle
from appliance.model import InstalledModel
from appliance.permits import permit_for
from appliance.site import Request, Site
from bundler.format.errors import BundleError
from bundler.format.manifest import Manifest, Model
from bundler.format.name import ModelName
from bundler.format.volume import BundleDirectory, find_bundles

Tell = Callable[[Mapping[str, Any]], None]

_LEVELS = 2
"""Media are mounted at ``/media/LABEL`` or ``/run/media/USER/LABEL``."""
_MAX_MEDIA = 256
"""Directories looked at below one source; more is no place for media."""
_TELL_S = 0.06
"""Ollama tells about as often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Offer:
    """A bundle that has the model and may come in."""

    bundle: BundleDirectory
    manifest: Manifest
    model: Model
    issued: str
    seq: int


def pull(text: str, site: Site, tell: Tell, *, registry: SiteRegistry | None = None) -> None:
    """Bring a model in, or find that it is here.

    Args:
        text: its name.
        site: where to.
        tell: gets each step.
        registry: looked at beside the sources; the operator's command alone gives one.

    Raises:
        RequestError: the name is none.
        PullError: no source has the model, or none that may come in.
        AppError: the import was refused.
        BundleError: the bundle is damaged.
    """
    name = read_model_name(text, "invalid model name")
    tell({"status": "pulling manifest"})
    with contextlib.ExitStack() as stack:
        offers, refusals = _offers(name, site, _bundles(site.config.exchange.sources))
        fetched = None
        if registry is not None:
            try:
                fetched = stack.enter_context(registry.offer(name, site.store.paths.registry))
            except (AppError, BundleError) as error:
                tell({"status": f"warning: {error}"})
                refusals.append(error)
        if fetched is not None:
            more, reasons = _offers(name, site, [fetched.bundle])
            offers, refusals = [*offers, *more], [*refusals, *reasons]
        if not offers:
            _up_to_date(name, site, refusals, tell)
            return
        best = max(offers, key=lambda offer: (offer.issued, offer.seq))
        if fetched is not None and best.bundle is fetched.bundle:
            fetched.complete(best.manifest, best.model, site, tell)
        request = Request(medium=best.bundle.path, wanted=Wanted(models=(best.model.name,)))
        import_bundle(request, site, _Told(tell))
    tell({"status": "verifying sha256 digest"})
    tell({"status": "writing manifest"})
    tell({"status": "success"})


def _up_to_date(
    name: ModelName, site: Site, refusals: list[AppError | BundleError], tell: Tell
) -> None:
    try:
        model = site.store.resolve(name)
    except ModelMissingError as error:
        if refusals:
            raise PullError(
                f"pull model manifest: {refusals[0]}", hint=refusals[0].hint
            ) from refusals[0]
        raise PullError("pull model manifest: file does not exist") from error
    for event in _layers(model, site):
        tell(event)
    tell({"status": "verifying sha256 digest"})
    tell({"status": "writing manifest"})
    tell({"status": "success"})


def _layers(model: InstalledModel, site: Site) -> Iterator[dict[str, Any]]:
    for part in site.store.parts(model.name):
        yield _event(str(part.digest), part.size_bytes, part.size_bytes)


def _offers(
    name: ModelName, site: Site, bundles: Iterable[BundleDirectory]
) -> tuple[list[_Offer], list[AppError | BundleError]]:
    """Every bundle that has the model and may come in, and why others may not."""
    known = known_policy(site.store)
    offers: list[_Offer] = []
    refusals: list[AppError | BundleError] = []
    for bundle in bundles:
        try:
            policy = with_roots(known, newer_roots(bundle, known))
            verified = verify_envelope(bundle, policy, site.config.trust)
            model = _named(verified.manifest.models, name)
            if model is None:
                continue
            permit = permit_for(bundle, verified, policy, site.config.trust, now=site.now)
            check_admission(
                verified,
                policy,
                site.config.trust,
                now=site.now,
                version=site.version,
                permit=permit,
            )
            check_owner((model.name,), verified.manifest.bundle.channel, site.store)
        except (AppError, BundleError) as error:
            refusals.append(error)
            continue
        info = verified.manifest.bundle
        offers.append(
            _Offer(
                bundle=bundle,
                manifest=verified.manifest,
                model=model,
                issued=info.issued,
                seq=info.seq,
            )
        )
    return offers, refusals


def _named(models: tuple[Model, ...], name: ModelName) -> Model | None:
    wanted = name.folded()
    return next((model for model in models if model.name.folded() == wanted), None)


def _bundles(sources: tuple[Path, ...]) -> Iterator[BundleDirectory]:
    seen: set[Path] = set()
    for source in sources:
        for medium in _media(source, _LEVELS):
            try:
                found = find_bundles(medium)
            except BundleError:
                continue  # no bundle there, or nobody may look
            for bundle in found:
                if bundle.path not in seen:
                    seen.add(bundle.path)
                    yield bundle


def _media(directory: Path, levels: int) -> Iterator[Path]:
    """A directory and those below it, links not followed."""
    yield directory
    if not levels:
        return
    try:
        below = sorted(path for path in directory.iterdir() if not path.is_symlink())
    except OSError:
        return
    for path in [path for path in below if path.is_dir()][:_MAX_MEDIA]:
        yield from _media(path, levels - 1)


@dataclass(slots=True)
class _Told:
    """An import's observer that tells in Ollama's words."""

    tell: Tell
    _digests: dict[str, str] = field(default_factory=dict)
    _digest: str = ""
    _total: int = 0
    _done: int = 0
    _told_s: float = 0.0

    def verified(self, admitted: Admitted) -> None:
        """Warnings are told, too: whoever reads statuses sees them."""
        for warning in admitted.warnings:
            self.tell({"status": f"warning: {warning}"})

    def chosen(self, choice: Choice) -> None:
        """Remember the digests of what will come."""
        for install in choice.installs:
            for digest in install.variant.artifacts():
                self._digests[digest.short()] = str(digest)

    def begins(self, doing: str, total_bytes: int) -> None:
        """One file begins, off the medium or checked where it lies."""
        self._digest = self._digests.get(doing.rsplit(maxsplit=1)[-1], "")
        self._total, self._done = total_bytes, 0
        self._say()

    def advances(self, size_bytes: int) -> None:
        """So many more bytes are done."""
        self._done += size_bytes
        if self._done >= self._total or time.monotonic() - self._told_s >= _TELL_S:
            self._say()

    def asks(self, need: str) -> bool:
        """Nobody is there to put another medium in."""
        del need
        return False

    def _say(self) -> None:
        self._told_s = time.monotonic()
        self.tell(_event(self._digest, self._total, self._done))


def _event(digest: str, total: int, completed: int) -> dict[str, Any]:
    short = digest.removeprefix("sha256:")[:12]
    return {
        "status": f"pulling {short}",
        "digest": digest,
        "total": total,
        "completed": completed,
    }
