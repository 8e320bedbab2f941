"""Where everything lies under the store's root. Pure: no path is touched here.

::

    blobs/sha256-<hex>                              files by content, 0444, never changed
    manifests/<host>/<namespace>/<model>/<tag>      one small JSON file per name
    satchel/staging/                                what is being written, or waits for a medium;
                                                    never part of a model
    satchel/uploads/                                blobs that clients are sending
    satchel/journal/                                what happened, see `appliance.journal`
    satchel/provenance/sha256-<manifest hex>.json   where a model came from
    satchel/registry/                               what a pull from a registry has brought so far
    satchel/crashes/                                records of crashed runners, by the server
    satchel/engine/                                 what was tried of the engine, by the server
    satchel/waiting/<statement hex>/                imports that operators have not approved yet
    satchel/states/                                 computed prompts, by the server, 0700
    satchel/trust/                                  keys, and what was accepted before; origins of
                                                    removed models that are not counted yet
    satchel/lock                                    held by whoever writes
    satchel/previous/<host>/<namespace>/<model>/<tag>/<n>.json
                                                    manifests that a name stood for before
    satchel/evidence/sha256-<manifest hex>/         documents that came with a model
    satchel/device.key                              signs receipts and inventories, 0600
    satchel/scrub.json                              how far the last scrub is, and what it found

Paths are made of validated digests and names only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bundler.format.digest import Digest
from bundler.format.name import ModelName


@dataclass(frozen=True, slots=True)
class Paths:
    """The store below ``root``."""

    root: Path

    @property
    def blobs(self) -> Path:
        """Files by content."""
        return self.root / "blobs"

    @property
    def manifests(self) -> Path:
        """References: names to manifests."""
        return self.root / "manifests"

    @property
    def staging(self) -> Path:
        """Files being written, on the same file system as the blobs."""
        return self.root / "satchel" / "staging"

    @property
    def uploads(self) -> Path:
        """Blobs that clients are sending, and work on them, on the same file system."""
        return self.root / "satchel" / "uploads"

    @property
    def registry(self) -> Path:
        """What a pull from a registry has brought so far, on the same file system."""
        return self.root / "satchel" / "registry"

    @property
    def journal(self) -> Path:
        """Directory of the journal."""
        return self.root / "satchel" / "journal"

    @property
    def receipts(self) -> Path:
        """One JSON document per import."""
        return self.journal / "receipts"

    @property
    def provenances(self) -> Path:
        """Records of origin by manifest digest."""
        return self.root / "satchel" / "provenance"

    @property
    def engine(self) -> Path:
        """Verdicts on the engine on this machine, see `hwprobe.verdicts` and `hwprobe.variants`."""
        return self.root / "satchel" / "engine"

    @property
    def crashes(self) -> Path:
        """Records of crashed runners, see `appliance.crashes`."""
        return self.root / "satchel" / "crashes"

    @property
    def states(self) -> Path:
        """Computed prompts that outlive a runner, see `server.runner.shelf`."""
        return self.root / "satchel" / "states"

    @property
    def trust(self) -> Path:
        """Durable state of the trust policy."""
        return self.root / "satchel" / "trust"

    @property
    def waiting(self) -> Path:
        """Imports that wait for approvals, see `appliance.waiting`."""
        return self.root / "satchel" / "waiting"

    def uncounted(self, manifest: Digest) -> Path:
        """The record of origin of a model that was removed before its bundle was counted."""
        return self.trust / f"uncounted-{manifest.hex}.json"

    def all_uncounted(self) -> tuple[Path, ...]:
        """Every such record that is there."""
        return tuple(sorted(self.trust.glob("uncounted-*.json")))

    @property
    def lock(self) -> Path:
        """The file whose flock is the right to write."""
        return self.root / "satchel" / "lock"

    @property
    def previous(self) -> Path:
        """Manifests that names stood for before, see `appliance.previous`."""
        return self.root / "satchel" / "previous"

    def evidence(self, manifest: Digest) -> Path:
        """The documents that came with the model of this manifest."""
        return self.root / "satchel" / "evidence" / f"sha256-{manifest.hex}"

    @property
    def device_key(self) -> Path:
        """The private key of `appliance.device`."""
        return self.root / "satchel" / "device.key"

    @property
    def scrub(self) -> Path:
        """What `appliance.scrubbing` remembers."""
        return self.root / "satchel" / "scrub.json"

    def directories(self) -> tuple[Path, ...]:
        """Every directory of an empty store, parents first."""
        own = (self.staging, self.uploads, self.journal, self.receipts, self.provenances)
        return (self.root, self.blobs, self.manifests, self.root / "satchel", *own, self.trust)

    def blob(self, digest: Digest) -> Path:
        """The file with this content."""
        return self.blobs / f"sha256-{digest.hex}"

    def staged(self, digest: Digest) -> Path:
        """The file that will become this blob."""
        return self.staging / f"sha256-{digest.hex}.part"

    def provenance(self, manifest: Digest) -> Path:
        """The record of origin of the model with this manifest."""
        return self.provenances / f"sha256-{manifest.hex}.json"

    def reference(self, name: ModelName) -> Path:
        """The manifest file of a name, in exactly this spelling."""
        return self.manifests / name.host / name.namespace / name.model / name.tag
