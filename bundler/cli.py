"""``satchel-bundle``: make keys, pack models into signed bundles, look into bundles."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from bundler.contents import contents_json, contents_lines
from bundler.errors import PackError
from bundler.format.errors import BundleError, KeyFileError
from bundler.format.fsio import read_bounded
from bundler.format.keys import SigningKey, key_words
from bundler.format.modelfile import (
    MAX_MODELFILE_BYTES,
    Modelfile,
    decode,
    deprecated,
    parse,
)
from bundler.format.name import ModelName
from bundler.format.statement import format_time, parse_time
from bundler.keyfiles import check_private, load_signing_key, make_pair
from bundler.layers import model_layers
from bundler.pack import Packed, with_material
from bundler.pack import pack as pack_bundle
from bundler.plan import PackRequest, check_request, make_plan, plan_lines
from bundler.rooting.cli import Shell
from bundler.rooting.cli import app as root_app
from bundler.rooting.folder import open_roots
from bundler.screen import screen_progress
from bundler.sequence import counter_file, remember, with_sequence
from bundler.signing import add_signature, attach, emit, open_envelope
from bundler.site import read_site, site_lines
from bundler.source.gguf_file import open_gguf
from bundler.source.local import open_adapter
from bundler.source.ollama_store import default_stores
from bundler.source.opening import Access, open_source
from bundler.source.reference import Reference, RegistryReference, parse_reference
from bundler.source.registry import Login, read_logins
from hwprobe.errors import GgufError, ProbeError, io_sentence
from hwprobe.quantity import Bytes

PROGRAM: Final = "satchel-bundle"
PASSPHRASE_VARIABLE: Final = "SATCHEL_KEY_PASSPHRASE"  # noqa: S105 - a name, not a secret
_EXIT_FAILED: Final = 1
_EXIT_USAGE: Final = 2
_EXIT_MALFORMED: Final = 10
_EXIT_INTERRUPTED: Final = 130
_MAX_TEXT_BYTES: Final = 4 << 20
_FROM: Final = (
    "Instead of a path: ollama:NAME[:TAG], hf:ORG/REPO[:QUANT][@REVISION], "
    "or oci:HOST/REPO[:TAG|@DIGEST]."
)

app = typer.Typer(
    name=PROGRAM,
    help="Pack models into signed bundles, on a connected computer.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

PassphraseFile = Annotated[
    Path | None,
    typer.Option(help=f"File with the key's passphrase; else {PASSPHRASE_VARIABLE}, else asked."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Keys = Annotated[list[Path], typer.Option("--key", help="Private key file; may be repeated.")]


app.add_typer(root_app, name="root")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {version('satchel')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    show_version: Annotated[
        bool,
        typer.Option("--version", "-v", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    del show_version
    context.obj = Shell(signing_keys=_signing_keys, now=lambda: format_time(_issued()[0]))
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def keygen(
    name: Annotated[Path, typer.Argument(help="Writes NAME.key and NAME.pub.")],
    no_passphrase: Annotated[
        bool, typer.Option("--no-passphrase", help="Leave the private key unencrypted.")
    ] = False,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Make a signing key: NAME.key stays here, NAME.pub goes to the target."""
    secret = None if no_passphrase else _passphrase(passphrase_file, confirm=True)
    private, public, key = make_pair(name, secret)
    if as_json:
        _print_json(
            {
                "private_key": str(private),
                "public_key": str(public),
                "encrypted": bool(secret),
                "key_id": key.key_id,
                "words": key.words(),
            }
        )
        return
    print(f"private key  {private}" + ("" if secret else "  (not encrypted)"))
    print(f"public key   {public}")
    print(f"key id       {key.key_id}")
    print(f"words        {key.words()}")
    print("read the words aloud to whoever adds the public key on the target")


@app.command()
def pack(
    source: Annotated[
        Path | None,
        typer.Argument(help="GGUF file, one shard of a split one, or a directory of safetensors."),
    ] = None,
    *,
    from_: Annotated[
        str,
        typer.Option("--from", metavar="SOURCE", help=_FROM),
    ] = "",
    store: Annotated[
        Path | None,
        typer.Option(help="Ollama's models directory.  [default: where Ollama looks]"),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Keeps what oci: downloads.  [default: ~/.cache/satchel]"),
    ] = None,
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="Ask the oci: registry without TLS.")
    ] = False,
    name: Annotated[
        str,
        typer.Option(
            help="Model name on the target, such as demo or demo:v2.  [default: the source's]"
        ),
    ] = "",
    key: Keys,
    out: Annotated[Path, typer.Option(help="Root of the medium to write to; must exist.")],
    seq: Annotated[
        int | None,
        typer.Option(help="Sequence number on the channel.  [default: the next one for this key]"),
    ] = None,
    channel: Annotated[str, typer.Option(help="Line of bundles this one continues.")] = "main",
    quantize: Annotated[
        str, typer.Option(help="Variants to make, such as Q8_0,Q4_K_M.", metavar="TYPES")
    ] = "",
    include_source: Annotated[
        bool, typer.Option("--include-source", help="Carry SOURCE itself as a variant too.")
    ] = False,
    modelfile: Annotated[
        Path | None, typer.Option(help="Modelfile with template, parameters, licences.")
    ] = None,
    template: Annotated[
        Path | None, typer.Option(help="Template file; replaces the Modelfile's.")
    ] = None,
    licence: Annotated[
        list[Path] | None, typer.Option(help="Licence text; may be repeated.")
    ] = None,
    spdx: Annotated[
        list[str] | None, typer.Option(help="SPDX licence identifier; may be repeated.")
    ] = None,
    audience: Annotated[
        list[str] | None, typer.Option(help="Site the bundle is for; may be repeated.")
    ] = None,
    model_version: Annotated[str, typer.Option(help="Version of the content, free text.")] = "",
    notes: Annotated[str, typer.Option(help="Text for the operator.")] = "",
    refresh_by: Annotated[
        str | None, typer.Option(help="Day by which the site should hear again.")
    ] = None,
    expires: Annotated[str | None, typer.Option(help="Day after which policy may refuse.")] = None,
    site: Annotated[
        list[Path] | None,
        typer.Option("--for", help="Site report: say which variant fits there; may be repeated."),
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Directory for quantized files; needs the largest one.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = os.cpu_count() or 1,
    projector: Annotated[
        Path | None, typer.Option(help="Multimodal projector (mmproj) in GGUF.")
    ] = None,
    adapter: Annotated[
        list[Path] | None, typer.Option(help="LoRA adapter, GGUF or PEFT; may be repeated.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Directory of trust roots; its chain travels along.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Pack a model into a signed bundle."""
    _check_medium(out)
    named = _source(source, from_)
    sites = [(str(path), read_site(path)) for path in site or []]
    read = _read_modelfile(modelfile)
    given = model_layers(
        read,
        template=_read_text(template) if template else None,
        licences=[_read_text(path) for path in licence or []],
    )
    issued, reproducible = _issued()
    request = PackRequest(
        source=source or Path(),
        name=_name(name, named),
        out=out,
        channel=channel,
        seq=1 if seq is None else seq,
        quantizations=tuple(one for one in quantize.split(",") if one.strip()),
        include_source=include_source,
        keys=_signing_keys(key, passphrase_file),
        layers=given,
        modelfile=read_bounded(modelfile, max_bytes=MAX_MODELFILE_BYTES) if modelfile else None,
        licences=tuple(spdx or ()),
        version=model_version,
        audience=tuple(audience or ("*",)),
        notes=notes,
        refresh_by=_day(refresh_by, "refresh-by"),
        expires=_day(expires, "expires"),
        issued=issued,
        reproducible=reproducible,
        projector=projector,
        adapters=tuple(adapter or ()),
        roots=_root_chain(root),
        work=work or Path(tempfile.gettempdir()),
        threads=threads,
    )
    check_request(request)
    with tempfile.TemporaryDirectory(prefix="satchel-source-", dir=work) as made:
        stores = (store,) if store else default_stores(os.environ, Path.home())
        access = Access(
            stores=stores,
            cache=cache or Path.home() / ".cache" / "satchel",
            logins=_logins() if isinstance(named, RegistryReference) else {},
            plain_http=plain_http,
            work=Path(made),
        )
        packed = _pack(request, named, access, seq, counter_file(key[0]), quiet=as_json)
    if as_json:
        _print_json(_packed_json(packed, request.keys))
        return
    done = "already there, every byte checked" if packed.was_there else "packed and read back"
    print(f"{done}: {Bytes(packed.manifest.totals.stored_bytes)} in {packed.directory}")
    print(f"bundle     {packed.payload_digest}")
    for one in request.keys:
        print(f"signed by  {one.public_key.words()}")
    for label, machine in sites:
        print("\n".join(site_lines(packed.manifest, machine, label)))
    print(f"safe to remove: {out}")


@app.command()
def sign(
    bundle: Annotated[
        Path, typer.Argument(help="Medium, bundle directory, or bundle.dsse.json alone.")
    ],
    *,
    key: Annotated[
        list[Path] | None, typer.Option("--key", help="Private key file; may be repeated.")
    ] = None,
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
            _print_json({"envelope": str(emit_to), "size": size_bytes})
            return
        print(f"{Bytes(size_bytes)} in {emit_to}: sign it with satchel-bundle sign {emit_to}")
        return
    if attach_from is not None:
        signers = attach(opened, attach_from)
    else:
        signers = add_signature(opened, _signing_keys(key or [], passphrase_file))
    if as_json:
        _print_json({"signed_by": [{"key_id": one, "words": key_words(one)} for one in signers]})
        return
    for key_id in signers:
        print(f"now signed by  {key_id[:16]} {key_words(key_id)}")


@app.command()
def contents(
    bundle: Annotated[
        Path, typer.Argument(help="Medium, bundle directory, or bundle.dsse.json alone.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what a bundle says it holds. Nothing is verified."""
    opened = open_envelope(bundle)
    if as_json:
        _print_json(contents_json(opened))
    else:
        print("\n".join(contents_lines(opened)))


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _packed_json(packed: Packed, keys: tuple[SigningKey, ...]) -> dict[str, Any]:
    info = packed.manifest.bundle
    return {
        "directory": str(packed.directory),
        "bundle": str(packed.payload_digest),
        "id": info.id,
        "channel": info.channel,
        "seq": info.seq,
        "was_there": packed.was_there,
        "stored_bytes": packed.manifest.totals.stored_bytes,
        "models": [
            {
                "name": model.name.short(),
                "variants": [variant.id for variant in model.variants],
            }
            for model in packed.manifest.models
        ],
        "signed_by": [
            {"key_id": key.public_key.key_id, "words": key.public_key.words()} for key in keys
        ],
    }


def _pack(
    request: PackRequest,
    named: Path | Reference,
    access: Access,
    seq: int | None,
    counter: Path,
    *,
    quiet: bool,
) -> Packed:
    """Open the source, say what will be made of it, and make it."""
    progress = screen_progress()
    material = open_source(named, access, progress)
    for line in material.warnings:
        print(f"{PROGRAM}: warning: {line}", file=sys.stderr)
    adapters = tuple(
        open_adapter(path, material.weights, access.work, progress) for path in request.adapters
    )
    request = with_material(replace(request, adapters=adapters), material)
    plan = make_plan(request, open_gguf(request.source).profile)
    digest = material.origin.digest
    if seq is None and digest is not None:
        request = with_sequence(request, digest, counter)
    if not quiet:
        print(f"packing {request.name} as {request.channel} {request.seq}")
        print("\n".join(plan_lines(plan)), flush=True)
    packed = pack_bundle(request, plan, progress, source=digest)
    _remember(counter, request)
    return packed


def _root_chain(directory: Path | None) -> tuple[bytes, ...]:
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


def _source(path: Path | None, text: str) -> Path | Reference:
    """What is to be packed: a path, or what ``--from`` names."""
    if (path is None) == (not text):
        raise typer.BadParameter("expected either a path or --from, not both and not none")
    return parse_reference(text) if path is None else path


def _name(text: str, named: Path | Reference) -> ModelName:
    """The name on the target: as given, else what the source calls it."""
    if text:
        return ModelName.parse(text)
    found = None if isinstance(named, Path) else named.model_name
    if found is None:
        raise typer.BadParameter("missing option '--name'")
    return found


def _logins() -> dict[str, Login]:
    """Logins of registries, as docker and podman keep them; the first file that is there."""
    given = os.environ.get("REGISTRY_AUTH_FILE", "")
    folder = os.environ.get("DOCKER_CONFIG", "")
    places = [Path(given)] if given else []
    places.append((Path(folder) if folder else Path.home() / ".docker") / "config.json")
    for place in places:
        if place.is_file():
            return read_logins(read_bounded(place, max_bytes=_MAX_TEXT_BYTES))
    return {}


def _check_medium(out: Path) -> None:
    """Refuse a medium that is not there: a folder made in its place would fill this computer."""
    if not out.is_dir():
        raise PackError(
            f"{out}: expected the medium's directory, found none",
            hint="is the stick mounted there? make the directory first if you mean one",
        )


def _remember(counter: Path, request: PackRequest) -> None:
    """Note the number beside the key; a key on a read-only medium costs only the default."""
    try:
        remember(counter, request.channel, request.seq)
    except BundleError as error:
        print(f"{PROGRAM}: warning: {counter}: not noted: {error}", file=sys.stderr)


def _signing_keys(paths: list[Path], passphrase_file: Path | None) -> tuple[SigningKey, ...]:
    return tuple(
        load_signing_key(path, lambda: _passphrase(passphrase_file, confirm=False))
        for path in paths
    )


def _passphrase(file: Path | None, *, confirm: bool) -> bytes:
    if file is not None:
        check_private(file)
        # One line, as editors end it.
        return read_bounded(file, max_bytes=_MAX_TEXT_BYTES).removesuffix(b"\n")
    if PASSPHRASE_VARIABLE in os.environ:
        return os.environb[PASSPHRASE_VARIABLE.encode()]
    if not sys.stdin.isatty():
        raise KeyFileError(
            "passphrase: expected one, found none",
            hint=f"set {PASSPHRASE_VARIABLE} or give --passphrase-file"
            + (", or --no-passphrase" if confirm else ""),
        )
    asked: str = typer.prompt("passphrase", hide_input=True, confirmation_prompt=confirm, err=True)
    return asked.encode()


def _read_modelfile(path: Path | None) -> Modelfile:
    if path is None:
        return Modelfile()
    text = decode(read_bounded(path, max_bytes=MAX_MODELFILE_BYTES))
    for name in deprecated(text):
        print(f"{PROGRAM}: warning: parameter {name} is deprecated", file=sys.stderr)
    return parse(text, require_from=False)


def _read_text(path: Path) -> str:
    data = read_bounded(path, max_bytes=_MAX_TEXT_BYTES)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PackError(f"{path}: expected UTF-8 text, found other bytes") from error


def _issued() -> tuple[datetime, bool]:
    """The time of the statement, and whether it was given."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is None:
        return datetime.now(UTC), False
    try:
        return datetime.fromtimestamp(int(given), UTC), True
    except (ValueError, OverflowError, OSError) as error:
        raise PackError(
            f"SOURCE_DATE_EPOCH: expected seconds since 1970, found {given!r}"
        ) from error


def _day(text: str | None, option: str) -> str | None:
    """A day as the end of the statement's time, or a whole time as it is."""
    if text is None:
        return None
    try:
        moment = parse_time(text if "T" in text else f"{text}T00:00:00Z")
    except ValueError as error:
        raise PackError(f"{option}: expected a day such as 2027-02-21, found {text!r}") from error
    return format_time(moment)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors go to stderr in one form."""
    try:
        code: Any = app(args=list(arguments), prog_name=PROGRAM, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted", "", _EXIT_INTERRUPTED)
    except typer.TyperException as error:
        text = getattr(error, "format_message", error.__str__)()
        return _complain(
            text[:1].lower() + text[1:].rstrip("."), f"see: {PROGRAM} --help", _EXIT_USAGE
        )
    except (BundleError, ProbeError, OSError) as error:
        return _complain(*_explained(error))
    if code == _EXIT_INTERRUPTED:
        # typer turns an interrupt of a running command into this code, without a word.
        return _complain("interrupted", "", _EXIT_INTERRUPTED)
    return code if isinstance(code, int) else 0


def _explained(error: BundleError | ProbeError | OSError) -> tuple[str, str, int]:
    """Message, hint and exit code."""
    match error:
        case BundleError():
            return str(error), error.hint, error.exit_code
        case GgufError():
            return str(error), error.hint, _EXIT_MALFORMED
        case ProbeError():
            return str(error), error.hint, _EXIT_FAILED
        case _:
            return io_sentence(error), "", _EXIT_FAILED


def _complain(message: str, hint: str, code: int) -> int:
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)
    if hint:
        print(f"{PROGRAM}: hint: {hint}", file=sys.stderr)
    return code


def main() -> None:
    """Entry point."""
    sys.exit(run(sys.argv[1:]))
