"""The commands as an operator types them: output, exit codes, and errors in one form."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.cli import run
from appliance.layout import Paths
from appliance.store import Store
from hwprobe.inventory import take_inventory
from hwprobe.loads import Loads
from hwprobe.machine import Memory
from tests.appliance.answering import asked
from tests.appliance.sites import snapshot
from tests.fakes.forge import SECOND, TRUSTED, flip, forge, tiny_model

ROOT = Path(__file__).resolve().parents[2]
TWO = {"Q8_0": tiny_model(1), "F32": tiny_model(2)}

Satchel = Callable[..., tuple[int, str, str]]


@pytest.fixture
def satchel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Satchel:
    """Runs one command line against a store of its own: exit code, stdout, stderr."""
    for name in list(os.environ):
        if name.startswith(("SATCHEL_", "OLLAMA_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SATCHEL_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("SATCHEL_STORE_RESERVE", "0")
    monkeypatch.setenv("SATCHEL_HOST", "127.0.0.1:1")

    def call(*arguments: object) -> tuple[int, str, str]:
        code = run([str(one) for one in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    (tmp_path / "t.pub").write_text(TRUSTED.public_key.text() + "\n")
    medium = tmp_path / "stick"
    forge(TWO, layers=(("license", b"MIT\n\nline 2\nline 3"), ("params", b'{"stop":["x"]}'))).write(
        medium
    )
    return medium


@pytest.fixture
def installed(satchel: Satchel, stick: Path) -> Path:
    assert satchel("trust", "add", stick.parent / "t.pub")[0] == 0
    assert satchel("import", stick)[0] == 0
    return stick


def test_no_verb_prints_the_help(satchel: Satchel) -> None:
    code, out, _ = satchel()
    assert code == 0
    assert "import" in out


@pytest.mark.parametrize("arguments", [("version",), ("--version",), ("-v",)])
def test_version(satchel: Satchel, arguments: tuple[str, ...]) -> None:
    assert satchel(*arguments)[:2] == (0, "satchel version is 0.1.0\n")


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("list", "--nonsense"), ("show",), ("trust", "threshold", "many")],
)
def test_wrong_usage_ends_with_2_and_our_form(satchel: Satchel, arguments: tuple[str, ...]) -> None:
    code, out, err = satchel(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("satchel: error: ")
    assert err.endswith("satchel: hint: see: satchel --help\n")


@pytest.mark.parametrize("verb", ["show", "rm", "cp"])
def test_name_that_is_none_is_a_usage_error(satchel: Satchel, verb: str) -> None:
    arguments = (verb, "../x", "y") if verb == "cp" else (verb, "../x")
    code, _, err = satchel(*arguments)
    assert code == 2
    assert "model name" in err


def test_import_without_a_trusted_key_says_what_to_do(satchel: Satchel, stick: Path) -> None:
    code, out, err = satchel("import", stick)
    assert (code, out) == (11, "")
    assert err == (
        "satchel: error: no key is trusted here yet\n"
        "satchel: hint: compare the key's words with its owner, then: satchel trust add KEY.pub\n"
    )


def test_import_explains_itself_on_one_screen(satchel: Satchel, stick: Path) -> None:
    satchel("trust", "add", stick.parent / "t.pub", "--label", "release key")
    code, out, err = satchel("import", stick)
    assert code == 0
    assert "signed by release key" in err
    assert "Chosen" in err
    assert "installs f32" in err
    assert "importing " in err
    assert len(err.splitlines()) < 24
    assert out.startswith("installed demo:latest (f32, ")
    assert out.endswith("receipt 000001 written\n")
    assert satchel("import", stick)[1].startswith("already installed demo:latest")


def test_import_prints_its_receipt_as_json(satchel: Satchel, stick: Path) -> None:
    satchel("trust", "add", stick.parent / "t.pub")
    code, out, err = satchel("import", stick, "--all", "--json")
    receipt = json.loads(out)
    assert (code, err) == (0, "")
    assert [entry["name"] for entry in receipt["installed"]] == ["demo:latest", "demo:q8_0"]
    assert receipt["signed_by"] == {TRUSTED.public_key.key_id: "t"}


def test_variant_and_all_exclude_each_other(satchel: Satchel, stick: Path) -> None:
    assert satchel("import", stick, "--all", "--variant", "f32")[0] == 2


def test_verify_reports_all_findings_and_writes_nothing(
    satchel: Satchel, stick: Path, tmp_path: Path
) -> None:
    satchel("trust", "add", stick.parent / "t.pub")
    before = snapshot(tmp_path / "store")
    code, out, _ = satchel("verify", stick)
    assert code == 0
    assert "nothing was written" in out
    bundle = forge(TWO)
    for artifact in (0, 1):
        flip(bundle.segment_path(stick, artifact=artifact), 50)
    code, out, err = satchel("verify", stick)
    assert (code, out) == (10, "")
    assert err.count("satchel: error: chunk at 0") == 2
    code, out, err = satchel("verify", stick, "--json")
    assert (code, err) == (10, "")
    assert [finding["error"] for finding in json.loads(out)["findings"]] == ["DamagedError"] * 2
    assert snapshot(tmp_path / "store") == before


@pytest.mark.usefixtures("installed")
def test_list_is_ollama_s_table(satchel: Satchel) -> None:
    code, out, _ = satchel("list")
    header, row = out.splitlines()
    assert code == 0
    assert header == "NAME           ID              SIZE     MODIFIED                  "
    model = json.loads(satchel("ls", "--json")[1])["models"][0]
    assert row.startswith(f"demo:latest    {model['digest'][:12]}    40 KB    ")
    assert row.rstrip().endswith(" ago")
    assert satchel("list", "DEM")[1] == out
    assert satchel("list", "other")[1] == "NAME    ID    SIZE    MODIFIED    \n"


@pytest.mark.usefixtures("installed")
def test_damaged_model_is_a_warning_in_the_list(satchel: Satchel, tmp_path: Path) -> None:
    reference = tmp_path / "store/manifests/registry.ollama.ai/library/demo/latest"
    reference.write_bytes(b"{")
    code, out, err = satchel("list")
    assert code == 0
    assert out.count("\n") == 1
    assert err.startswith(f"satchel: warning: {reference}: ")
    assert satchel("show", "demo")[0] == 15
    assert satchel("rm", "demo")[0] == 0


@pytest.mark.usefixtures("installed")
def test_show_is_ollama_s_blocks(satchel: Satchel) -> None:
    lines = [line.rstrip() for line in satchel("show", "demo")[1].splitlines()]
    assert lines[:3] == [
        "  Model",
        "    architecture        llama",
        "    parameters          10K",
    ]
    assert "    quantization        F32" in lines
    at = lines.index("  Parameters")
    assert lines[at + 1] == '    stop    "x"'
    at = lines.index("  License")
    assert lines[at + 1 : at + 4] == ["    MIT", "    line 2", "    ..."]
    assert "    channel      prod" in lines


@pytest.mark.usefixtures("installed")
def test_show_prints_one_part_when_asked(satchel: Satchel) -> None:
    assert satchel("show", "demo", "--license")[1] == "MIT\n\nline 2\nline 3\n"
    assert satchel("show", "demo", "--parameters")[1] == f'{"stop":<30} "x"\n'
    assert satchel("show", "demo", "--system")[1] == "\n"
    written = satchel("show", "demo", "--modelfile")[1]
    assert written.startswith('# Modelfile generated by "satchel show"\n')
    assert "\nPARAMETER stop x\n" in written
    assert satchel("show", "demo", "--license", "--system")[0] == 2
    verbose = satchel("show", "demo", "--verbose")[1]
    assert "  Metadata\n" in verbose
    assert "token_embd.weight" in verbose
    assert json.loads(satchel("show", "demo", "--json")[1])["profile"]["block_count"] == 1


def test_unknown_model_is_said_in_ollama_s_words(satchel: Satchel) -> None:
    for verb in (("show", "x"), ("rm", "x"), ("cp", "x", "y")):
        assert satchel(*verb) == (1, "", "satchel: error: model 'x:latest' not found\n")


@pytest.mark.usefixtures("installed")
def test_copy_and_remove_say_what_they_did(satchel: Satchel) -> None:
    assert satchel("cp", "demo", "mine:v1")[1] == "copied 'demo' to 'mine:v1'\n"
    assert satchel("rm", "demo", "mine:v1")[1] == "deleted 'demo'\ndeleted 'mine:v1'\n"
    assert satchel("list")[1] == "NAME    ID    SIZE    MODIFIED    \n"


def test_rollback_needs_its_number_typed(satchel: Satchel, installed: Path) -> None:
    newer = forge(TWO, seq=9).write(installed.parent / "newer")
    assert satchel("import", newer)[0] == 0
    code, _, err = satchel("import", installed)
    assert code == 12
    assert "--allow-rollback prod:1" in err
    assert satchel("import", installed, "--allow-rollback", "prod:1")[0] == 0


def test_trust_verbs(satchel: Satchel, tmp_path: Path) -> None:
    first, second = tmp_path / "first.pub", tmp_path / "second.pub"
    first.write_text(TRUSTED.public_key.text())
    second.write_text(SECOND.public_key.pem())
    code, out, _ = satchel("trust", "add", first)
    assert code == 0
    assert f"words: {TRUSTED.public_key.words()}" in out
    assert satchel("trust", "add", first)[1].startswith("trusted already")
    assert satchel("trust", "threshold", "2")[0] == 2
    satchel("trust", "add", second, "--label", "other")
    assert satchel("trust", "threshold", "2")[1] == "threshold 2 of 2\n"
    listed = json.loads(satchel("trust", "list", "--json")[1])
    assert [key["label"] for key in listed["keys"]] == ["first", "other"]
    code, out, err = satchel("trust", "remove", "other", "--revoke")
    assert out.startswith("revoked other: ")
    assert "no bundle can come in" in err
    assert satchel("trust", "add", second)[0] == 11
    assert "revoked" in satchel("trust", "list")[1]


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xfe", b"ed25519:AAAA", b"-----BEGIN PRIVATE KEY-----"]
)
def test_file_that_is_no_public_key_is_refused(
    satchel: Satchel, tmp_path: Path, data: bytes
) -> None:
    (tmp_path / "k.pub").write_bytes(data)
    assert satchel("trust", "add", tmp_path / "k.pub")[0] in {1, 2}
    assert satchel("trust", "add", tmp_path / "nothing.pub")[0] == 10


def test_config_shows_values_and_where_they_come_from(satchel: Satchel, tmp_path: Path) -> None:
    file = tmp_path / "satchel.toml"
    file.write_text('[server]\nkeep_alive = "90s"\n[model.demo]\nnum_gpu = 0\n')
    code, out, _ = satchel("config", "--config", file)
    lines = {line.split(" ")[0]: line for line in out.splitlines()}
    assert code == 0
    assert lines["server.keep_alive"].split() == [
        *("server.keep_alive", "=", "1m30s", "#", str(file))
    ]
    assert lines["store.path"].endswith("# SATCHEL_STORE")
    assert 'model."registry.ollama.ai/library/demo:latest".num_gpu = 0' in out
    answer = json.loads(satchel("config", "--config", file, "--json")[1])
    assert answer["settings"]["server.port"] == {"value": 1, "source": "SATCHEL_HOST"}
    file.write_text("[server]\nprot = 1\n")
    code, _, err = satchel("config", "--config", file)
    assert code == 2
    assert "satchel: hint: did you mean server.port?" in err


@pytest.mark.usefixtures("installed")
def test_health_uses_the_codes_of_monitoring(satchel: Satchel) -> None:
    code, out, _ = satchel("health", "--store-only")
    assert (code, out[:16]) == (0, "SATCHEL OK: stor")
    code, out, _ = satchel("health")
    assert code == 2
    assert "could not connect" in out
    with asked([(200, b'{"version":"0.33.0"}')]) as server:
        code, out, _ = satchel("health", "--host", server.host)
    assert code == 0
    assert "server: ready" in out
    satchel("rm", "demo")
    assert satchel("health", "--store-only")[0] == 1
    code, out, _ = satchel("health", "--config", "/nothing")
    assert code == 3
    checks = json.loads(satchel("health", "--store-only", "--json")[1])
    assert checks["level"] == "warning"


@pytest.mark.parametrize("verb", [("run", "demo", "hi"), ("ps",), ("stop", "demo")])
def test_no_server_is_said_with_a_hint(satchel: Satchel, verb: tuple[str, ...]) -> None:
    code, out, err = satchel(*verb)
    assert (code, out) == (1, "")
    assert err == (
        "satchel: error: could not connect to the satchel server, is satchel-server running?\n"
        "satchel: hint: looked at 127.0.0.1:1\n"
    )


def test_store_that_cannot_be_read_is_one_line_and_a_hint(satchel: Satchel, tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"")
    code, out, err = satchel("list")
    assert (code, out) == (15, "")
    assert err.count("\n") == 2


def test_interrupted_import_ends_with_130_and_keeps_what_it_has(tmp_path: Path) -> None:
    """An import can be over before the signal arrives; then the next one is tried."""
    weights = (ROOT / "tests/demo-model/demo-f16.gguf").read_bytes()
    (tmp_path / "t.pub").write_text(TRUSTED.public_key.text())
    bundle = forge({"F16": weights}, encoding="zstd-frames", chunk_bytes=65536).write(tmp_path)
    for attempt in range(20):
        store = tmp_path / f"store-{attempt}"
        code, err = interrupted_import(bundle, store, tmp_path / "t.pub")
        if code != 0:
            break
    assert (code, err.splitlines()[-1]) == (130, "satchel: error: interrupted")
    assert Store(Paths(store)).survey().faults == ()


def interrupted_import(bundle: Path, store: Path, key: Path) -> tuple[int, str]:
    environment = {**os.environ, "SATCHEL_STORE": str(store)}
    command = [sys.executable, "-P", "-m", "appliance.cli"]
    subprocess.run([*command, "trust", "add", str(key)], env=environment, check=True)
    process = subprocess.Popen(
        [*command, "import", str(bundle)], env=environment, stderr=subprocess.PIPE, text=True
    )
    staging = store / "satchel/staging"
    while process.poll() is None and not list(staging.glob("*.part")):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_output_into_a_pipe_that_closes_is_no_trace(tmp_path: Path) -> None:
    command = f"{sys.executable} -P -m appliance.cli config | true"
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "SATCHEL_STORE": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert done.stderr == b""


def test_key_with_other_words_than_its_owner_read_out_is_not_added(
    satchel: Satchel, tmp_path: Path
) -> None:
    key = tmp_path / "t.pub"
    key.write_text(TRUSTED.public_key.text())
    code, out, err = satchel("trust", "add", str(key), "--words", "some-other-words")
    assert (code, out) == (2, "")
    assert "words: expected some-other-words, found " in err
    assert "threshold 1 of 0" in satchel("trust", "list")[1]
    words = TRUSTED.public_key.words()
    assert satchel("trust", "add", str(key), "--words", words.upper())[0] == 0
    assert words in satchel("trust", "list")[1]


@pytest.mark.parametrize("text", ["foo", "main:", "main:0", "main:7x", ":7"])
def test_malformed_consent_to_a_rollback_is_a_usage_error(satchel: Satchel, text: str) -> None:
    code, _, err = satchel("import", "/nowhere", "--allow-rollback", text)
    assert code == 2
    assert "allow-rollback: expected CHANNEL:SEQ such as main:7" in err


@pytest.mark.usefixtures("installed")
def test_placement_is_one_screen_whose_numbers_add_up(satchel: Satchel) -> None:
    code, out, _ = satchel("show", "demo", "--placement")
    assert code == 0
    labels = [line.split(" ")[0] for line in out.splitlines() if not line.startswith(" ")]
    assert labels[:3] == ["Machine", "Chosen", "Memory"]
    assert {"Why", "Speed"} <= set(labels)
    assert len(out.splitlines()) < 25
    code, out, _ = satchel("show", "demo", "--placement", "--json")
    assert code == 0
    found = json.loads(out)
    for pool, terms in found["estimate"]["pools"].items():
        assert sum(size for name, size in terms.items() if name != "total") == terms["total"]
        assert terms["total"] <= found["budgets"][pool]
    assert found["speed"] is None
    assert found["last_load"] is None


@pytest.mark.usefixtures("installed")
def test_placement_tells_what_the_last_load_held(satchel: Satchel) -> None:
    store = Path(os.environ["SATCHEL_STORE"])
    record = {
        "time": "2026-11-25T12:00:00Z",
        "model": "demo:latest",
        "private_measured_bytes": 3 << 20,
        "private_predicted_bytes": 4 << 20,
        "steps": ["1 slot(s)"],
    }
    loads = Loads(Paths(store).engine, identity="b")
    loads.keep({**record, "model": "other:latest"})
    loads.keep(record)
    out = satchel("show", "demo", "--placement")[1]
    assert "held 3.00 MiB for itself, 4.00 MiB were predicted" in out
    assert "memory was short: 1 slot(s)" in out


@pytest.mark.usefixtures("installed")
def test_placement_of_a_model_that_does_not_fit_says_what_is_missing(
    satchel: Satchel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's context is beyond what any machine has."""
    small = replace(take_inventory(ask_driver=False), memory=Memory(total_bytes=1, page_bytes=4096))
    monkeypatch.setattr("appliance.placing.this_machine", lambda _: small)
    code, out, err = satchel("show", "demo", "--placement")
    assert code == 14
    assert out == ""
    assert "usable" in err
    assert "hint: " in err
    assert satchel("show", "demo", "--placement", "--system")[0] == 2
