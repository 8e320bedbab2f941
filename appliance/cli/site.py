"""``satchel config``, ``trust``, ``health``, ``crashes``: how this site is set up and how it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance import duration, health
from appliance.cli import updates
from appliance.cli.frame import (
    ConfigOption,
    HostOption,
    JsonOption,
    StoreOption,
    load_config,
    open_store,
    print_json,
    server,
)
from appliance.config import Config
from appliance.crashes import CrashFolder
from appliance.errors import AppError, RequestError
from appliance.journal import Journal, timestamp
from appliance.policyfile import adopt_root, load_policy, save_policy
from appliance.settings import MODEL_SETTINGS, SETTINGS
from appliance.trust import TrustPolicy, check_pin
from bundler.format import fsio
from bundler.format.chain import VerifiedRoot, verify_first
from bundler.format.errors import BundleError
from bundler.format.keys import KeyId, PublicKey, key_words
from bundler.format.limits import MAX_ROOT_ENVELOPE_BYTES

_MAX_KEY_FILE_BYTES = 64 << 10
_HEALTH_TIMEOUT_S = 10.0

trust_app = typer.Typer(
    help="Whom this site trusts to sign bundles.", rich_markup_mode=None, no_args_is_help=True
)


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command("config")(config_command)
    app.command("health")(health_command)
    app.command("crashes")(crashes_command)
    updates.add_to(trust_app)
    app.add_typer(trust_app, name="trust")


def config_command(
    store: StoreOption = None, config: ConfigOption = None, json_: JsonOption = False
) -> None:
    """Show every setting, and where its value comes from."""
    loaded = load_config(config, store)
    if json_:
        print_json(_config_json(loaded))
        return
    width = max(len(setting.name) for setting in SETTINGS)
    for setting in SETTINGS:
        value = getattr(getattr(loaded, setting.table), setting.field)
        shown = _shown(setting.field, value)
        typer.echo(f"{setting.name:<{width}} = {shown:<24} # {loaded.sources[setting.name]}")
    for name, model in sorted(loaded.models.items()):
        for setting in MODEL_SETTINGS:
            value = getattr(model, setting.field)
            if value != setting.default:
                shown = _shown(setting.field, value)
                typer.echo(f'model."{name}".{setting.key} = {shown}')
    for warning in loaded.warnings:
        typer.echo(f"satchel: warning: {warning}", err=True)


def _shown(field: str, value: Any) -> str:
    if value is None or value in ("", ()):
        return '""'
    if field.endswith("_s"):
        return duration.show(value)
    if field.endswith("_bytes") and value:
        return f'"{_exact(value)}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)


def _exact(size_bytes: int) -> str:
    """A size in the largest unit that divides it, so that it reads back as it is."""
    for unit, step in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes % step == 0:
            return f"{size_bytes // step} {unit}"
    return str(size_bytes)


def _config_json(config: Config) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, tuple):
            return [str(one) if isinstance(one, Path) else one for one in value]
        return value

    return {
        "settings": {
            setting.name: {
                "value": plain(getattr(getattr(config, setting.table), setting.field)),
                "source": config.sources[setting.name],
            }
            for setting in SETTINGS
        },
        "models": {
            name: {setting.key: getattr(model, setting.field) for setting in MODEL_SETTINGS}
            for name, model in config.models.items()
        },
        "warnings": list(config.warnings),
    }


def health_command(
    store_only: Annotated[bool, typer.Option("--store-only", help="Leave the server out.")] = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    host: HostOption = None,
    json_: JsonOption = False,
) -> None:
    """Check store, last scrub, space, crashes of the last day, engine, and server.

    Exit codes are those of monitoring: 0 ok, 1 warning, 2 critical, 3 unknown.
    """
    try:
        loaded = load_config(config, store)
        client = server(loaded, host)
    except (AppError, BundleError) as error:
        typer.echo(f"SATCHEL UNKNOWN: {error}")
        raise typer.Exit(health.Level.UNKNOWN) from error
    found = open_store(loaded)
    checks = [
        health.check_models(found),
        health.check_scrub(found),
        health.check_revoked(found, refuses=loaded.trust.revoked == "refuse"),
        health.check_space(found, reserve_bytes=loaded.store.reserve_bytes),
        health.check_crashes(CrashFolder(found.paths.crashes), now_s=time.time()),
        health.check_engine(found.paths.engine),
    ]
    if not store_only:
        checks.append(health.check_server(replace(client, timeout_s=_HEALTH_TIMEOUT_S)))
    level = health.worst(checks)
    if json_:
        print_json(
            {
                "level": level.name.lower(),
                "checks": [
                    {"name": one.name, "level": one.level.name.lower(), "text": one.text}
                    for one in checks
                ],
            }
        )
    else:
        texts = "; ".join(f"{check.name}: {check.text}" for check in checks)
        typer.echo(f"SATCHEL {level.name}: {texts}")
    raise typer.Exit(level)


def crashes_command(
    name: Annotated[str, typer.Argument(metavar="[RECORD]", help="Show this one whole.")] = "",
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Show how models' runners have crashed. Records hold no prompts and no answers."""
    folder = CrashFolder(open_store(load_config(config, store)).paths.crashes)
    records = [(one, record) for one, record in folder.records() if name in ("", one)]
    if name and not records:
        raise RequestError(f"crash record: not found: {name}", hint="see: satchel crashes")
    if json_ or name:
        shown = [{"name": one, **asdict(record)} for one, record in records]
        print_json(shown[0] if name else shown)
        return
    for one, record in records:
        typer.echo(f"{one}  {record.at}  {record.model}  {record.cause}")
        typer.echo(f"  {record.text}")


@trust_app.command("add")
def trust_add(
    key_file: Annotated[Path, typer.Argument(metavar="KEY.pub")],
    *,
    label: Annotated[str, typer.Option(help="What to call it; else the file's name.")] = "",
    words: Annotated[
        str, typer.Option(help="The words its owner read out; refuse any other key.")
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether the words match.")] = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Trust a public key. On a terminal its words are shown first, to compare with the owner."""
    key = PublicKey.parse(_read_key(key_file))
    _compare_words(key.words(), words, "key", ask=not (yes or json_))
    now = timestamp(time.time())
    found = open_store(load_config(config, store))
    with found.writing():
        before = load_policy(found.paths.trust)
        known = {one.key_id: one for one in before.keys}.get(key.key_id)
        if known is None or (label and label != known.label):
            after = before.with_key(key, label=label or key_file.stem, added_at=now)
            save_policy(found.paths.trust, after)
            Journal(found.paths.journal).record("trust", action="add", key_id=key.key_id)
    if json_:
        print_json({"key_id": key.key_id, "words": key.words(), "added": known is None})
        return
    typer.echo(f"{'trusted already' if known else 'trusted'}: {key.key_id}")
    typer.echo(f"words: {key.words()}")


def _compare_words(found: str, words: str, what: str, *, ask: bool) -> None:
    """Let a person, or the words a script was given, say that it is the right one."""
    if words:
        if words.strip().lower() != found:
            raise RequestError(
                f"words: expected {words.strip().lower()}, found {found}",
                hint=f"this is another {what} than its owner described; it was not added",
            )
    elif ask and sys.stdin.isatty() and sys.stdout.isatty():
        typer.echo(f"words: {found}")
        if not typer.confirm("Does the owner read out the same words?"):
            raise RequestError(f"the {what} was not added")


@trust_app.command("pin")
def trust_pin(
    root_file: Annotated[Path, typer.Argument(metavar="ROOT", help="N.root.dsse.json.")],
    *,
    words: Annotated[
        str, typer.Option(help="The words its owner read out; refuse any other root.")
    ] = "",
    replace_: Annotated[
        bool, typer.Option("--replace", help="Put it in the place of another chain's root.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether the words match.")] = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Pin a trust root: from now on its roles say who may sign for which channel."""
    data = fsio.read_bounded(root_file.resolve(), max_bytes=MAX_ROOT_ENVELOPE_BYTES)
    root = verify_first(data)
    shown = key_words(KeyId(root.digest.hex))
    _compare_words(shown, words, "root", ask=not (yes or json_))
    found = open_store(load_config(config, store))
    with found.writing():
        pinned = check_pin(load_policy(found.paths.trust).root, root, replace=replace_)
        if pinned:
            adopt_root(found.paths.trust, [root])
            Journal(found.paths.journal).record(
                "trust", action="pin", version=root.root.version, digest=str(root.digest)
            )
    if json_:
        print_json({"version": root.root.version, "digest": str(root.digest), "words": shown,
                    "pinned": pinned})  # fmt: skip
        return
    typer.echo(f"{'pinned' if pinned else 'pinned already'}: root {root.root.version}")
    typer.echo(f"words: {shown}")
    for channel, role in sorted(root.root.channels().items()):
        typer.echo(f"channel {channel}: {role.threshold} of {len(role.key_ids)} keys must sign")


def _read_key(path: Path) -> str:
    data = fsio.read_bounded(path.resolve(), max_bytes=_MAX_KEY_FILE_BYTES)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: expected a public key, found binary data") from error


@trust_app.command("list")
def trust_list(
    store: StoreOption = None, config: ConfigOption = None, json_: JsonOption = False
) -> None:
    """Show trusted keys, the threshold, and what was accepted last on each channel."""
    policy = load_policy(open_store(load_config(config, store)).paths.trust)
    if json_:
        print_json(_policy_json(policy))
        return
    if policy.root is not None:
        typer.echo("\n".join(_root_lines(policy.root)))
    typer.echo(f"threshold {policy.threshold} of {len(policy.keys)}")
    for key in policy.keys:
        typer.echo(f"{key.label}  {key.key_id}  added {key.added_at}")
        typer.echo(f"  {key.key.words()}")
    role = policy.approver_role()
    if role is not None or policy.approvers:
        typer.echo(f"approvals {role.threshold if role else 0} of {len(policy.approvers)}")
    for key in policy.approvers:
        typer.echo(f"approver {key.label}  {key.key_id}  added {key.added_at}")
        typer.echo(f"  {key.key.words()}")
    for key_id in sorted(policy.revoked):
        typer.echo(f"revoked  {key_id}")
        typer.echo(f"  {key_words(key_id)}")
    for channel in sorted(policy.accepted):
        typer.echo(f"channel {channel}: sequence {policy.highest(channel)} accepted")


def _root_lines(root: VerifiedRoot) -> Iterator[str]:
    yield f"root {root.root.version}  expires {root.root.expires}"
    yield f"  {key_words(KeyId(root.digest.hex))}"
    for name, role in sorted(root.root.roles.items()):
        models = f", may install {', '.join(role.models)}" if role.models else ""
        yield f"  {name}: {role.threshold} of {len(role.key_ids)} keys{models}"
    yield "the root's roles decide; keys added here do not count while it is pinned"


def _root_json(root: VerifiedRoot | None) -> dict[str, Any] | None:
    if root is None:
        return None
    return {
        "version": root.root.version,
        "digest": str(root.digest),
        "words": key_words(KeyId(root.digest.hex)),
        "expires": root.root.expires,
        "roles": {
            name: {"keys": list(role.key_ids), "threshold": role.threshold,
                   "models": list(role.models)}
            for name, role in root.root.roles.items()
        },
        "revoked_keys": sorted(root.root.revoked_keys),
        "revoked_bundles": sorted(str(one) for one in root.root.revoked_digests),
        "min_seq": dict(root.root.min_seq),
    }  # fmt: skip


def _policy_json(policy: TrustPolicy) -> dict[str, Any]:
    return {
        "threshold": policy.threshold,
        "keys": [
            {"label": key.label, "key_id": key.key_id, "words": key.key.words(),
             "added_at": key.added_at}
            for key in policy.keys
        ],
        "approvals": policy.approvals,
        "approvers": [
            {"label": key.label, "key_id": key.key_id, "words": key.key.words(),
             "added_at": key.added_at}
            for key in policy.approvers
        ],
        "revoked": sorted(policy.revoked),
        "root": _root_json(policy.root),
        "clock": policy.clock,
        "channels": {channel: policy.highest(channel) for channel in sorted(policy.accepted)},
    }  # fmt: skip


@trust_app.command("remove")
def trust_remove(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its label, or its id from 8 digits.")],
    *,
    revoke: Annotated[bool, typer.Option("--revoke", help="Never trust it here again.")] = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Stop trusting a key."""
    found = open_store(load_config(config, store))
    with found.writing():
        after, gone = load_policy(found.paths.trust).without_key(key, revoke=revoke)
        save_policy(found.paths.trust, after)
        Journal(found.paths.journal).record(
            "trust", action="revoke" if revoke else "remove", key_id=gone.key_id
        )
    if json_:
        print_json({"key_id": gone.key_id, "label": gone.label, "revoked": revoke})
    else:
        typer.echo(f"{'revoked' if revoke else 'removed'} {gone.label}: {gone.key_id}")
    if len(after.keys) < after.threshold:
        typer.echo(
            f"satchel: warning: {after.threshold} signatures are asked for and "
            f"{len(after.keys)} keys are trusted: no bundle can come in",
            err=True,
        )


@trust_app.command("approver")
def trust_approver(
    key: Annotated[str, typer.Argument(metavar="KEY.pub", help="With --remove: label or id.")],
    *,
    label: Annotated[str, typer.Option(help="What to call it; else the file's name.")] = "",
    remove: Annotated[bool, typer.Option("--remove", help="Take the approver away.")] = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Add somebody who may approve imports, or take one away."""
    found = open_store(load_config(config, store))
    public = None if remove else PublicKey.parse(_read_key(Path(key)))
    with found.writing():
        before = load_policy(found.paths.trust)
        if public is None:
            after = before.without_approver(key)
        else:
            now = timestamp(time.time())
            after = before.with_approver(public, label=label or Path(key).stem, added_at=now)
        save_policy(found.paths.trust, after)
        Journal(found.paths.journal).record(
            "trust", action="approvers", approvers=[one.key_id for one in after.approvers]
        )
    if json_:
        print_json({"approvers": [one.label for one in after.approvers]})
        return
    if public is not None:
        typer.echo(f"approver: {public.key_id}")
        typer.echo(f"words: {public.words()}")
    typer.echo(f"{len(after.approvers)} approvers, {after.approvals} must approve")


@trust_app.command("approvals")
def trust_approvals(
    number: Annotated[int, typer.Argument(help="How many approvers must approve; 0 for none.")],
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Set how many approvers must approve an import before it takes effect."""
    found = open_store(load_config(config, store))
    with found.writing():
        after = load_policy(found.paths.trust).with_approvals(number)
        save_policy(found.paths.trust, after)
        Journal(found.paths.journal).record("trust", action="approvals", approvals=number)
    if json_:
        print_json({"approvals": after.approvals})
        return
    typer.echo(f"approvals {after.approvals}")


@trust_app.command("threshold")
def trust_threshold(
    number: Annotated[int, typer.Argument(help="How many trusted keys must sign a bundle.")],
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Set how many trusted keys must have signed a bundle."""
    found = open_store(load_config(config, store))
    with found.writing():
        after = load_policy(found.paths.trust).with_threshold(number)
        save_policy(found.paths.trust, after)
        Journal(found.paths.journal).record("trust", action="threshold", threshold=number)
    if json_:
        print_json({"threshold": after.threshold, "keys": len(after.keys)})
        return
    typer.echo(f"threshold {after.threshold} of {len(after.keys)}")
