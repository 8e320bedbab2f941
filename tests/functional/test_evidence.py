"""Papers that travel with a model: a BOM, a card, a signature others can check."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from appliance.cli import run as satchel
from appliance.layout import Paths
from appliance.store import Store
from bundler.cli import run as satchel_bundle
from bundler.keyfiles import make_pair

DEMO_FILE = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"


def write_key(path: Path, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> Path:
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain))
    path.chmod(0o600)
    public = serialization.PublicFormat.SubjectPublicKeyInfo
    path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(encoding, public))
    return path


class Bench:
    """An office, a site, and a stick."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stick = folder / "stick"
        self.stick.mkdir()
        self.store = ["--store", str(folder / "store")]
        make_pair(folder / "office", None)
        assert satchel(["trust", "add", str(folder / "office.pub"), "--yes", *self.store]) == 0

    def pack(self, *words: str) -> int:
        key = str(self.folder / "office.key")
        fixed = [str(DEMO_FILE), "--name", "demo", "--key", key, "--out", str(self.stick)]
        return satchel_bundle(["pack", *fixed, *words])

    def site(self, verb: str, *words: str) -> int:
        return satchel([verb, *words, *self.store])


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1795000000")
    return Bench(tmp_path)


def test_papers_are_carried_shown_exported_and_go_with_the_model(
    bench: Bench, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import model_signing

    key = write_key(tmp_path / "oms.pem", ec.generate_private_key(ec.SECP256R1()))
    card = tmp_path / "card.md"
    card.write_text("# Demo\n")
    words = ("--bom", "--model-card", str(card), "--oms-key", str(key), "--spdx", "MIT")
    assert bench.pack(*words) == 0
    assert bench.site("import", str(bench.stick)) == 0
    capfd.readouterr()
    assert bench.site("show", "demo", "--provenance") == 0
    shown = capfd.readouterr().out
    for text in (
        "bundle       main 1",
        "licence      MIT",
        "bom.cdx.json",
        "oms.sig",
        "model-card",
    ):
        assert text in shown
    assert bench.site("show", "demo", "--provenance", "--json") == 0
    assert json.loads(capfd.readouterr().out)["bundle"]["seq"] == 1
    out = tmp_path / "out"
    out.mkdir()
    assert bench.site("export", "demo", "--as", "gguf", "--out", str(out)) == 0
    assert (out / "demo-latest.model-card").read_text() == "# Demo\n"
    check_bom(json.loads((out / "demo-latest.bom.cdx.json").read_bytes()))
    config: Any = model_signing.verifying.Config()  # type: ignore[no-untyped-call]
    config.use_elliptic_key_verifier(public_key=tmp_path / "oms.pub")
    config.set_ignore_unsigned_files(ignore_unsigned_files=True)
    config.verify(out, out / "demo-latest.oms.sig")
    with (out / "demo-latest.gguf").open("r+b") as file:
        file.write(b"XXXX")
    with pytest.raises(ValueError, match=r"(?i)mismatch|differ|match"):
        config.verify(out, out / "demo-latest.oms.sig")
    assert bench.site("rm", "demo") == 0
    assert not list(Paths(tmp_path / "store").root.glob("satchel/evidence/*"))


def check_bom(bom: dict[str, Any]) -> None:
    """What the schema of CycloneDX 1.6 asks of these members."""
    assert (bom["bomFormat"], bom["specVersion"], bom["version"]) == ("CycloneDX", "1.6", 1)
    number = r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    assert re.fullmatch(number, str(bom["serialNumber"]))
    (component,) = bom["components"]
    assert component["type"] == "machine-learning-model"
    assert component["licenses"] == [{"expression": "MIT"}]
    (found,) = component["hashes"]
    assert (found["alg"], len(found["content"])) == ("SHA-256", 64)
    assert component["pedigree"]["ancestors"][0]["hashes"] == [found]


def test_equal_inputs_make_equal_papers(bench: Bench, tmp_path: Path) -> None:
    key = write_key(tmp_path / "oms.pem", ec.generate_private_key(ec.SECP384R1()))
    words = ("--bom", "--oms-key", str(key), "--seq", "1")
    assert bench.pack(*words) == 0
    first = {path.name: path.read_bytes() for path in bench.stick.rglob("*") if path.is_file()}
    for path in sorted(bench.stick.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert bench.pack(*words) == 0
    second = {path.name: path.read_bytes() for path in bench.stick.rglob("*") if path.is_file()}
    assert first == second


def test_a_signature_over_several_variants_is_refused(
    bench: Bench, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    key = write_key(tmp_path / "oms.pem", ec.generate_private_key(ec.SECP256R1()))
    words = ("--oms-key", str(key), "--quantize", "Q8_0", "--include-source")
    assert bench.pack(*words) == 1
    assert "expected one variant, found 2" in capfd.readouterr().err


def test_a_key_of_another_kind_is_refused(
    bench: Bench, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = write_key(tmp_path / "ed.pem", ed25519.Ed25519PrivateKey.generate())
    assert bench.pack("--oms-key", str(wrong)) == 1
    assert "P-256, P-384 or P-521" in capfd.readouterr().err
    small = write_key(tmp_path / "k1.pem", ec.generate_private_key(ec.SECP224R1()))
    assert bench.pack("--oms-key", str(small)) == 1
    (tmp_path / "no.pem").write_text("no key")
    (tmp_path / "no.pem").chmod(0o600)
    assert bench.pack("--oms-key", str(tmp_path / "no.pem")) == 1


def test_a_model_without_papers_says_so(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    assert bench.pack() == 0
    assert bench.site("import", str(bench.stick)) == 0
    capfd.readouterr()
    assert bench.site("show", "demo", "--provenance") == 0
    out = capfd.readouterr().out
    assert "demo-f16.gguf" in out
    assert "cdx" not in out
    assert Store(Paths(bench.folder / "store")).list()
