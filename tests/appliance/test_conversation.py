"""The interactive session: what each line means, and one on a real terminal."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.cli.commands import HELP, State, Step, Want, interpret, unfinished
from appliance.cli.terminal import MAX_ENTRIES, FileHistory
from appliance.cli.wrapping import Wrapping
from tests.appliance.answering import asked
from tests.appliance.terminals import terminal

STATE = State(model="demo")


def told(line: str, state: State = STATE) -> str:
    step = interpret(state, line)
    assert step.want is None
    return step.said


def body(request: bytes) -> Any:
    return json.loads(request.partition(b"\r\n\r\n")[2])


def rows(*rows: Mapping[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/nope", "Unknown command '/nope'. Type /? for help"),
        ("/nope with words", "Unknown command '/nope'. Type /? for help"),
        ("/set nope", "Unknown command '/set nope'. Type /? for help"),
        ("/set quiet please", "Unknown command '/set quiet'. Type /? for help"),
        ("/show nope", "Unknown command '/show nope'. Type /? for help"),
        ("/set format yaml", "Invalid or missing format. Only json is known: /set format json"),
        ("/set think a lot", "Unknown level 'a lot', use one of: low, medium, high, max"),
        ("/set system", "Usage:\n  /set system TEXT"),
        ("/set parameter seed", "Usage:\n  /set parameter NAME VALUE..."),
        ("/set parameter sead 1", "Couldn't set parameter: \"unknown parameter 'sead'\""),
        ("/set parameter seed x", 'Couldn\'t set parameter: "invalid int value [x]"'),
        ("/set parameter numa 1", "Couldn't set parameter: \"unknown parameter 'numa'\""),
        ("/load", "Usage:\n  /load MODEL"),
        ("/save a b", "Usage:\n  /save MODEL"),
    ],
)
def test_what_is_not_understood_changes_nothing(line: str, said: str) -> None:
    assert interpret(STATE, line) == Step(STATE, said)


@pytest.mark.parametrize(
    ("line", "said", "sent"),
    [
        ("/set parameter seed 7", "Set parameter 'seed' to '7'", {"options": {"seed": 7}}),
        (
            "/set parameter stop a b",
            "Set parameter 'stop' to 'a, b'",
            {"options": {"stop": ["a", "b"]}},
        ),
        ("/set format json", "Set format to 'json' mode.", {"format": "json"}),
        ("/set think", "Set 'think' mode.", {"think": True}),
        ("/set think high", "Set 'think' mode to 'high'.", {"think": "high"}),
        ("/set nothink", "Set 'nothink' mode.", {"think": False}),
    ],
)
def test_a_setting_is_sent_with_the_next_message(
    line: str, said: str, sent: Mapping[str, Any]
) -> None:
    step = interpret(STATE, line)

    assert step.said == said
    assert step.state.request() == {"model": "demo", "messages": [], **sent}


def test_later_parameters_replace_earlier_ones_by_name() -> None:
    state = STATE
    for line in ("/set parameter seed 1", "/set parameter top_k 5", "/set parameter seed 2"):
        state = interpret(state, line).state
    assert state.parameters == {"seed": 2, "top_k": 5}


def test_a_system_message_goes_first_and_may_have_several_lines() -> None:
    step = interpret(STATE, '/set system """You are\na pirate."""')
    assert step.said == "Set system message."
    assert step.state.request()["messages"] == [{"role": "system", "content": "You are\na pirate."}]


def test_switches_and_the_way_back() -> None:
    state = STATE
    for line in ("/set verbose", "/set nowordwrap", "/set format json", "/set history"):
        state = interpret(state, line).state
    assert (state.verbose, state.wordwrap, state.format, state.history) == (
        True,
        False,
        "json",
        True,
    )
    for line in ("/set quiet", "/set wordwrap", "/set noformat", "/set nohistory"):
        state = interpret(state, line).state
    assert state == STATE


@pytest.mark.parametrize(
    ("line", "want"),
    [
        ("hello", Want("ask", "hello")),
        ('"""one\ntwo"""', Want("ask", "one\ntwo")),
        ("/tmp/cat.png what is it?", Want("ask", "/tmp/cat.png what is it?")),
        ("/bye", Want("quit")),
        ("/exit", Want("quit")),
        ("/show system", Want("show", "system")),
        ("/load other:v2", Want("load", "other:v2")),
        ("/save mine", Want("save", "mine")),
        ("/list de", Want("list", "de")),
    ],
)
def test_what_is_wanted_of_the_world(line: str, want: Want) -> None:
    assert interpret(STATE, line) == Step(STATE, want=want)


def test_help_has_topics() -> None:
    assert told("/?") == told("/help nope") == HELP
    assert "/set think" in told("/? set")
    assert "/show license" in told("/? /show")
    assert "Ctrl + g" in told("/help shortcuts")


def test_a_session_is_kept_as_a_model() -> None:
    state = State(
        model="demo",
        system="Be brief.",
        parameters={"seed": 7},
        messages=({"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}),
    )
    assert state.saved("mine") == {
        "model": "mine",
        "from": "demo",
        "system": "Be brief.",
        "parameters": {"seed": 7},
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}],
    }


@given(st.text(max_size=60))
def test_every_line_means_something(line: str) -> None:
    step = interpret(STATE, line)
    assert step.said or step.want or not line.strip() or step.state != STATE


@pytest.mark.parametrize(
    ("text", "open_"),
    [
        ('"""a', True),
        ('"""', True),
        ('"""a\nb', True),
        ('"""a"""', False),
        ('""""""', False),
        ("a", False),
        ('say """', False),
        ('/set system """a', True),
        ('/set system """a\nb"""  ', False),
    ],
)
def test_three_quotes_go_on_until_they_are_closed(text: str, open_: bool) -> None:  # noqa: FBT001
    assert unfinished(text) is open_


@given(st.text(st.sampled_from("ab \n\té界"), max_size=120), st.integers(20, 40), st.data())
def test_wrapping_shows_the_same_words_in_lines_that_fit(
    text: str, columns: int, data: st.DataObject
) -> None:
    wrapping, written, rest = Wrapping(columns), "", text
    while rest:
        cut = data.draw(st.integers(1, len(rest)))
        written += wrapping.feed(rest[:cut])
        rest = rest[cut:]
    lines = screen(written)
    assert max(map(cells, lines)) <= columns - 1
    assert "".join("".join(lines).split()) == "".join(text.split())
    for word in text.split():
        if cells(word) <= columns // 2:
            assert any(word in line for line in lines)


def cells(line: str) -> int:
    """Columns a line takes; a tab is four here and at most eight, so those lines are not drawn."""
    return sum(2 if character == "界" else 1 for character in line)


def screen(written: str) -> list[str]:
    """What a terminal shows: it knows line breaks, tabs, going back and erasing to the end."""
    lines: list[list[str]] = [[]]
    while written:
        if written.startswith("\x1b["):
            number, _, written = written[2:].partition("D")
            written = written.removeprefix("\x1b[K")
            left = int(number)
            while left > 0:
                left -= cells(lines[-1].pop())
            assert left == 0
            continue
        character, written = written[0], written[1:]
        if character == "\n":
            lines.append([])
        elif character == "\t":
            at = sum(map(cells, lines[-1]))
            lines[-1].extend(" " * (8 - at % 8))
        else:
            lines[-1].append(character)
    return ["".join(line) for line in lines]


def test_narrow_terminals_and_pipes_are_left_alone() -> None:
    assert Wrapping(0).feed("a " * 100) == "a " * 100
    assert Wrapping(10).feed("a " * 100) == "a " * 100


@given(st.lists(st.text(min_size=1, max_size=20), max_size=5))
def test_history_is_read_back_newest_first(
    tmp_path_factory: pytest.TempPathFactory, typed: list[str]
) -> None:
    path = tmp_path_factory.mktemp("history") / "state" / "history"
    history = FileHistory(path)
    for text in typed:
        history.store_string(text)
    kept = [text.replace("\r", "") for text in typed if text.strip()]
    assert list(FileHistory(path).load_history_strings()) == kept[::-1]


def test_history_is_private_and_limited(tmp_path: Path) -> None:
    history = FileHistory(tmp_path / "history")
    for number in range(MAX_ENTRIES + 5):
        history.store_string(f"line {number}")
    assert stat.S_IMODE((tmp_path / "history").stat().st_mode) == 0o600
    kept = list(history.load_history_strings())
    assert (len(kept), kept[0]) == (MAX_ENTRIES, f"line {MAX_ENTRIES + 4}")


def test_history_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    history = FileHistory(tmp_path / "file" / "history")
    history.store_string("hi")
    assert list(history.load_history_strings()) == []


SHOWN = {
    "capabilities": ["completion"],
    "details": {"family": "llama", "parameter_size": "1M", "quantization_level": "F16"},
    "model_info": {"general.architecture": "llama", "llama.context_length": 512},
    "parameters": "seed                           1",
    "system": "You are kind.",
    "messages": [{"role": "user", "content": "old question"}],
}
FACTS = (200, json.dumps(SHOWN).encode())
DONE = (200, b'{"done":true}')
HELLO = (200, rows({"message": {"content": "Hello."}}, {"done": True}))


def test_a_conversation_on_a_terminal(tmp_path: Path) -> None:
    created = (200, b'{"status":"success"}')
    answers = [FACTS, DONE, HELLO, HELLO, FACTS, FACTS, created]
    missing = (404, b'{"error":"model \'nope\' not found"}')
    tags = (200, json.dumps({"models": [{"name": "demo:latest", "size": 1_300_000_000}]}).encode())
    with asked([*answers, missing, tags]) as server:
        environment = {"SATCHEL_HOST": server.host, "XDG_STATE_HOME": str(tmp_path)}
        with terminal("run", "demo", environment=environment) as screen_:
            screen_.waits_for(">>> old question")
            screen_.waits_for("Send a message (/? for help)")
            screen_.types("hi")
            screen_.waits_for("Hello.")
            screen_.waits_for("Send a message")
            screen_.types('"""two')
            screen_.waits_for("\n...")
            screen_.types('lines"""')
            screen_.waits_for("Hello.")
            for line, answer in (
                ("/?", "Available Commands:"),
                ("/nope", "Unknown command '/nope'"),
                ("/set parameter seed 7", "Set parameter 'seed' to '7'"),
                ("/set system Be brief.", "Set system message."),
                ("/show info", "context length"),
                ("/show system", "Be brief."),
                ("/save mine", "Created new model 'mine'"),
                ("/load nope", "Couldn't find model 'nope'"),
                ("/list", "1.3 GB"),
                ("/clear", "Cleared session context"),
            ):
                screen_.waits_for("Send a message")
                screen_.types(line)
                screen_.waits_for(answer)
            screen_.waits_for("Send a message")
            screen_.presses(b"\x03")
            screen_.waits_for("Use Ctrl + d or /bye to exit.")
            screen_.waits_for("Send a message")
            screen_.presses(b"\x04")
            assert screen_.ends() == 0
    assert body(server.requests[3])["messages"] == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "two\nlines"},
    ]
    assert body(server.requests[6]) == {
        "model": "mine",
        "from": "demo",
        "system": "Be brief.",
        "parameters": {"seed": 7},
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "two\nlines"},
            {"role": "assistant", "content": "Hello."},
        ],
        "stream": False,
    }
    assert list(tmp_path.iterdir()) == []  # nothing typed was kept


def test_history_is_kept_when_it_is_asked_for(tmp_path: Path) -> None:
    with asked([FACTS, DONE, HELLO, FACTS, DONE, HELLO]) as server:
        environment = {
            "SATCHEL_HOST": server.host,
            "XDG_STATE_HOME": str(tmp_path),
            "SATCHEL_HISTORY": "1",
        }
        with terminal("run", "demo", environment=environment) as screen_:
            screen_.waits_for("Send a message")
            screen_.types("first")
            screen_.waits_for("Hello.")
            screen_.waits_for("Send a message")
            screen_.types("/bye")
            assert screen_.ends() == 0
        with terminal("run", "demo", environment=environment) as screen_:
            screen_.waits_for("Send a message")
            screen_.presses(b"\x1b[A\x1b[A\r")  # two lines up, Enter
            screen_.waits_for("Hello.")
            screen_.waits_for("Send a message")
            screen_.presses(b"\x04")
            assert screen_.ends() == 0
    assert body(server.requests[5])["messages"] == [{"role": "user", "content": "first"}]
    assert (tmp_path / "satchel" / "history").read_text() == "first\n/bye\nfirst\n"


def test_an_error_of_the_server_does_not_end_the_session(tmp_path: Path) -> None:
    broken = (500, b'{"error":"the engine fell over"}')
    with asked([FACTS, DONE, broken, HELLO]) as server:
        environment = {"SATCHEL_HOST": server.host, "XDG_STATE_HOME": str(tmp_path)}
        with terminal("run", "demo", environment=environment) as screen_:
            screen_.waits_for("Send a message")
            screen_.types("lost")
            screen_.waits_for("satchel: error: the engine fell over")
            screen_.waits_for("Send a message")
            screen_.types("kept")
            screen_.waits_for("Hello.")
            screen_.waits_for("Send a message")
            screen_.types("/bye")
            assert screen_.ends() == 0
    assert body(server.requests[3])["messages"] == [{"role": "user", "content": "kept"}]
