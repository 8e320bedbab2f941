"""``satchel-bundle pack``."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from bundler.cli import inputs
from bundler.cli.frame import MAX_TEXT_BYTES, Json, Keys, PassphraseFile, print_json, warn
from bundler.cli.signers import counter_of, issued_now, signing_keys
from bundler.format.errors import BundleError
from bundler.format.fsio import read_bounded
from bundler.format.keys import Signer
from bundler.format.manifest import Manifest, volume_count
from bundler.format.modelfile import MAX_MODELFILE_BYTES
from bundler.layers import model_layers
from bundler.omskey import read_oms_key
from bundler.pack import Packed, with_material
from bundler.pack import pack as pack_bundle
from bundler.plan import PackRequest, check_request, make_plan, plan_lines
from bundler.proving import prove_capacity
from bundler.removable import is_removable
from bundler.screen import screen_progress
from bundler.sequence import remember, with_sequence
from bundler.site import advice_lines, candidates, read_site, site_lines
from bundler.source.gguf_file import open_gguf
from bundler.source.local import open_adapter
from bundler.source.ollama_store import default_stores
from bundler.source.opening import Access, open_source
from bundler.source.reference import Reference, RegistryReference
from bundler.volumes import parse_size
from hwprobe.draft import check_draft
from hwprobe.gguf import read_header
from hwprobe.quantity import Bytes

_FROM: Final = (
    "Instead of a path: ollama:NAME[:TAG], hf:ORG/REPO[:QUANT][@REVISION], "
    "or oci:HOST/REPO[:TAG|@DIGEST]."
)


def add_to(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(pack)


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
    key: Keys = None,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Sign later: satchel-bundle sign.")
    ] = False,
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
    draft: Annotated[
        Path | None, typer.Option(help="Small model of the same vocabulary that proposes tokens.")
    ] = None,
    adapter: Annotated[
        list[Path] | None, typer.Option(help="LoRA adapter, GGUF or PEFT; may be repeated.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Directory of trust roots; its chain travels along.")
    ] = None,
    bom: Annotated[bool, typer.Option("--bom", help="Carry a CycloneDX ML-BOM.")] = False,
    model_card: Annotated[
        Path | None, typer.Option(help="Document about the model that travels along.")
    ] = None,
    oms_key: Annotated[
        Path | None,
        typer.Option(help="EC private key in PEM: sign the files for OpenSSF's model_signing."),
    ] = None,
    accept: Annotated[
        bool,
        typer.Option(
            "--accept",
            help="Run each variant here, and let the target check that it does the same.",
        ),
    ] = False,
    accept_file: Annotated[
        Path | None, typer.Option(help="The same with texts and schemas of your own, in JSON.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Inventory of the site: carry only what it lacks (satchel inventory)."),
    ] = None,
    relative: Annotated[
        list[Path] | None,
        typer.Option(help="GGUF that the site holds, too: changed tensors travel as XOR with it."),
    ] = None,
    device: Annotated[
        Path | None, typer.Option(help="The site's device key: refuse an inventory of another.")
    ] = None,
    volume_size: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="Spread the bundle: OUT/SATCHEL-1, … of 4G, or of cd, dvd, dvd-dl, bd, bd-dl, "
            "bd-xl, fat32.",
        ),
    ] = "",
    parity: Annotated[
        bool | None,
        typer.Option(
            help="Two blocks for every 64 chunks, so that damage is repaired.  "
            "[default: for volumes and removable media]"
        ),
    ] = None,
    prove: Annotated[
        bool,
        typer.Option(
            "--prove-capacity", help="First fill the medium and read it back (takes long)."
        ),
    ] = False,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Pack a model into a signed bundle."""
    inputs.check_medium(out)
    known = inputs.against(against, relative or [], device)
    named = inputs.source(source, from_)
    sites = [(str(path), read_site(path)) for path in site or []]
    read = inputs.read_modelfile(modelfile)
    given = model_layers(
        read,
        template=inputs.read_text(template) if template else None,
        licences=[inputs.read_text(path) for path in licence or []],
    )
    issued, reproducible = issued_now()
    request = PackRequest(
        source=source or Path(),
        name=inputs.name(name, named),
        out=out,
        channel=channel,
        seq=1 if seq is None else seq,
        quantizations=tuple(one for one in quantize.split(",") if one.strip()),
        include_source=include_source,
        keys=signing_keys(key or [], passphrase_file),
        unsigned=unsigned,
        layers=given,
        modelfile=read_bounded(modelfile, max_bytes=MAX_MODELFILE_BYTES) if modelfile else None,
        licences=tuple(spdx or ()),
        version=model_version,
        audience=inputs.audience(audience or [], known),
        against=known,
        bom=bom,
        model_card=read_bounded(model_card, max_bytes=MAX_TEXT_BYTES) if model_card else None,
        oms_key=read_oms_key(oms_key) if oms_key else None,
        accept=inputs.accept(accept_file, built_in=accept),
        notes=notes,
        refresh_by=inputs.day(refresh_by, "refresh-by"),
        expires=inputs.day(expires, "expires"),
        issued=issued,
        reproducible=reproducible,
        projector=projector,
        draft=draft or inputs.beside(modelfile, read.drafts),
        adapters=tuple(adapter or filter(None, [inputs.beside(modelfile, read.adapters)])),
        roots=inputs.root_chain(root),
        volume_bytes=parse_size(volume_size) if volume_size else 0,
        parity=(bool(volume_size) or is_removable(out)) if parity is None else parity,
        work=work or Path(tempfile.gettempdir()),
        threads=threads,
    )
    check_request(request)
    if prove:
        prove_capacity(out, screen_progress())
    with tempfile.TemporaryDirectory(prefix="satchel-source-", dir=work) as made:
        stores = (store,) if store else default_stores(os.environ, Path.home())
        access = Access(
            stores=stores,
            cache=cache or Path.home() / ".cache" / "satchel",
            logins=inputs.logins() if isinstance(named, RegistryReference) else {},
            plain_http=plain_http,
            work=Path(made),
        )
        counter = counter_of(key or [], request.keys)
        packed = _pack(request, named, access, seq, counter, quiet=as_json)
    if as_json:
        print_json(_packed_json(packed, request.keys))
        return
    done = "already there, every byte checked" if packed.was_there else "packed and read back"
    print(f"{done}: {Bytes(packed.manifest.totals.stored_bytes)} in {packed.directory}")
    print(f"bundle     {packed.payload_digest}")
    for line in delta_lines(packed.manifest):
        print(line)
    for one in request.keys:
        print(f"signed by  {one.public_key.words()}")
    if unsigned:
        print("not signed: no target takes it before satchel-bundle sign")
    for label, machine in sites:
        print("\n".join(site_lines(packed.manifest, machine, label)))
    if sites:
        print("\n".join(advice_lines(candidates(packed.manifest), sites)))
    count = volume_count(packed.manifest)
    for number in range(1, count + 1) if volume_size else ():
        print(f"volume     {packed.request.volume_root(number)} ({number} of {count})")
    if volume_size:
        print("copy each to its medium: satchel-bundle copy VOLUME --out MEDIUM")
        return
    print(f"safe to remove: {out}")


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
        warn(line)
    adapters = tuple(
        open_adapter(path, material.weights, access.work, progress) for path in request.adapters
    )
    request = with_material(replace(request, adapters=adapters), material)
    if request.draft is not None:
        check_draft(read_header(request.draft), read_header(request.source))
    opened = open_gguf(request.source)
    plan = make_plan(request, opened.profile, chunks=len(opened.cuts))
    digest = material.origin.digest
    if seq is None and digest is not None:
        request = with_sequence(request, digest, counter)
    if not quiet:
        print(f"packing {request.name} as {request.channel} {request.seq}")
        print("\n".join(plan_lines(plan)), flush=True)
    packed = pack_bundle(request, plan, progress, source=digest)
    _remember(counter, request)
    return packed


def delta_lines(manifest: Manifest) -> tuple[str, ...]:
    """What a delta leaves out, for people."""
    if manifest.bundle.kind != "delta":
        return ()
    stored, plain = manifest.totals.stored_bytes, manifest.totals.plain_bytes
    share = 100 * stored / plain
    needed = ", ".join(one.digest.short() for one in manifest.requires.objects)
    return (
        f"delta      {Bytes(stored)} for {Bytes(plain)} ({share:.1f} %)",
        f"needs      {needed} at the site",
    )


def _packed_json(packed: Packed, keys: tuple[Signer, ...]) -> dict[str, Any]:
    info = packed.manifest.bundle
    return {
        "directory": str(packed.directory),
        "bundle": str(packed.payload_digest),
        "id": info.id,
        "channel": info.channel,
        "seq": info.seq,
        "volumes": volume_count(packed.manifest),
        "was_there": packed.was_there,
        "kind": info.kind,
        "plain_bytes": packed.manifest.totals.plain_bytes,
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


def _remember(counter: Path, request: PackRequest) -> None:
    """Note the number beside the key; a key on a read-only medium costs only the default."""
    try:
        remember(counter, request.channel, request.seq)
    except BundleError as error:
        warn(f"{counter}: not noted: {error}")
