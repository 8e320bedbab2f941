"""What a machine gets at its first start: a key to its API, somebody to trust, a site.

Each part comes from the first of these that has it: what is there already, a credential that the
service manager passes on, the image, and for the API key alone, chance. Nothing that is there is
ever replaced, so this may run at every start.

Credentials (files of these names in one directory; all may be absent):

* ``satchel.api_keys``: lines as in ``server.api_keys_file``;
* ``satchel.root``: the first trust root, a signed envelope;
* ``satchel.trusted_keys``: public keys that may sign bundles, one to a line;
* ``satchel.site``: the id of this site.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import RequestError
from appliance.journal import Journal, timestamp
from appliance.policyfile import adopt_root, load_policy, save_policy
from appliance.store import Store
from bundler.format import fsio
from bundler.format.chain import verify_first
from bundler.format.errors import MissingBlobError
from bundler.format.keys import KeyId, PublicKey, key_words
from bundler.format.limits import MAX_ROOT_ENVELOPE_BYTES

KEYS = "keys"
"""Digests of API keys, as ``server.api_keys_file`` has them."""
FIRST_KEY = "first-key"
"""The key itself, until somebody has read it."""
SETTINGS = "satchel.toml.d"
DONE = "commissioned"
"""There once trust and site have been set up."""

_MAX_BYTES = 1 << 20
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY_LINE = re.compile(r"sha256:[0-9a-f]{64}(?:\s+.*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What was passed on; ``None`` and empty mean nothing was."""

    api_keys: str | None = None
    root: bytes | None = None
    trusted_keys: Sequence[PublicKey] = ()
    site: str | None = None


def read_credentials(*directories: Path) -> Credentials:
    """Look for each credential in these directories, in order.

    Raises:
        RequestError: one of them is not what its name says.
        BundleError: a file cannot be read, or holds no key.
    """
    found: dict[str, bytes] = {}
    for name in ("api_keys", "root", "trusted_keys", "site"):
        limit = MAX_ROOT_ENVELOPE_BYTES if name == "root" else _MAX_BYTES
        for directory in directories:
            try:
                found[name] = fsio.read_bounded(directory / f"satchel.{name}", max_bytes=limit)
            except MissingBlobError:
                continue
            break
    texts = {name: _text(name, data) for name, data in found.items() if name != "root"}
    return Credentials(
        api_keys=_checked_api_keys(texts["api_keys"]) if "api_keys" in texts else None,
        root=found.get("root"),
        trusted_keys=tuple(
            PublicKey.parse(line)
            for line in texts.get("trusted_keys", "").splitlines()
            if line.strip() and not line.startswith("#")
        ),
        site=_checked_site(texts["site"].strip()) if "site" in texts else None,
    )


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"satchel.{name}: expected text, found binary data") from error


def _checked_api_keys(text: str) -> str:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.startswith("#") and not _KEY_LINE.fullmatch(line):
            raise RequestError(
                f"satchel.api_keys: line {number}: expected sha256: and 64 hex digits",
                hint="a key itself does not belong there: printf %s KEY | sha256sum",
            )
    if not any(line.startswith("sha256:") for line in text.splitlines()):
        raise RequestError("satchel.api_keys: expected a line with a key, found none")
    return text if text.endswith("\n") else f"{text}\n"


def _checked_site(site: str) -> str:
    if not _SITE.fullmatch(site):
        raise RequestError(
            f"satchel.site: expected letters, digits, dots and dashes, found {site[:80]!r}"
        )
    return site


def commission(
    directory: Path, store: Store, credentials: Credentials, *, new_key: str, now_s: float
) -> tuple[str, ...]:
    """Make what is missing below ``directory`` and in the store's trust.

    Args:
        directory: where the machine keeps what is its own; made if it is not there.
        store: whose trust is set up.
        credentials: what was passed on.
        new_key: the API key to use if there is none.
        now_s: the present, in seconds since the epoch.

    Returns:
        One line for each thing that was made.

    Raises:
        AppError, BundleError: a part could not be made; those before it stay.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    done = _api_key(directory, credentials.api_keys, new_key)
    if not (directory / DONE).exists():
        done += _site(directory, credentials.site)
        done += _trust(store, credentials, now_s)
        fsio.atomic_write(directory / DONE, f"{timestamp(now_s)}\n".encode())
    return tuple(done)


def _api_key(directory: Path, given: str | None, new_key: str) -> list[str]:
    if (directory / KEYS).exists():
        return []
    if given is not None:
        fsio.atomic_write(directory / KEYS, given.encode(), mode=0o640)
        return ["API keys: those that were passed on"]
    # The key before its digest: after a power cut in between, a new pair is made.
    fsio.atomic_write(directory / FIRST_KEY, f"{new_key}\n".encode(), mode=0o600)
    digest = hashlib.sha256(new_key.encode()).hexdigest()
    fsio.atomic_write(directory / KEYS, f"sha256:{digest} first\n".encode(), mode=0o640)
    return [f"API key: a new one, in {directory / FIRST_KEY}"]


def _site(directory: Path, site: str | None) -> list[str]:
    settings = directory / SETTINGS
    settings.mkdir(mode=0o755, exist_ok=True)
    if site is None or (settings / "10-site.toml").exists():
        return []
    text = f"[trust]\nsite = {json.dumps(site)}\n"
    fsio.atomic_write(settings / "10-site.toml", text.encode())
    return [f"site: {site}"]


def _trust(store: Store, credentials: Credentials, now_s: float) -> list[str]:
    done: list[str] = []
    with store.writing():
        journal = Journal(store.paths.journal)
        policy = load_policy(store.paths.trust)
        if credentials.root is not None and policy.root is None:
            root = verify_first(credentials.root)
            adopt_root(store.paths.trust, [root])
            journal.record(
                "trust", action="pin", version=root.root.version, digest=str(root.digest)
            )
            done.append(f"trust root: {key_words(KeyId(root.digest.hex))}")
            policy = load_policy(store.paths.trust)
        for number, key in enumerate(() if policy.keys else credentials.trusted_keys, start=1):
            label = f"commissioning {number}"
            policy = policy.with_key(key, label=label, added_at=timestamp(now_s))
            journal.record("trust", action="add", key_id=key.key_id)
            done.append(f"trusted key: {key.words()}")
        if done:
            save_policy(store.paths.trust, policy)
    return done
