"""Inventory out, delta back, with the programs an operator types and a real model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import run as satchel
from appliance.device import make_device_key
from appliance.layout import Paths
from appliance.store import Store
from bundler.cli import run as satchel_bundle
from bundler.format.envelope import parse
from bundler.format.index import Codec, parse_index
from bundler.format.inventory import read_inventory
from bundler.format.manifest import Manifest
from bundler.format.name import ModelName
from bundler.format.statement import parse_manifest
from bundler.format.volume import find_bundles
from bundler.keyfiles import make_pair
from bundler.quantize import quantize
from tests.fakes.relatives import tuned, with_template

DEMO_FILE = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
DEMO = ModelName.parse("demo")


class Walk:
    """A connected side, a site, and sticks between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(Paths(folder / "store"))
        make_pair(folder / "office", None)
        self.site("trust", "add", str(folder / "office.pub"), "--yes")
        self._sticks = 0

    def site(self, verb: str, *words: str) -> None:
        code = satchel([verb, *words, "--store", str(self.store.paths.root)])
        assert code == 0, (verb, words)

    def pack(self, source: Path, *words: str) -> Path:
        """The stick with the bundle."""
        self._sticks += 1
        stick = self.folder / f"stick-{self._sticks}"
        stick.mkdir()
        key = str(self.folder / "office.key")
        given = [str(source), "--name", "demo", "--key", key, "--out", str(stick), *words]
        assert satchel_bundle(["pack", *given]) == 0
        return stick

    def inventory(self) -> Path:
        path = self.folder / "site.inv"
        self.site("inventory", "--out", str(path))
        return path


def statement(stick: Path) -> Manifest:
    return parse_manifest(parse(find_bundles(stick)[0].read_envelope()).payload)


def codecs(stick: Path) -> set[Codec]:
    (bundle,) = find_bundles(stick)
    return {
        record.codec
        for artifact in statement(stick).artifacts
        for record in parse_index(bundle.read_blob(artifact.index.digest)).records
    }


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Walk:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1795000000")
    return Walk(tmp_path)


def test_a_new_template_costs_little_more_than_itself(walk: Walk) -> None:
    walk.site("import", str(walk.pack(DEMO_FILE)))
    new = with_template(DEMO_FILE, walk.folder / "new.gguf", "{# and more #}")
    stick = walk.pack(new, "--against", str(walk.inventory()))
    manifest = statement(stick)
    assert manifest.bundle.kind == "delta"
    assert manifest.totals.stored_bytes < 0.02 * manifest.totals.plain_bytes
    walk.site("import", str(stick))
    assert walk.store.resolve(DEMO).model_path.read_bytes() == new.read_bytes()


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_a_fine_tune_travels_as_what_changed(walk: Walk, kind: str) -> None:
    base, new = DEMO_FILE, tuned(
        DEMO_FILE, walk.folder / "tuned.gguf", 0.001, lambda name: "attn_q" in name
    )  # fmt: skip
    if kind != "F16":
        for source in (base, new):
            quantize(source, walk.folder / f"{source.stem}-q.gguf", kind, threads=1, advance=_none)
        base, new = walk.folder / f"{base.stem}-q.gguf", walk.folder / f"{new.stem}-q.gguf"
    walk.site("import", str(walk.pack(base)))
    stick = walk.pack(new, "--against", str(walk.inventory()), "--relative", str(base))
    assert codecs(stick) >= {Codec.COPY, Codec.XOR}
    manifest = statement(stick)
    assert manifest.totals.stored_bytes < 0.2 * manifest.totals.plain_bytes
    walk.site("import", str(stick))
    assert walk.store.resolve(DEMO).model_path.read_bytes() == new.read_bytes()


def _none(_: int) -> None:
    """Nobody watches."""


def test_equal_inputs_make_equal_deltas(walk: Walk) -> None:
    walk.site("import", str(walk.pack(DEMO_FILE)))
    new = tuned(DEMO_FILE, walk.folder / "tuned.gguf", 0.01, lambda name: "attn_v" in name)
    inventory = str(walk.inventory())
    words = ("--against", inventory, "--relative", str(DEMO_FILE), "--seq", "2")
    first, second = walk.pack(new, *words), walk.pack(new, *words)
    files = [
        {path.relative_to(stick): path.read_bytes() for path in stick.rglob("*") if path.is_file()}
        for stick in (first, second)
    ]
    assert files[0] == files[1]


def test_a_model_nobody_has_a_relative_of_becomes_a_full_bundle(walk: Walk) -> None:
    stick = walk.pack(DEMO_FILE, "--against", str(walk.inventory()))
    assert statement(stick).bundle.kind == "full"
    walk.site("import", str(stick))


def test_an_inventory_is_signed_and_made_for_one_site(
    walk: Walk, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SATCHEL_SITE", "site-7")
    walk.site("import", str(walk.pack(DEMO_FILE)))
    key = make_device_key(walk.store)
    inventory = walk.inventory()
    assert key.words() in capfd.readouterr().err
    read = read_inventory(inventory.read_bytes())
    assert read.signed_by(key)
    assert b"demo" not in read.envelope.payload
    assert read.inventory.channels == {"main": 1}
    capfd.readouterr()
    walk.site("device")
    (walk.folder / "site.pub").write_text(capfd.readouterr().out)
    new = with_template(DEMO_FILE, walk.folder / "new.gguf", "{# and more #}")
    words = ("--against", str(inventory), "--device", str(walk.folder / "site.pub"))
    assert statement(walk.pack(new, *words)).bundle.audience == ("site-7",)


def _another_key(walk: Walk) -> list[str]:
    make_pair(walk.folder / "other", None)
    return ["--against", str(walk.inventory()), "--device", str(walk.folder / "other.pub")]


def _no_inventory(walk: Walk) -> list[str]:
    (walk.folder / "x.inv").write_text(json.dumps({"payload": ""}))
    return ["--against", str(walk.folder / "x.inv")]


def _strange_relative(walk: Walk) -> list[str]:
    return ["--against", str(walk.inventory()), "--relative", str(DEMO_FILE)]


def _relative_alone(_: Walk) -> list[str]:
    return ["--relative", str(DEMO_FILE)]


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (_another_key, "expected the signature of", 1),
        (_no_inventory, "malformed envelope", 10),
        (_strange_relative, "expected a file that the site holds", 1),
        (_relative_alone, "expected --against", 2),
    ],
)
def test_what_is_no_help_is_refused(
    walk: Walk,
    capfd: pytest.CaptureFixture[str],
    words: Callable[[Walk], list[str]],
    message: str,
    code: int,
) -> None:
    stick = walk.folder / "refused"
    stick.mkdir()
    common: list[Any] = ["pack", DEMO_FILE, "--name", "demo", "--out", stick]
    key = ["--key", walk.folder / "office.key"]
    assert satchel_bundle([str(word) for word in [*common, *key, *words(walk)]]) == code
    assert message in capfd.readouterr().err
    assert list(stick.iterdir()) == []


def test_one_machine_makes_one_device_key(walk: Walk, capfd: pytest.CaptureFixture[str]) -> None:
    store = str(walk.store.paths.root)
    assert satchel(["device", "--store", store]) == 2
    assert "satchel device --make" in capfd.readouterr().err
    walk.site("device", "--make")
    shown = capfd.readouterr().out
    assert satchel(["device", "--make", "--store", store]) == 2
    walk.site("device")
    assert capfd.readouterr().out == shown
    assert walk.store.paths.device_key.stat().st_mode & 0o777 == 0o600
