from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.format.digest import Digest
from bundler.format.errors import BundleError, ManifestError, UnsupportedError
from bundler.format.manifest import (
    BlobRef,
    Evidence,
    Manifest,
    Source,
    encode_manifest,
    identified,
    sum_totals,
)
from bundler.format.name import ModelName
from bundler.format.statement import format_time, parse_manifest, parse_time
from tests.fakes.forge import Forged, forge, tiny_model

HONEST = forge(
    {"Q4_0": tiny_model(1), "F32": tiny_model(2)},
    layers=(("template", b"{{ .Prompt }}"), ("license", b"MIT"), ("license", b"Apache")),
)
DIGEST = "sha256:" + "0" * 64
OTHER = "sha256:" + "f" * 64

Edit = Callable[[dict[str, Any]], object]


def predicate(edit: Edit) -> Forged:
    return HONEST.edited(lambda statement: edit(statement["predicate"]))


def refused(edit: Edit) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(predicate(edit).payload())
    return caught.value


@pytest.mark.parametrize(
    ("edit", "at"),
    [
        (lambda p: p.pop("totals"), "predicate.totals"),
        (lambda p: p.update(more=1), "predicate.more"),
        (lambda p: p["format"].update(version=0), "predicate.format.version"),
        (lambda p: p["format"].update(min_reader=0), "predicate.format.min_reader"),
        (lambda p: p["format"].update(critical=["x"] * 1025), "predicate.format.critical"),
        (lambda p: p["bundle"].update(audience=["x"] * 1025), "predicate.bundle.audience"),
        (
            lambda p: p["requires"].update(objects=[{"digest": DIGEST, "size": 0}]),
            "predicate.requires.objects[0].size",
        ),
        (lambda p: p["models"][0].update(family="a b"), "predicate.models[0].family"),
        (
            lambda p: p["models"][0].update(layers=p["models"][0]["layers"][1:2] * 1025),
            "predicate.models[0].layers",
        ),
        (
            lambda p: p["models"][0]["variants"][0].update(adapters=[DIGEST] * 1025),
            "predicate.models[0].variants[0].adapters",
        ),
        (
            lambda p: p["models"][0]["evidence"].update(
                source={"uri": "u" * 2049, "revision": "", "digest": None}
            ),
            "predicate.models[0].evidence.source.uri",
        ),
        (lambda p: p.update(artifacts=p["artifacts"] * 2049), "predicate.artifacts"),
        (lambda p: p["artifacts"][0]["index"].update(size=0), "predicate.artifacts[0].index.size"),
        (
            lambda p: p["artifacts"][0]["segments"][0].update(volume=0),
            "predicate.artifacts[0].segments[0].volume",
        ),
        (
            lambda p: p["artifacts"][0].update(
                parity={"scheme": "pq-2", "group": 0, "index": {}, "segments": []}
            ),
            "predicate.artifacts[0].parity.group",
        ),
        (
            lambda p: p.update(
                encryption={
                    "scheme": "s",
                    "recipients": [{"site": "s", "kem": "A b", "enc": "", "wrapped": ""}],
                }
            ),
            "predicate.encryption.recipients[0].kem",
        ),
        (lambda p: p["bundle"].update(seq=0), "predicate.bundle.seq"),
        (lambda p: p["bundle"].update(seq=True), "predicate.bundle.seq"),
        (lambda p: p["bundle"].update(seq="1"), "predicate.bundle.seq"),
        (lambda p: p["bundle"].update(channel="Prod"), "predicate.bundle.channel"),
        (lambda p: p["bundle"].update(channel="../x"), "predicate.bundle.channel"),
        (lambda p: p["bundle"].update(kind="partial"), "predicate.bundle.kind"),
        (lambda p: p["bundle"].update(issued="yesterday"), "predicate.bundle.issued"),
        (lambda p: p["bundle"].update(issued="2026-02-30T00:00:00Z"), "predicate.bundle.issued"),
        (lambda p: p["bundle"].update(issued="2026-01-01T00:00:00+01:00"), "bundle.issued"),
        (lambda p: p["bundle"].update(audience=[]), "predicate.bundle.audience"),
        (lambda p: p["bundle"].update(audience=["Site 7"]), "predicate.bundle.audience[0]"),
        (lambda p: p["bundle"].update(notes="a\x1b[31m"), "predicate.bundle.notes"),
        (lambda p: p["bundle"].update(notes="n" * 4097), "predicate.bundle.notes"),
        (lambda p: p["bundle"].update(id="not a uuid"), "predicate.bundle.id"),
        (lambda p: p["bundle"].update(supersedes=[0]), "predicate.bundle.supersedes[0]"),
        (lambda p: p["requires"].update(appliance=">=1"), "predicate.requires.appliance"),
        (lambda p: p["requires"].update(engine="10260"), "predicate.requires.engine"),
        (lambda p: p["models"].clear(), "predicate.artifacts"),
        (lambda p: p["models"].append(p["models"][0]), "predicate.models"),
        (lambda p: p["models"][0].update(name="demo"), "predicate.models[0].name"),
        (lambda p: p["models"][0].update(name="../demo:x"), "predicate.models[0].name"),
        (lambda p: p["models"][0].update(variants=[]), "predicate.models[0].variants"),
        (
            lambda p: p["models"][0]["layers"][0].update(role="weights"),
            "predicate.models[0].layers[0].role",
        ),
        (
            lambda p: p["models"][0]["layers"].append(p["models"][0]["layers"][0]),
            "predicate.models[0].layers",
        ),
        (
            lambda p: p["models"][0]["layers"][0].update(digest=DIGEST),
            "predicate.blobs",
        ),
        (
            lambda p: p["models"][0]["variants"][0].update(id="Q4_0"),
            "predicate.models[0].variants[0].id",
        ),
        (
            lambda p: p["models"][0]["variants"][1].update(id="q4_0"),
            "predicate.models[0].variants",
        ),
        (
            lambda p: p["models"][0]["variants"][0].update(artifact=DIGEST),
            "predicate.artifacts",
        ),
        (
            lambda p: p["models"][0]["variants"][0].update(prefer=1001),
            "predicate.models[0].variants[0].prefer",
        ),
        (
            lambda p: p["models"][0]["variants"][0]["profile"].update(x={"nested": 1}),
            "predicate.models[0].variants[0].profile",
        ),
        (lambda p: p["artifacts"].reverse(), "predicate.artifacts[1].digest"),
        (lambda p: p["artifacts"].append(p["artifacts"][-1]), "predicate.artifacts[2].digest"),
        (lambda p: p["artifacts"][0].update(size=0), "predicate.artifacts[0].size"),
        (lambda p: p["artifacts"][0].update(size=(4 << 40) + 1), "predicate.artifacts[0].size"),
        (lambda p: p["artifacts"][0].update(size=1), "predicate.totals"),
        (lambda p: p["artifacts"][0].update(encoding="gzip"), "predicate.artifacts[0].encoding"),
        (lambda p: p["artifacts"][0].update(segments=[]), "predicate.artifacts[0].segments"),
        (
            lambda p: p["artifacts"][0]["segments"].append(p["artifacts"][0]["segments"][0]),
            "predicate.artifacts[0].segments",
        ),
        (
            lambda p: p["artifacts"][0]["segments"][0].update(size=(4 << 30) - 1),
            "predicate.artifacts[0].segments[0].size",
        ),
        (
            lambda p: p["artifacts"][0].update(index=p["blobs"][0]),
            "predicate.artifacts[0].index",
        ),
        (
            lambda p: p["artifacts"][1].update(
                segments=[p["artifacts"][0]["segments"][0] | {"size": 5}]
            ),
            "predicate.artifacts",
        ),
        (lambda p: p["blobs"].reverse(), "predicate.blobs[1].digest"),
        (lambda p: p["blobs"].append({"digest": OTHER, "size": 1}), "predicate.blobs"),
        (lambda p: p["blobs"][0].update(size=(256 << 20) + 1), "predicate.blobs[0].size"),
        (lambda p: p["totals"].update(stored=1), "predicate.totals"),
        (lambda p: p["builder"].update(reproducible=1), "predicate.builder.reproducible"),
        (lambda p: p.update(extensions=[]), "predicate.extensions"),
    ],
)
def test_a_malformed_statement_is_refused_with_the_path_of_the_field(edit: Edit, at: str) -> None:
    error = refused(edit)
    assert error.at.endswith(at), str(error)
    assert "\n" not in str(error)
    assert error.exit_code == 10


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda s: s.update(predicateType="https://example.org/other"),
        lambda s: s.update(subject=[]),
        lambda s: s["subject"].reverse(),
        lambda s: s["subject"][0]["digest"].update(sha256="0" * 64),
        lambda s: s["subject"][0]["digest"].update(sha512="0" * 128),
        lambda s: s["subject"][0].update(name="other"),
        lambda s: s.update(more=1),
        lambda s: s.update(predicate=[]),
    ],
)
def test_what_is_no_statement_is_refused(edit: Edit) -> None:
    with pytest.raises(ManifestError):
        parse_manifest(HONEST.edited(edit).payload())


@pytest.mark.parametrize(
    "edit",
    [
        lambda p: p["format"].update(min_reader=2),
        lambda p: p["format"].update(critical=["time-travel"]),
        lambda p: p["bundle"].update(kind="delta"),
        lambda p: p["bundle"].update(kind="repair"),
        lambda p: p["bundle"].update(kind="trust"),
        lambda p: p["requires"].update(objects=[{"digest": DIGEST, "size": 1}]),
        lambda p: p.update(rollback={"from_seq": 2, "to_seq": 1}),
        lambda p: p.update(encryption={"scheme": "aes-256-gcm-chunk", "recipients": []}),
        lambda p: p["artifacts"][0].update(encoding="delta"),
        lambda p: p["artifacts"][0].update(media="application/x-safetensors"),
    ],
)
def test_a_feature_of_a_later_release_is_refused_as_unsupported(edit: Edit) -> None:
    with pytest.raises(UnsupportedError):
        parse_manifest(predicate(edit).payload())


def test_a_reserved_kind_without_models_is_unsupported_not_malformed() -> None:
    def edit(p: dict[str, Any]) -> None:
        p["bundle"]["kind"] = "trust"
        p.update(models=[], artifacts=[], blobs=[], totals={"stored": 0, "plain": 0})

    bundle = predicate(edit).edited(lambda statement: statement.update(subject=[]))
    with pytest.raises(UnsupportedError, match="kind trust"):
        parse_manifest(bundle.payload())


@pytest.mark.parametrize(("scheme", "group"), [("pq-3", 64), ("pq-2", 256)])
def test_another_parity_is_refused_as_unsupported(scheme: str, group: int) -> None:
    def add(p: dict[str, Any]) -> None:
        first = p["artifacts"][0]
        index = {"digest": DIGEST, "size": 10}
        segment = {"digest": OTHER, "size": 5, "volume": 2}
        first["parity"] = {"scheme": scheme, "group": group, "index": index, "segments": [segment]}
        p["totals"]["stored"] += 15

    with pytest.raises(UnsupportedError, match="parity"):
        parse_manifest(predicate(add).payload())


def test_a_newer_format_is_refused_as_such_even_when_all_else_is_unknown() -> None:
    statement = HONEST.edited(
        lambda s: s["predicate"].update(format={"version": 2, "min_reader": 2, "critical": []}, x=1)
    )
    with pytest.raises(UnsupportedError, match="version 2"):
        parse_manifest(statement.payload())
    statement = HONEST.edited(lambda s: s.update(predicateType="https://satchel.invalid/bundle/v2"))
    with pytest.raises(UnsupportedError):
        parse_manifest(statement.payload())


def test_extensions_are_kept_and_ignored_unless_critical() -> None:
    manifest = parse_manifest(
        predicate(lambda p: p["extensions"].update(future={"deep": [1]})).payload()
    )
    assert manifest.extensions == {"future": {"deep": [1]}}


def test_a_newer_version_that_old_readers_may_read_is_read() -> None:
    edit = predicate(lambda p: p["format"].update(version=9))
    assert parse_manifest(edit.payload()).format.version == 9


def test_names_that_differ_in_case_only_are_refused() -> None:
    models = HONEST.manifest.models
    twin = replace(models[0], name=ModelName.parse("DEMO"))
    with pytest.raises(ManifestError, match="distinct names"):
        parse_manifest(
            encode_manifest(
                replace(
                    HONEST.manifest,
                    models=(*models, twin),
                    bundle=replace(
                        HONEST.manifest.bundle, id="0" * 8 + "-0000" * 3 + "-" + "0" * 12
                    ),
                )
            )
        )


def test_a_statement_is_read_back_equal() -> None:
    manifest = identified(HONEST.manifest)
    assert parse_manifest(encode_manifest(manifest)) == manifest


def test_every_field_survives_the_round_trip() -> None:
    blob = BlobRef(digest=Digest.of(b"card"), size_bytes=4)
    model = replace(
        HONEST.manifest.models[0],
        licences=("Apache-2.0",),
        version="2026.11",
        modelfile=blob.digest,
        evidence=Evidence(
            mlbom=blob.digest,
            model_card=blob.digest,
            oms=blob.digest,
            slsa=(blob.digest, blob.digest),
            source=Source(uri="hf://a/b", revision="abc", digest=blob.digest),
        ),
    )
    blobs = tuple(sorted((*HONEST.manifest.blobs, blob), key=lambda one: one.digest))
    bundle = replace(
        HONEST.manifest.bundle,
        refresh_by="2027-02-21T00:00:00Z",
        expires="2028-01-01T00:00:00Z",
        audience=("site-7", "site-8"),
        supersedes=(1, 2),
        notes="zwei Zeilen\nund ä",
    )
    manifest = identified(
        replace(
            HONEST.manifest,
            models=(model,),
            blobs=blobs,
            bundle=bundle,
            totals=sum_totals(HONEST.manifest.artifacts, blobs),
            extensions={"note": "x"},
        )
    )
    assert parse_manifest(encode_manifest(manifest)) == manifest


def test_the_id_follows_from_the_content() -> None:
    one = identified(HONEST.manifest)
    assert identified(one) == one
    other = identified(HONEST.with_bundle(seq=2).manifest)
    assert one.bundle.id != other.bundle.id
    assert one.bundle.id[14] == "8"


def test_two_artifacts_may_share_a_segment_which_counts_once() -> None:
    manifest = HONEST.manifest
    first, second = manifest.artifacts
    shared = replace(second, segments=(*second.segments, *first.segments))
    artifacts = (first, shared)
    totals = sum_totals(artifacts, manifest.blobs)
    assert totals == manifest.totals
    changed = identified(replace(manifest, artifacts=artifacts, totals=totals))
    assert parse_manifest(encode_manifest(changed)).artifacts == artifacts


PATHS = st.lists(st.integers(0, 20), min_size=1, max_size=6)
JUNK: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, 0, -1, 2**53 - 1, "", "x", "\x7f", [], {}, DIGEST]
)


@settings(deadline=None, max_examples=300)
@given(PATHS, JUNK, st.sampled_from(["set", "delete", "append"]))
def test_any_field_changed_is_refused_or_reads_back(path: list[int], junk: Any, how: str) -> None:
    """Any member replaced, removed or added anywhere: a refusal, or a statement that is whole."""
    statement = json.loads(HONEST.payload())
    at: Any = statement
    for step in path[:-1]:
        keys = list(at) if isinstance(at, dict) else range(len(at))
        if not keys:
            break
        inner = at[list(keys)[step % len(keys)]]
        if not isinstance(inner, dict | list) or not inner:
            break
        at = inner
    keys = list(at) if isinstance(at, dict) else list(range(len(at)))
    key = keys[path[-1] % len(keys)]
    if how == "append":
        if isinstance(at, dict):
            at["added"] = junk
        else:
            at.append(junk)
    elif how == "delete":
        del at[key]
    else:
        at[key] = junk
    try:
        manifest = parse_manifest(json.dumps(statement).encode())
    except BundleError:
        return
    assert isinstance(manifest, Manifest)
    assert parse_manifest(encode_manifest(manifest)) == manifest


@settings(deadline=None)
@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 1, 1)))  # noqa: DTZ001 - made aware below
def test_times_are_read_back(moment: datetime) -> None:
    aware = moment.replace(microsecond=0, tzinfo=UTC)
    assert parse_time(format_time(aware)) == aware
