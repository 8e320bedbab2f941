"""What an import or a check is asked, where it happens, and who is told: plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from appliance.admission import Admitted
from appliance.choice import Choice, Wanted
from appliance.config import Config
from appliance.store import Store
from bundler.format.keys import SigningKey
from hwprobe.machine import Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the operator typed.

    Attributes:
        medium: where the bundle is.
        others: where more volumes of it may be.
        wanted: which variants.
        allow_rollback: ``channel:seq`` of an older bundle that may come in, or empty.
        allow_channel: a channel that may take over names of other channels, or empty.
        skip_acceptance: install without running the bundle's acceptance checks.
    """

    medium: Path
    others: tuple[Path, ...] = ()
    wanted: Wanted = field(default_factory=Wanted)
    allow_rollback: str = ""
    allow_channel: str = ""
    skip_acceptance: bool = False

    @property
    def media(self) -> tuple[Path, ...]:
        """Every place to look, in the order typed."""
        return (self.medium, *self.others)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where the import happens.

    Attributes:
        store: what is written.
        config: the effective configuration.
        machine: what the models must fit.
        now: wall time, RFC 3339 in UTC.
        version: of this release.
        device: the key that signs receipts, if there is one.
    """

    store: Store
    config: Config
    machine: Machine
    now: str
    version: str
    device: SigningKey | None = None


class Observer(Protocol):
    """Is told what happens, for a screen or for nobody."""

    def verified(self, admitted: Admitted) -> None:
        """The signatures were enough, and the bundle may come in."""

    def chosen(self, choice: Choice) -> None:
        """These variants of one model will be installed."""

    def begins(self, doing: str, total_bytes: int) -> None:
        """Something longer begins."""

    def advances(self, size_bytes: int) -> None:
        """So many more bytes are done."""

    def asks(self, need: str) -> bool:
        """Something is missing that another medium may hold: whether to look again."""
