"""Trust updates: revocations reach a site on a medium without models, or on paper."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from appliance.cli import run
from appliance.errors import NobodyTrustedError, StoreBusyError
from appliance.journal import Journal
from appliance.policyfile import load_policy
from appliance.updating import update_trust
from bundler.cli import run as bundle
from bundler.format.chain import file_name
from bundler.format.digest import Digest
from bundler.format.errors import EnvelopeError, RootChainError, ThresholdError
from bundler.format.keys import SigningKey
from bundler.format.paper import split
from bundler.format.root import Root
from bundler.format.update import encode_update
from tests.appliance.sites import Desk, pin, snapshot
from tests.fakes.forge import SECOND, TRUSTED, forge, tiny_model
from tests.fakes.roots import ROOT_A, make_root, signed

DEMO_REVOKED = "sha256:" + "d" * 64


def revoking(version: int = 2) -> Root:
    """Root 2: the second key is out, one bundle is revoked, nothing below 5 comes in."""
    return make_root(
        version=version,
        channels={"prod": (TRUSTED,)},
        revoked_keys=frozenset({SECOND.public_key.key_id}),
        revoked_digests=frozenset({Digest.parse(DEMO_REVOKED)}),
        min_seq={"prod": 5},
    )


def in_force(desk: Desk) -> int:
    root = load_policy(desk.store.paths.trust).root
    return 0 if root is None else root.root.version


def satchel(desk: Desk, *arguments: str) -> int:
    return run([*arguments, "--store", str(desk.store.paths.root)])


def write(folder: Path, *roots: Root) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for root in roots:
        (folder / file_name(root.version)).write_bytes(signed(root))
    return folder


def test_a_site_that_pinned_nothing_follows_nothing(desk: Desk) -> None:
    with pytest.raises(NobodyTrustedError):
        update_trust(desk.store, {2: signed(revoking())}.get, source="paper")
    write(desk.medium / "satchel/trust/root", make_root(), revoking())
    assert satchel(desk, "trust", "import", str(desk.medium)) == 11
    assert satchel(desk, "import", str(desk.medium)) == 11


@pytest.mark.parametrize("place", ["satchel/trust/root", "trust/root", "root", ""])
def test_an_update_is_found_from_where_an_operator_points(desk: Desk, place: str) -> None:
    pin(desk, make_root())
    write(desk.medium / place, make_root(), revoking())
    assert satchel(desk, "trust", "import", str(desk.medium)) == 0
    assert in_force(desk) == 2
    assert satchel(desk, "trust", "import", str(desk.medium)) == 0
    events = [one for one in Journal(desk.store.paths.journal).events() if one.kind == "trust"]
    assert [one.details["version"] for one in events if one.details["action"] == "root"] == [2]


def test_import_of_a_medium_with_roots_alone_follows_them(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    pin(desk, make_root())
    write(desk.medium / "satchel/trust/root", make_root(), revoking())
    before = snapshot(desk.store.paths.root)
    assert satchel(desk, "verify", str(desk.medium)) == 0
    assert "would be followed" in capsys.readouterr().out
    assert snapshot(desk.store.paths.root) == before
    assert satchel(desk, "import", str(desk.medium)) == 0
    shown = capsys.readouterr().out
    assert "root 1 followed to root 2" in shown
    assert SECOND.public_key.words() in shown
    assert DEMO_REVOKED in shown
    assert "nothing older than sequence 5" in shown
    assert in_force(desk) == 2


def test_a_plugged_in_medium_with_roots_alone_is_followed_once(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can log in to an appliance: revocations must be able to come on a stick."""
    write(desk.medium / "satchel/trust/root", make_root(), revoking())
    plugged = ("media", str(desk.medium), "--label", "sdb1")
    assert satchel(desk, *plugged) == 11
    assert "medium sdb1: trust: refused: no trust root is pinned here" in capsys.readouterr().out
    pin(desk, make_root())
    monkeypatch.setenv("SATCHEL_MEDIA", "verify")
    assert satchel(desk, *plugged) == 0
    assert "medium sdb1: trust: root 2 in order" in capsys.readouterr().out
    assert in_force(desk) == 1
    monkeypatch.delenv("SATCHEL_MEDIA")
    assert satchel(desk, *plugged) == 0
    assert "medium sdb1: trust: root 2 is in force" in capsys.readouterr().out
    assert satchel(desk, *plugged) == 0
    assert "medium sdb1: trust: nothing newer than root 2" in capsys.readouterr().out
    assert in_force(desk) == 2


def test_a_plugged_in_medium_with_a_forged_root_changes_nothing(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    pin(desk, make_root())
    folder = write(desk.medium / "satchel/trust/root", make_root())
    (folder / file_name(2)).write_bytes(signed(revoking(), SECOND))
    assert satchel(desk, "media", str(desk.medium)) != 0
    assert "trust: refused: " in capsys.readouterr().out
    assert in_force(desk) == 1


def test_roots_beside_a_bundle_count_before_the_bundle(desk: Desk) -> None:
    pin(desk, make_root())
    forge(seq=7).signed_by(SECOND).write(desk.medium)
    write(desk.medium / "satchel/trust/root", make_root(), revoking())
    assert satchel(desk, "import", str(desk.medium)) == 11
    assert in_force(desk) == 2
    assert desk.names() == []


def test_an_update_with_one_bad_root_changes_nothing(desk: Desk) -> None:
    pin(desk, make_root())
    before = snapshot(desk.store.paths.root)
    weak = signed(make_root(version=3), ROOT_A)
    for roots, error in (
        ({2: signed(revoking()), 3: weak}, ThresholdError),
        ({2: signed(make_root(version=3))}, RootChainError),
        ({2: forge().envelope()}, EnvelopeError),
    ):
        with pytest.raises(error):
            update_trust(desk.store, roots.get, source="paper")
        assert snapshot(desk.store.paths.root) == before


def test_an_update_waits_for_nobody(desk: Desk) -> None:
    pin(desk, make_root())
    with desk.store.writing(), pytest.raises(StoreBusyError):
        update_trust(desk.store, {2: signed(revoking())}.get, source="paper")


def test_a_link_on_the_medium_is_not_followed(desk: Desk, tmp_path: Path) -> None:
    pin(desk, make_root())
    write(tmp_path / "elsewhere", make_root(), revoking())
    (desk.medium / "satchel").mkdir()
    (desk.medium / "satchel" / "trust").symlink_to(tmp_path)
    (tmp_path / "root").symlink_to(tmp_path / "elsewhere")
    assert satchel(desk, "trust", "import", str(desk.medium)) == 10
    assert in_force(desk) == 1


def test_a_medium_without_roots_is_refused(desk: Desk) -> None:
    assert satchel(desk, "trust", "import", str(desk.medium)) == 10
    assert satchel(desk, "trust", "import", str(desk.medium / "nowhere")) == 10


def test_codes_are_typed_in_any_order(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(desk, make_root())
    texts = split(encode_update({2: signed(revoking())}), characters=400)
    assert len(texts) > 2
    assert satchel(desk, "trust", "scan", *texts[1:]) == 10
    assert in_force(desk) == 1
    typed = "\n".join([*reversed(texts), texts[0].lower(), "", "ignored"])
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert satchel(desk, "trust", "scan") == 0
    assert in_force(desk) == 2


def test_a_forged_set_of_codes_is_refused_by_the_keys(desk: Desk) -> None:
    pin(desk, make_root())
    forged = split(encode_update({2: signed(revoking(), ROOT_A)}))
    assert satchel(desk, "trust", "scan", *forged) == 11
    assert in_force(desk) == 1


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of roots as the connected side keeps it, at version 2."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "roots", make_root(), revoking())
    return tmp_path / "roots"


def test_a_chain_goes_from_one_command_to_the_other(
    desk: Desk, roots: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pin(desk, make_root())
    assert bundle(["trust", "pack", str(roots), "--out", str(desk.medium), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] < 16 << 10
    assert bundle(["trust", "pack", str(roots), "--out", str(desk.medium)]) == 0  # again
    assert "safe to remove" in capsys.readouterr().out
    assert satchel(desk, "trust", "import", str(desk.medium), "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["followed"], said["revoked_bundles"]) == ([2], [DEMO_REVOKED])
    assert in_force(desk) == 2


def test_texts_go_from_one_command_to_the_other(
    desk: Desk, roots: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pin(desk, make_root())
    assert bundle(["trust", "qr", str(roots), "--as", "text", "--characters", "600"]) == 0
    texts = capsys.readouterr().out.split()
    assert len(texts) > 1
    assert satchel(desk, "trust", "scan", *reversed(texts)) == 0
    assert in_force(desk) == 2


@pytest.mark.parametrize("form", ["png", "svg"])
def test_codes_are_drawn_into_new_files(
    roots: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    command = ["trust", "qr", str(roots), "--as", form, "--out", "codes"]
    assert bundle(command) == 0
    paths = [Path(line) for line in capsys.readouterr().out.split()]
    assert [path.name for path in paths] == [
        f"{place}-of-{len(paths)}.{form}" for place in range(1, len(paths) + 1)
    ]
    begins = {"png": b"\x89PNG\r\n", "svg": b"<?xml"}[form]
    assert all(path.read_bytes().startswith(begins) for path in paths)
    assert bundle(command) == 1
    assert "expected no file" in capsys.readouterr().err


def test_codes_are_drawn_on_a_terminal(roots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bundle(["trust", "qr", str(roots)]) == 0
    shown = capsys.readouterr().out
    assert "code 1 of " in shown
    assert "\N{FULL BLOCK}" in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--since", "2"], "after version 2"),
        (["--as", "png"], "--out"),
        (["--out", "codes"], "--out"),
        (["--characters", "64"], "at most 99 parts"),
    ],
)
def test_codes_that_cannot_be_made_are_refused(
    roots: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    many = tuple(SigningKey.from_seed(bytes([one]) * 32) for one in range(40))
    if "64" in arguments:
        (roots / file_name(2)).write_bytes(signed(make_root(version=2, top=many, threshold=30)))
        shutil.rmtree(roots)
        write(roots, make_root(top=many, threshold=30))
        (roots / file_name(2)).write_bytes(
            signed(make_root(version=2, top=many, threshold=30), *many)
        )
        (roots / file_name(1)).write_bytes(signed(make_root(top=many, threshold=30), *many))
    assert bundle(["trust", "qr", str(roots), *arguments]) in (1, 10)
    assert says in capsys.readouterr().err


def test_a_draft_is_not_carried(roots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (roots / file_name(3)).write_bytes(signed(revoking(3), ROOT_A))
    for verb in (["trust", "qr", str(roots)], ["trust", "pack", str(roots), "--out", "."]):
        assert bundle(verb) == 1
        assert "a draft of version 3" in capsys.readouterr().err


ZBAR = shutil.which("zbarimg")

if ZBAR:  # as above, with a reader of codes that is not ours, where there is one

    def test_a_code_that_was_drawn_is_read_by_zbar(desk: Desk, roots: Path) -> None:
        pin(desk, make_root())
        assert bundle(["trust", "qr", str(roots), "--as", "png", "--out", "codes"]) == 0
        texts = [
            subprocess.run(
                [str(ZBAR), "--quiet", "--raw", str(path)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()
            for path in sorted(Path("codes").iterdir())
        ]
        assert satchel(desk, "trust", "scan", *texts) == 0
        assert in_force(desk) == 2


def test_a_model_from_before_stays_when_roots_follow(desk: Desk) -> None:
    pin(desk, make_root())
    desk.carry(forge({"F32": tiny_model(1)}, seq=4))
    update_trust(desk.store, {2: signed(revoking())}.get, source="paper")
    assert desk.names() == ["demo:latest"]
