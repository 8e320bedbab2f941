from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.format.digest import Digest
from bundler.format.errors import DigestFormatError

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEX,
        "sha256:",
        "sha256:" + HEX[:-1],
        "sha256:" + HEX + "0",
        "sha256:" + HEX.upper(),
        "sha256-" + HEX,
        "SHA256:" + HEX,
        "sha512:" + HEX,
        "sha256:" + HEX[:-1] + "\n",
        "sha256:" + HEX + "\n",
        " sha256:" + HEX,
        "sha256:../" + HEX[3:],
        "sha256:" + "٣" * 64,
    ],
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(DigestFormatError):
        Digest.parse(text)


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_a_digest_is_read_back_equal_in_every_form(data: bytes) -> None:
    digest = Digest.of(data)
    assert Digest.parse(str(digest)) == digest == Digest.from_raw(digest.raw)
    assert digest.hex == hashlib.sha256(data).hexdigest()
    assert digest.hex.startswith(digest.short())
