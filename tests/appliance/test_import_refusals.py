"""Every row of the import table: its error, its exit code, and a store that is as it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import (
    AppError,
    ExpiredError,
    NobodyTrustedError,
    NoSpaceError,
    OlderBundleError,
    SequenceJumpError,
    SequenceReuseError,
    SeveralBundlesError,
    StoreBusyError,
    UnusableModelError,
    WrongSiteError,
)
from appliance.journal import Journal
from appliance.unfinished import drop, unfinished
from bundler.format import envelope
from bundler.format.digest import Digest
from bundler.format.errors import (
    BadSignatureError,
    BundleError,
    ChunkIndexError,
    DamagedError,
    EnvelopeError,
    JsonError,
    LayoutError,
    ManifestError,
    MediumError,
    MissingBlobError,
    ThresholdError,
    UnsignedError,
    UnsupportedError,
    UntrustedKeyError,
)
from bundler.format.index import encode_index, parse_index
from bundler.format.manifest import Artifact, BlobRef, Requires, Segment
from tests.appliance.sites import Desk, make_desk, snapshot
from tests.fakes.forge import (
    SECOND,
    STRANGER,
    TRUSTED,
    Forged,
    flip,
    forge,
    tiny_model,
    trusting,
)

Refused = AppError | BundleError


def refused(
    desk: Desk, directory: Path, error: type[Refused], exit_code: int, **request: Any
) -> Refused:
    """Import and verify refuse alike, and the store is as it was."""
    before = snapshot(desk.store.paths.root)
    caught = outcome(desk, directory, **request)
    assert isinstance(caught, error), caught
    assert caught.exit_code == exit_code
    if unfinished(desk.store.paths):
        assert error in {DamagedError, MissingBlobError}
    give_up(desk)
    assert snapshot(desk.store.paths.root) == before
    try:
        findings = desk.check(directory, **request).findings
    except (AppError, BundleError) as raised:
        findings = (raised,)
    if error not in {NoSpaceError, StoreBusyError}:  # what only a writer can meet
        assert exit_code in {finding.exit_code for finding in findings}
    return caught


def give_up(desk: Desk) -> None:
    """What was right of a damaged bundle waits for the rest of it, seen by nobody."""
    drop(desk.store.paths, unfinished(desk.store.paths))


def outcome(desk: Desk, directory: Path, **request: Any) -> Refused | None:
    """What an import is refused with."""
    try:
        desk.take(directory, **request)
    except (AppError, BundleError) as error:
        return error
    return None


# Step 1


def test_medium_without_a_bundle_is_refused(desk: Desk) -> None:
    (desk.medium / "holiday.jpg").write_bytes(b"\xff\xd8")
    refused(desk, desk.medium, LayoutError, 10)


def test_medium_that_does_not_exist_is_refused(desk: Desk) -> None:
    refused(desk, desk.medium / "nothing", MediumError, 1)


def test_medium_that_is_a_file_is_refused(desk: Desk) -> None:
    (desk.medium / "file").write_bytes(b"?")
    refused(desk, desk.medium / "file", LayoutError, 10)


def test_unfinished_bundle_is_refused(desk: Desk) -> None:
    directory = forge().write(desk.medium)
    (directory / "bundle.dsse.json").unlink()
    refused(desk, desk.medium, LayoutError, 10)


def test_several_bundles_are_refused_until_one_is_named(desk: Desk) -> None:
    forge(seq=1).write(desk.medium)
    newer = forge(seq=2).write(desk.medium)
    refused(desk, desk.medium, SeveralBundlesError, 10)
    assert desk.take(newer).seq == 2


def test_store_that_another_process_writes_is_refused(desk: Desk) -> None:
    directory = forge().write(desk.medium)
    with desk.store.writing(), pytest.raises(StoreBusyError) as caught:
        desk.take(directory)
    assert caught.value.exit_code == 15
    assert str(os.getpid()) in str(caught.value)


# Step 2


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", JsonError),
        (b"\x7fELF" * 100, JsonError),
        (b"[]", JsonError),
        (b"{}", EnvelopeError),
        (b'{"payload":"","payload":""}', JsonError),
        (b"[" * 100_000, JsonError),
        (b"\x00" * (9 << 20), LayoutError),
    ],
    ids=["empty", "junk", "list", "no members", "member twice", "deep", "oversized"],
)
def test_envelope_that_is_none_is_refused(desk: Desk, data: bytes, error: type[Refused]) -> None:
    refused(desk, forge().write(desk.medium, data=data), error, 10)


def test_envelope_that_is_a_link_is_refused(desk: Desk) -> None:
    directory = forge().write(desk.medium)
    envelope = directory / "bundle.dsse.json"
    envelope.rename(desk.medium / "elsewhere")
    envelope.symlink_to(desk.medium / "elsewhere")
    refused(desk, directory, LayoutError, 10)


def test_envelope_that_is_a_pipe_is_refused_and_not_waited_for(desk: Desk) -> None:
    directory = forge().write(desk.medium)
    (directory / "bundle.dsse.json").unlink()
    os.mkfifo(directory / "bundle.dsse.json")
    refused(desk, directory, LayoutError, 10)


# Step 3


def test_unsigned_bundle_is_refused(desk: Desk) -> None:
    refused(desk, forge().signed_by().write(desk.medium), UnsignedError, 11)


def test_bundle_signed_by_a_stranger_is_refused(desk: Desk) -> None:
    refused(desk, forge().signed_by(STRANGER).write(desk.medium), UntrustedKeyError, 11)


def test_bundle_changed_after_signing_is_refused(desk: Desk) -> None:
    honest, other = forge(seq=1), forge(seq=2)
    swapped = other.envelope().split(b'"signatures"')[0] + b'"signatures"'
    data = swapped + honest.envelope().split(b'"signatures"')[1]
    refused(desk, honest.write(desk.medium, data=data), BadSignatureError, 11)


def test_one_signature_of_two_is_refused(tmp_path: Path) -> None:
    desk = make_desk(tmp_path, TRUSTED, SECOND, threshold=2)
    bundle = forge()
    refused(desk, bundle.write(desk.medium), ThresholdError, 11)
    assert desk.carry(bundle.signed_by(TRUSTED, SECOND)).changed


def test_the_site_s_floor_for_signatures_holds_whatever_the_policy_says(desk: Desk) -> None:
    strict = desk.configured(trust__min_threshold=2)
    refused(strict, forge().write(desk.medium), ThresholdError, 11)


def test_signature_of_a_revoked_key_is_refused(tmp_path: Path) -> None:
    from appliance.policyfile import load_policy, save_policy

    desk = make_desk(tmp_path, TRUSTED, SECOND)
    with desk.store.writing():
        policy, _ = load_policy(desk.store.paths.trust).without_key("key 0", revoke=True)
        save_policy(desk.store.paths.trust, policy)
    refused(desk, forge().write(desk.medium), UntrustedKeyError, 11)


def test_site_that_trusts_nobody_refuses_everything(tmp_path: Path) -> None:
    from appliance.policyfile import save_policy
    from appliance.trust import TrustPolicy

    desk = make_desk(tmp_path)
    with desk.store.writing():
        save_policy(desk.store.paths.trust, TrustPolicy())
    refused(desk, forge().write(desk.medium), NobodyTrustedError, 11)


# Step 4


@pytest.mark.parametrize(
    "edit",
    [
        lambda statement: statement["predicate"].pop("totals"),
        lambda statement: statement["predicate"].update(surprise=1),
        lambda statement: statement["predicate"]["bundle"].update(seq=True),
        lambda statement: statement["predicate"]["bundle"].update(seq=-1),
        lambda statement: statement["predicate"]["artifacts"][0].update(size=0),
        lambda statement: statement["predicate"]["models"][0].update(name="../../etc/passwd"),
        lambda statement: statement["predicate"].update(artifacts=[]),
        lambda statement: statement.update(predicateType="something else"),
    ],
    ids=["missing", "unknown", "bool", "negative", "no size", "path", "open closure", "type"],
)
def test_malformed_statement_is_refused(desk: Desk, edit: Callable[[Any], object]) -> None:
    refused(desk, forge().edited(edit).write(desk.medium), ManifestError, 10)


# Step 5


def test_bundle_for_a_newer_reader_is_refused(desk: Desk) -> None:
    bundle = forge().edited(lambda s: s["predicate"]["format"].update(min_reader=2))
    refused(desk, bundle.write(desk.medium), UnsupportedError, 10)


def test_bundle_with_an_unknown_critical_feature_is_refused(desk: Desk) -> None:
    bundle = forge().edited(lambda s: s["predicate"]["format"].update(critical=["teleport"]))
    refused(desk, bundle.write(desk.medium), UnsupportedError, 10)


def test_bundle_for_a_newer_release_is_refused(desk: Desk) -> None:
    bundle = forge().with_manifest(requires=Requires(appliance="0.2.0"))
    refused(desk, bundle.write(desk.medium), UnsupportedError, 10)


def test_bundle_for_an_older_release_comes_in(desk: Desk) -> None:
    bundle = forge().with_manifest(requires=Requires(appliance="0.1.0"))
    assert desk.carry(bundle).changed


def test_bundle_for_another_site_is_refused(desk: Desk) -> None:
    bundle = forge().with_bundle(audience=("site-0007",))
    refused(desk, bundle.write(desk.medium), WrongSiteError, 11)
    assert desk.configured(trust__site="site-0007").carry(bundle).changed


def test_expired_bundle_warns_or_is_refused_as_the_site_says(desk: Desk) -> None:
    bundle = forge().with_bundle(expires="2026-11-21T12:00:00Z")
    strict = desk.configured(trust__expired="refuse")
    refused(strict, bundle.write(desk.medium), ExpiredError, 11)
    assert "2026-11-21" in desk.carry(bundle).warnings[0]


def test_older_bundle_is_refused_unless_its_number_is_typed(desk: Desk) -> None:
    desk.carry(forge({"F32": tiny_model(2)}, seq=42))
    older = forge({"F32": tiny_model(1)}, seq=41).write(desk.medium)
    refused(desk, older, OlderBundleError, 12)
    refused(desk, older, OlderBundleError, 12, allow_rollback="prod:40")
    assert desk.take(older, allow_rollback="prod:41").changed
    # Consent is for one import; the counter has not moved back.
    refused(desk, older, OlderBundleError, 12)


def test_each_channel_counts_for_itself(desk: Desk) -> None:
    desk.carry(forge(seq=42))
    assert desk.carry(forge(channel="lab", seq=1), allow_channel="lab").changed


def test_same_number_with_other_content_is_refused(desk: Desk) -> None:
    desk.carry(forge({"F32": tiny_model(1)}, seq=5))
    other = forge({"F32": tiny_model(2)}, seq=5).write(desk.medium / "second")
    refused(desk, other, SequenceReuseError, 12)


def test_number_that_leaps_ahead_is_refused(desk: Desk) -> None:
    desk.carry(forge(seq=1))
    refused(desk, forge(seq=10_002).write(desk.medium), SequenceJumpError, 12)
    assert desk.carry(forge(seq=10_001)).changed


# Step 6


def test_damaged_index_is_refused(desk: Desk) -> None:
    bundle = forge()
    directory = bundle.write(desk.medium)
    flip(bundle.index_path(desk.medium), 200)
    refused(desk, directory, DamagedError, 10)


def _with_index(bundle: Forged, data: bytes) -> Forged:
    """Another index, honestly signed."""
    old = bundle.manifest.artifacts[0]
    ref = BlobRef(digest=Digest.of(data), size_bytes=len(data))
    artifact = replace(old, index=ref)
    return _resigned(
        bundle.without_file(old.index.digest).with_file(data, named=ref.digest), artifact
    )


def _resigned(bundle: Forged, artifact: Artifact) -> Forged:
    from bundler.format.manifest import sum_totals

    artifacts = (artifact,)
    totals = sum_totals(artifacts, bundle.manifest.blobs)
    return bundle.with_manifest(artifacts=artifacts, totals=totals)


def test_signed_index_that_contradicts_the_statement_is_refused(desk: Desk) -> None:
    bundle = forge()
    index = parse_index(bundle.files[bundle.manifest.artifacts[0].index.digest.hex])
    lie = encode_index(replace(index, file_digest=Digest.of(b"another file")))
    refused(desk, _with_index(bundle, lie).write(desk.medium), ChunkIndexError, 10)


def test_signed_index_that_is_junk_is_refused(desk: Desk) -> None:
    refused(desk, _with_index(forge(), b"junk" * 100).write(desk.medium), ChunkIndexError, 10)


def test_no_room_for_model_and_reserve_is_refused_before_anything_is_copied(desk: Desk) -> None:
    full = desk.configured(store__reserve="900 TiB")
    error = refused(full, forge().write(desk.medium), NoSpaceError, 13)
    assert "900 TiB" in str(error)


# Step 7


def test_missing_segment_is_refused(desk: Desk) -> None:
    bundle = forge()
    directory = bundle.write(desk.medium)
    bundle.segment_path(desk.medium).unlink()
    refused(desk, directory, MissingBlobError, 10)


def test_truncated_segment_is_refused(desk: Desk) -> None:
    bundle = forge()
    directory = bundle.write(desk.medium)
    path = bundle.segment_path(desk.medium)
    path.write_bytes(path.read_bytes()[:-1])
    refused(desk, directory, DamagedError, 10)


def test_longer_segment_is_refused(desk: Desk) -> None:
    bundle = forge()
    directory = bundle.write(desk.medium)
    path = bundle.segment_path(desk.medium)
    path.write_bytes(path.read_bytes() + b"!")
    refused(desk, directory, LayoutError, 10)


@pytest.mark.parametrize("encoding", ["identity", "zstd-frames"])
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_tampered_segment_is_refused(desk: Desk, encoding: Any, place: float) -> None:
    bundle = forge({"F32": tiny_model(5)}, encoding=encoding)
    directory = bundle.write(desk.medium)
    path = bundle.segment_path(desk.medium)
    flip(path, int(path.stat().st_size * place))
    error = refused(desk, directory, DamagedError, 10)
    assert "chunk at" in str(error)


def test_verify_reports_every_damaged_chunk(desk: Desk) -> None:
    bundle = forge()
    directory = bundle.write(desk.medium)
    path = bundle.segment_path(desk.medium)
    for offset in (10, 5_000, 9_000):
        flip(path, offset)
    findings = desk.check(directory).findings
    assert [str(finding).split(":")[0] for finding in findings] == [
        "chunk at 0",
        "chunk at 4096",
        "chunk at 8192",
    ]


def test_second_variant_damaged_leaves_nothing_of_the_first(desk: Desk) -> None:
    bundle = forge({"Q8_0": tiny_model(1), "F32": tiny_model(2)})
    directory = bundle.write(desk.medium)
    flip(bundle.segment_path(desk.medium, artifact=1), 100)
    refused(desk, directory, DamagedError, 10, all_variants=True)


def _lying_digest() -> Forged:
    """Chunks as signed, but the file is not what it is called: poisoning another's blobs."""
    bundle = forge()
    old = bundle.manifest.artifacts[0]
    named = Digest.of(b"a file of somebody else")
    index = parse_index(bundle.files[old.index.digest.hex])
    data = encode_index(replace(index, file_digest=named))
    lie = _with_index(bundle, data)
    artifact = replace(lie.manifest.artifacts[0], digest=named)
    model = bundle.manifest.models[0]
    variant = replace(model.variants[0], artifact=named)
    return _resigned(lie, artifact).with_manifest(models=(replace(model, variants=(variant,)),))


def test_signer_who_calls_a_file_by_another_digest_is_refused(desk: Desk) -> None:
    error = refused(desk, _lying_digest().write(desk.medium), DamagedError, 10)
    assert "another" in str(error)


def _raw(data: bytes) -> Forged:
    """A bundle whose weights are these bytes, described as an honest model's."""
    honest = forge()
    old = honest.manifest.artifacts[0]
    index = parse_index(honest.files[old.index.digest.hex])
    record = replace(
        index.records[0],
        plain_len=len(data),
        stored_len=len(data),
        stored_digest=Digest.of(data).raw,
        plain_digest=Digest.of(data).raw,
    )
    segment = index.segments[0]
    table = replace(segment, digest=Digest.of(data), size_bytes=len(data))
    written = encode_index(
        replace(
            index,
            file_size_bytes=len(data),
            file_digest=Digest.of(data),
            chunk_max_bytes=max(len(data), 4096),
            segments=(table,),
            records=(record,),
        )
    )
    artifact = replace(
        old,
        digest=Digest.of(data),
        size_bytes=len(data),
        index=BlobRef(digest=Digest.of(written), size_bytes=len(written)),
        segments=(Segment(digest=Digest.of(data), size_bytes=len(data)),),
    )
    model = honest.manifest.models[0]
    variant = replace(model.variants[0], artifact=artifact.digest)
    bundle = replace(honest, files={})
    bundle = bundle.with_file(data, named=Digest.of(data))
    bundle = bundle.with_file(written, named=Digest.of(written))
    bundle = bundle.with_manifest(models=(replace(model, variants=(variant,)),))
    return _resigned(bundle, artifact)


def test_signed_file_that_is_no_gguf_is_refused(desk: Desk) -> None:
    error = refused(desk, _raw(b"GGML" + bytes(4000)).write(desk.medium), UnusableModelError, 10)
    assert "at byte 0" in str(error)


def test_signed_file_unlike_its_signed_profile_is_refused(desk: Desk) -> None:
    bundle = _raw(tiny_model(1, "F16"))
    refused(desk, bundle.write(desk.medium), UnusableModelError, 10)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("architecture", "llama4"),
        ("parameter_count", 1),
        ("embedding_length", 1),
        ("context_length", 1),
        ("vocabulary_size", 1),
        ("file_size_bytes", 1),
    ],
)
def test_signed_profile_that_differs_in_one_fact_is_refused(
    desk: Desk, name: str, value: Any
) -> None:
    """The facts of the artifact are true here, so only the profile can tell."""
    bundle = forge().edited(
        lambda s: s["predicate"]["models"][0]["variants"][0]["profile"].update({name: value})
    )
    error = refused(desk, bundle.write(desk.medium), UnusableModelError, 10)
    assert f"{name}: expected {value!r} as signed" in str(error)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tensors", 1),
        ("architecture", "llama4"),
        ("metadata_digest", str(Digest.of(b"another header"))),
    ],
)
def test_signed_facts_that_differ_from_the_header_are_refused(
    desk: Desk, name: str, value: Any
) -> None:
    """The profile is true here, so only the facts of the artifact can tell."""
    bundle = forge().edited(lambda s: s["predicate"]["artifacts"][0]["gguf"].update({name: value}))
    error = refused(desk, bundle.write(desk.medium), UnusableModelError, 10)
    assert "behind the signed header" in str(error)


def test_artifact_without_facts_is_held_to_the_profile_alone(desk: Desk) -> None:
    bundle = forge().edited(lambda s: s["predicate"]["artifacts"][0].update(gguf=None))
    assert desk.take(bundle.write(desk.medium)).changed


def test_signed_profile_of_another_kind_is_refused(desk: Desk) -> None:
    bundle = forge().edited(
        lambda s: s["predicate"]["models"][0]["variants"][0]["profile"].update(block_count="many")
    )
    refused(desk, bundle.write(desk.medium), UnusableModelError, 10)


@pytest.mark.parametrize(
    "layer",
    [("params", b"[1]"), ("params", b"{"), ("messages", b'{"role":1}'), ("template", b"\xff\xfe")],
)
def test_signed_layer_that_makes_no_sense_is_refused(desk: Desk, layer: Any) -> None:
    refused(desk, forge(layers=(layer,)).write(desk.medium), UnusableModelError, 10)


def test_damaged_layer_is_refused(desk: Desk) -> None:
    bundle = forge(layers=(("license", b"MIT"),))
    directory = bundle.write(desk.medium)
    flip(bundle.blob_path(desk.medium, Digest.of(b"MIT")), 0)
    refused(desk, directory, DamagedError, 10)


# All steps


def test_refusals_are_written_to_the_journal(desk: Desk) -> None:
    with pytest.raises(UnsignedError):
        desk.carry(forge().signed_by())
    (event,) = Journal(desk.store.paths.journal).events()
    assert event.kind == "refused"
    assert event.details["error"] == "UnsignedError"
    assert event.details["exit_code"] == 11


def test_installed_model_survives_every_refusal_of_its_successor(desk: Desk) -> None:
    desk.carry(forge({"F32": tiny_model(1)}, seq=1))
    bundle = forge({"F32": tiny_model(2)}, seq=2)
    directory = bundle.write(desk.medium)
    flip(bundle.segment_path(desk.medium), 5_000)
    refused(desk, directory, DamagedError, 10)
    assert desk.store.list()[0].model_path.read_bytes() == tiny_model(1)


@given(data=st.data())
@settings(
    deadline=None,
    max_examples=120,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_changed_byte_of_a_bundle_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("mutation")
    desk = make_desk(folder)
    bundle = forge(encoding="zstd-frames", layers=(("license", b"MIT"),))
    directory = bundle.write(desk.medium)
    path = data.draw(st.sampled_from(sorted(p for p in directory.rglob("*") if p.is_file())))
    offset = data.draw(st.integers(0, path.stat().st_size - 1))
    flip(path, offset, data.draw(st.integers(1, 255)))
    before = snapshot(desk.store.paths.root)
    caught = outcome(desk, directory)
    if caught is None:
        # Only the key id may differ: it is a hint, and every trusted key is tried.
        found = envelope.parse((directory / "bundle.dsse.json").read_bytes())
        honest = envelope.parse(bundle.envelope())
        assert found.payload == honest.payload
        assert [one.signature for one in found.signatures] == [
            one.signature for one in honest.signatures
        ]
        return
    assert caught.exit_code in {10, 11}
    give_up(desk)
    assert snapshot(desk.store.paths.root) == before


def test_the_forge_s_keys_are_what_the_desk_trusts(desk: Desk) -> None:
    from appliance.policyfile import load_policy

    assert load_policy(desk.store.paths.trust).active_keys() == trusting(TRUSTED)
