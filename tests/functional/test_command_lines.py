"""What all four commands have in common: help, version, the form of errors, and a light start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from appliance import human
from appliance.cli import run
from appliance.config import Config
from appliance.errors import ConfigError
from bundler.cli import make_app as make_bundle_app
from bundler.cli import run as run_bundle
from hwprobe.cli import run as run_probe
from hwprobe.errors import io_sentence
from tests.appliance.sites import trust
from tests.fakes.forge import SECOND, TRUSTED, tiny_model
from tests.functional.live import LiveServer

MAINS = {
    "satchel": "appliance.cli",
    "satchel-bundle": "bundler.cli",
    "satchel-probe": "hwprobe.cli",
    "satchel-server": "server.__main__",
}


def typed(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    code = f"from {MAINS[program]} import main; main()"
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("program", MAINS)
def test_a_wrong_option_is_one_line_a_hint_and_code_two(program: str) -> None:
    done = typed(program, "--nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"{program}: error: ")
    assert "--nonsense" in error
    assert hint == f"{program}: hint: see: {program} --help"


@pytest.mark.parametrize("program", MAINS)
def test_help_and_version_have_short_forms(program: str) -> None:
    short, long = typed(program, "-h"), typed(program, "--help")
    assert short.returncode == long.returncode == 0
    assert short.stdout == long.stdout
    assert not set("╭│╰┌└") & set(long.stdout)
    for word in ("-v", "--version"):
        done = typed(program, word)
        assert (done.returncode, done.stdout.split()[-1]) == (0, "0.1.0")


@pytest.mark.parametrize("word", ["serve", "start", "signin", "signout", "login", "launch"])
def test_verbs_of_ollama_that_mean_nothing_here_say_what_does(
    capsys: pytest.CaptureFixture[str], word: str
) -> None:
    assert run([word]) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith(f"satchel: error: {word}: ")
    assert hint.startswith("satchel: hint: ")


def test_listing_models_starts_without_codecs_and_tools(tmp_path: Path) -> None:
    """What `satchel list` does not need is not imported: it costs half a second on a small CPU."""
    heavy = ("numpy", "prompt_toolkit", "zstandard", "psutil", "hwprobe.engine", "bundler.cli")
    code = (
        "import sys\nfrom appliance.cli import run\n"
        f"code = run(['list', '--store', {str(tmp_path)!r}])\n"
        f"print(code, [name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 []"


def test_the_bundler_s_help_starts_without_codecs_and_tools() -> None:
    """The lines of the help stand in a table, which says what the verbs themselves say."""
    heavy = ("numpy", "zstandard", "cryptography", "rich", "bundler.pack")
    code = (
        "import sys\nfrom bundler.cli import run\n"
        "run(['--help'])\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    *lines, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    verbs = [line.split()[0] for line in lines[lines.index("Commands:") + 1 :] if line[2:3] != " "]
    assert {"keygen", "pack", "sign", "contents", "root"} <= set(verbs)
    for verb in verbs:
        listed = make_bundle_app().registered_commands
        (line,) = (one.help or "" for one in listed if one.name == verb)
        own = typed("satchel-bundle", verb, "--help").stdout
        assert line.split() == " ".join(own.split("\n\n")[1].split()).split()[: len(line.split())]


def test_a_table_fits_eighty_columns_if_it_can() -> None:
    header = ("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL")
    row = (
        "qwen2.5-coder:7b",
        "085a1fdae525",
        "8.0 GB",
        "100% CPU",
        "4096",
        "4 minutes from now",
    )
    assert max(map(len, human.table(header, [row]).splitlines())) > 80
    wide = (row[0] * 4, *row[1:])
    assert human.table(header, [wide], width=80) == human.table(header, [wide])
    narrow = human.table(header, [row], width=80).splitlines()
    assert max(map(len, narrow)) <= 80
    assert [line.split()[0] for line in narrow] == ["NAME", row[0]]
    short = [("a:1", "0" * 12, "1 GB", "100% CPU", "4096", "Forever")]
    assert human.table(header, short, width=80) == human.table(header, short)


def test_what_the_system_says_becomes_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert io_sentence(OSError(2, "No such file or directory", "/x")) == (
        "/x: no such file or directory"
    )
    assert io_sentence(TimeoutError()) == "timeouterror"
    assert run_probe(["fit", "/nowhere.gguf", "--for", "/nowhere"]) in {1, 10}
    err = capsys.readouterr().err
    assert err.startswith("satchel-probe: error: ")
    assert "Errno" not in err


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("[model.llama3.1]\nnum_gpu = 1", '[model."llama3.1"]'),
        ("[model.qwen2.5.1]\nnum_gpu = 1", '[model."qwen2.5.1"]'),
    ],
)
def test_a_name_with_a_dot_wants_quotes(tmp_path: Path, text: str, meant: str) -> None:
    file = tmp_path / "satchel.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="expected a setting, found a table") as caught:
        Config.load(file=file)
    assert meant in caught.value.hint


def test_sizes_are_shown_as_they_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SATCHEL_STORE_RESERVE", "3 GiB")
    assert run(["config", "--store", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert '"3 GiB"' in out
    assert '"64 MiB"' in out


def test_changes_of_trust_are_told_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with LiveServer(tmp_path) as live:
        trust(live.store, TRUSTED, SECOND)
        where = ["--json", "--store", str(live.store.paths.root)]
        assert run(["trust", "threshold", "2", *where]) == 0
        assert json.loads(capsys.readouterr().out) == {"threshold": 2, "keys": 2}
        assert run(["trust", "remove", "key 1", *where]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["label"], told["revoked"]) == ("key 1", False)
        assert run(["stop", "tiny", "--json", "--host", f"127.0.0.1:{live.port}"]) == 0
        assert json.loads(capsys.readouterr().out) == {"stopped": "tiny"}


def test_the_packer_tells_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.gguf").write_bytes(tiny_model(1))
    (tmp_path / "stick").mkdir()
    assert run_bundle(["keygen", "release", "--no-passphrase", "--json"]) == 0
    key = json.loads(capsys.readouterr().out)
    assert (key["encrypted"], key["private_key"].endswith("release.key")) == (False, True)
    words = ["pack", "tiny.gguf", "--name", "demo", "--key", "release.key", "--out", "stick"]
    assert run_bundle([*words, "--json"]) == 0
    packed = json.loads(capsys.readouterr().out)
    assert (packed["seq"], packed["models"][0]["name"]) == (1, "demo:latest")
    assert packed["signed_by"] == [{"key_id": key["key_id"], "words": key["words"]}]
    assert run_bundle(["keygen", "second", "--no-passphrase"]) == 0
    capsys.readouterr()
    assert run_bundle(["sign", "stick", "--key", "second.key", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["signed_by"]) == 2
    assert run_bundle([*words[:4], "--key", "release.pub", "--out", "stick"]) == 1
    err = capsys.readouterr().err
    assert "expected a private key, found a public one" in err
    assert "release.key" in err


def test_a_key_file_is_relative_to_where_it_is_typed(tmp_path: Path) -> None:
    code = (
        "import os; os.chdir(os.sys.argv.pop(1));"
        "from server.arguments import flags, read_arguments;"
        "print(flags(read_arguments(['--api-keys-file', 'keys']))['server.api_keys_file'])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(tmp_path / "keys")
