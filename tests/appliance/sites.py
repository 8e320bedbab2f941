"""A site to import into: a store, a policy that trusts the forge's key, a machine with room."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from appliance.admission import Admitted
from appliance.choice import Choice, Wanted
from appliance.config import Config
from appliance.importer import import_bundle
from appliance.layout import Paths
from appliance.policyfile import adopt_root, load_policy, save_policy
from appliance.receipt import Receipt
from appliance.site import Request, Site
from appliance.store import Store
from appliance.trust import TrustPolicy
from appliance.verify import Report, verify_bundle
from bundler.format.chain import verify_first
from bundler.format.keys import SigningKey
from bundler.format.root import Root
from hwprobe.machine import Cpu, Machine, Memory
from tests.fakes.forge import TRUSTED, Forged
from tests.fakes.roots import signed

ROOMY = Machine(
    cpu=Cpu(online=4, allowed=4, allowed_cores=4, big_cores=4),
    memory=Memory(total_bytes=16 << 30, available_bytes=12 << 30),
)
CRAMPED = Machine(cpu=Cpu(), memory=Memory(total_bytes=64 << 20, available_bytes=1 << 20))
NOW = "2026-11-22T00:00:00Z"


class Silent:
    """An observer that only remembers."""

    def __init__(self) -> None:
        self.choices: list[Choice] = []
        self.done_bytes = 0
        self.needs: list[str] = []
        self.answers: list[Callable[[], bool]] = []

    def verified(self, admitted: Admitted) -> None:
        self.admitted = admitted

    def chosen(self, choice: Choice) -> None:
        self.choices.append(choice)

    def begins(self, doing: str, total_bytes: int) -> None:
        self.doing = (doing, total_bytes)

    def advances(self, size_bytes: int) -> None:
        self.done_bytes += size_bytes

    def asks(self, need: str) -> bool:
        self.needs.append(need)
        return bool(self.answers) and self.answers.pop(0)()


@dataclass(frozen=True, kw_only=True)
class Desk:
    """Everything a test needs to carry a stick to a site."""

    site: Site
    medium: Path
    observer: Silent = field(default_factory=Silent)

    @property
    def store(self) -> Store:
        return self.site.store

    def carry(self, bundle: Forged, **request: Any) -> Receipt:
        """Write a bundle to the medium and import it."""
        directory = bundle.write(self.medium)
        return self.take(directory, **request)

    def take(self, directory: Path, **request: Any) -> Receipt:
        """Import what is on the medium."""
        return import_bundle(_request(directory, request), self.site, self.observer)

    def check(self, directory: Path, **request: Any) -> Report:
        """Verify what is on the medium."""
        return verify_bundle(_request(directory, request), self.site, self.observer)

    def on(self, machine: Machine) -> Desk:
        """The same site with another machine."""
        return replace(self, site=replace(self.site, machine=machine), observer=Silent())

    def configured(self, **flags: Any) -> Desk:
        """The same site with other settings; double underscores stand for dots."""
        named = {name.replace("__", "."): value for name, value in flags.items()}
        config = load_config(self.store.paths.root, named)
        return replace(self, site=replace(self.site, config=config))

    def names(self) -> list[str]:
        return sorted(model.name.short() for model in self.store.list())


def _request(directory: Path, request: dict[str, Any]) -> Request:
    wanted = Wanted(
        variants=tuple(request.pop("variants", ())),
        all_variants=request.pop("all_variants", False),
    )
    return Request(medium=directory, wanted=wanted, **request)


def load_config(root: Path, flags: Mapping[str, Any] | None = None) -> Config:
    """A configuration with this store and a small reserve."""
    defaults = {"store.path": str(root), "store.reserve": 0}
    return Config.load(environ={}, flags={**defaults, **(flags or {})})


def trust(store: Store, *keys: SigningKey, threshold: int = 1) -> TrustPolicy:
    """Let a store trust these keys."""
    with store.writing():
        policy = load_policy(store.paths.trust)
        for number, key in enumerate(keys):
            policy = policy.with_key(key.public_key, label=f"key {number}", added_at=NOW)
        policy = policy.with_threshold(threshold)
        save_policy(store.paths.trust, policy)
    return policy


def pin(desk: Desk, root: Root) -> None:
    """Put a trust root in force at a site, as an operator pins it."""
    with desk.store.writing():
        adopt_root(desk.store.paths.trust, [verify_first(signed(root))])


def make_desk(folder: Path, *keys: SigningKey, threshold: int = 1) -> Desk:
    """A site below a folder that trusts the forge's key, or these."""
    root = folder / "store"
    store = Store(Paths(root))
    trust(store, *(keys or (TRUSTED,)), threshold=threshold)
    medium = folder / "medium"
    medium.mkdir()
    site = Site(store=store, config=load_config(root), machine=ROOMY, now=NOW, version="0.1.0")
    return Desk(site=site, medium=medium)


def snapshot(root: Path) -> dict[str, str]:
    """Every file below a root but the journal, with its mode and digest."""
    return {
        str(path.relative_to(root)): f"{path.stat().st_mode:o} "
        + hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "journal" not in path.parts
    }
