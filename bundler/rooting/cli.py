"""``satchel-bundle root``: who may sign for which channel, and how that changes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from bundler.errors import PackError
from bundler.format.digest import Digest
from bundler.format.fsio import read_bounded
from bundler.format.keys import KeyId, PublicKey, Signer, key_words
from bundler.format.root import BUNDLE_ROLE, OTHER_ROLES, Root
from bundler.format.statement import CHANNEL_PATTERN
from bundler.rooting import folder
from bundler.rooting.folder import TOP, Roots

_YEARS: Final = 10
_MAX_KEY_FILE_BYTES: Final = 64 << 10
_ROLE: Final = re.compile(f"{TOP}|{BUNDLE_ROLE}{CHANNEL_PATTERN}|" + "|".join(OTHER_ROLES))
_FLOOR: Final = re.compile(f"({CHANNEL_PATTERN}):([1-9][0-9]{{0,15}})")

Directory = Annotated[
    Path, typer.Argument(metavar="DIR", help="Holds 1.root.dsse.json, 2.root.dsse.json, …")
]
RoleName = Annotated[
    str, typer.Argument(metavar="ROLE", help="root, or bundle:CHANNEL such as bundle:main.")
]
PublicFile = Annotated[Path, typer.Argument(metavar="KEY.pub")]


app = typer.Typer(
    help="Say who may sign for which channel, and change it in a way sites can follow.",
    rich_markup_mode=None,
    no_args_is_help=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell:
    """What the program around gives to these verbs, as the context's object.

    Attributes:
        signing_keys: reads private key files with their passphrases.
        now: the time of a root, as the statement writes times.
    """

    signing_keys: Callable[[list[str], Path | None], tuple[Signer, ...]]
    now: Callable[[], str]


def _shell(context: typer.Context) -> Shell:
    found = context.find_object(Shell)
    assert found is not None
    return found


@app.command()
def init(
    context: typer.Context,
    directory: Directory,
    key: Annotated[list[Path], typer.Option("--key", help="Public file of a root key.")],
    threshold: Annotated[int, typer.Option(min=1, help="Root keys that must sign a root.")] = 1,
    expires: Annotated[
        str, typer.Option(help="After this sites warn.  [default: in ten years]")
    ] = "",
) -> None:
    """Begin: version 1, still unsigned."""
    issued = _shell(context).now()
    until = expires or f"{int(issued[:4]) + _YEARS}-01-01"
    keys = [_public(path) for path in key]
    until = until if "T" in until else f"{until}T00:00:00Z"
    _show(folder.begin(directory, keys, threshold=threshold, issued=issued, expires=until))


@app.command("add-key")
def add_key(
    context: typer.Context,
    directory: Directory,
    role: RoleName,
    key: PublicFile,
    *,
    threshold: Annotated[
        int | None, typer.Option(min=1, help="Keys of the role that must sign.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="Model the channel may install; NAME* for a beginning."),
    ] = None,
) -> None:
    """Give a key a role; the next version begins as a draft."""
    _check_role(role)
    public = _public(key)
    roots = folder.open_roots(directory)
    names = tuple(model or ())

    def edit(root: Root) -> Root:
        return folder.with_role_key(root, role, public, threshold=threshold, models=names)

    _show(folder.change(roots, edit, issued=_shell(context).now()))


@app.command()
def rotate(
    context: typer.Context,
    directory: Directory,
    role: RoleName,
    old: Annotated[str, typer.Argument(metavar="KEYID", help="From eight digits on.")],
    key: PublicFile,
) -> None:
    """Put a new key in the place of an old one, in one role."""
    _check_role(role)
    public = _public(key)
    roots = folder.open_roots(directory)

    def edit(root: Root) -> Root:
        return folder.with_key_replaced(root, role, folder.find_key(root, old), public)

    _show(folder.change(roots, edit, issued=_shell(context).now()))


@app.command()
def revoke(
    context: typer.Context,
    directory: Directory,
    *,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", help="Id of a key: out of every role, for ever."),
    ] = None,
    bundle: Annotated[
        list[str] | None, typer.Option("--bundle", help="sha256:… that pack printed.")
    ] = None,
    min_seq: Annotated[
        list[str] | None,
        typer.Option("--min-seq", help="CHANNEL:SEQ: nothing older than this."),
    ] = None,
) -> None:
    """Revoke keys and bundles; the next version begins as a draft."""
    if not (key or bundle or min_seq):
        raise PackError("revoke: expected --key, --bundle or --min-seq, found none")
    digests = [Digest.parse(text) for text in bundle or ()]
    floors = dict(_floor(text) for text in min_seq or ())
    roots = folder.open_roots(directory)

    def edit(root: Root) -> Root:
        gone: list[KeyId] = []
        for which in key or ():
            root, key_id = folder.without_key(root, which)
            gone.append(key_id)
        return folder.revoked(root, keys=gone, digests=digests, floors=floors)

    _show(folder.change(roots, edit, issued=_shell(context).now()))


@app.command()
def sign(
    context: typer.Context,
    directory: Directory,
    key: Annotated[
        list[str],
        typer.Option("--key", metavar="KEY", help="Private key file or pkcs11: URI of a root key."),
    ],
    passphrase_file: Annotated[
        Path | None, typer.Option(help="File with the keys' passphrase.")
    ] = None,
) -> None:
    """Sign the draft; once enough keys have, it is a root."""
    roots = folder.open_roots(directory)
    _show(folder.sign(roots, _shell(context).signing_keys(key, passphrase_file)))


@app.command()
def show(directory: Directory) -> None:
    """Show the newest root, what it lacks, and the words to compare."""
    _show(folder.open_roots(directory))


def _show(roots: Roots) -> None:
    if not roots.chain and roots.draft is None:
        raise PackError(
            f"{roots.path}: expected a root, found none", hint="satchel-bundle root init"
        )
    root = roots.newest
    state = f"draft: {roots.draft.reason}" if roots.draft else "complete"
    print(f"root {root.version}  issued {root.issued}  expires {root.expires}")
    print(f"state      {state}")
    for name, role in [(TOP, root.root), *sorted(root.roles.items())]:
        models = f"  may install {', '.join(role.models)}" if role.models else ""
        print(f"{name}  {role.threshold} of {len(role.key_ids)}{models}")
        for key_id in role.key_ids:
            print(f"  {key_id[:16]} {key_words(key_id)}")
    for channel, floor in sorted(root.min_seq.items()):
        print(f"min_seq    {channel} {floor}")
    for digest in sorted(root.revoked_digests):
        print(f"revoked    {digest}")
    for key_id in sorted(root.revoked_keys):
        print(f"revoked    key {key_id}")
    if roots.draft is None:
        last = roots.chain[-1]
        print(f"digest     {last.digest}")
        print(f"words      {key_words(KeyId(last.digest.hex))}")
        print("read the words aloud to whoever pins this root at a site")


def _check_role(name: str) -> None:
    if not _ROLE.fullmatch(name):
        raise PackError(f"role: expected root or bundle:CHANNEL, found {name[:40]!a}")


def _floor(text: str) -> tuple[str, int]:
    match = _FLOOR.fullmatch(text)
    if match is None:
        raise PackError(f"min-seq: expected CHANNEL:SEQ such as main:7, found {text[:40]!a}")
    return match[1], int(match[2])


def _public(path: Path) -> PublicKey:
    data = read_bounded(path.resolve(), max_bytes=_MAX_KEY_FILE_BYTES)
    return PublicKey.parse(data.decode("utf-8", "replace"))
