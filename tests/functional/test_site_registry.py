"""Bundles through a registry of the site's own: published, pulled, refused, resumed."""

from __future__ import annotations

import datetime as dt
import http.server
import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from appliance.cli import run
from appliance.errors import AppError
from appliance.layout import Paths
from appliance.store import Store
from bundler.cli import run as run_bundle
from bundler.format.errors import BundleError, LayoutError
from bundler.format.name import ModelName
from bundler.format.published import (
    ARTIFACT_TYPE,
    ENVELOPE_TYPE,
    FILE_TYPE,
    MANIFEST_TYPE,
    ROOT_TYPE,
    TITLE,
    read_published,
    repository_of,
)
from tests.appliance.sites import trust
from tests.fakes.forge import STRANGER, TRUSTED, forge, tiny_model
from tests.fakes.registry import PROGRAM, Client, Fake, Handler, real_registry, registry

DEMO = ModelName.parse("demo")
LAYERS: list[tuple[Any, bytes]] = [("license", b"MIT"), ("system", b"Be kind.")]


def weights(seq: int) -> dict[str, bytes]:
    """Two variants, others in each bundle."""
    return {"F32": tiny_model(seq), "Q8_0": tiny_model(10 + seq)}


@pytest.fixture(params=["fake", *(["real"] if PROGRAM else [])])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    """A registry; the reference implementation too where it is installed."""
    with registry() if request.param == "fake" else real_registry(tmp_path) as found:
        yield found


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    found = Store(Paths(tmp_path / "store"))
    trust(found, TRUSTED)
    monkeypatch.setenv("SATCHEL_STORE", str(found.paths.root))
    monkeypatch.setenv("SATCHEL_STORE_RESERVE", "0")
    monkeypatch.setenv("SATCHEL_SOURCES", str(tmp_path / "media"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return found


def medium(tmp_path: Path, *, seq: int = 1, stranger: bool = False) -> Path:
    made = tmp_path / f"stick-{seq}"
    forged = forge(weights(seq), seq=seq, layers=LAYERS)
    (forged.signed_by(STRANGER) if stranger else forged).write(made)
    return made


def published(tmp_path: Path, host: str, **more: object) -> None:
    stick = medium(tmp_path, **more)  # type: ignore[arg-type]  # as given
    assert run_bundle(["publish", str(stick), host]) == 0


def pull(host: str, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    monkeypatch.setenv("SATCHEL_REGISTRY", f"http://{host}")
    return run(["pull", "demo", *more])


def test_a_published_bundle_is_pulled_and_trusted_like_one_on_a_stick(
    server: Client, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    published(tmp_path, server.host)
    assert f"published demo:latest as {server.host}/library/demo:latest" in capsys.readouterr().out
    assert pull(server.host, monkeypatch) == 0
    model = store.resolve(DEMO)
    assert model.signed
    assert model.system == "Be kind."
    assert model.model_path.read_bytes() in weights(1).values()
    assert not store.paths.registry.exists()
    assert pull(server.host, monkeypatch) == 0  # up to date
    published(tmp_path, server.host, seq=2)
    assert pull(server.host, monkeypatch, "--json") == 0
    assert store.resolve(DEMO).provenance.seq == 2  # type: ignore[union-attr]


def test_only_what_this_machine_takes_is_brought(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with registry() as fake:
        published(tmp_path, fake.host)
        fake.asked.clear()
        assert pull(fake.host, monkeypatch) == 0
        asked = [line for line in fake.asked if "/blobs/" in line]
    assert len(asked) < len(fake.blobs)
    assert store.resolve(DEMO).model_path.read_bytes() in weights(1).values()


def test_what_nobody_trusted_signed_is_not_brought(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with registry() as fake:
        published(tmp_path, fake.host, stranger=True)
        fake.asked.clear()
        assert pull(fake.host, monkeypatch) == 1
        asked = [line for line in fake.asked if "/blobs/" in line]
    assert "pull model manifest: " in capsys.readouterr().err
    assert len(asked) == 1  # the envelope
    assert store.names() == ()


def test_an_older_bundle_does_not_come_back(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with registry() as fake:
        published(tmp_path, fake.host, seq=2)
        assert pull(fake.host, monkeypatch) == 0
        published(tmp_path, fake.host, seq=1)
        assert pull(fake.host, monkeypatch) == 0  # what is here is up to date
    assert store.resolve(DEMO).provenance.seq == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["ollama", "empty", "nothing"])
def test_what_is_no_bundle_is_refused(
    kind: str, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = {"schemaVersion": 2, "layers": [{"mediaType": "application/vnd.ollama.image.model",
             "digest": "sha256:" + "0" * 64, "size": 3}]}  # fmt: skip
    documents = {"ollama": plain, "empty": []}
    with registry() as fake:
        if kind in documents:
            data = json.dumps(documents[kind]).encode()
            fake.manifests["library/demo@latest"] = (MANIFEST_TYPE, data)
        assert pull(fake.host, monkeypatch) == 1
    err = capsys.readouterr().err
    expected = {
        "ollama": "expected one signed envelope, found none",
        "empty": "expected the manifest of a bundle, found another",
        "nothing": "pull model manifest: file does not exist",
    }
    assert expected[kind] in err
    assert store.names() == ()


def test_a_registry_that_is_down_is_named_and_does_not_stop_what_is_here(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert pull("127.0.0.1:1", monkeypatch) == 1
    assert "refused" in capsys.readouterr().err
    assert run(["import", str(medium(tmp_path))]) == 0
    assert pull("127.0.0.1:1", monkeypatch) == 0
    assert store.resolve(DEMO).signed


def test_bytes_that_are_not_those_that_were_signed_change_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with registry() as fake:
        published(tmp_path, fake.host)
        fake.spoil = True
        assert pull(fake.host, monkeypatch) == 1
        assert store.names() == ()
        fake.spoil = False
        assert pull(fake.host, monkeypatch) == 0


def test_what_broke_off_is_gone_on_with(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with registry() as fake:
        published(tmp_path, fake.host)
        pieces = [data for data in fake.blobs.values() if data.startswith(b"SATIDX1")]
        kept, fake.blobs = (
            fake.blobs,
            {name: data for name, data in fake.blobs.items() if data not in pieces},
        )
        assert pull(fake.host, monkeypatch) == 1
        assert list(store.paths.registry.rglob("bundle.dsse.json"))
        fake.blobs = kept
        fake.asked.clear()
        assert pull(fake.host, monkeypatch) == 0
        assert not store.paths.registry.exists()
    assert store.resolve(DEMO).signed


@contextmanager
def secured(folder: Path) -> Iterator[tuple[Fake, Path, Path]]:
    """A fake registry behind TLS: itself, its certificate, and one of somebody else's."""
    files = []
    for name in ("own", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(
                x509.SubjectAlternativeName(
                    [
                        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
                    ]
                ),
                critical=False,
            )
            .sign(key, hashes.SHA256())
        )
        file = folder / f"{name}.pem"
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        private = folder / f"{name}.key"
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        files.append((file, private))
    (own, key_file), (other, _) = files
    handler = type("OwnHandler", (Handler,), {})
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own, key_file)
    listening.socket = context.wrap_socket(listening.socket, server_side=True)
    fake = Fake(f"127.0.0.1:{listening.server_port}")
    handler.fake = fake  # type: ignore[attr-defined]
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield fake, own, other
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


def test_only_the_sites_own_authority_vouches_for_the_registry(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    stick = medium(tmp_path)
    with secured(tmp_path) as (fake, own, other):
        monkeypatch.setenv("SATCHEL_REGISTRY", f"https://{fake.host}")
        assert run_bundle(["publish", str(stick), fake.host]) == 1  # nobody known vouches for it
        assert run_bundle(["publish", str(stick), fake.host, "--ca", str(own)]) == 0
        for wrong in ("", str(other), str(tmp_path / "own.key"), str(tmp_path / "none")):
            monkeypatch.setenv("SATCHEL_REGISTRY_CA", wrong)
            assert run(["pull", "demo"]) == 1
            assert store.names() == ()
        assert "expected certificates in PEM" in capsys.readouterr().err
        monkeypatch.setenv("SATCHEL_REGISTRY_CA", str(own))
        assert run(["pull", "demo"]) == 0
    assert store.resolve(DEMO).signed


@pytest.mark.parametrize(
    "text", ["registry", "ftp://x", "https://", "https://x/UP", "https://u:p@x"]
)
def test_an_address_that_is_none_is_refused(
    text: str, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SATCHEL_REGISTRY", text)
    assert run(["pull", "demo"]) == 2
    assert "expected https://HOST[:PORT][/PREFIX]" in capsys.readouterr().err
    assert store.names() == ()


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("demo", ("library/demo", "latest")),
        ("team/demo:v1", ("team/demo", "v1")),
        ("hf.co/org/repo:q4", ("hf.co/org/repo", "q4")),
    ],
)
def test_names_have_a_place_in_a_registry(name: str, place: tuple[str, str]) -> None:
    assert repository_of(ModelName.parse(name)) == place


ENVELOPE = {"mediaType": ENVELOPE_TYPE, "digest": "sha256:" + "1" * 64, "size": 9}


def manifest(*layers: object, kind: str = ARTIFACT_TYPE) -> bytes:
    return json.dumps({"artifactType": kind, "layers": list(layers)}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"[]", b"[" * 100_000, manifest(), manifest(ENVELOPE, ENVELOPE),
        manifest(ENVELOPE, kind="other"), manifest({**ENVELOPE, "size": 9 << 20}),
        manifest({**ENVELOPE, "size": True}), manifest({**ENVELOPE, "digest": "sha256:1"}),
        manifest({**ENVELOPE, "mediaType": ROOT_TYPE}), manifest("x"), manifest(7),
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_of_ours_is_refused(data: bytes) -> None:
    with pytest.raises(LayoutError, match="registry: "):
        read_published(data)


def test_roots_count_from_one_and_have_no_gap() -> None:
    roots = [
        {**ENVELOPE, "mediaType": ROOT_TYPE, "annotations": {TITLE: f"root/{n}.root.dsse.json"}}
        for n in (3, 1, 2, 5)
    ]
    away = {**roots[0], "annotations": {TITLE: "../../etc/passwd"}}
    found = read_published(manifest(*roots, away, {"mediaType": FILE_TYPE}, ENVELOPE))
    assert [one.path for one in found] == [
        "bundle.dsse.json", *(f"root/{n}.root.dsse.json" for n in (1, 2, 3))
    ]  # fmt: skip


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda one: (
            st.lists(one)
            | st.dictionaries(
                st.sampled_from(
                    ["layers", "artifactType", "mediaType", "digest", "size", "annotations"]
                ),
                one,
            )
        ),
    )
)
def test_no_manifest_is_more_than_refused(value: object) -> None:
    with pytest.raises((BundleError, AppError)):
        read_published(json.dumps(value).encode())
