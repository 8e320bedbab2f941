"""``satchel import`` and ``satchel verify``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.choice import Wanted
from appliance.cli.frame import (
    ConfigOption,
    JsonOption,
    StoreOption,
    load_config,
    print_json,
)
from appliance.cli.screen import Screen
from appliance.cli.updates import report
from appliance.errors import AppError, RequestError
from appliance.importer import import_bundle
from appliance.measuring import this_site
from appliance.policyfile import load_policy
from appliance.receipt import Receipt, carry_out, last_receipt, read_kept
from appliance.site import Request, Site
from appliance.updating import Updated, check_update, update_trust
from appliance.verify import Report, verify_bundle
from bundler.format.errors import BundleError
from bundler.format.volume import UpdateDirectory, find_update, has_bundles
from hwprobe.quantity import Bytes

_ROLLBACK = re.compile(r"[a-z0-9][a-z0-9.-]{0,31}:[1-9][0-9]{0,15}")
MediaArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="DIR…", help="The media in any order, or one bundle directory on the first."
    ),
]
VariantOption = Annotated[
    list[str] | None,
    typer.Option("--variant", metavar="ID", help="Install this variant; may be repeated."),
]
AllOption = Annotated[bool, typer.Option("--all", help="Install every variant.")]
RollbackOption = Annotated[
    str,
    typer.Option(
        "--allow-rollback",
        metavar="CHANNEL:SEQ",
        help="Let exactly this older bundle in, although a newer one was accepted.",
    ),
]


ChannelOption = Annotated[
    str,
    typer.Option(
        "--allow-channel",
        metavar="CHANNEL",
        help="Let a bundle of this channel replace models that came on another one.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command("import")(import_command)
    app.command("verify")(verify_command)


def _request(
    media: list[Path],
    variants: list[str] | None,
    allow_rollback: str,
    allow_channel: str,
    *,
    all_variants: bool,
    skip_acceptance: bool = False,
) -> Request:
    if variants and all_variants:
        raise RequestError("expected --variant or --all, found both")
    if allow_rollback and not _ROLLBACK.fullmatch(allow_rollback):
        raise RequestError(
            f"allow-rollback: expected CHANNEL:SEQ such as main:7, found {allow_rollback!r}"
        )
    wanted = Wanted(variants=tuple(variants or ()), all_variants=all_variants)
    return Request(
        medium=media[0],
        others=tuple(media[1:]),
        wanted=wanted,
        allow_rollback=allow_rollback,
        allow_channel=allow_channel,
        skip_acceptance=skip_acceptance,
    )


def import_command(
    media: MediaArgument,
    *,
    variant: VariantOption = None,
    all_: AllOption = False,
    allow_rollback: RollbackOption = "",
    allow_channel: ChannelOption = "",
    receipt_to: Annotated[
        Path | None,
        typer.Option("--receipt", metavar="DIR", help="Write the receipt to this medium, too."),
    ] = None,
    skip_acceptance: Annotated[
        bool,
        typer.Option("--skip-acceptance", help="Do not try the model before it gets its name."),
    ] = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Verify a bundle and install what fits this machine."""
    request = _request(
        media,
        variant,
        allow_rollback,
        allow_channel,
        all_variants=all_,
        skip_acceptance=skip_acceptance,
    )
    site = this_site(load_config(config, store))
    update = _followed(media, site)
    if update is not None and not _any_bundles(media):
        report(update, as_json=json_)
        return
    with Screen(site.machine, quiet=json_) as screen:
        receipt = import_bundle(request, site, screen)
    if receipt_to is not None:
        _carry_out(receipt, receipt_to, site)
    if json_:
        print_json(receipt.to_json())
    else:
        print_receipt(receipt)


def _carry_out(receipt: Receipt, medium: Path, site: Site) -> None:
    """Write the receipt to a medium; where that fails the import is no less done."""
    directory = site.store.paths.receipts
    number = receipt.number or last_receipt(directory)[0]
    try:
        written = carry_out([read_kept(directory, number)], medium, site.config.trust.site)
    except (AppError, BundleError) as error:
        typer.echo(f"satchel: warning: receipt {number:06d} is kept here only: {error}", err=True)
        return
    for path in written:
        typer.echo(f"receipt written to {path}", err=True)


def _followed(media: list[Path], site: Site) -> Updated | None:
    """Follow the trust roots that lie beside the bundles of the media, before any of these."""
    updated = None
    for medium in media:
        found = find_update(medium)
        pinned = load_policy(site.store.paths.trust).root is not None
        if found is not None and (pinned or not _any_bundles(media)):
            updated = update_trust(site.store, found.read_root, source="medium")
    return updated


def _any_bundles(media: list[Path]) -> bool:
    return any(has_bundles(medium) for medium in media)


def print_receipt(receipt: Receipt) -> None:
    """Say what was installed."""
    for entry in receipt.installed:
        verb = "installed" if receipt.changed else "already installed"
        weights = entry.weights.removeprefix("sha256:")[:12]
        typer.echo(f"{verb} {entry.name} ({entry.variant}, {Bytes(entry.size_bytes)}, {weights})")
    for one in receipt.acceptance:
        typer.echo(f"accepted {one.name} {one.check}: {one.found} (expected {one.expected})")
    if receipt.changed:
        typer.echo(f"receipt {receipt.number:06d} written")


def verify_command(
    media: MediaArgument,
    *,
    variant: VariantOption = None,
    all_: AllOption = False,
    allow_rollback: RollbackOption = "",
    allow_channel: ChannelOption = "",
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Check every byte of a bundle as an import would; write nothing."""
    request = _request(media, variant, allow_rollback, allow_channel, all_variants=all_)
    site = this_site(load_config(config, store))
    update = None if _any_bundles(media) else _first_update(media)
    if update is not None:
        policy = load_policy(site.store.paths.trust)
        report(check_update(policy, update.read_root), as_json=json_, done=False)
        return
    with Screen(site.machine, quiet=json_) as screen:
        found = verify_bundle(request, site, screen)
    if json_:
        print_json(_report_json(found))
    for finding in () if json_ else found.findings:
        typer.echo(f"satchel: error: {finding}", err=True)
        if finding.hint:
            typer.echo(f"satchel: hint: {finding.hint}", err=True)
    if found.findings:
        raise typer.Exit(found.findings[0].exit_code)
    if not json_:
        typer.echo(f"verified {Bytes(found.checked_bytes)} of weights; nothing was written")


def _first_update(media: list[Path]) -> UpdateDirectory | None:
    found = (find_update(medium) for medium in media)
    return next((update for update in found if update is not None), None)


def _report_json(report: Report) -> dict[str, Any]:
    info = report.admitted.manifest.bundle
    return {
        "bundle_id": info.id,
        "channel": info.channel,
        "seq": info.seq,
        "statement": str(report.admitted.verified.digest),
        "signed_by": sorted(report.admitted.verified.signed_by),
        "warnings": list(report.admitted.warnings),
        "would_install": [
            {"name": install.name.short(), "variant": install.variant.id}
            for choice in report.choices
            for install in choice.installs
        ],
        "checked_bytes": report.checked_bytes,
        "findings": [
            {
                "error": type(finding).__name__,
                "message": str(finding),
                "hint": finding.hint,
                "exit_code": finding.exit_code,
            }
            for finding in report.findings
        ],
    }
