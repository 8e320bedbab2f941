"""What ``satchel-bundle pack`` is given besides a model: files, times, logins, the medium."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import typer

from bundler.cli.frame import MAX_TEXT_BYTES, warn
from bundler.delta import Against, open_against
from bundler.errors import PackError
from bundler.format.acceptance import MAX_ACCEPTANCE_BYTES, Wanted, read_wanted
from bundler.format.fsio import read_bounded
from bundler.format.keys import PublicKey
from bundler.format.modelfile import MAX_MODELFILE_BYTES, Modelfile, decode, deprecated, parse
from bundler.format.name import ModelName
from bundler.format.statement import format_time, parse_time
from bundler.rooting.folder import open_roots
from bundler.screen import screen_progress
from bundler.source.reference import Reference, parse_reference
from bundler.source.registry import Login, read_logins


def source(path: Path | None, text: str) -> Path | Reference:
    """What is to be packed: a path, or what ``--from`` names."""
    if (path is None) == (not text):
        raise typer.BadParameter("expected either a path or --from, not both and not none")
    return parse_reference(text) if path is None else path


def name(text: str, named: Path | Reference) -> ModelName:
    """The name on the target: as given, else what the source calls it."""
    if text:
        return ModelName.parse(text)
    found = None if isinstance(named, Path) else named.model_name
    if found is None:
        raise typer.BadParameter("missing option '--name'")
    return found


def root_chain(directory: Path | None) -> tuple[bytes, ...]:
    """The finished roots of a directory, from version 1."""
    if directory is None:
        return ()
    roots = open_roots(directory)
    if not roots.chain or roots.draft is not None:
        raise PackError(
            f"{directory}: expected a complete root, found "
            + (f"a draft of version {roots.newest.version}" if roots.draft else "none"),
            hint="satchel-bundle root show says which signatures it lacks",
        )
    return tuple(one.data for one in roots.chain)


def logins() -> dict[str, Login]:
    """Logins of registries, as docker and podman keep them; the first file that is there."""
    given = os.environ.get("REGISTRY_AUTH_FILE", "")
    folder = os.environ.get("DOCKER_CONFIG", "")
    places = [Path(given)] if given else []
    places.append((Path(folder) if folder else Path.home() / ".docker") / "config.json")
    for place in places:
        if place.is_file():
            return read_logins(read_bounded(place, max_bytes=MAX_TEXT_BYTES))
    return {}


def check_medium(out: Path) -> None:
    """Refuse a medium that is not there: a folder made in its place would fill this computer."""
    if not out.is_dir():
        raise PackError(
            f"{out}: expected the medium's directory, found none",
            hint="is the stick mounted there? make the directory first if you mean one",
        )


def read_modelfile(path: Path | None) -> Modelfile:
    """The Modelfile of that name; an empty one when none was given."""
    if path is None:
        return Modelfile()
    text = decode(read_bounded(path, max_bytes=MAX_MODELFILE_BYTES))
    for name in deprecated(text):
        warn(f"parameter {name} is deprecated")
    return parse(text, require_from=False)


def beside(modelfile: Path | None, values: Sequence[str]) -> Path | None:
    """The file or directory that ADAPTER or DRAFT names; as in Ollama the last one counts.

    A relative path begins where the Modelfile is.
    """
    if modelfile is None or not values:
        return None
    try:
        return modelfile.absolute().parent / Path(values[-1]).expanduser()
    except RuntimeError as error:
        raise PackError(f"{modelfile}: {values[-1]!r}: there is no such user") from error


def read_text(path: Path) -> str:
    """A whole text file, as a licence or a template is one."""
    data = read_bounded(path, max_bytes=MAX_TEXT_BYTES)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PackError(f"{path}: expected UTF-8 text, found other bytes") from error


def day(text: str | None, option: str) -> str | None:
    """A day as the end of the statement's time, or a whole time as it is."""
    if text is None:
        return None
    try:
        moment = parse_time(text if "T" in text else f"{text}T00:00:00Z")
    except ValueError as error:
        raise PackError(f"{option}: expected a day such as 2027-02-21, found {text!r}") from error
    return format_time(moment)


def against(inventory: Path | None, relatives: list[Path], device: Path | None) -> Against | None:
    """The inventory of a site, and what was given with it."""
    if inventory is None:
        if relatives or device is not None:
            raise typer.BadParameter("expected --against with --relative and --device, found none")
        return None
    key = None if device is None else PublicKey.parse(read_text(device))
    known = open_against(inventory, relatives, key, screen_progress())
    found = known.read.inventory
    signed = "signed" if known.read.envelope.signatures else "not signed"
    if key is None:
        warn(f"{inventory}: of {found.site or 'a site without a name'}, {found.made_at}; {signed}, "
             "not compared with a device key")  # fmt: skip
    return known


def audience(given: list[str], known: Against | None) -> tuple[str, ...]:
    """Whom the bundle is for: as given; a delta, else, for the site whose inventory it is."""
    if given or known is None or not known.read.inventory.site:
        return tuple(given or ("*",))
    return (known.read.inventory.site,)


def accept(file: Path | None, *, built_in: bool) -> tuple[Wanted, ...] | None:
    """What is measured of each variant: a list of one's own, what is built in, or nothing."""
    if file is None:
        return () if built_in else None
    return read_wanted(read_bounded(file, max_bytes=MAX_ACCEPTANCE_BYTES))
