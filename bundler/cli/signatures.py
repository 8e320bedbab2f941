"""``satchel-bundle sign``, ``permit`` and ``contents``: what needs the envelope alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bundler.cli.frame import Json, Keys, PassphraseFile, print_json
from bundler.cli.inputs import day
from bundler.cli.signers import issued_now, signing_keys
from bundler.contents import contents_json, contents_lines
from bundler.format.keys import key_words
from bundler.format.statement import format_time
from bundler.permitting import Wish, write_permit
from bundler.signing import add_signature, attach, emit, open_envelope
from hwprobe.quantity import Bytes


def add_to(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(sign)
    app.command()(contents)
    app.command()(permit)


def sign(
    bundle: Annotated[
        Path, typer.Argument(help="Medium, bundle directory, or bundle.dsse.json alone.")
    ],
    *,
    key: Keys = None,
    emit_to: Annotated[
        Path | None,
        typer.Option("--emit", help="Write the envelope here, to be signed on another machine."),
    ] = None,
    attach_from: Annotated[
        Path | None, typer.Option("--attach", help="Take over the signatures of this envelope.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Add a signature to a finished bundle; the weights are not needed."""
    if sum(map(bool, (key, emit_to, attach_from))) != 1:
        raise typer.BadParameter("expected one of --key, --emit and --attach")
    opened = open_envelope(bundle)
    for line in () if as_json else contents_lines(opened)[:-1]:
        print(line)
    if emit_to is not None:
        size_bytes = emit(opened, emit_to)
        if as_json:
            print_json({"envelope": str(emit_to), "size": size_bytes})
            return
        print(f"{Bytes(size_bytes)} in {emit_to}: sign it with satchel-bundle sign {emit_to}")
        return
    if attach_from is not None:
        signers = attach(opened, attach_from)
    else:
        signers = add_signature(opened, signing_keys(key or [], passphrase_file))
    if as_json:
        print_json({"signed_by": [{"key_id": one, "words": key_words(one)} for one in signers]})
        return
    for key_id in signers:
        print(f"now signed by  {key_id[:16]} {key_words(key_id)}")


def permit(
    bundle: Annotated[Path, typer.Argument(help="Medium or bundle directory of the older bundle.")],
    *,
    key: Keys = None,
    instead_of: Annotated[
        int | None, typer.Option(min=2, help="Newest number the site has; leave out to sign again.")
    ] = None,
    site: Annotated[
        list[str] | None, typer.Option(help="Site the permit is for; may be repeated.")
    ] = None,
    expires: Annotated[str, typer.Option(help="Day on which it ends.")] = "",
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Let a site take an older bundle, once; for keys of the root's role rollback."""
    if not key:
        raise typer.BadParameter("missing option '--key'")
    wish = None
    if instead_of is not None:
        end = day(expires, "expires") if expires else None
        if end is None or not site:
            raise typer.BadParameter("--instead-of: expected --site and --expires as well")
        issued = format_time(issued_now()[0])
        wish = Wish(instead_of=instead_of, audience=tuple(site), issued=issued, expires=end)
    elif site or expires:
        raise typer.BadParameter("--site and --expires: expected --instead-of as well")
    opened = open_envelope(bundle)
    made, signers = write_permit(opened, wish, signing_keys(key, passphrase_file))
    if as_json:
        print_json({"bundle": str(made.statement), "signed_by": list(signers)})
        return
    print(f"permits {made.channel} {made.seq} instead of {made.instead_of}, until {made.expires}")
    print(f"for     {', '.join(made.audience)}")
    for key_id in signers:
        print(f"signed by  {key_id[:16]} {key_words(key_id)}")


def contents(
    bundle: Annotated[
        Path, typer.Argument(help="Medium, bundle directory, or bundle.dsse.json alone.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what a bundle says it holds. Nothing is verified."""
    opened = open_envelope(bundle)
    if as_json:
        print_json(contents_json(opened))
    else:
        print("\n".join(contents_lines(opened)))
