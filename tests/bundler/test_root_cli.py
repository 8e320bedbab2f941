"""``satchel-bundle root`` and ``pack --root``, as people at key ceremonies type them."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from bundler.cli import run
from bundler.format.chain import verify_first, walk
from bundler.format.volume import BundleDirectory
from bundler.rooting.folder import open_roots
from tests.fakes.forge import tiny_model

INIT = ["root", "init", "roots", "--key", "one.pub", "--key", "two.pub", "--threshold", "2"]
PACK = ["pack", "tiny.gguf", "--name", "demo", "--key", "release.key", "--out", "stick"]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with two root keys and two bundle keys."""
    monkeypatch.chdir(tmp_path)
    for variable in ("SATCHEL_KEY_PASSPHRASE", "SOURCE_DATE_EPOCH"):
        monkeypatch.delenv(variable, raising=False)
    for name in ("one", "two", "three", "release", "other"):
        assert run(["keygen", name, "--no-passphrase"]) == 0
    return tmp_path


def key_id(desk: Path, name: str) -> str:
    match = re.search("key id ([0-9a-f]{64})", (desk / f"{name}.pub").read_text())
    assert match
    return match[1]


def sign(*names: str) -> None:
    for name in names:
        assert run(["root", "sign", "roots", "--key", f"{name}.key"]) == 0


def begin() -> None:
    assert run(INIT) == 0
    assert run(["root", "add-key", "roots", "bundle:main", "release.pub"]) == 0
    sign("one", "two")


def test_a_root_is_a_draft_until_enough_keys_have_signed(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(INIT) == 0
    assert run(["root", "add-key", "roots", "bundle:main", "release.pub"]) == 0
    sign("one")
    out = capsys.readouterr().out
    assert "draft: signatures: expected 2 trusted keys, found 1" in out
    assert "read the words aloud" not in out
    sign("two")
    out = capsys.readouterr().out
    assert "state      complete" in out
    assert "read the words aloud" in out
    roots = open_roots(desk / "roots")
    assert [one.root.version for one in roots.chain] == [1]
    assert list(roots.newest.channels()) == ["main"]


def test_a_change_begins_the_next_version_and_drops_signatures_of_a_draft(desk: Path) -> None:
    begin()
    assert run(["root", "add-key", "roots", "bundle:lab", "other.pub", "--model", "lab-*"]) == 0
    sign("one")
    assert run(["root", "revoke", "roots", "--min-seq", "main:5"]) == 0
    draft = open_roots(desk / "roots").draft
    assert draft is not None
    assert draft.envelope.signatures == ()
    assert draft.root.version == 2
    assert draft.root.channels()["lab"].models == ("lab-*",)
    assert draft.root.min_seq == {"main": 5}
    sign("two", "one")
    assert open_roots(desk / "roots").newest.version == 2


def test_a_root_key_is_rotated_under_both_thresholds(desk: Path) -> None:
    begin()
    old = key_id(desk, "two")
    assert run(["root", "rotate", "roots", "root", old[:12], "three.pub"]) == 0
    sign("one", "three")
    assert open_roots(desk / "roots").draft is not None
    sign("two")
    roots = open_roots(desk / "roots")
    assert roots.draft is None
    assert old not in roots.newest.root.key_ids


def test_a_revoked_key_is_in_no_role_and_comes_back_never(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin()
    stolen = key_id(desk, "release")
    assert run(["root", "revoke", "roots", "--key", stolen]) == 1
    assert "add another key first" in capsys.readouterr().err
    assert run(["root", "add-key", "roots", "bundle:main", "other.pub"]) == 0
    assert run(["root", "revoke", "roots", "--key", stolen, "--bundle", "sha256:" + "0" * 64]) == 0
    sign("one", "two")
    newest = open_roots(desk / "roots").newest
    assert newest.revoked_keys == {stolen}
    assert len(newest.revoked_digests) == 1
    assert run(["root", "add-key", "roots", "bundle:main", "release.pub"]) == 10


def test_the_chain_travels_with_the_bundle(desk: Path) -> None:
    begin()
    assert run(["root", "revoke", "roots", "--min-seq", "main:2"]) == 0
    sign("one", "two")
    (desk / "tiny.gguf").write_bytes(tiny_model())
    (desk / "stick").mkdir()
    assert run([*PACK, "--seq", "2", "--root", "roots"]) == 0
    assert run([*PACK, "--seq", "2", "--root", "roots"]) == 0
    bundle = BundleDirectory(desk / "stick" / "satchel" / "main-000002")
    first = bundle.read_root(1)
    assert first is not None
    assert [one.root.version for one in walk(verify_first(first), bundle.read_root)] == [2]
    assert bundle.read_root(3) is None
    assert b'"root_version":2' in base64.b64decode(
        re.search(rb'"payload":"([^"]+)"', bundle.read_envelope())[1]  # type: ignore[index]
    )


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["root", "show", "nowhere"], 1, "expected a directory of roots"),
        (["root", "show", "empty"], 1, "expected a root, found none"),
        (["root", "sign", "empty", "--key", "one.key"], 1, "expected a root, found none"),
        (["root", "revoke", "empty", "--min-seq", "main:1"], 1, "expected a root, found none"),
        (["root", "init", "new", "--key", "one.pub", "--threshold", "2"], 10, "threshold"),
        (["root", "init", "new", "--key", "one.key"], 1, "private key"),
        (["root", "init", "new", "--key", "one.pub", "--expires", "soon"], 10, "expires"),
        (INIT, 1, "expected no root, found version 1"),
        (["root", "sign", "roots", "--key", "release.key"], 1, "expected a root key"),
        (["root", "revoke", "roots"], 1, "expected --key, --bundle or --min-seq"),
        (["root", "revoke", "roots", "--min-seq", "main"], 1, "CHANNEL:SEQ"),
        (["root", "revoke", "roots", "--bundle", "sha256:1"], 10, "64 lower-case hexadecimal"),
        (["root", "revoke", "roots", "--key", "12"], 1, "expected the id of one key"),
        (["root", "rotate", "roots", "root", "0" * 64, "one.pub"], 1, "expected the id"),
        (["root", "add-key", "roots", "king", "one.pub"], 1, "expected root or bundle:CHANNEL"),
        ([*PACK, "--root", "nowhere"], 1, "expected a directory of roots"),
        ([*PACK, "--root", "empty"], 1, "expected a complete root, found none"),
    ],
)
def test_every_refusal_is_one_line_with_its_exit_code(
    desk: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    begin()
    (desk / "empty").mkdir()
    (desk / "stick").mkdir()
    (desk / "tiny.gguf").write_bytes(tiny_model())
    capsys.readouterr()
    assert run(arguments) == code
    err = capsys.readouterr().err
    assert err.startswith("satchel-bundle: error: ")
    assert says in err


def test_a_root_that_lost_its_link_is_no_draft(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin()
    for floor in ("main:2", "main:3"):
        assert run(["root", "revoke", "roots", "--min-seq", floor]) == 0
        sign("one", "two")
    second = desk / "roots" / "2.root.dsse.json"
    second.write_bytes(second.read_bytes().replace(b'"sig":"', b'"sig":"AAAA', 1))
    assert run(["root", "show", "roots"]) == 11
    assert "found another" in capsys.readouterr().err
