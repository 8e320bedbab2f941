"""``satchel media``: what the service calls that a plugged-in medium starts."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from appliance.cli.frame import ConfigOption, StoreOption, load_config, open_store
from appliance.cli.screen import Screen
from appliance.config import Config
from appliance.errors import AppError, ApprovalMissingError, StoreBusyError
from appliance.importer import import_bundle
from appliance.measuring import this_site
from appliance.policyfile import load_policy
from appliance.site import Request
from appliance.updating import check_update, update_trust
from appliance.verify import verify_bundle
from bundler.format.errors import BundleError, LayoutError, MissingVolumeError, printable
from bundler.format.volume import UpdateDirectory, find_bundles, find_update

T = TypeVar("T")

_TURN_S = 2.0
"""Between two looks whether another import has ended."""


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("media")(media_command)


def media_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the medium is mounted.")],
    *,
    label: Annotated[str, typer.Option(help="What to call the medium in messages.")] = "",
    wait: Annotated[float, typer.Option(help="Seconds to wait for another import.")] = 3600.0,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Verify what is on a plugged-in medium, and install what is trusted.

    A medium with nothing of ours is one line. What is refused does not keep the rest out.
    """
    loaded = load_config(config, store)
    name = label or directory.name
    policy = loaded.exchange.media
    if policy == "off":
        typer.echo(f"medium {name}: left alone, exchange.media is off")
        return
    update = find_update(directory)
    try:
        bundles = find_bundles(directory)
    except LayoutError as error:
        if update is None:
            typer.echo(f"medium {name}: not ours: {error}")
            return
        bundles = ()
    taking = _Taking(config=loaded, only_verify=policy == "verify", patience_s=wait)
    codes = []
    # Without a pinned root, one that lies beside bundles is none of this site's business.
    if update is not None and (taking.pinned() or not bundles):
        codes.append(_told(f"medium {name}: trust", lambda: taking.update(update)))
    for bundle in bundles:
        shown = f"medium {name}: bundle {printable(bundle.path.name)}"
        typer.echo(f"{shown}: {'verifying' if taking.only_verify else 'importing'}")
        codes.append(_told(shown, functools.partial(taking.bundle, bundle.path)))
    typer.echo(f"medium {name}: done, it can be pulled out")
    if any(codes):
        raise typer.Exit(next(code for code in codes if code))


def _told(shown: str, take: Callable[[], str]) -> int:
    """Take one thing and say how it went.

    Returns:
        The exit code of its refusal, or 0.
    """
    try:
        typer.echo(f"{shown}: {take()}")
    except (MissingVolumeError, ApprovalMissingError) as error:
        typer.echo(f"{shown}: kept, and waits: {error}")
    except (AppError, BundleError) as error:
        typer.echo(f"{shown}: refused: {error}")
        if error.hint:
            typer.echo(f"{shown}: hint: {error.hint}")
        return error.exit_code
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taking:
    """How what is on the medium is taken; each method says what came of it."""

    config: Config
    only_verify: bool
    patience_s: float

    def pinned(self) -> bool:
        """Whether this site follows a trust root."""
        return load_policy(open_store(self.config).paths.trust).root is not None

    def update(self, update: UpdateDirectory) -> str:
        """Follow the roots of a trust update."""
        store = open_store(self.config)
        if self.only_verify:
            done = check_update(load_policy(store.paths.trust), update.read_root)
        else:
            done = self._in_turn(lambda: update_trust(store, update.read_root, source="medium"))
        if not done.roots:
            return f"nothing newer than root {done.before.root.version}"
        return f"root {done.now.root.version} {'in order' if self.only_verify else 'is in force'}"

    def bundle(self, path: Path) -> str:
        """Verify or import one bundle."""
        request, site = Request(medium=path), this_site(self.config)
        with Screen(site.machine, quiet=False) as screen:
            if self.only_verify:
                report = verify_bundle(request, site, screen)
                if report.findings:
                    raise report.findings[0]
                return "in order; import it with: satchel import"
            receipt = self._in_turn(lambda: import_bundle(request, site, screen))
        names = ", ".join(entry.name for entry in receipt.installed)
        return f"{'installed' if receipt.changed else 'already installed'}: {names}"

    def _in_turn(self, act: Callable[[], T]) -> T:
        """Act once no other import runs: sticks that are plugged in together take turns."""
        until_s = time.monotonic() + self.patience_s
        while True:
            try:
                return act()
            except StoreBusyError:
                if time.monotonic() >= until_s:
                    raise
                time.sleep(_TURN_S)
