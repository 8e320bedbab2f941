"""``satchel create``, ``pull`` and ``push``: models made here, brought in and carried out."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from appliance.cli.frame import (
    ConfigOption,
    HostOption,
    JsonOption,
    ModelArgument,
    StoreOption,
    load_config,
    open_store,
    print_json,
    server,
)
from appliance.cli.steps import Steps
from appliance.client import Client
from appliance.config import Config
from appliance.copying import file_digest
from appliance.errors import RequestError
from appliance.fetching import SiteRegistry
from appliance.measuring import this_site
from appliance.modelfiles import gather, request_of
from appliance.pulling import pull
from appliance.pushing import push
from bundler.format import fsio, modelfile
from bundler.source.registry import read_logins

InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="Accepted for Ollama's sake; no network is used.")
]
_DEFAULT = "Modelfile"
_MAX_LOGIN_BYTES = 1 << 20


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command("create")(create_command)
    app.command("pull")(pull_command)
    app.command("push")(push_command)


def create_command(
    model: ModelArgument,
    *,
    file: Annotated[
        str, typer.Option("--file", "-f", metavar="FILE", help="The Modelfile; - reads stdin.")
    ] = _DEFAULT,
    quantize: Annotated[
        str, typer.Option("--quantize", "-q", metavar="TYPE", help="Quantize, such as Q4_K_M.")
    ] = "",
    draft_quantize: Annotated[
        str, typer.Option("--draft-quantize", metavar="TYPE", help="Quantize the DRAFT model.")
    ] = "",
    config: ConfigOption = None,
    host: HostOption = None,
    json_: JsonOption = False,
) -> None:
    """Make a model from a Modelfile, through the server."""
    text, directory = _read(file)
    parsed = modelfile.parse(text)
    if draft_quantize and not parsed.drafts:
        raise RequestError("--draft-quantize requires a DRAFT model")
    for name in modelfile.deprecated(text):
        typer.echo(f"warning: parameter {name} is deprecated", err=True)
    client = server(load_config(config, None), host)
    with Steps(quiet=json_) as steps:
        steps.tell({"status": "gathering model components"})
        gathered = gather(parsed, directory)
        digests = {
            path: _send(path, client, steps)
            for named in (gathered.files, gathered.adapters, gathered.drafts)
            for path in named.values()
        }
        body = request_of(
            parsed,
            gathered,
            digests,
            model=model,
            quantize=quantize,
            draft_quantize=draft_quantize,
        )
        for event in client.stream("/api/create", body):
            steps.tell(event)
    if json_:
        print_json({"model": model, "status": "success"})


def _read(file: str) -> tuple[str, Path]:
    """The text of a Modelfile, and where its relative paths start."""
    if file == "-":
        return modelfile.decode(sys.stdin.buffer.read()), Path.cwd()
    path = Path(file)
    try:
        return modelfile.decode(path.read_bytes()), path.absolute().parent
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        raise RequestError(f"{file}: {reason}", hint="name the Modelfile with -f") from error


def _send(path: Path, client: Client, steps: Steps) -> str:
    """Hash a file, and send it unless the server has it; returns its digest."""
    total = path.stat().st_size
    done = 0

    def advance(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        steps.tell({"status": f"hashing {path.name}", "total": total, "completed": done})

    digest = str(file_digest(path, progress=advance))
    if not client.has(f"/api/blobs/{digest}"):
        status = f"copying file {digest}"
        client.send(
            f"/api/blobs/{digest}",
            path,
            lambda sent: steps.tell({"status": status, "total": total, "completed": sent}),
        )
    return digest


def pull_command(
    model: ModelArgument,
    *,
    insecure: InsecureOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Install a model from a trusted bundle in one of exchange.sources, or in exchange.registry."""
    del insecure
    loaded = load_config(config, store)
    site = this_site(loaded)
    with Steps(quiet=json_) as steps:
        pull(model, site, steps.tell, registry=_registry(loaded))
    if json_:
        print_json({"model": model, "status": "success"})


def _registry(config: Config) -> SiteRegistry | None:
    """The site's registry, with the login that docker or podman keep for it."""
    place = config.exchange
    if not place.registry:
        return None
    given = os.environ.get("REGISTRY_AUTH_FILE", "")
    file = Path(given) if given else Path.home() / ".docker" / "config.json"
    logins = {}
    if file.is_file():
        logins = read_logins(fsio.read_bounded(file.resolve(), max_bytes=_MAX_LOGIN_BYTES))
    return SiteRegistry.of(place.registry, place.registry_ca, logins)


def push_command(
    model: ModelArgument,
    *,
    insecure: InsecureOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Copy a model into the directory exchange.export, a store of the same layout."""
    del insecure
    loaded = load_config(config, store)
    with Steps(quiet=json_) as steps:
        push(model, open_store(loaded), loaded.exchange.export, steps.tell)
    if json_:
        print_json({"model": model, "status": "success"})
