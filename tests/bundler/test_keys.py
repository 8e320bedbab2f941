from __future__ import annotations

import base64
import hashlib
import pickle
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.format.errors import KeyFileError
from bundler.format.keys import PublicKey, SigningKey, key_words
from bundler.keyfiles import load_signing_key, make_pair

KEY = SigningKey.from_seed(b"k" * 32)


@settings(deadline=None, max_examples=30)
@given(st.binary(min_size=32, max_size=32))
def test_every_text_form_is_read_back_as_the_same_key(seed: bytes) -> None:
    key = SigningKey.from_seed(seed).public_key
    assert PublicKey.parse(key.text()) == key
    assert PublicKey.parse(key.pem()) == key
    assert PublicKey.parse(f"# a comment\n\n  {key.text()}  owner\n") == key


@pytest.mark.parametrize("passphrase", [None, b"pass", b"\xff\x00 long"])
def test_a_private_key_is_read_back_with_its_passphrase(passphrase: bytes | None) -> None:
    pem = KEY.dump(passphrase)
    assert SigningKey.load(pem, passphrase).public_key == KEY.public_key
    assert (b"ENCRYPTED" in pem) == (passphrase is not None)


def test_the_passphrase_of_a_key_file_is_slow_to_guess() -> None:
    der = base64.b64decode(b"".join(KEY.dump(b"pass").splitlines()[1:-1]))
    rounds = re.search(
        rb"\x02\x03(...)\x30\x0c\x06\x08\x2a\x86\x48\x86\xf7\x0d\x02\x09", der, re.DOTALL
    )
    assert rounds is not None
    assert int.from_bytes(rounds[1]) >= 600_000
    assert KEY.dump(b"pass") != KEY.dump(b"pass")


def test_openssl_reads_an_encrypted_key(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    path = tmp_path / "encrypted.key"
    path.write_bytes(KEY.dump(b"pass"))
    command = ["openssl", "pkey", "-in", str(path), "-passin", "pass:pass", "-pubout"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert PublicKey.parse(done.stdout) == KEY.public_key


def test_a_passphrase_for_an_open_key_is_ignored() -> None:
    assert SigningKey.load(KEY.dump(None), b"unused").public_key == KEY.public_key


def test_a_wrong_passphrase_is_refused() -> None:
    with pytest.raises(KeyFileError, match="wrong passphrase"):
        SigningKey.load(KEY.dump(b"right"), b"wrong")


def test_an_encrypted_key_without_passphrase_is_refused_with_a_hint() -> None:
    with pytest.raises(KeyFileError, match="expected a passphrase") as caught:
        SigningKey.load(KEY.dump(b"right"))
    assert "SATCHEL_KEY_PASSPHRASE" in caught.value.hint


def test_an_empty_passphrase_is_refused() -> None:
    with pytest.raises(KeyFileError, match="at least one character"):
        KEY.dump(b"")


P256 = """-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt
6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==
-----END PUBLIC KEY-----
"""
"""The base point of the curve: nobody's key."""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "found no key"),
        ("# only a comment", "found no key"),
        ("ed25519:", "found 0"),
        ("ed25519:AAAA", "found 3"),
        ("ed25519:not base64!", "base64"),
        ("rsa:AAAA", "rsa:AAAA"),
        ("rsa:" + KEY.public_key.text().removeprefix("ed25519:"), "ed25519:<base64>, found 'rsa:"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "damaged"),
        (P256, "another kind"),
        ("x" * 100_000, "short text"),
        (KEY.dump(None).decode(), "private key"),
        (KEY.public_key.text() + "\n# PRIVATE KEY", "private key"),
    ],
)
def test_what_is_no_public_key_is_refused(text: str, reason: str) -> None:
    with pytest.raises(KeyFileError, match=reason):
        PublicKey.parse(text)


@settings(deadline=None)
@given(st.text(max_size=120))
def test_any_text_is_a_public_key_or_refused(text: str) -> None:
    try:
        PublicKey.parse(text)
    except KeyFileError:
        return


def test_a_key_that_openssl_cannot_set_up_is_refused() -> None:
    """One flipped bit of the algorithm makes it an X448 key with a seed of the wrong length."""
    pem = (
        b"-----BEGIN PRIVATE KEY-----\n"
        b"MC4CAQAwBQYDK2VvBCIEIGtra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tr\n"
        b"-----END PRIVATE KEY-----\n"
    )
    with pytest.raises(KeyFileError):
        SigningKey.load(pem)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_damaged_private_key_file_is_refused_or_still_that_key(data: st.DataObject) -> None:
    pem = bytearray(KEY.dump(None))
    pem[data.draw(st.integers(0, len(pem) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        SigningKey.load(bytes(pem))
    except KeyFileError:
        return


def test_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    path = tmp_path / "p256.pem"
    command = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    subprocess.run([*command, "-out", str(path)], check=True, capture_output=True)
    with pytest.raises(KeyFileError, match="another kind"):
        SigningKey.load(path.read_bytes())


def test_the_key_id_is_what_openssl_and_sha256sum_say(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    path = tmp_path / "key.pem"
    path.write_text(KEY.public_key.pem())
    command = ["openssl", "pkey", "-pubin", "-outform", "DER", "-in", str(path)]
    der = subprocess.run(command, check=True, capture_output=True).stdout
    assert KEY.public_key.key_id == hashlib.sha256(der).hexdigest()


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=100), st.binary(max_size=100))
def test_a_signature_verifies_over_its_own_bytes_only(one: bytes, other: bytes) -> None:
    signature = KEY.sign(one)
    assert KEY.public_key.verify(signature, one)
    assert KEY.public_key.verify(signature, other) == (one == other)
    assert not KEY.public_key.verify(signature[:-1], one)
    assert not KEY.public_key.verify(b"", one)


def test_words_are_eight_and_can_be_said() -> None:
    words = KEY.public_key.words().split("-")
    assert len(words) == 8
    assert all(
        re.fullmatch("[bdfghjklmnprstvz][aiou]" * 2 + "[bdfghjklmnprstvz]", w) for w in words
    )


@settings(deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(0, 127))
def test_one_bit_changed_in_the_first_half_changes_the_words(raw: bytes, bit: int) -> None:
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    assert key_words(raw.hex()) != key_words(changed.hex())  # type: ignore[arg-type]  # hex is a key id


def test_a_signing_key_is_neither_shown_nor_copied() -> None:
    seed = (b"k" * 32).hex()
    assert seed not in repr(KEY)
    with pytest.raises(TypeError):
        pickle.dumps(KEY)


def test_a_new_pair_is_private_from_the_first_moment(tmp_path: Path) -> None:
    private, public, key = make_pair(tmp_path / "release", b"secret")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert b"ENCRYPTED" in private.read_bytes()
    assert PublicKey.parse(public.read_text()) == key
    assert load_signing_key(private, lambda: b"secret").public_key == key


@pytest.mark.parametrize("suffix", [".key", ".pub"])
def test_an_existing_key_file_is_never_overwritten(tmp_path: Path, suffix: str) -> None:
    there = tmp_path / f"release{suffix}"
    there.write_text("precious")
    with pytest.raises(KeyFileError, match="expected no file"):
        make_pair(tmp_path / "release", None)
    assert there.read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_dangling_link_is_not_followed_to_make_a_key(tmp_path: Path) -> None:
    (tmp_path / "release.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileError):
        make_pair(tmp_path / "release", None)
    assert not (tmp_path / "elsewhere").exists()


def test_an_open_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    private, _, _ = make_pair(tmp_path / "release", None)
    private.chmod(0o644)
    with pytest.raises(KeyFileError, match="mode 644") as caught:
        load_signing_key(private, lambda: None)
    assert "chmod 600" in caught.value.hint


def test_a_missing_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError):
        load_signing_key(tmp_path / "none.key", lambda: None)
