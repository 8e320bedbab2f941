from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from server.access import Keys, load_keys, parse_keys, refuse_public_without_keys
from server.api.guard import GuardPolicy, host_is_allowed, origin_is_allowed
from server.errors import ServerError

DIGEST = hashlib.sha256(b"secret").hexdigest()
KEYS = Keys(digests=(hashlib.sha256(b"other").digest(), bytes.fromhex(DIGEST)))


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic secret", "secret", f"Bearer {DIGEST}"],
)
def test_request_without_a_known_key_is_refused(header: str | None) -> None:
    assert not KEYS.admit(header)


@pytest.mark.parametrize("header", ["Bearer secret", "bearer secret", "BEARER  secret "])
def test_known_key_is_admitted(header: str) -> None:
    assert KEYS.admit(header)


def test_without_keys_everybody_is_admitted() -> None:
    assert Keys().admit(None)


@pytest.mark.parametrize(
    "text", ["secret", DIGEST, f"sha256:{DIGEST[:-1]}", f"sha256:{DIGEST.upper()}", "sha256:"]
)
def test_line_that_is_no_digest_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ServerError, match="keys: line 2: expected sha256") as caught:
        parse_keys(f"# keys\n{text}\n", source="keys")
    assert text not in str(caught.value) or text == "sha256:"


def test_comments_blank_lines_and_names_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# office\n\nsha256:{DIGEST} laptop of Ada\n")
    assert load_keys(path).admit("Bearer secret")


def test_key_file_without_keys_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# none yet\n")
    with pytest.raises(ServerError, match="expected at least one key"):
        load_keys(path)


def test_missing_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="cannot be read"):
        load_keys(tmp_path / "absent")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_public_address_without_keys_is_refused(host: str) -> None:
    with pytest.raises(ServerError, match="lets other machines in") as caught:
        refuse_public_without_keys(host, Keys())
    assert "api_keys_file" in caught.value.hint
    refuse_public_without_keys(host, KEYS)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    refuse_public_without_keys(host, Keys())


LOOPBACK = GuardPolicy(loopback=True, hostname="Edge-7", keys=Keys())


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "8.8.8.8", "edge-8"])
def test_foreign_host_header_is_refused_on_loopback(host: str) -> None:
    assert not host_is_allowed(host, LOOPBACK)
    assert not host_is_allowed(f"{host}:11434", LOOPBACK)


@pytest.mark.parametrize(
    "host",
    ["", "localhost", "LOCALHOST", "edge-7", "a.localhost", "b.local", "c.internal", "127.0.0.1",
     "192.168.0.9", "0.0.0.0", "[::1]", "10.0.0.1"],
)  # fmt: skip
def test_local_host_header_is_allowed_on_loopback(host: str) -> None:
    assert host_is_allowed(host, LOOPBACK)
    assert not host or host_is_allowed(f"{host}:11434", LOOPBACK)


def test_list_of_hosts_counts_wherever_the_server_listens() -> None:
    policy = GuardPolicy(loopback=False, allowed_hosts=("llm.site",), keys=KEYS)
    assert host_is_allowed("llm.site:11434", policy)
    assert host_is_allowed("127.0.0.1", policy)
    assert not host_is_allowed("evil.example", policy)
    assert host_is_allowed("evil.example", GuardPolicy(loopback=False, keys=KEYS))


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "https://localhost.evil.example",
        "null",
        "http://[",
        "ftp://localhost",
    ],
)
def test_foreign_origin_is_refused(origin: str) -> None:
    assert not origin_is_allowed(origin, ())


@pytest.mark.parametrize(
    "origin",
    ["http://localhost", "https://localhost:3000", "http://127.0.0.1:8080", "http://0.0.0.0",
     "app://obsidian.md", "tauri://localhost", "vscode-webview://x", "chrome-extension://abc",
     "https://ui.site"],
)  # fmt: skip
def test_local_and_configured_origins_are_allowed(origin: str) -> None:
    assert origin_is_allowed(origin, ("https://ui.*",))
