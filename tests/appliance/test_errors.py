"""Every error of the package: reached by something a user can do, and documented with its code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

import appliance.errors
import bundler.errors
from appliance.addresses import HostText
from appliance.client import Client
from appliance.config import Config
from appliance.creating import create
from appliance.creation import CreateRequest
from appliance.errors import AppError
from appliance.policyfile import load_policy, save_policy
from appliance.pulling import pull
from appliance.pushing import push
from appliance.trust import TrustPolicy
from appliance.uploads import UploadLimits
from bundler.format.digest import Digest
from bundler.format.errors import BundleError, MissingBlobError
from bundler.format.name import ModelName
from hwprobe.errors import ProbeError
from tests.appliance.answering import answering
from tests.appliance.killed_create import workshop
from tests.appliance.sites import CRAMPED, Desk, pin
from tests.fakes.acceptance import CANNOT_HOLD, with_checks
from tests.fakes.deltas import delta_of
from tests.fakes.forge import SECOND, TRUSTED, forge, tiny_model
from tests.fakes.roots import make_root

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "exit-codes.md"
DEMO = ModelName.parse("demo")


def leaves(root: type[Exception], module: str = "") -> Iterator[type[Exception]]:
    """The classes of the root's module, or of another, without subclasses: those raised."""
    module = module or root.__module__
    children = [one for one in root.__subclasses__() if one.__module__ == module]
    if not children and root.__module__ == module:
        yield root
    for child in children:
        yield from leaves(child, module)


def _busy(desk: Desk) -> None:
    with desk.store.writing():
        desk.store.remove(DEMO)


def _corrupt(desk: Desk) -> None:
    desk.carry(forge())
    desk.store.resolve(DEMO).model_path.unlink()
    desk.store.resolve(DEMO)


def _no_access(desk: Desk) -> None:
    desk.store.paths.manifests.rmdir()
    desk.store.paths.manifests.write_bytes(b"")
    desk.store.list()


def _nobody(desk: Desk) -> None:
    save_policy(desk.store.paths.trust, TrustPolicy())
    desk.carry(forge())


def _revoked(_: Desk) -> None:
    policy = TrustPolicy(revoked=frozenset({TRUSTED.public_key.key_id}))
    policy.with_key(TRUSTED.public_key, label="again", added_at="")


def _older(desk: Desk) -> None:
    desk.carry(forge(seq=2))
    desk.carry(forge(seq=1))


def _reuse(desk: Desk) -> None:
    desk.carry(forge(seq=2))
    desk.take(forge({"F32": tiny_model(9)}, seq=2).write(desk.medium / "other"))


def _jump(desk: Desk) -> None:
    desk.carry(forge(seq=1))
    desk.carry(forge(seq=1 << 50))


def _several(desk: Desk) -> None:
    forge(seq=1).write(desk.medium)
    forge(seq=2).write(desk.medium)
    desk.take(desk.medium)


def _unreachable(_: Desk) -> None:
    Client(address=HostText("http", "127.0.0.1", 1, "")).get("/api/version")


def _server_refuses(_: Desk) -> None:
    with answering([(404, b'{"error":"model \'x:latest\' not found"}')]) as address:
        Client(address=address).post("/api/show", {"model": "x"})


def _send(desk: Desk, data: bytes, limits: UploadLimits) -> None:
    with desk.store.receiving(Digest.of(b"wanted"), limits) as upload:
        upload.write(data)


UNLIMITED = UploadLimits(max_bytes=0, reserve_bytes=0)


def _behind(desk: Desk) -> None:
    pin(desk, make_root())
    bundle = forge()
    requires = replace(bundle.manifest.requires, root_version=2)
    desk.carry(bundle.with_manifest(requires=requires))


def _revoked_bundle(desk: Desk) -> None:
    bundle = forge()
    pin(desk, make_root(revoked_digests=frozenset({Digest.of(bundle.payload())})))
    desk.carry(bundle)


def _unapproved(desk: Desk) -> None:
    with desk.store.writing():
        policy = load_policy(desk.store.paths.trust)
        policy = policy.with_approver(SECOND.public_key, label="b", added_at="2026-11-20")
        save_policy(desk.store.paths.trust, policy.with_approvals(1))
    desk.carry(forge())


def _other_channel(desk: Desk) -> None:
    desk.carry(forge())
    desk.carry(forge(channel="beta"))


REACHED: dict[str, Callable[[Desk], object]] = {
    "ConfigError": lambda _: Config.load(environ={"SATCHEL_PORT": "x"}),
    "RequestError": lambda desk: desk.carry(forge(), variants=("none",)),
    "ModelMissingError": lambda desk: desk.store.resolve(DEMO),
    "PullError": lambda desk: pull("absent", desk.site, lambda _: None),
    "PushError": lambda desk: push("absent", desk.store, desk.medium, lambda _: None),
    "StoreBusyError": _busy,
    "StoreCorruptError": _corrupt,
    "StoreAccessError": _no_access,
    "BlobMismatchError": lambda desk: _send(desk, b"other", UNLIMITED),
    "BlobTooLargeError": lambda desk: _send(desk, b"12", replace(UNLIMITED, max_bytes=1)),
    "SwitchedOffError": lambda desk: create(
        CreateRequest(name="x", base="y"),
        replace(workshop(desk.store.paths.root), allowed="off"),
        lambda _: None,
    ),
    "NobodyTrustedError": _nobody,
    "KeyRefusedError": _revoked,
    "WrongSiteError": lambda desk: desk.carry(forge().with_bundle(audience=("elsewhere",))),
    "ExpiredError": lambda desk: desk.configured(trust__expired="refuse").carry(
        forge().with_bundle(expires="2020-01-01T00:00:00Z")
    ),
    "OlderBundleError": _older,
    "SequenceReuseError": _reuse,
    "SequenceJumpError": _jump,
    "RootBehindError": _behind,
    "RevokedBundleError": _revoked_bundle,
    "ApprovalMissingError": _unapproved,
    "OtherChannelError": _other_channel,
    "SeveralBundlesError": _several,
    "NotAcceptedError": lambda desk: desk.carry(with_checks(forge(), CANNOT_HOLD)),
    "LocalObjectMissingError": lambda desk: desk.carry(delta_of(tiny_model(2), tiny_model(1))),
    "UnusableModelError": lambda desk: desk.carry(forge(layers=(("params", b"1"),))),
    "NoSpaceError": lambda desk: desk.configured(store__reserve="900 TiB").carry(forge()),
    "ModelTooLargeError": lambda desk: desk.on(CRAMPED).carry(forge()),
    "ServerUnreachableError": _unreachable,
    "ServerRefusedError": _server_refuses,
}


@pytest.mark.parametrize("error", list(leaves(AppError)), ids=lambda error: error.__name__)
def test_every_error_is_reached(desk: Desk, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        REACHED[error.__name__](desk)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert message[0] == message[0].lower() or message.startswith("SATCHEL_")


def documented(heading: str) -> dict[str, int]:
    section = DOCUMENT.read_text().split(f"### {heading}\n", 1)[1].split("\n#", 1)[0]
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", section, re.MULTILINE)
    return {name: int(code) for name, code in rows}


def test_every_error_is_documented_with_its_code() -> None:
    ours = {error.__name__: error.exit_code for error in _concrete(AppError)}
    assert documented("Of this machine") == ours
    theirs = {error.__name__: error.exit_code for error in _concrete(BundleError)}
    theirs["MissingBlobError"] = MissingBlobError.exit_code  # raised itself, and has a subclass
    assert documented("Of bundles") == theirs
    packing = {error.__name__: error.exit_code for error in _concrete(BundleError, bundler.errors)}
    assert documented("Of packing") == packing
    measuring = {error.__name__ for error in leaves(ProbeError)}
    assert set(documented("Of measuring")) == measuring


def _concrete(
    root: type[AppError | BundleError], module: ModuleType | None = None
) -> Iterator[type[AppError | BundleError]]:
    for error in leaves(root, module.__name__ if module else ""):
        assert issubclass(error, (AppError, BundleError))
        yield error


def test_every_code_an_error_has_is_in_the_table() -> None:
    text = DOCUMENT.read_text().split("`satchel health`", 1)[0]
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    used = {error.exit_code for root in (AppError, BundleError) for error in _concrete(root)}
    assert used < listed
    assert listed == {0, 1, 2, 10, 11, 12, 13, 14, 15, 16, 130}


def test_the_tree_in_the_docstring_names_every_error_with_its_code() -> None:
    text = appliance.errors.__doc__ or ""
    drawn = {name: int(code) for name, code in re.findall(r"(\w+Error) +(\d+)", text)}

    def walk(error: type[AppError]) -> Iterator[type[AppError]]:
        yield error
        for child in error.__subclasses__():
            yield from walk(child)

    assert drawn == {error.__name__: error.exit_code for error in walk(AppError)}
