"""Shell completion: what may stand at the cursor, asked as the shells ask it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

import appliance.cli
import bundler.cli
import hwprobe.cli
from appliance.cli import make_app
from appliance.layout import Paths
from appliance.store import Store
from hwprobe.completion import ASK, SHELLS, answer, complete, script, words_of
from tests.appliance.terminals import shell_on_terminal
from tests.functional.live import put_model

PROGRAMS = {"satchel": appliance.cli, "satchel-bundle": bundler.cli, "satchel-probe": hwprobe.cli}
HERE = [shell for shell in SHELLS if shutil.which(shell)]
"""bash is everywhere; the others are used where they are installed."""

NAMES = ["mist:7b", "mist:latest", "site/tiny:v1"]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "store"
    for name in NAMES:
        put_model(Store(Paths(root)), name, tmp_path)
    for name in list(os.environ):
        if name.startswith(("SATCHEL_", "OLLAMA_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SATCHEL_STORE", str(root))
    return root


def asked(line: str, *, breaks: str = "") -> list[str]:
    """The answer to bash's question about a line, without the kind."""
    text = answer(["bash", line, breaks], program="satchel", app_for=lambda _: make_app())
    return text.splitlines()[1:]


@pytest.mark.parametrize(
    ("line", "kind", "some"),
    [
        ("satchel ", "plain", {"import", "list", "run", "completion"}),
        ("satchel li", "plain", {"list"}),
        ("satchel nonsense ", "plain", set()),
        ("satchel list --", "plain", {"--store", "--config", "--json", "--help"}),
        ("satchel list --jsonx", "plain", set()),
        ("satchel import ", "dir", set()),
        ("satchel trust ", "plain", {"add", "pin", "list", "remove", "threshold"}),
        ("satchel trust add ", "file", set()),
        ("satchel trust add key.pub ", "plain", set()),
        ("satchel create -f ", "file", set()),
        ("satchel export --out ", "dir", set()),
        ("satchel export --as ", "plain", {"gguf", "ollama", "oci"}),
        ("satchel export --as=o", "plain", {"--as=ollama", "--as=oci"}),
        ("satchel export --out=", "dir", set()),
        ("satchel run x --think m", "plain", {"medium", "max"}),
        ("satchel completion ", "plain", set(SHELLS)),
        ("satchel completion bash ", "plain", set()),
        ("satchel list -- --", "plain", set()),
        ('satchel "li', "plain", {"list"}),
        ("satchel 'list' --j", "plain", {"--json"}),
        ("FOO=1 /usr/bin/satchel li", "plain", {"list"}),
        ("", "plain", {"import"}),
    ],
)
def test_what_may_stand_at_the_cursor(line: str, kind: str, some: set[str]) -> None:
    text = answer(["bash", line, ""], program="satchel", app_for=lambda _: make_app())
    found, *values = text.splitlines()
    assert found == kind
    assert some <= set(values)
    assert bool(values) == bool(some)


def test_models_of_the_store_are_offered(store: Path, tmp_path: Path) -> None:
    assert asked("satchel show ") == NAMES
    assert asked("satchel rm mist:7b si") == ["site/tiny:v1"]
    assert asked("satchel cp ") == NAMES
    assert asked("satchel cp mist:7b ") == []
    assert asked(f"satchel show --store {tmp_path / 'other'} ") == []
    assert asked(f"satchel show --store={store} mist:7") == ["mist:7b"]


def test_bash_replaces_only_what_stands_behind_a_colon(store: Path) -> None:
    assert store.is_dir()
    assert asked("satchel run mist:", breaks=" \t\n:=") == ["7b", "latest"]
    assert asked("satchel run mist:", breaks=" \t\n") == ["mist:7b", "mist:latest"]
    assert asked("satchel export --as=o", breaks=" =") == ["ollama", "oci"]


def test_what_goes_wrong_completes_to_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "satchel.toml"
    broken.write_text("[nonsense")
    assert asked(f"satchel show --config {broken} ") == []
    assert answer([], program="satchel", app_for=lambda _: make_app()) != ""
    assert script("satchel", "tcsh") == ""


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["list", "--store", "--", "-", "x", "trust", "--as=", "'", "é", ""]))
)
def test_no_line_is_too_strange(words: list[str]) -> None:
    command = typer.main.get_command(make_app())
    for last in ("", "-", "--store=", "m"):
        assert complete(command, words, last).kind in {"plain", "file", "dir"}
    assert words_of("bash", [" ".join(["satchel", *words, "x"]), ""], "satchel")


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("shell", [*SHELLS, "tcsh"])
def test_every_command_prints_its_scripts(
    program: str, shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = PROGRAMS[program].run(["completion", shell])
    out, err = capsys.readouterr()
    if shell == "tcsh":
        assert (code, out) == (2, "")
        assert "expected bash, zsh, fish, found 'tcsh'" in err
        return
    assert code == 0
    assert out == script(program, shell)
    assert program in out
    assert ASK in out
    assert "@" not in out.replace('"$@"', "").replace("(@", "")


@pytest.mark.parametrize(
    ("program", "verb"), [("satchel-bundle", "keygen"), ("satchel-probe", "fit")]
)
def test_the_other_commands_answer_too(
    program: str, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert PROGRAMS[program].run([ASK, "fish", program, verb[:2]]) == 0
    kind, first, *_ = capsys.readouterr().out.splitlines()
    assert (kind, first.split("\t")[0]) == ("plain", verb)
    assert first.split("\t")[1]


def test_the_help_says_of_each_verb_what_the_verb_says() -> None:
    """The texts of verbs that are not loaded are the real ones."""
    named = typer.main.get_command(make_app(()))
    loaded = typer.main.get_command(make_app())
    assert set(named.commands) == set(loaded.commands)  # type: ignore[attr-defined]
    for verb, real in loaded.commands.items():  # type: ignore[attr-defined]
        said = named.commands[verb]  # type: ignore[attr-defined]
        assert said.hidden == real.hidden
        if not real.hidden:
            assert said.get_short_help_str(limit=200) == real.get_short_help_str(limit=200)


def test_neither_help_nor_verbs_load_what_only_one_verb_needs(store: Path) -> None:
    heavy = ("numpy", "cryptography", "http.client", "appliance.cli.talk", "pydantic")
    code = (
        "import sys\nfrom appliance.cli import run\n"
        f"assert run(sys.argv[1:]) == 0\nprint([one for one in {heavy} if one in sys.modules])"
    )
    for words, loaded in [
        (("--help",), "[]"),
        ((ASK, "fish", "satchel", "li"), "[]"),
        ((ASK, "fish", "satchel", "show", "mi"), "['pydantic']"),
    ]:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, *words], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == loaded, words
    assert store.is_dir()


@pytest.fixture
def on_path(tmp_path: Path, store: Path) -> dict[str, str]:
    """An environment in which a shell finds the commands, the store, and nothing of the user's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for program, module in PROGRAMS.items():
        file = folder / program
        file.write_text(f"#!{sys.executable} -P\nimport {module.__name__} as cli\ncli.main()\n")
        file.chmod(0o755)
    return {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "SATCHEL_STORE": str(store),
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }


QUIET = {
    "bash": ["--norc", "--noprofile", "-i"],
    "zsh": ["-f", "-i"],
    "fish": ["--no-config", "-i"],
}
BEFORE = {
    "bash": "PS1='ready> '; bind 'set bell-style none'; source <(satchel completion bash)",
    "zsh": "PS1='ready> '; autoload -Uz compinit; compinit -u -D; source <(satchel completion zsh)",
    "fish": "function fish_prompt; echo 'ready> '; end; satchel completion fish | source",
}


@pytest.mark.parametrize("shell", HERE)
def test_a_real_shell_completes_what_is_typed(shell: str, on_path: dict[str, str]) -> None:
    with shell_on_terminal([shell, *QUIET[shell]], environment=on_path) as screen:
        screen.types(BEFORE[shell])
        screen.types("echo lo''aded")
        screen.waits_for("loaded")
        for typed, completed in [
            ("satchel li", "list"),
            ("satchel show si", "site/tiny:v1"),
            ("satchel show mist:7", "mist:7b"),
        ]:
            screen.presses(f"{typed}\t".encode())
            screen.waits_for(completed)
            screen.presses(b"\x15")  # Ctrl-U empties the line
        screen.types("")
        screen.types("exit")
        assert screen.ends() in {0, 1, 130}


def test_fish_is_told_what_each_word_means(on_path: dict[str, str]) -> None:
    """Fish asks without a terminal, too; without fish the same question is put by hand."""
    text = answer(["fish", "satchel", "cp", "m"], program="satchel", app_for=lambda _: make_app())
    assert text.splitlines() == ["plain", "mist:7b\t", "mist:latest\t"]
    for fish in (one for one in HERE if one == "fish"):
        done = subprocess.run(
            [
                fish,
                "--no-config",
                "-c",
                "satchel completion fish | source; complete -C 'satchel li'",
            ],
            env=on_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines() == ["list\tList the installed models, the newest first."]
