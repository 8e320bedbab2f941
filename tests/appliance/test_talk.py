"""run, ps and stop against a server on a real socket that gives prepared answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from appliance.client import Client
from appliance.errors import ServerRefusedError, ServerUnreachableError
from tests.appliance.answering import Answering, answering, asked


def lines(*rows: Mapping[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


LAST = {
    "response": "",
    "done": True,
    "total_duration": 1_500_000_000,
    "load_duration": 0,
    "prompt_eval_count": 26,
    "prompt_eval_duration": 130_000_000,
    "eval_count": 10,
    "eval_duration": 500_000_000,
}
ANSWER = lines(
    {"response": "The sky", "done": False}, {"response": " is blue.", "done": False}, LAST
)


def satchel(
    server: Answering, *arguments: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SATCHEL_", "OLLAMA_"))}
    return subprocess.run(
        [sys.executable, "-P", "-m", "appliance.cli", *arguments],
        env={**kept, "SATCHEL_HOST": server.host, "SATCHEL_API_KEY": "secret"},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


def body(request: bytes) -> Any:
    return json.loads(request.partition(b"\r\n\r\n")[2])


def test_run_prints_the_answer_and_sends_what_was_asked() -> None:
    with asked([(200, ANSWER)]) as server:
        done = satchel(server, "run", "demo", "Why", "blue?", "--keepalive", "5m")
    assert (done.returncode, done.stdout, done.stderr) == (0, "The sky is blue.\n\n", "")
    assert server.requests[0].startswith(b"POST /api/generate HTTP/1.1\r\n")
    assert b"Authorization: Bearer secret\r\n" in server.requests[0]
    assert body(server.requests[0]) == {
        "model": "demo",
        "prompt": "Why blue?",
        "keep_alive": "5m",
    }


def test_piped_text_goes_before_the_arguments() -> None:
    with asked([(200, ANSWER)]) as server:
        satchel(server, "run", "demo", "Sum it up.", stdin="A long text.")
    assert body(server.requests[0])["prompt"] == "A long text. Sum it up."


def test_run_without_a_prompt_loads_the_model() -> None:
    with asked([(200, lines({"done": True, "done_reason": "load"}))]) as server:
        done = satchel(server, "run", "demo")
    assert (done.returncode, done.stdout) == (0, "")


def test_verbose_shows_the_cost_as_ollama_does() -> None:
    with asked([(200, ANSWER)]) as server:
        done = satchel(server, "run", "demo", "hi", "--verbose")
    assert done.stderr.splitlines() == [
        "total duration:       1.5s",
        "prompt eval count:    26 token(s)",
        "prompt eval duration: 130ms",
        "prompt eval rate:     200.00 tokens/s",
        "eval count:           10 token(s)",
        "eval duration:        500ms",
        "eval rate:            20.00 tokens/s",
    ]


def test_thinking_is_marked_and_can_be_hidden() -> None:
    rows = lines({"thinking": "Hm."}, {"response": "Yes."}, LAST)
    with asked([(200, rows), (200, rows)]) as server:
        shown = satchel(server, "run", "demo", "hi").stdout
        hidden = satchel(server, "run", "demo", "hi", "--hidethinking").stdout
    assert shown == "Thinking...\nHm.\n...done thinking.\n\nYes.\n\n"
    assert hidden == "Yes.\n\n"


@pytest.mark.parametrize(
    ("words", "sent"),
    [
        (("--think",), True),
        (("--think=false",), False),
        (("--think", "--verbose"), True),
        (("--think=high",), "high"),
        (("--", "--think"), None),
    ],
)
def test_think_is_sent_as_asked(words: tuple[str, ...], sent: object) -> None:
    with asked([(200, ANSWER)]) as server:
        assert satchel(server, "run", "demo", "hi", *words).returncode == 0
        assert body(server.requests[0]).get("think") == sent


def test_unknown_thinking_level_is_refused_before_anything_is_sent() -> None:
    with asked([]) as server:
        done = satchel(server, "run", "demo", "hi", "--think=much")
    assert done.returncode != 0
    assert "think: expected true, false, low, medium, high, max, found 'much'" in done.stderr


def test_json_prints_the_server_s_own_lines() -> None:
    with asked([(200, ANSWER)]) as server:
        done = satchel(server, "run", "demo", "hi", "--json")
    assert [json.loads(line) for line in done.stdout.splitlines()][-1] == LAST


def test_unknown_model_is_the_server_s_text() -> None:
    with asked([(404, b'{"error":"model \'x:latest\' not found"}')]) as server:
        done = satchel(server, "run", "x", "hi")
    assert done.returncode == 1
    assert done.stderr == "satchel: error: model 'x:latest' not found\n"


def test_error_in_the_middle_of_an_answer_ends_it() -> None:
    rows = lines({"response": "The"}, {"error": "the model's process died"})
    with asked([(200, rows)]) as server:
        done = satchel(server, "run", "demo", "hi")
    assert done.returncode == 1
    assert done.stdout == "The"
    assert done.stderr == "satchel: error: the model's process died\n"


def test_wrong_keepalive_is_a_usage_error() -> None:
    with asked([]) as server:
        done = satchel(server, "run", "demo", "hi", "--keepalive", "300")
    assert done.returncode == 2
    assert 'missing unit in duration "300"' in done.stderr


def test_ps_is_ollama_s_table() -> None:
    soon = time.strftime("%Y-%m-%dT%H:%M:%S.123456789Z", time.gmtime(time.time() + 250))
    rows = {
        "models": [
            {
                "name": "demo:latest",
                "digest": "ab" * 32,
                "size": 1_300_000_000,
                "size_vram": 0,
                "context_length": 4096,
                "expires_at": soon,
            },
            {
                "name": "other:latest",
                "digest": "cd" * 32,
                "size": 100,
                "size_vram": 52,
                "context_length": 8192,
                "expires_at": "2318-01-01T00:00:00.000000001Z",
            },
            {"name": "third", "size": 1, "size_vram": 1, "expires_at": "2020-01-01T00:00:00Z"},
        ]
    }
    with asked([(200, json.dumps(rows).encode())] * 2) as server:
        shown = satchel(server, "ps").stdout.splitlines()
        third = satchel(server, "ps", "TH").stdout.splitlines()
    assert shown[0].split() == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]
    assert re.split(r"\s{2,}", shown[1].strip())[2:] == [
        "1.3 GB", "100% CPU", "4096", "4 minutes from now",
    ]  # fmt: skip
    assert re.search(r"48%/52% CPU/GPU  +8192  +Forever", shown[2])
    assert max(map(len, shown)) <= 80
    assert third[1].rstrip().endswith("Stopping...")


def test_stop_unloads_and_prints_nothing() -> None:
    with asked([(200, b"{}"), (404, b'{"error":"model \'x\' not found"}')]) as server:
        assert satchel(server, "stop", "demo").stdout == ""
        missing = satchel(server, "stop", "x")
    assert body(server.requests[0]) == {"model": "demo", "keep_alive": 0}
    assert missing.stderr == 'satchel: error: couldn\'t find model "x" to stop\n'


def test_remove_unloads_first_and_warns_if_that_fails() -> None:
    with asked([(500, b'{"error":"stuck"}')]) as server:
        done = satchel(server, "rm", "nothing", "--store", "/nonexistent/store")
    assert "unable to stop model 'nothing': stuck" in done.stderr
    assert done.returncode != 0


@pytest.mark.parametrize("answer", [b"", b"<html>", b"\xff"])
def test_answer_that_is_no_json_is_refused(answer: bytes) -> None:
    with answering([(502, answer)]) as address, pytest.raises(ServerRefusedError) as caught:
        Client(address=address).get("/api/version")
    assert caught.value.status == 502


def test_answer_that_breaks_off_is_said() -> None:
    for part in (b"", lines({"response": "The", "done": False})):
        with asked([(200, part)]) as server:
            rows = Client(address=server.address).stream("/api/generate", {})
            with pytest.raises(ServerUnreachableError, match="broke off"):
                list(rows)
    with pytest.raises(ServerUnreachableError):
        Client(address=server.address).get("/api/version")


def test_half_an_answer_is_a_failure() -> None:
    with asked([(200, lines({"response": "The", "done": False}))]) as server:
        done = satchel(server, "run", "demo", "Why")
    assert done.returncode == 1
    assert done.stdout.startswith("The")
    assert "broke off" in done.stderr


@pytest.mark.parametrize("answer", [b"[]", b"5", b"null", b"[" * 100_000])
def test_answer_that_is_no_object_is_refused(answer: bytes) -> None:
    with answering([(200, answer)]) as address, pytest.raises(ServerRefusedError, match="no JSON"):
        Client(address=address).get("/api/ps")


def test_ps_of_a_strange_server_is_shown_without_steering_the_terminal() -> None:
    strange = {"name": "a\x1b]0;x\x07", "size": "big", "size_vram": None, "expires_at": "soon"}
    answers = [{"models": None}, {"models": ["x"]}, {"models": [strange]}]
    with asked([(200, json.dumps(answer).encode()) for answer in answers]) as server:
        shown = [satchel(server, "ps") for _ in answers]
    assert [done.returncode for done in shown] == [0, 0, 0]
    assert "\x1b" not in shown[2].stdout
    assert "a\ufffd]0;x\ufffd" in shown[2].stdout


def test_a_model_that_makes_no_text_gives_a_vector() -> None:
    refused = (400, b'{"error":"\\"m\\" does not support generate"}')
    vector = (200, json.dumps({"embeddings": [[0.25, -1.0]]}).encode())
    with asked([refused, vector, refused, vector]) as server:
        done = satchel(server, "run", "m", "some text")
        empty = satchel(server, "run", "m")
        cut = satchel(server, "run", "m", "text", "--dimensions", "2", "--truncate=false")
    assert (done.returncode, json.loads(done.stdout)) == (0, [0.25, -1.0])
    assert body(server.requests[1]) == {"model": "m", "input": "some text"}
    assert "embedding models require input text" in empty.stderr
    assert empty.returncode != 0
    assert cut.returncode == 0
    assert body(server.requests[3]) == {
        "model": "m",
        "input": "text",
        "truncate": False,
        "dimensions": 2,
    }


def test_an_image_is_sent_to_a_model_that_sees(tmp_path: Path) -> None:
    picture = tmp_path / "a cat.png"
    picture.write_bytes(b"PNG")
    text = f"what is {str(picture).replace(' ', chr(92) + ' ')} ?"
    sees, blind = ({"capabilities": c} for c in (["completion", "vision"], ["completion"]))
    answers = [(200, json.dumps(sees).encode()), (200, ANSWER)]
    answers += [(200, json.dumps(blind).encode()), (200, ANSWER)]
    with asked(answers) as server:
        done = satchel(server, "run", "m", text)
        satchel(server, "run", "m", text)
    assert done.stderr == f"Added image '{picture}'\n"
    assert body(server.requests[1]) == {"model": "m", "prompt": "what is  ?", "images": ["UE5H"]}
    assert body(server.requests[3]) == {"model": "m", "prompt": text}


def test_stop_in_json() -> None:
    with asked([(200, b"{}")]) as server:
        assert json.loads(satchel(server, "stop", "demo", "--json").stdout) == {"stopped": "demo"}
