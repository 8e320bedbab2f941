"""Requests and loads that crash runners, over HTTP, with real processes and scripted deaths."""

from __future__ import annotations

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from appliance.crashes import CrashFolder
from tests.functional.live import LiveServer
from tests.functional.test_life_cycle import eventually

POISON = "xyzzy"
SEGV = {"crash_on": POISON, "crash_signal": int(signal.SIGSEGV), "words": ["w "] * 400}


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], **more}


def records(server: LiveServer) -> list[Any]:
    return [record for _, record in CrashFolder(server.store.paths.crashes).records()]


def test_request_that_crashes_twice_is_refused_for_a_while(tmp_path: Path) -> None:
    with LiveServer(tmp_path, script=SEGV) as server:
        status, answer = server.post("/api/chat", **chat(f"a {POISON} b", stream=False))
        assert (status, len(records(server))) == (500, 2)
        assert "SIGSEGV" in answer["error"]
        connection = server.connect()
        body = json.dumps(chat(f"a {POISON} b", options={"seed": 7, "num_predict": 3}))
        connection.request("POST", "/api/chat", body)
        response = connection.getresponse()
        assert response.status == 503
        assert 500 < int(response.headers["Retry-After"]) <= 600
        assert json.loads(response.read())["error"].startswith("request: held back for ")
        connection.close()
        assert len(records(server)) == 2, "it was not computed a third time"
        assert server.post("/api/chat", **chat("another", stream=False))[0] == 200


WORDS = {"crash_on_words": POISON, "crash_signal": int(signal.SIGSEGV), "words": ["fine"]}


def test_request_whose_tokenization_crashes_is_recorded_and_refused_for_a_while(
    tmp_path: Path,
) -> None:
    with LiveServer(tmp_path, script=WORDS) as server:
        status, answer = server.post("/api/chat", **chat(f"a {POISON} b", stream=False))
        assert (status, len(records(server))) == (500, 2)
        assert "SIGSEGV" in answer["error"]
        assert all(len(record.marks) == 1 for record in records(server))
        again = chat(f"a {POISON} b", stream=False, options={"seed": 7}, keep_alive=60)
        status, answer = server.post("/api/chat", **again)
        assert status == 503
        assert answer["error"].startswith("request: held back for ")
        assert len(records(server)) == 2, "it was not tokenized a third time"
        assert server.post("/api/chat", **chat("another", stream=False))[0] == 200


def test_text_whose_tokenization_alone_crashes_is_refused_for_a_while(tmp_path: Path) -> None:
    with LiveServer(tmp_path, script=WORDS) as server:
        asks: list[tuple[str, dict[str, Any]]] = [
            ("/api/tokenize", {"model": "tiny", "text": f"x {POISON}"}),
            ("/api/chat", chat(f"y {POISON}", _debug_render_only=True)),
            ("/v1/messages/count_tokens", chat(f"z {POISON}")),
        ]
        for number, (path, body) in enumerate(asks):
            assert server.ask("POST", path, body)[0] == 500
            assert len(records(server)) == number + 1
            assert server.ask("POST", path, body)[0] in (503, 529)
            assert len(records(server)) == number + 1


def test_refusal_has_the_dialect_of_the_path(tmp_path: Path) -> None:
    with LiveServer(tmp_path, script=SEGV) as server:
        body = chat(POISON, stream=True)
        assert server.ask("POST", "/v1/chat/completions", body)[0] == 500
        status, data = server.ask("POST", "/v1/chat/completions", body)
        assert status == 503
        assert json.loads(data)["error"]["message"].startswith("request: held back")


def test_innocent_requests_beside_a_poisonous_one_are_answered(tmp_path: Path) -> None:
    with LiveServer(tmp_path, script={**SEGV, "step_s": 0.002}) as server:
        server.post("/api/chat", **chat("", messages=[]))
        begin = threading.Barrier(6)

        def ask(text: str) -> tuple[int, Any]:
            begin.wait()
            return server.post("/api/chat", **chat(text, stream=False, options={"num_predict": 2}))

        texts = ["one", "two", "three", "four", "five", POISON]
        with ThreadPoolExecutor(6) as pool:
            answers = dict(zip(texts, pool.map(ask, texts), strict=True))
        assert answers[POISON][0] == 500
        # Its two crashes may each meet a request; who was met twice is told so, never lost.
        for text in texts[:5]:
            assert answers[text][0] in (200, 500), answers
        for text in texts[:5]:
            status, _ = server.post("/api/chat", **chat(text, stream=False))
            assert status in (200, 503)
        assert server.post("/api/chat", **chat(POISON, stream=False))[0] == 503


def test_record_holds_no_prompt_and_no_answer(tmp_path: Path) -> None:
    script = {**SEGV, "words": ["answerword "] * 9, "last_words": "GGML_ASSERT(x) failed"}
    with LiveServer(tmp_path, script=script) as server:
        server.post("/api/chat", **chat(f"promptword {POISON}", stream=False))
        files = list(server.store.paths.crashes.glob("*.json"))
        assert len(files) == 2
        for path in files:
            text = path.read_text()
            assert "promptword" not in text
            assert "answerword" not in text
            assert POISON not in text
            assert str(tmp_path) not in text
            assert json.loads(text)["log"][-1] == "GGML_ASSERT(x) failed"


def test_model_that_crashes_again_and_again_is_not_loaded_for_a_while(tmp_path: Path) -> None:
    with LiveServer(tmp_path, script={"crash_load": True}) as server:
        for _ in range(3):
            assert server.post("/api/chat", **chat("x"))[0] == 500
        connection = server.connect()
        connection.request("POST", "/api/chat", json.dumps(chat("x")))
        response = connection.getresponse()
        assert response.status == 503
        assert response.headers["Retry-After"] == "1"
        answer = json.loads(response.read())
        connection.close()
        assert answer["error"].startswith("model: not loaded for another 1 s")
        assert records(server)[0].load_held_until
        server.say(words=["fine"])
        eventually(lambda: server.post("/api/chat", **chat("x", stream=False))[0] == 200)


def test_stream_that_has_begun_ends_with_an_error_and_is_not_repeated(tmp_path: Path) -> None:
    script = {"words": ["a ", "b ", "c "], "crash_after_steps": 3, "crash_signal": 11}
    with LiveServer(tmp_path, script=script) as server:
        *_, last = server.lines("/api/chat", **chat("long story"))
        assert "SIGSEGV" in last["error"]
        assert len(records(server)) == 1
        assert server.post("/api/chat", **chat("long story"))[0] == 503, "it was alone"


def test_crash_from_outside_blames_nobody_at_once(tmp_path: Path) -> None:
    script = {"words": ["a ", "b ", "c "], "crash_after_steps": 3}
    with LiveServer(tmp_path, script=script) as server:
        *_, last = server.lines("/api/chat", **chat("story"))
        assert "SIGKILL" in last["error"]
        server.say(words=["fine"])
        assert server.post("/api/chat", **chat("story", stream=False))[0] == 200
