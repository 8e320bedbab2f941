"""Packing, losing, damaging, importing, rotating, revoking, clocks and full disks, in any order.

A model of a site that is a few dictionaries says what must happen; the site must do the same, and
the invariants I1 to I6 of `tests.faults.system_calls` hold after every step.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
)

from appliance.errors import (
    AppError,
    NoSpaceError,
    OlderBundleError,
    RevokedBundleError,
    SequenceReuseError,
)
from appliance.importer import import_bundle
from appliance.policyfile import load_policy
from appliance.pruning import prune
from appliance.revoked import why_revoked
from appliance.site import Request
from appliance.updating import update_trust
from bundler.format.chain import verify_first
from bundler.format.digest import Digest
from bundler.format.errors import BundleError, TrustError
from bundler.format.keys import SigningKey
from bundler.format.root import Root
from tests.appliance.sites import Desk, load_config, make_desk, pin
from tests.fakes.forge import SECOND, STRANGER, TRUSTED, Forged, flip, forge, tiny_model
from tests.fakes.roots import make_root, signed

SIGNERS = (TRUSTED, SECOND, STRANGER)
CLOCKS = ("1970-01-01T00:00:00Z", "2026-11-22T00:00:00Z", "2099-01-01T00:00:00Z")
WEIGHTS = tuple(tiny_model(seed) for seed in range(4))


@dataclass(kw_only=True)
class Stick:
    """A medium, and what is true of it."""

    path: Path
    forged: Forged
    signer: SigningKey
    seq: int
    weights: bytes
    damaged: bool = False

    @property
    def statement(self) -> Digest:
        return Digest.of(self.forged.payload())


class Site(RuleBasedStateMachine):
    """A site and its model."""

    sticks = Bundle("sticks")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="satchel-machine-"))
        self.desk: Desk = make_desk(self.folder)
        self.root: Root = make_root()
        pin(self.desk, self.root)
        self.count = 0
        self.accepted: dict[int, Digest] = {}
        self.installed: bytes | None = None
        self.origin: Digest | None = None
        self.clock = ""
        self.full = False

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(
        target=sticks,
        seq=st.integers(1, 9),
        seed=st.integers(0, 3),
        signer=st.sampled_from(SIGNERS),
        day=st.integers(1, 28),
    )
    def pack(self, seq: int, seed: int, signer: SigningKey, day: int) -> Stick:
        self.count += 1
        path = self.folder / f"stick-{self.count}"
        made = forge({"F32": WEIGHTS[seed]}, seq=seq).with_bundle(
            issued=f"2026-11-{day:02}T00:00:00Z"
        )
        made = made.signed_by(signer)
        made.write(path)
        return Stick(path=path, forged=made, signer=signer, seq=seq, weights=WEIGHTS[seed])

    @rule(stick=sticks, which=st.integers(0, 2), place=st.integers(0, 10**6))
    def damage(self, stick: Stick, which: int, place: int) -> None:
        if stick.damaged:
            return
        files = (
            stick.forged.segment_path(stick.path),
            stick.forged.index_path(stick.path),
            stick.forged.directory(stick.path) / "bundle.dsse.json",
        )
        size = files[which].stat().st_size
        flip(files[which], place % size)
        stick.damaged = True

    @rule(stick=consumes(sticks))
    def lose(self, stick: Stick) -> None:
        shutil.rmtree(stick.path)

    @rule(stick=sticks)
    def carry(self, stick: Stick) -> None:
        before = _digests(stick.path)
        expected = self._expected(stick)
        site = replace(
            self.desk.site,
            config=load_config(
                self.desk.store.paths.root, {"store.reserve": "900 TiB"} if self.full else {}
            ),
        )
        was_here = self._here(stick)
        refused: Exception | None = None
        try:
            import_bundle(Request(medium=stick.path), site, self.desk.observer)
        except (AppError, BundleError) as error:
            refused = error
        if refused is not None:
            assert isinstance(refused, expected), (refused, expected)
        else:
            # What is here already is not read again, so its damage does not matter.
            assert expected == () or (stick.damaged and was_here), expected
            self.accepted[stick.seq] = stick.statement
            self.installed, self.origin = stick.weights, stick.statement
        assert _digests(stick.path) == before  # I6

    def _expected(self, stick: Stick) -> tuple[type[Exception], ...]:
        """What an import must end with; nothing for success."""
        if stick.damaged:
            return (AppError, BundleError)
        if stick.signer.public_key.key_id not in self.root.roles["bundle:prod"].key_ids:
            return (TrustError,)
        if stick.statement in self.root.revoked_digests:
            return (RevokedBundleError,)
        return self._out_of_order(stick) or self._no_room(stick)

    def _out_of_order(self, stick: Stick) -> tuple[type[Exception], ...]:
        revoked = self.root.revoked_digests
        counted = {seq: one for seq, one in self.accepted.items() if one not in revoked}
        if stick.seq < self.root.min_seq.get("prod", 0):
            return (OlderBundleError,)
        if counted.get(stick.seq, stick.statement) != stick.statement:
            return (SequenceReuseError,)
        return (OlderBundleError,) if stick.seq < max(counted, default=0) else ()

    def _no_room(self, stick: Stick) -> tuple[type[Exception], ...]:
        return (NoSpaceError,) if self.full and not self._here(stick) else ()

    def _here(self, stick: Stick) -> bool:
        return self.desk.store.paths.blob(Digest.of(stick.weights)).exists()

    def _follow(self, change: Callable[[Root], Root]) -> None:
        later = change(replace(self.root, version=self.root.version + 1))
        verify_first(signed(later))
        update_trust(self.desk.store, {later.version: signed(later)}.get, source="paper")
        self.root = later

    @rule(stick=sticks)
    def revoke(self, stick: Stick) -> None:
        self._follow(
            lambda root: replace(root, revoked_digests=root.revoked_digests | {stick.statement})
        )

    @rule(floor=st.integers(1, 4))
    def raise_floor(self, floor: int) -> None:
        kept = max(floor, self.root.min_seq.get("prod", 1))
        self._follow(lambda root: replace(root, min_seq={"prod": kept}))

    @precondition(lambda self: len(self.root.roles["bundle:prod"].key_ids) > 1)
    @rule()
    def revoke_key(self) -> None:
        fresh = make_root(channels={"prod": (TRUSTED,)})
        self._follow(
            lambda root: replace(
                root,
                keys=fresh.keys,
                roles=fresh.roles,
                revoked_keys=frozenset({SECOND.public_key.key_id}),
            )
        )

    @rule(now=st.sampled_from(CLOCKS))
    def set_clock(self, now: str) -> None:
        self.desk = replace(self.desk, site=replace(self.desk.site, now=now))

    @rule(full=st.booleans())
    def fill(self, full: bool) -> None:  # noqa: FBT001 - a strategy gives it
        self.full = full

    @precondition(lambda self: self.installed is not None)
    @rule()
    def remove(self) -> None:
        self.desk.store.remove(self.desk.store.list()[0].name)
        self.installed = self.origin = None

    @rule()
    def tidy(self) -> None:
        prune(self.desk.store, now_s=4e9, grace_s=0.0)

    @invariant()
    def everything_holds(self) -> None:
        store = self.desk.store
        if not store.paths.blobs.is_dir():
            return
        for blob in store.paths.blobs.glob("sha256-*"):
            data = hashlib.sha256(blob.read_bytes()).hexdigest()
            assert data == blob.name.removeprefix("sha256-")  # I1
        survey = store.survey()
        assert survey.faults == ()  # I2
        assert [one.model_path.read_bytes() for one in survey.models] == (
            [] if self.installed is None else [self.installed]
        )  # I3
        policy = load_policy(store.paths.trust)
        assert policy.accepted.get("prod", {}) == self.accepted  # I4
        assert policy.root is not None
        assert policy.root.root == self.root
        assert policy.clock >= self.clock
        self.clock = policy.clock
        assert list(store.paths.staging.glob("*.part")) == []  # I5: nothing waits in this machine
        for model in survey.models:
            marked = bool(why_revoked(model.provenance, policy))
            assert marked or self.origin not in self.root.revoked_digests


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


TestSite = Site.TestCase
TestSite.settings = settings(
    # More of them: SATCHEL_MACHINE_EXAMPLES=500 pytest tests/property/test_trust_machine.py
    max_examples=int(os.environ.get("SATCHEL_MACHINE_EXAMPLES", "12")),
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
