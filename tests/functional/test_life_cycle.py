"""Loading, leaving, crashing, crowding: the server with real sockets and real runner processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bundler.format.name import ModelName
from server.access import parse_keys
from server.errors import ServerError
from server.listener import bind, bind_unix, inherited_sockets, threads_needed
from tests.functional.live import THINKING_TEMPLATE, TOOLS_TEMPLATE, LiveServer, put_model

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = {"model": "tiny", "messages": MESSAGES}
LONG = {"words": ["w "] * 20_000, "step_s": 0.005}
SECRET_DIGEST = "sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"


def eventually(holds: Callable[[], object]) -> None:
    """Wait for something another thread or process is about to do."""
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.01)
    pytest.fail("it did not come to that within ten seconds")


def in_flight(server: LiveServer) -> int:
    return sum(model.in_flight for model in server.scheduler.loaded())


def post_raw(server: LiveServer, path: str, body: dict[str, Any]) -> socket.socket:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    return server.raw(head.encode() + data)


def ps(server: LiveServer) -> list[Any]:
    _, data = server.ask("GET", "/api/ps")
    models: list[Any] = json.loads(data)["models"]
    return models


def test_ps_shows_what_is_in_memory(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as server:
        assert server.ask("GET", "/api/ps") == (200, b'{"models":[]}')
        server.post("/api/chat", model="tiny", messages=[], keep_alive="1h")
        (model,) = ps(server)
        assert model["name"] == model["model"] == "tiny:latest"
        assert model["size"] > 0
        assert model["size_vram"] == 0
        assert model["context_length"] == 512
        assert len(model["digest"]) == 64
        assert model["details"]["family"] == "llama"
        year = time.localtime().tm_year
        assert int(model["expires_at"][:4]) in {year, year + 1}
        server.post("/api/chat", model="tiny", messages=[], keep_alive=-1)
        (model,) = ps(server)
        assert int(model["expires_at"][:4]) >= year + 292


def test_replaced_model_is_not_shown_for_the_one_in_memory(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as server:
        server.post("/api/chat", model="tiny", messages=[])
        put_model(server.store, "tiny", tmp_path, header={"general.basename": "newer"})
        (old,) = ps(server)
        assert (old["name"], old["digest"], old["details"]) == ("tiny:latest", "", {})
        server.post("/api/chat", model="tiny", messages=[])
        shown = sorted(model["digest"] for model in ps(server))
        assert shown == ["", server.store.resolve(ModelName.parse("tiny")).digest.hex]


@pytest.mark.parametrize("keep_alive", [0, "0", "0s", 0.0])
def test_model_unloads_at_once_when_nothing_is_kept(tmp_path: Path, keep_alive: object) -> None:
    with LiveServer(tmp_path) as server:
        server.lines("/api/chat", **CHAT, keep_alive=keep_alive)
        eventually(lambda: not ps(server))


def test_model_unloads_when_its_time_is_over(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as server:
        server.lines("/api/chat", **CHAT, keep_alive="300ms")
        eventually(lambda: not ps(server))


@pytest.mark.parametrize(
    ("path", "body"), [("/api/generate", {"prompt": ""}), ("/api/chat", {"messages": []})]
)
def test_empty_request_that_keeps_nothing_unloads(
    tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    with LiveServer(tmp_path) as server:
        server.lines("/api/chat", **CHAT)
        assert ps(server)
        status, answer = server.post(path, model="Tiny", keep_alive=0, **body)
        assert status == 200
        assert (answer["model"], answer["done"], answer["done_reason"]) == ("Tiny", True, "unload")
        eventually(lambda: not ps(server))
        assert server.post(path, model="tiny", keep_alive=0, **body)[0] == 200


def test_smaller_context_reuses_the_loaded_model(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as server:
        server.lines("/api/chat", **CHAT)
        before = [model.pid for model in server.scheduler.loaded()]
        server.lines("/api/chat", **CHAT, options={"num_ctx": 256})
        assert [model.pid for model in server.scheduler.loaded()] == before


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_client_that_leaves_mid_stream_frees_its_slot(tmp_path: Path, path: str) -> None:
    with LiveServer(tmp_path, script=LONG) as server:
        with post_raw(server, path, {**CHAT, "stream": True}) as sock:
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")
            eventually(lambda: in_flight(server) == 1)
        eventually(lambda: in_flight(server) == 0)


def test_client_that_leaves_a_whole_answer_frees_its_slot(tmp_path: Path) -> None:
    with LiveServer(tmp_path, script=LONG) as server:
        with post_raw(server, "/api/chat", {**CHAT, "stream": False}):
            eventually(lambda: in_flight(server) == 1)
        eventually(lambda: in_flight(server) == 0)


def test_client_that_leaves_during_prefill_frees_its_slot(tmp_path: Path) -> None:
    with LiveServer(tmp_path, script={"hang": True}) as server:
        with post_raw(server, "/api/chat", CHAT):
            eventually(lambda: in_flight(server) == 1)
        eventually(lambda: in_flight(server) == 0)


def test_client_that_leaves_during_the_load_does_not_stop_it(tmp_path: Path) -> None:
    with LiveServer(tmp_path, script={"words": ["x"], "load_s": 0.5}) as server:
        with post_raw(server, "/api/chat", CHAT):
            time.sleep(0.1)
        eventually(lambda: ps(server))
        assert in_flight(server) == 0


def test_crash_mid_stream_is_the_last_line_and_the_next_request_is_served(tmp_path: Path) -> None:
    crash = {"words": ["a ", "b ", "c ", "d "], "crash_after_steps": 3, "last_words": "ASSERT x"}
    with LiveServer(tmp_path, script=crash) as server:
        *parts, last = server.lines("/api/chat", **CHAT)
        assert "".join(part["message"]["content"] for part in parts) == "a b "
        assert set(last) == {"error"}
        assert last["error"].startswith("model runner has unexpectedly stopped")
        assert "SIGKILL: ASSERT x" in last["error"]
        server.say(words=["fine"])
        assert server.lines("/api/chat", **CHAT)[0]["message"]["content"] == "fine"


def test_crash_mid_stream_does_not_tell_where_the_store_lies(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as server:
        path = server.store.resolve(ModelName.parse("tiny")).model_path
        server.say(words=["a ", "b "], crash_after_steps=2, last_words=f"cannot read {path}")
        *_, last = server.lines("/api/chat", **CHAT)
        assert last["error"].endswith(f"cannot read {path.name}")
        assert str(tmp_path) not in last["error"]


def test_crash_mid_stream_is_an_error_event_before_done(tmp_path: Path) -> None:
    with LiveServer(tmp_path, script={"words": ["a ", "b "], "crash_after_steps": 2}) as server:
        _, data = server.ask("POST", "/v1/chat/completions", {**CHAT, "stream": True})
        *events, error, done = data.decode().strip().split("\n\n")
        assert done == "data: [DONE]"
        assert json.loads(error.removeprefix("data: "))["error"]["type"] == "api_error"
        assert json.loads(events[0].removeprefix("data: "))["choices"][0]["delta"]["content"]


def test_crash_in_a_whole_answer_is_a_status(tmp_path: Path) -> None:
    with LiveServer(tmp_path, script={"words": ["a ", "b "], "crash_after_steps": 2}) as server:
        status, answer = server.post("/api/chat", **CHAT, stream=False)
        assert status == 500
        assert answer["error"].startswith("model runner has unexpectedly stopped")


def test_crash_before_the_first_token_is_tried_once_more(tmp_path: Path) -> None:
    """The first runner dies with its first step; the second, started afresh, answers."""
    with LiveServer(tmp_path, script={"words": ["a"], "crash_after_steps": 1}) as server:
        server.post("/api/chat", model="tiny", messages=[])
        server.say(words=["fine"])
        status, answer = server.post("/api/chat", **CHAT, stream=False)
        assert (status, answer["message"]["content"]) == (200, "fine")


def test_second_crash_before_the_first_token_is_told(tmp_path: Path) -> None:
    with LiveServer(tmp_path, script={"words": ["a"], "crash_after_steps": 1}) as server:
        status, answer = server.post("/api/chat", **CHAT)
        assert status == 500
        assert answer["error"].startswith("model runner has unexpectedly stopped")


def test_crash_of_one_model_leaves_the_others_alone(tmp_path: Path) -> None:
    with LiveServer(tmp_path, script=LONG) as server:
        put_model(server.store, "other", tmp_path)
        with post_raw(server, "/api/chat", CHAT) as sock:
            sock.recv(1)
            server.say(words=["fine"])
            assert server.lines("/api/chat", model="other", messages=MESSAGES)
            (other,) = [m for m in server.scheduler.loaded() if m.name == "other:latest"]
            os.kill(other.pid, signal.SIGKILL)
            eventually(lambda: len(ps(server)) == 1)
            assert in_flight(server) == 1
        assert server.lines("/api/chat", model="other", messages=MESSAGES)


def test_load_that_fails_is_told(tmp_path: Path) -> None:
    with LiveServer(tmp_path, script={"fail_load": "unknown tensor type"}) as server:
        status, answer = server.post("/api/chat", **CHAT)
        assert (status, answer["error"]) == (500, "unknown tensor type")
        server.say(words=["fine"])
        assert server.post("/api/chat", **CHAT, stream=False)[0] == 200


def test_model_that_does_not_fit_is_told(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as server:
        header = {"llama.block_count": 500, "llama.context_length": 1 << 30}
        put_model(server.store, "huge", tmp_path, header=header)
        status, answer = server.post(
            "/api/chat", model="huge", messages=MESSAGES, options={"num_ctx": 1 << 30}
        )
        assert status == 507
        assert "no variant fits this machine" in answer["error"]
        assert server.post("/api/chat", **CHAT, stream=False)[0] == 200


def test_sixty_four_clients_at_once_are_all_answered(tmp_path: Path) -> None:
    with LiveServer(tmp_path, script={"words": ["a ", "b ", "c"]}, max_queue=64) as server:

        def ask(number: int) -> str:
            path, key = (("/api/chat", "message"), ("/v1/chat/completions", ""))[number % 2]
            status, answer = server.post(path, **CHAT, stream=False)
            assert status == 200, answer
            message = answer[key] if key else answer["choices"][0]["message"]
            text: str = message["content"]
            return text

        with ThreadPoolExecutor(64) as pool:
            assert set(pool.map(ask, range(64))) == {"a b c"}
        assert in_flight(server) == 0
        assert len(server.scheduler.loaded()) == 1


def test_requests_beyond_the_limit_are_told_to_come_again(tmp_path: Path) -> None:
    script = {"hang": True}
    with (
        LiveServer(tmp_path, script=script, max_in_flight=2, max_queue=1) as server,
        contextlib.ExitStack() as clients,
    ):
        server.post("/api/chat", model="tiny", messages=[])
        socks = [clients.enter_context(post_raw(server, "/api/chat", CHAT)) for _ in range(3)]
        eventually(lambda: in_flight(server) == 3)
        status, answer = server.post("/api/chat", **CHAT)
        assert status == 503
        assert answer["error"] == (
            "server busy, please try again.  maximum pending requests exceeded"
        )
        socks.pop().close()
        eventually(lambda: in_flight(server) == 2)
        with post_raw(server, "/api/chat", CHAT):
            eventually(lambda: in_flight(server) == 3)


def test_probes_are_answered_while_everything_streams(tmp_path: Path) -> None:
    script = {"hang": True}
    with (
        LiveServer(tmp_path, script=script, max_in_flight=2, max_queue=2, admin=True) as server,
        contextlib.ExitStack() as clients,
    ):
        server.post("/api/chat", model="tiny", messages=[])
        for _ in range(4):
            clients.enter_context(post_raw(server, "/api/chat", CHAT))
        eventually(lambda: in_flight(server) == 4)
        for path in ("/healthz", "/readyz", "/api/version", "/"):
            assert server.ask("GET", path)[0] == 200
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(server.admin_path))
            admin.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert b'{"status":"ok"}' in admin.makefile("rb").read()
        assert server.admin_path.stat().st_mode & 0o777 == 0o660
        clients.close()
        eventually(lambda: in_flight(server) == 0)


@pytest.mark.parametrize(("max_in_flight", "max_queue"), [(1, 1), (64, 512), (8, 0)])
def test_two_threads_are_always_to_spare(max_in_flight: int, max_queue: int) -> None:
    needed = threads_needed(max_in_flight=max_in_flight, max_queue=max_queue)
    assert needed == max_in_flight + max_queue + 2


def test_readiness_says_what_is_wrong(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as server:
        assert server.ask("GET", "/readyz") == (200, b'{"status":"ready"}')
        server.not_ready.append("the store is away")
        status, data = server.ask("GET", "/readyz")
        assert status == 503
        assert json.loads(data) == {"status": "not ready", "reasons": ["the store is away"]}
        assert server.ask("GET", "/healthz")[0] == 200


def test_running_answer_finishes_while_the_server_stops(tmp_path: Path) -> None:
    with LiveServer(tmp_path, script={"words": ["w "] * 100, "step_s": 0.01}) as server:
        with post_raw(server, "/api/chat", CHAT) as sock:
            sock.recv(1)
            server.listener.stop()
            answer = sock.makefile("rb").read()
        assert answer.endswith(b"0\r\n\r\n")
        assert b'"done_reason":"stop"' in answer
        eventually(lambda: not accepts(server.port))


def test_answer_that_outlasts_the_drain_ends_with_an_error_line(tmp_path: Path) -> None:
    with LiveServer(tmp_path, script=LONG, drain_s=0.2) as server:
        with post_raw(server, "/api/chat", CHAT) as sock:
            sock.recv(1)
            stopper = threading.Thread(target=server.stop)
            closer = threading.Thread(target=server.scheduler.close, args=(0.1,))
            closer.start()
            stopper.start()
            answer = sock.makefile("rb").read()
            closer.join()
            stopper.join()
        assert b'"error":"model runner has unexpectedly stopped' in answer


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_request_without_a_known_key_is_refused(tmp_path: Path) -> None:
    keys = parse_keys(SECRET_DIGEST, source="keys")
    with LiveServer(tmp_path, keys=keys) as server:
        assert server.ask("GET", "/api/tags") == (401, b'{"error":"unauthorized"}')
        status, data = server.ask("GET", "/v1/models", headers={"Authorization": "Bearer wrong"})
        assert status == 401
        assert json.loads(data)["error"]["type"] == "authentication_error"
        assert server.ask("GET", "/healthz")[0] == 200
        assert server.ask("GET", "/")[0] == 200
        headers = {"Authorization": "Bearer secret"}
        assert server.ask("GET", "/api/tags", headers=headers)[0] == 200


def test_one_line_is_logged_per_request_and_nothing_of_its_body(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with LiveServer(tmp_path, script={"words": ["sesame-answer"]}) as server:
        server.lines("/api/chat", model="tiny", messages=[{"role": "user", "content": "sesame-q"}])
        server.ask("GET", "/nowhere?token=sesame-query")
        eventually(lambda: "/nowhere 404" in caplog.text)
        lines = [r.getMessage() for r in caplog.records if r.name == "satchel.server.requests"]
        assert any(line.startswith("POST /api/chat 200 ") for line in lines)
        assert len(lines) == 2
    assert "sesame" not in caplog.text


def test_thinking_and_tool_calls_are_told_apart(tmp_path: Path) -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {"b": 1, "a": 2}}\n</tool_call>'
    words = ["<thi", "nk>why", "</think>", "\n\nok ", call]
    with LiveServer(tmp_path, script={"words": words}) as server:
        put_model(server.store, "both", tmp_path, template=THINKING_TEMPLATE + TOOLS_TEMPLATE)
        tools = [{"type": "function", "function": {"name": "f"}}]
        body = {"model": "both", "messages": MESSAGES, "tools": tools, "stream": False}
        _, answer = server.post("/api/chat", **body)
        message = answer["message"]
        assert message["thinking"] == "why"
        assert message["content"] == "ok"
        (made,) = message["tool_calls"]
        assert made["id"].startswith("call_")
        assert len(made["id"]) == len("call_") + 8
        assert list(made["function"]["arguments"].items()) == [("b", 1), ("a", 2)]
        _, answer = server.post("/v1/chat/completions", **body)
        choice = answer["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["reasoning"] == "why"
        assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {
            "b": 1,
            "a": 2,
        }


def test_names_with_slashes_are_found_below_v1_models(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as server:
        put_model(server.store, "host.site/team/m:v1", tmp_path)
        status, data = server.ask("GET", "/v1/models/host.site/team/M:v1")
        assert status == 200
        model = json.loads(data)
        assert model["id"] == "host.site/team/m:v1"
        assert model["owned_by"] == "team"
        _, data = server.ask("GET", "/v1/models")
        assert len(json.loads(data)["data"]) == 2


def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as server:
        one = b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n"
        two = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        with server.raw(one + two) as sock:
            answer = sock.makefile("rb").read()
        assert answer.index(b"0.33.0") < answer.index(b'{"status":"ok"}')


def test_port_in_use_is_refused_with_a_hint() -> None:
    with bind("127.0.0.1", 0) as first, pytest.raises(ServerError) as caught:
        bind("127.0.0.1", first.getsockname()[1])
    assert "address already in use" in str(caught.value)
    assert "--port" in caught.value.hint


def test_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ServerError, match="cannot listen on 203"):
        bind("203.0.113.1", 0)


def test_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    bind_unix(path).close()
    with bind_unix(path), pytest.raises(ServerError, match="address already in use"):
        bind_unix(path)
    path.unlink()
    path.write_text("notes")
    with pytest.raises(ServerError, match="no socket"):
        bind_unix(path)
    assert path.read_text() == "notes"


def test_sockets_of_another_process_are_left_alone() -> None:
    assert inherited_sockets(listen_pid="1", listen_fds="1") == ()
    assert inherited_sockets(listen_pid="", listen_fds="") == ()
    assert inherited_sockets(listen_pid=str(os.getpid()), listen_fds="0") == ()
