"""``satchel scrub``: is everything in the store still what it was? No server is needed."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance import human, scrubbing
from appliance.cli.frame import (
    ConfigOption,
    JsonOption,
    StoreOption,
    load_config,
    open_store,
    print_json,
)
from appliance.cli.steps import Steps
from appliance.config import Config
from appliance.errors import AppError, RequestError, StoreCorruptError
from appliance.idle import become_idle
from appliance.journal import Journal
from appliance.measuring import this_site
from appliance.repairing import repair
from appliance.scrubbing import Damage, Pace, Record, Scrub
from appliance.store import Store
from bundler.format.digest import Digest
from hwprobe.errors import QuantityError
from hwprobe.quantity import Bytes

_STATUS = "checking the store"
_HINT = "repair it from a bundle with: satchel scrub --repair MEDIUM, or remove the models"


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command("scrub")(scrub_command)


def scrub_command(
    *,
    limit: Annotated[
        str, typer.Option("--limit", metavar="RATE", help="Read at most so much a second.")
    ] = "",
    restart: Annotated[bool, typer.Option("--restart", help="Begin again, do not go on.")] = False,
    medium: Annotated[
        Path | None,
        typer.Option("--repair", metavar="MEDIUM", help="Renew damaged files from its bundles."),
    ] = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Hash every file of the store again, only when CPU and disk are idle.

    An interrupted scrub goes on where it was. Damage is reported by path and model, and ends with
    code 15.

    With --repair, damaged files are written anew from trusted bundles that list their digests;
    what scrubs have found before is repaired without reading the rest again.
    """
    rate = _rate(limit)
    loaded = load_config(config, store)
    found = open_store(loaded)
    repaired: tuple[Digest, ...] = ()
    refusals: tuple[str, ...] = ()
    with scrubbing.alone(found.paths), Steps(quiet=json_) as steps:
        record = scrubbing.begin(found, restart=restart)
        if medium is None or not scrubbing.still_damaged(found.paths, record):
            record = _pass(found, record, rate, steps)
        damaged = scrubbing.still_damaged(found.paths, record)
        if medium is not None and damaged:
            repaired, refusals = _repair(damaged, medium, loaded, steps)
            gone = {str(one) for one in repaired}
            damaged = tuple(one for one in damaged if one.digest not in gone)
    _report(found, record, damaged, repaired, refusals, json_=json_)
    _complain(damaged, repairing=medium is not None, json_=json_)


def _rate(text: str) -> int:
    """Bytes a second; 0 for no limit."""
    if not text:
        return 0
    try:
        rate = Bytes.parse(text.removesuffix("/s"))
    except QuantityError as error:
        raise RequestError(f"limit: {error}", hint="such as --limit 50MB") from error
    if rate <= 0:
        raise RequestError(f"limit: expected more than nothing, found {text!r}")
    return int(rate)


def _pass(found: Store, record: Record, rate: int, steps: Steps) -> Record:
    """Read what is left of the store, in a thread that only gets what nobody else wants."""
    scrub = Scrub(
        catalogue=found,
        now=time.time,
        clock=time.monotonic,
        warn=lambda text: steps.tell({"status": f"warning: {text}"}),
        record=record,
    )
    if record.after:
        steps.tell({"status": f"going on after {record.checked} files"})
    total, done = scrubbing.size_of(found.paths, scrub.left()), 0
    with _idle_thread() as (pool, stopping):
        pace = Pace(bytes_per_s=rate, clock=time.monotonic, sleep=_waiting(stopping))

        def advance(size_bytes: int) -> None:
            nonlocal done
            done += size_bytes
            if stopping.is_set():
                raise KeyboardInterrupt
            steps.tell({"status": _STATUS, "total": total, "completed": done})

        scrub.run(
            lambda digest: pool.submit(
                scrubbing.check_blob, found.paths, digest, pace, advance
            ).result()
        )
    return scrub.record


def _waiting(stopping: threading.Event) -> Callable[[float], None]:
    """A sleep that ends early when the command is interrupted."""

    def sleep(seconds: float) -> None:
        stopping.wait(seconds)

    return sleep


@contextlib.contextmanager
def _idle_thread() -> Iterator[tuple[ThreadPoolExecutor, threading.Event]]:
    """One thread of lowest priority, and what makes it end early when the block is left."""
    stopping = threading.Event()
    pool = ThreadPoolExecutor(1, thread_name_prefix="scrub", initializer=become_idle)
    try:
        yield pool, stopping
    finally:
        stopping.set()
        pool.shutdown()


def _repair(
    damaged: tuple[Damage, ...], medium: Path, config: Config, steps: Steps
) -> tuple[tuple[Digest, ...], tuple[str, ...]]:
    digests = [Digest.parse(one.digest) for one in damaged]
    return repair(digests, medium, this_site(config), steps.tell)


def _report(
    found: Store,
    record: Record,
    damaged: tuple[Damage, ...],
    repaired: tuple[Digest, ...],
    refusals: tuple[str, ...],
    *,
    json_: bool,
) -> None:
    listed = scrubbing.named(damaged, found)
    try:
        Journal(found.paths.journal).record(
            "scrubbed",
            checked=record.checked,
            checked_bytes=record.checked_bytes,
            damaged=[one.digest for one in damaged],
        )
    except AppError as error:
        typer.echo(f"satchel: warning: {error}", err=True)
    if json_:
        document: dict[str, Any] = {
            "finished_at": record.finished_at,
            "checked": record.checked,
            "checked_bytes": record.checked_bytes,
            "repaired": [str(one) for one in repaired],
            "damaged": list(listed),
            "refused_bundles": list(refusals),
        }
        print_json(document)
        return
    for one in repaired:
        typer.echo(f"repaired {found.paths.blob(one)}")
    for line in refusals:
        typer.echo(f"satchel: warning: {line}", err=True)
    for entry in listed:
        typer.echo(f"damaged {entry['path']}")
        typer.echo(f"  {entry['reason']}")
        models = ", ".join(entry["models"])
        typer.echo(f"  used by {models}" if models else "  no model uses it: satchel prune")
    total = human.size(record.checked_bytes)
    typer.echo(f"checked {record.checked} files, {total}")


def _complain(damaged: tuple[Damage, ...], *, repairing: bool, json_: bool) -> None:
    if damaged and json_:
        raise typer.Exit(StoreCorruptError.exit_code)
    if damaged:
        left = " left: no trusted bundle there could give them" if repairing else ""
        plural = "s" * (len(damaged) != 1)
        raise StoreCorruptError(f"{len(damaged)} damaged file{plural}{left}", hint=_HINT)
