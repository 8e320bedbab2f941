"""What every verb needs: common options, the configuration, the store, JSON on stdout."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.addresses import HostText, read_host
from appliance.catalogue import Catalogue
from appliance.config import Config
from appliance.errors import RequestError
from appliance.layout import Paths
from bundler.format.errors import FormatError
from bundler.format.name import ModelName

if TYPE_CHECKING:
    from appliance.client import Client
    from appliance.store import Store


def installed(context: typer.Context) -> list[str]:
    """Names for the shell's completion: what lies in the store of this command line."""
    given = {key: context.params.get(key) for key in ("config", "store")}
    names = open_catalogue(load_config(given["config"], given["store"])).names()
    return [name.short() for name in names]


ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", autocompletion=installed)]
StoreOption = Annotated[
    Path | None, typer.Option("--store", help="The store; else SATCHEL_STORE, else the file.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="The configuration file; else SATCHEL_CONFIG.")
]
HostOption = Annotated[
    str | None, typer.Option("--host", help="The server, as HOST[:PORT]; else SATCHEL_HOST.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def load_config(
    file: Path | None, store: Path | None, flags: Mapping[str, Any] | None = None
) -> Config:
    """The effective configuration of this command line.

    Raises:
        ConfigError: a setting is wrong.
    """
    named = os.environ.get("SATCHEL_CONFIG", "")
    given = {"store.path": str(store.absolute())} if store is not None else {}
    return Config.load(
        file=file or (Path(named) if named else None),
        environ=os.environ,
        flags={**given, **(flags or {})},
    )


def open_catalogue(config: Config) -> Catalogue:
    """The store the configuration names, for reading; it need not exist."""
    return Catalogue(Paths(config.store.path))


def open_store(config: Config) -> Store:
    """The store the configuration names; it need not exist."""
    from appliance.store import Store  # noqa: PLC0415 - brings the cryptography, which is slow

    return Store(Paths(config.store.path))


def server(config: Config, host: str | None) -> Client:
    """A client for the server of this command line.

    Raises:
        RequestError: ``--host`` is not an address.
    """
    from appliance.client import Client  # noqa: PLC0415 - brings HTTP, which is slow

    return Client(address=_address(config, host), api_key=os.environ.get("SATCHEL_API_KEY", ""))


def _address(config: Config, host: str | None) -> HostText:
    source = config.sources.get("server.host", "")
    text = host or (os.environ.get(source, "") if source.endswith("_HOST") else "")
    if not text:
        return HostText("http", config.server.host, config.server.port, "")
    try:
        return read_host(text)
    except ValueError as error:
        raise RequestError(f"host: {error}") from error


def read_name(text: str) -> ModelName:
    """A model name as typed.

    Raises:
        RequestError: it is not one.
    """
    try:
        return ModelName.parse(text)
    except FormatError as error:
        raise RequestError(str(error), hint=error.hint) from error


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=True))
