"""PKCS #11 URIs: what is not understood is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.format.errors import BundleError, KeyFileError
from bundler.keyuri import KeyUri, is_key_uri, parse_key_uri

MODULE = "module-path=/usr/lib/p11.so"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("release.key", "expected a pkcs11: URI"),
        ("pkcs11:", "object= or id="),
        (f"pkcs11:token=a?{MODULE}", "object= or id="),
        ("pkcs11:object=a;object=b", "twice"),
        ("pkcs11:object=a;x-vendor=b", "x-vendor"),
        ("pkcs11:object=a;module-path=/x", "module-path"),
        ("pkcs11:object=a?object=b", "object"),
        ("pkcs11:object", "object"),
        ("pkcs11:object=%4", "hexadecimal"),
        ("pkcs11:object=%zz", "hexadecimal"),
        ("pkcs11:object=%ff", "UTF-8"),
        ("pkcs11:object=%0a", "printable"),
        ("pkcs11:object=a\n", "printable"),
        ("pkcs11:object=a;type=public", "type"),
        ("pkcs11:object=a;slot-id=-1", "slot-id"),
        ("pkcs11:object=a;slot-id=" + "9" * 20, "slot-id"),
        ("pkcs11:object=a?module-path=lib.so", "absolute"),
        ("pkcs11:object=a?pin-source=|cat /etc/passwd", "absolute"),
        ("pkcs11:object=" + "a" * 5000, "expected a pkcs11: URI"),
    ],
)
def test_what_is_no_key_is_refused(text: str, says: str) -> None:
    with pytest.raises(KeyFileError, match=says):
        parse_key_uri(text)


def test_a_pin_on_the_command_line_is_refused_and_not_repeated() -> None:
    with pytest.raises(KeyFileError, match="pin-value") as caught:
        parse_key_uri(f"pkcs11:object=a?{MODULE}&pin-value=31415926")
    assert "31415926" not in str(caught.value) + caught.value.hint


def test_every_attribute_is_read() -> None:
    found = parse_key_uri(
        "PKCS11:token=My%20token;serial=12;manufacturer=m;model=o;object=k;id=%01%ff;slot-id=7;"
        f"type=private?{MODULE}&pin-source=file:///run/pin"
    )
    assert found == KeyUri(
        token="My token",
        serial="12",
        manufacturer="m",
        model="o",
        slot=7,
        label="k",
        key_id=b"\x01\xff",
        module="/usr/lib/p11.so",
        pin_file="/run/pin",
    )
    assert found.shown() == "pkcs11:token=My token;object=k;id=01ff"
    assert is_key_uri("pkcs11:object=k")
    assert not is_key_uri("/keys/pkcs11:object=k")


@given(st.text(max_size=80))
def test_any_text_is_a_key_or_refused(text: str) -> None:
    try:
        found = parse_key_uri("pkcs11:" + text)
    except BundleError:
        return
    assert found.label or found.key_id
