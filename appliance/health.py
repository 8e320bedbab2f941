"""Is this appliance fit to serve? A few checks, and the worst of them.

Exit codes follow the monitoring convention: 0 ok, 1 warning, 2 critical, 3 unknown.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from appliance.client import Client
from appliance.crashes import CrashFolder
from appliance.errors import AppError
from appliance.journal import timestamp
from appliance.policyfile import load_policy
from appliance.revoked import why_revoked
from appliance.scrubbing import named, read_record, still_damaged
from appliance.store import Store
from hwprobe.quantity import Bytes
from hwprobe.variants import read_choice


class Level(IntEnum):
    """How bad it is; the value is the exit code."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


RECENT_CRASH_S = 86_400.0
"""How long a crash is worth a warning."""

_BADNESS = (Level.OK, Level.UNKNOWN, Level.WARNING, Level.CRITICAL)
"""Unknown is no reason to hide a warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        level: how bad it is.
        text: one line.
    """

    name: str
    level: Level
    text: str


def check_models(store: Store) -> Check:
    """Whether the store can be read and all of its models are whole."""
    if not store.paths.root.is_dir():
        text = f"{store.paths.root} is not there"
        return Check(name="store", level=Level.CRITICAL, text=text)
    try:
        survey = store.survey()
    except AppError as error:
        return Check(name="store", level=Level.CRITICAL, text=str(error))
    if survey.faults:
        fault = survey.faults[0]
        text = f"{len(survey.faults)} damaged, first {fault.path.name}: {fault.reason}"
        return Check(name="store", level=Level.WARNING, text=text)
    if not survey.models:
        return Check(name="store", level=Level.WARNING, text="no model is installed")
    count = len(survey.models)
    return Check(name="store", level=Level.OK, text=f"{count} model{'s' * (count > 1)}")


def check_revoked(store: Store, *, refuses: bool) -> Check:
    """Whether models are installed whose bundle or keys were revoked since.

    Args:
        store: the store.
        refuses: whether the server refuses requests for them.
    """
    try:
        policy = load_policy(store.paths.trust)
        found = [
            (model.name.short(), why)
            for model in store.list()
            if (why := why_revoked(model.provenance, policy))
        ]
    except AppError as error:
        return Check(name="trust", level=Level.CRITICAL, text=str(error))
    if not found:
        return Check(name="trust", level=Level.OK, text="no model was revoked")
    name, why = found[0]
    text = f"{len(found)} revoked{', refused' if refuses else ''}, first {name}: {why}"
    return Check(name="trust", level=Level.WARNING, text=text)


def check_scrub(store: Store) -> Check:
    """Whether the last scrub found files that are not what their names say, and still are not."""
    record = read_record(store.paths)
    damaged = still_damaged(store.paths, record)
    if not damaged:
        text = f"finished {record.finished_at}" if record.finished_at else "never finished"
        return Check(name="scrub", level=Level.OK, text=text)
    try:
        first = named(damaged[:1], store)[0]
    except AppError as error:
        return Check(name="scrub", level=Level.CRITICAL, text=str(error))
    of = f" of {', '.join(first['models'])}" if first["models"] else ""
    text = f"{len(damaged)} damaged, first {first['path']}{of}: {first['reason']}"
    return Check(name="scrub", level=Level.CRITICAL, text=text)


def check_space(store: Store, *, reserve_bytes: int) -> Check:
    """Whether an import would still find the reserve."""
    try:
        status = os.statvfs(store.paths.root)
    except OSError as error:
        reason = (error.strerror or "unknown error").lower()
        text = f"{store.paths.root}: {reason}"
        return Check(name="space", level=Level.UNKNOWN, text=text)
    free = status.f_bavail * status.f_frsize
    if free < reserve_bytes:
        text = f"{Bytes(free)} free, less than the reserve of {Bytes(reserve_bytes)}"
        return Check(name="space", level=Level.WARNING, text=text)
    return Check(name="space", level=Level.OK, text=f"{Bytes(free)} free")


def check_crashes(folder: CrashFolder, *, now_s: float) -> Check:
    """Whether runners have crashed lately, and whether a model is held back for it.

    Args:
        folder: where the server keeps its records.
        now_s: seconds since the epoch.
    """
    try:
        records = folder.records()
    except AppError as error:
        return Check(name="crashes", level=Level.UNKNOWN, text=str(error))
    recent = [record for _, record in records if record.at >= timestamp(now_s - RECENT_CRASH_S)]
    if not recent:
        return Check(name="crashes", level=Level.OK, text="none in a day")
    last = recent[0]
    text = f"{len(recent)} in a day, last {last.at} {last.model} {last.cause}"
    held = [record for record in recent if record.load_held_until > timestamp(now_s)]
    if held:
        text += f"; {held[0].model} is not loaded until {held[0].load_held_until}"
    return Check(name="crashes", level=Level.WARNING, text=text)


def check_engine(directory: Path) -> Check:
    """Which build of the engine's CPU backend the server has chosen here, and which it refused."""
    choice = read_choice(directory)
    if choice is None:
        return Check(name="engine", level=Level.OK, text="not chosen yet")
    if choice.refused:
        text = f"{choice.name}; not used: {'; '.join(choice.refused)}"
        return Check(name="engine", level=Level.WARNING, text=text)
    return Check(name="engine", level=Level.OK, text=choice.name)


def check_server(client: Client) -> Check:
    """Whether the server would answer a request; it says so without asking for a key."""
    try:
        client.get("/readyz")
    except AppError as error:
        return Check(name="server", level=Level.CRITICAL, text=str(error))
    return Check(name="server", level=Level.OK, text="ready")


def worst(checks: Iterable[Check]) -> Level:
    """The level of the whole."""
    return max((check.level for check in checks), key=_BADNESS.index, default=Level.UNKNOWN)
