"""A model gets its name only if it does here what was signed of it: the real engine decides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from appliance.cli import run
from appliance.errors import NotAcceptedError, UnusableModelError
from appliance.journal import Journal
from appliance.unfinished import unfinished
from bundler.accepting import make_checks
from bundler.format.acceptance import Check, CheckKind, Wanted, parse_checks
from bundler.format.errors import AcceptanceError
from bundler.format.name import ModelName
from hwprobe.gguf import model_profile, read_header
from tests.appliance.sites import CRAMPED, Desk
from tests.fakes.acceptance import CANNOT_HOLD, with_checks
from tests.fakes.forge import Forged, forge, tiny_model

DEMO_FILE = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
DEMO = ModelName.parse("demo")


@pytest.fixture(scope="module")
def honest() -> tuple[Check, ...]:
    """What is built in, measured with the demo model."""
    profile = model_profile(read_header(DEMO_FILE))
    return parse_checks(make_checks(DEMO_FILE, profile, (), threads=2))


def carrying(checks: tuple[Check, ...] | bytes, seq: int = 2) -> Forged:
    weights = {"F16": DEMO_FILE.read_bytes()}
    return with_checks(forge(weights, seq=seq, chunk_bytes=4 << 20), checks)


def changed(checks: tuple[Check, ...], kind: CheckKind, **fields: object) -> tuple[Check, ...]:
    return tuple(
        replace(one, **fields) if one.kind == kind else one  # type: ignore[arg-type]
        for one in checks
    )


def test_a_model_that_does_what_was_signed_gets_its_name(
    desk: Desk, honest: tuple[Check, ...]
) -> None:
    receipt = desk.carry(carrying(honest))
    assert desk.names() == ["demo:latest"]
    assert [one.check for one in receipt.acceptance] == [one.id for one in honest]
    assert {one.kind for one in receipt.acceptance} == {"teacher_forced", "greedy_prefix"}
    assert unfinished(desk.store.paths) == ()


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("teacher_forced", {"mean_nll": 0.5}, "expected 0.5000 nats per token"),
        ("greedy_prefix", {"tokens": (1, 2, 3), "at_least": 3}, "found the first 0"),
    ],
)
def test_a_model_that_does_something_else_gets_none(
    desk: Desk, honest: tuple[Check, ...], kind: CheckKind, fields: dict[str, object], message: str
) -> None:
    desk.carry(forge({"F32": tiny_model(1)}, seq=1))
    before = desk.store.resolve(DEMO)
    with pytest.raises(NotAcceptedError, match=message) as caught:
        desk.carry(carrying(changed(honest, kind, **fields)))
    assert "--skip-acceptance" in caught.value.hint
    after = desk.store.resolve(DEMO)
    assert (after.digest, after.model_digest) == (before.digest, before.model_digest)
    event = Journal(desk.store.paths.journal).events()[-1]
    assert (event.kind, event.details["error"]) == ("refused", "NotAcceptedError")
    (waiting,) = unfinished(desk.store.paths)
    assert message in waiting.needs
    assert list(desk.store.paths.staging.glob("*.part"))


def test_the_operator_may_insist_and_the_receipt_says_so(desk: Desk) -> None:
    bundle = carrying(CANNOT_HOLD)
    with pytest.raises(NotAcceptedError):
        desk.carry(bundle)
    receipt = desk.carry(bundle, skip_acceptance=True)
    assert receipt.warnings == ("demo:latest: acceptance checks were skipped",)
    assert receipt.acceptance == ()
    assert desk.names() == ["demo:latest"]
    assert list(desk.store.paths.staging.iterdir()) == []


def test_a_model_the_engine_cannot_run_gets_no_name(desk: Desk) -> None:
    """It passes the gate, and its weights are noise."""
    with pytest.raises(NotAcceptedError, match="demo:latest: "):
        desk.carry(with_checks(forge({"F32": tiny_model(1)}), CANNOT_HOLD))
    assert desk.names() == []


def test_a_model_without_a_place_here_is_not_tried(desk: Desk) -> None:
    receipt = desk.on(CRAMPED).carry(carrying(CANNOT_HOLD), variants=("f16",))
    assert any("it has no place on this machine" in warning for warning in receipt.warnings)


@pytest.mark.parametrize("data", [b"{", b"{}", b'{"v":2,"checks":[]}', b'{"v":1,"checks":[]}'])
def test_malformed_checks_are_refused_before_anything_is_copied(desk: Desk, data: bytes) -> None:
    with pytest.raises(Exception, match=r"json|acceptance") as caught:
        desk.carry(with_checks(forge(), data))
    assert getattr(caught.value, "exit_code", 0) == 10
    assert not list(desk.store.paths.staging.glob("*.part"))


def test_checks_that_are_too_large_are_refused(desk: Desk) -> None:
    with pytest.raises(UnusableModelError, match="acceptance: expected at most"):
        desk.carry(with_checks(forge(), b" " * ((1 << 20) + 1)))


def test_the_command_shows_what_was_measured(
    desk: Desk, honest: tuple[Check, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    directory = carrying(honest).write(desk.medium)
    store = str(desk.store.paths.root)
    bad = carrying(CANNOT_HOLD, seq=1).write(desk.medium)
    assert run(["import", str(bad), "--store", store]) == 10
    assert "expected 99.0000 nats" in capfd.readouterr().err
    assert run(["import", str(directory), "--store", store]) == 0
    assert "accepted demo:latest likelihood-en: " in capfd.readouterr().out


SCHEMA = '{"type":"object","required":["name"]}'


def test_a_schema_the_model_does_not_meet_is_no_check() -> None:
    wanted = Wanted(id="j", kind="json_schema", text="Hello", schema=SCHEMA)
    profile = model_profile(read_header(DEMO_FILE))
    with pytest.raises(AcceptanceError, match="the answer is not JSON"):
        make_checks(DEMO_FILE, profile, (wanted,), threads=2)


def test_json_that_was_signed_must_come_again(desk: Desk) -> None:
    check = Check(id="j", kind="json_schema", text="Hello", schema=SCHEMA, max_tokens=4)
    with pytest.raises(NotAcceptedError, match="expected JSON of the schema, found the answer"):
        desk.carry(carrying((check,)))
