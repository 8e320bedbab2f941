"""Keys on tokens: the private half stays there, and a lying token is found out."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pkcs11 import KeyType, ObjectClass
from pkcs11.exceptions import DeviceRemoved, PinLocked

from bundler.format import envelope
from bundler.format.errors import KeyFileError
from bundler.format.keys import PublicKey
from bundler.keyuri import parse_key_uri
from bundler.tokens import TokenKey, open_token_key
from tests.fakes.forge import SECOND, TRUSTED, forge, tiny_model, unpack
from tests.fakes.tokens import (
    PIN,
    SOFTHSM,
    TOOL,
    FakeLibrary,
    FakeObject,
    FakeToken,
    pair,
    soft_key,
    soft_token,
)

ROOT = Path(__file__).resolve().parents[2]
KEY = parse_key_uri("pkcs11:token=satchel;object=release?module-path=/usr/lib/p11.so")


def opened(*tokens: FakeToken, pin: str = PIN) -> TokenKey:
    return open_token_key(KEY, lambda: pin, load=FakeLibrary(*tokens))


def test_an_envelope_is_signed_on_a_token_and_no_session_stays_open() -> None:
    token = FakeToken(objects=pair(TRUSTED))
    key = opened(FakeToken(label="other"), token)
    data = envelope.sign(b"{}", [key])
    assert data == envelope.sign(b"{}", [TRUSTED])
    assert (token.opened, token.sessions) == (2, 0)


def test_a_point_without_der_around_it_is_the_same_key() -> None:
    key = opened(FakeToken(objects=pair(TRUSTED, wrapped=False)))
    assert key.public_key == TRUSTED.public_key


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ([], "expected one token, found 0"),
        ([FakeToken(), FakeToken()], "expected one token, found 2"),
        ([FakeToken(label="other", objects=pair(TRUSTED))], "expected one token, found 0"),
        ([FakeToken()], "expected one Ed25519 private key, found 0"),
        ([FakeToken(objects=pair(TRUSTED, "other"))], "private key, found 0"),
        ([FakeToken(objects=pair(TRUSTED) + pair(SECOND))], "private key, found 2"),
        ([FakeToken(objects=pair(TRUSTED)[:1])], "public key, found 0"),
        ([FakeToken(objects=pair(TRUSTED, key_type=KeyType.EC))], "private key, found 0"),
        ([FakeToken(objects=pair(TRUSTED, params=b"\x06\x03\x2b\x65\x71"))], "another curve"),
        ([FakeToken(refuses=DeviceRemoved())], "device removed"),
        ([FakeToken(refuses=PinLocked())], "pin locked"),
    ],
)
def test_a_token_that_cannot_sign_is_refused(tokens: list[FakeToken], says: str) -> None:
    with pytest.raises(KeyFileError, match=says):
        opened(*tokens)


def test_a_wrong_pin_is_refused_and_not_repeated() -> None:
    with pytest.raises(KeyFileError) as caught:
        opened(FakeToken(objects=pair(TRUSTED)), pin="27182818")
    assert "wrong PIN" in caught.value.hint
    assert "27182818" not in str(caught.value) + caught.value.hint


def test_a_signature_of_another_key_is_refused() -> None:
    private, public = pair(TRUSTED)
    token = FakeToken(objects=[replace_key(private), public])
    key = opened(token)
    with pytest.raises(KeyFileError, match="signature by its public key"):
        key.sign(b"data")


def replace_key(one: FakeObject) -> FakeObject:
    return replace(one, key=SECOND)


def test_a_token_pulled_out_before_the_signature_is_refused() -> None:
    token = FakeToken(objects=pair(TRUSTED))
    key = opened(token)
    token.refuses = DeviceRemoved()
    with pytest.raises(KeyFileError, match="device removed"):
        key.sign(b"data")


def test_a_key_is_neither_copied_nor_shown_with_its_pin() -> None:
    key = opened(FakeToken(objects=pair(TRUSTED)))
    with pytest.raises(TypeError):
        pickle.dumps(key)
    assert PIN not in repr(key)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pkcs11:object=a", "module-path"),
        ("pkcs11:object=a?module-path=/nowhere/p11.so", "expected a PKCS #11 library"),
        (f"pkcs11:object=a?module-path={__file__}", "expected a PKCS #11 library"),
    ],
)
def test_a_module_that_is_none_is_refused_before_the_pin_is_asked(text: str, says: str) -> None:
    def never() -> str:
        raise AssertionError("asked for the PIN")

    with pytest.raises(KeyFileError, match=says):
        open_token_key(parse_key_uri(text), never)


def test_the_fake_has_both_halves() -> None:
    assert [one.kind for one in pair(TRUSTED)] == [ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY]


if TOOL and SOFTHSM.is_file():  # as above with Debian's SoftHSM2, where it is installed

    def _bundle(
        arguments: list[str], configuration: Path, **others: str
    ) -> subprocess.CompletedProcess[str]:
        code = "from bundler.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-P", "-c", code, *arguments],
            env={**os.environ, "SOFTHSM2_CONF": str(configuration), **others},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    @pytest.fixture(scope="module")
    def token(tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A token with one key; made in a child, since the library reads its settings once."""
        folder = tmp_path_factory.mktemp("hsm")
        configuration = soft_token(folder)
        code = f"from {soft_key.__module__} import soft_key; soft_key('release')"
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "SOFTHSM2_CONF": str(configuration)},
            cwd=ROOT,
            check=True,
        )
        pin = folder / "pin"
        pin.write_text(PIN + "\n")
        pin.chmod(0o600)
        return configuration

    def _uri(configuration: Path, *, pin: bool = True) -> str:
        source = f"&pin-source={configuration.with_name('pin')}" if pin else ""
        return f"pkcs11:token=satchel;object=release?module-path={SOFTHSM}{source}"

    def test_a_bundle_is_signed_with_a_key_of_softhsm(token: Path, tmp_path: Path) -> None:
        forge().signed_by().write(tmp_path)
        public = _bundle(["public", _uri(token)], token)
        assert public.returncode == 0, public.stderr
        key = PublicKey.parse(public.stdout)
        done = _bundle(["sign", str(tmp_path), "--key", _uri(token)], token)
        assert done.returncode == 0, done.stderr
        assert key.words() in done.stdout
        again = _bundle(
            ["sign", str(tmp_path), "--key", _uri(token, pin=False)], token, SATCHEL_TOKEN_PIN=PIN
        )
        assert again.returncode == 0, again.stderr
        assert unpack(tmp_path, {key.key_id: key})
        for said in (public, done, again):
            assert PIN not in said.stdout + said.stderr

    def test_a_bundle_is_packed_and_a_root_signed_with_a_key_of_softhsm(
        token: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "tiny.gguf").write_bytes(tiny_model())
        (tmp_path / "stick").mkdir()
        (tmp_path / "root.pub").write_text(_bundle(["public", _uri(token)], token).stdout)
        roots = str(tmp_path / "roots")
        for arguments in (
            ["root", "init", roots, "--key", str(tmp_path / "root.pub")],
            ["root", "add-key", roots, "bundle:main", str(tmp_path / "root.pub")],
            ["root", "sign", roots, "--key", _uri(token)],
            [
                *("pack", str(tmp_path / "tiny.gguf"), "--name", "demo", "--root", roots),
                *("--key", _uri(token), "--out", str(tmp_path / "stick")),
            ],
        ):
            done = _bundle(arguments, token, XDG_STATE_HOME=str(tmp_path / "state"))
            assert done.returncode == 0, done.stderr
        key = PublicKey.parse((tmp_path / "root.pub").read_text())
        assert unpack(tmp_path / "stick", {key.key_id: key})
        counters = list((tmp_path / "state" / "satchel").iterdir())
        assert [one.name for one in counters] == [f"{key.key_id[:16]}.seq"]

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (("object=release", "object=other"), "expected one Ed25519 private key, found 0"),
            (("token=satchel", "token=other"), "expected one token, found 0"),
            ((SOFTHSM.name, "nowhere.so"), "expected a PKCS #11 library"),
        ],
    )
    def test_softhsm_without_that_key_is_refused(
        token: Path, tmp_path: Path, change: tuple[str, str], says: str
    ) -> None:
        forge().write(tmp_path)
        done = _bundle(["sign", str(tmp_path), "--key", _uri(token).replace(*change)], token)
        assert done.returncode == 1
        assert says in done.stderr

    def test_a_wrong_pin_for_softhsm_is_refused(token: Path, tmp_path: Path) -> None:
        forge().write(tmp_path)
        done = _bundle(
            ["sign", str(tmp_path), "--key", _uri(token, pin=False)],
            token,
            SATCHEL_TOKEN_PIN="9999",
        )
        assert done.returncode == 1
        assert "wrong PIN" in done.stderr
        assert "9999" not in done.stderr
        missing = _bundle(["sign", str(tmp_path), "--key", _uri(token, pin=False)], token)
        assert missing.returncode == 1
        assert "expected its PIN" in missing.stderr

    def test_a_pin_that_others_can_read_is_refused(token: Path, tmp_path: Path) -> None:
        forge().write(tmp_path)
        shown = tmp_path / "pin"
        shown.write_text(PIN)
        shown.chmod(0o644)
        uri = _uri(token, pin=False) + f"&pin-source={shown}"
        done = _bundle(["sign", str(tmp_path), "--key", uri], token)
        assert done.returncode == 1
        assert "only its owner can read" in done.stderr
