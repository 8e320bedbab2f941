"""``satchel worker``: lend this machine's memory and processors to another one's models."""

from __future__ import annotations

import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from appliance.cli.frame import JsonOption, print_json
from appliance.errors import RequestError
from bundler.format.certificates import make_certified
from hwprobe.budgets import pool_budgets
from hwprobe.estimate import HOST
from hwprobe.inventory import take_inventory
from hwprobe.quantity import Bytes
from hwprobe.remote.dialling import offer_of, release
from hwprobe.remote.serving import Worker
from hwprobe.remote.terms import DEFAULT_PORT, Offer, WorkerAddress
from hwprobe.remote.tls import Identity, Trust

KeyOption = Annotated[Path, typer.Option("--key", metavar="FILE", help="This machine's key.")]
PeersOption = Annotated[
    Path, typer.Option("--peers", metavar="FILE", help="Certificates of the machines it talks to.")
]


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    workers = typer.Typer(
        name="worker",
        help="Lend this machine's memory and processors to another one's models.",
        no_args_is_help=True,
    )
    workers.command("key")(key_command)
    workers.command("serve")(serve_command)
    workers.command("show")(show_command)
    app.add_typer(workers)


def key_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="NAME.key and NAME.crt are made.")],
    *,
    json_: JsonOption = False,
) -> None:
    """Make a key, and the certificate to carry to the machines that are to know it."""
    private, public = Path(f"{name}.key"), Path(f"{name}.crt")
    made = make_certified(private.stem)
    for path in (private, public):
        if path.exists():
            raise RequestError(f"{path}: is there already", hint="choose another name")
    try:
        descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(made.private)
        public.write_bytes(made.certificate)
    except OSError as error:
        reason = (error.strerror or "cannot be written").lower()
        raise RequestError(f"{error.filename}: {reason}") from error
    if json_:
        print_json({"key": str(private), "certificate": str(public), "sha256": made.fingerprint})
        return
    typer.echo(f"key          {private}  (keep it secret)")
    typer.echo(f"certificate  {public}  (append it to the peers' file of the other machine)")
    typer.echo(f"sha256       {made.fingerprint}")


def serve_command(
    *,
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where to listen.")
    ] = f"127.0.0.1:{DEFAULT_PORT}",
    key: KeyOption,
    peers: PeersOption,
    memory: Annotated[
        str, typer.Option("--memory", metavar="SIZE", help="Offer at most so much.")
    ] = "",
    threads: Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0: all.")] = 0,
) -> None:
    """Serve the machines whose certificates are in the peers' file, until it is told to end."""
    most = Bytes.parse(memory) if memory else None
    address = WorkerAddress.parse(listen)
    trust = Trust(Identity(key, peers), server=True)
    offer = partial(this_offer, most_bytes=most, threads=threads)
    try:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        listener = socket.create_server((address.host, address.port), family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RequestError(f"listen: {address}: {reason}") from error
    first = offer()
    worker = Worker(listener, trust, offer=offer, tell=lambda line: print(line, file=sys.stderr))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.close())
    bound = listener.getsockname()
    where = WorkerAddress(bound[0], bound[1])
    print(f"offering {Bytes(first.memory_bytes)} and {first.threads} thread(s) on {where}")
    sys.stdout.flush()
    worker.run()


def this_offer(*, most_bytes: int | None, threads: int) -> Offer:
    """What this machine can give now, besides what must stay free here."""
    machine = take_inventory(ask_driver=False)
    free = pool_budgets(machine, {})[HOST]
    return Offer(
        release=release(),
        memory_bytes=free if most_bytes is None else int(min(free, most_bytes)),
        threads=threads or machine.cpu.decode_threads,
    )


def show_command(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT")],
    *,
    key: KeyOption,
    peers: PeersOption,
    json_: JsonOption = False,
) -> None:
    """Ask a worker what it offers."""
    where = WorkerAddress.parse(address)
    offer = offer_of(where, Trust(Identity(key, peers), server=False))
    if json_:
        print_json(
            {
                "address": str(where),
                "memory_bytes": offer.memory_bytes,
                "threads": offer.threads,
                "connections": offer.busy,
                "release": offer.release,
            }
        )
        return
    typer.echo(
        f"{where} offers {Bytes(offer.memory_bytes)} and {offer.threads} thread(s), "
        f"and serves {offer.busy} connection(s)"
    )
