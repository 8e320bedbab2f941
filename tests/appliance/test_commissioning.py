"""A new machine's first start: what is given, what is made, and what never comes back."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest

from appliance.commissioning import DONE, FIRST_KEY, KEYS, Credentials, commission, read_credentials
from appliance.errors import RequestError
from appliance.layout import Paths
from appliance.policyfile import load_policy, save_policy
from appliance.store import Store
from bundler.format.errors import KeyFileError
from bundler.format.keys import SigningKey

NOW_S = 1_795_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Paths(tmp_path / "store"))


def given(tmp_path: Path, **files: str) -> Credentials:
    directory = tmp_path / "credentials"
    directory.mkdir(exist_ok=True)
    for name, text in files.items():
        (directory / f"satchel.{name}").write_text(text)
    return read_credentials(directory)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("api_keys", "sk-plain\n", "line 1: expected sha256:"),
        ("api_keys", "# nobody\n", "expected a line with a key"),
        ("api_keys", f"sha256:{'a' * 63}\n", "line 1"),
        ("site", "no/slash", "expected letters"),
        ("site", "", "expected letters"),
        ("site", 'a"\n[server]', "expected letters"),
    ],
)
def test_a_credential_that_is_not_what_it_says_is_refused(
    tmp_path: Path, name: str, text: str, sentence: str
) -> None:
    with pytest.raises(RequestError, match=sentence):
        given(tmp_path, **{name: text})


def test_a_trusted_key_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError):
        given(tmp_path, trusted_keys="ed25519:nothing\n")


def test_binary_credentials_are_refused(tmp_path: Path) -> None:
    (tmp_path / "satchel.site").write_bytes(b"\xff\xfe")
    with pytest.raises(RequestError, match="binary"):
        read_credentials(tmp_path)


def test_without_anything_a_key_is_made_and_told_once(tmp_path: Path, store: Store) -> None:
    site = tmp_path / "site"
    nothing = read_credentials(tmp_path / "absent")

    lines = commission(site, store, nothing, new_key="sk-one", now_s=NOW_S)
    again = commission(site, store, nothing, new_key="sk-two", now_s=NOW_S)

    digest = hashlib.sha256(b"sk-one").hexdigest()
    assert (site / KEYS).read_text() == f"sha256:{digest} first\n"
    assert (site / FIRST_KEY).read_text() == "sk-one\n"
    assert stat.S_IMODE((site / FIRST_KEY).stat().st_mode) == 0o600
    assert len(lines) == 1
    assert again == ()
    assert not any("sk-one" in line for line in lines), "the journal would keep it"


def test_a_power_cut_between_key_and_digest_makes_a_new_pair(tmp_path: Path, store: Store) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / FIRST_KEY).write_text("sk-old\n")

    commission(site, store, Credentials(), new_key="sk-new", now_s=NOW_S)

    assert (site / FIRST_KEY).read_text() == "sk-new\n"
    assert hashlib.sha256(b"sk-new").hexdigest() in (site / KEYS).read_text()


def test_what_was_passed_on_is_set_up_once(tmp_path: Path, store: Store) -> None:
    site, keys = tmp_path / "site", [SigningKey.generate().public_key for _ in range(2)]
    credentials = given(
        tmp_path,
        api_keys=f"sha256:{'0' * 64} ward 3",
        trusted_keys="".join(f"{key.text()}\n" for key in keys),
        site="site-0007\n",
    )

    lines = commission(site, store, credentials, new_key="sk-unused", now_s=NOW_S)

    assert (site / KEYS).read_text() == f"sha256:{'0' * 64} ward 3\n"
    assert not (site / FIRST_KEY).exists()
    assert (site / "satchel.toml.d" / "10-site.toml").read_text() == '[trust]\nsite = "site-0007"\n'
    assert [one.key for one in load_policy(store.paths.trust).keys] == keys
    assert len(lines) == 4
    assert (site / DONE).exists()


def test_a_key_an_operator_took_away_does_not_come_back(tmp_path: Path, store: Store) -> None:
    key = SigningKey.generate().public_key
    credentials = given(tmp_path, trusted_keys=f"{key.text()}\n")
    commission(tmp_path / "site", store, credentials, new_key="sk", now_s=NOW_S)
    with store.writing():
        policy, _ = load_policy(store.paths.trust).without_key(key.key_id, revoke=False)
        save_policy(store.paths.trust, policy)

    assert commission(tmp_path / "site", store, credentials, new_key="sk", now_s=NOW_S) == ()
    assert load_policy(store.paths.trust).keys == ()
