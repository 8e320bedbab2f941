"""``satchel-server`` as an operator starts it: a real process, the real engine, the demo model."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from appliance.config import Config
from appliance.layout import Paths
from appliance.model import CONFIG_MEDIA, LAYER_MEDIA, encode_image
from appliance.store import Store
from bundler.format.digest import Descriptor
from bundler.format.name import ModelName
from server.access import Keys
from server.errors import ServerError
from server.sockets import listening

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
CHAT = {
    "model": "demo",
    "messages": [{"role": "user", "content": "ping"}],
    "options": {"temperature": 0},
    "think": False,
}
PASS_SOCKET = (
    "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid());"
    "os.execv(sys.executable, [sys.executable, '-P', '-m', 'server', *sys.argv[1:]])"
)


def put_demo(root: Path) -> None:
    data, config = DEMO.read_bytes(), b"{}"
    with Store(Paths(root)).writing() as writer:
        layer = Descriptor(
            media_type=LAYER_MEDIA + "model", digest=writer.put(data), size_bytes=len(data)
        )
        described = Descriptor(
            media_type=CONFIG_MEDIA, digest=writer.put(config), size_bytes=len(config)
        )
        writer.point(ModelName.parse("demo"), encode_image(config=described, layers=[layer]))


def environment(**more: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SATCHEL_", "OLLAMA_", "LISTEN_"))
    }
    return {**kept, **more}


def run(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A start that is expected to fail."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "server", *arguments],
        capture_output=True,
        text=True,
        env=environment(**(env or {})),
        timeout=60,
        check=False,
    )


@contextmanager
def serving(
    *arguments: str, starter: tuple[str, ...] = ("-P", "-m", "server"), **popen: Any
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A running server and its port; it is killed if the test does not end it."""
    child = subprocess.Popen(
        [sys.executable, *starter, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**popen.pop("env", {})),
        **popen,
    )
    out: IO[str] | None = child.stdout
    assert out is not None
    try:
        line = out.readline()
        assert line.startswith("listening on http://127.0.0.1:"), line
        yield child, int(line.rpartition(":")[2])
    finally:
        child.kill()
        child.communicate()


def ask(port: int, method: str, path: str, body: Any = None, *, key: str = "") -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.mark.engine
def test_demo_model_answers_and_the_server_ends_cleanly(tmp_path: Path) -> None:
    store, ready = tmp_path / "store", tmp_path / "ready"
    put_demo(store)
    words = ("--port", "0", "--store", str(store), "--ready-file", str(ready), "--log-requests")
    with serving(*words) as (child, port):
        assert ready.read_text() == f"http://127.0.0.1:{port}\n"
        assert ask(port, "GET", "/readyz") == (200, b'{"status":"ready"}')
        status, data = ask(port, "POST", "/api/chat", {**CHAT, "stream": False})
        assert status == 200, data
        answer = json.loads(data)
        assert "pong" in answer["message"]["content"]
        assert answer["eval_count"] > 0
        _, data = ask(port, "POST", "/api/chat", CHAT)
        *parts, last = [json.loads(line) for line in data.splitlines()]
        assert last["done"] is True
        streamed = "".join(part["message"]["content"] for part in parts)
        assert streamed == answer["message"]["content"]
        (model,) = json.loads(ask(port, "GET", "/api/ps")[1])["models"]
        assert model["name"] == "demo:latest"
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=30)
        assert child.returncode == 0
    assert "satchel-server: POST /api/chat 200 " in err
    assert "ping" not in err
    assert "pong" not in err
    kept = {path.name for path in (store / "satchel" / "engine").glob("*.json")}
    assert len(kept - {"variant.json", "margins.json"}) == 1, "one verdict of the self-test"
    loads = (store / "satchel" / "engine" / "loads.jsonl").read_text().splitlines()
    loaded, ended = (json.loads(line) for line in loads)
    assert loaded["steps"] == []
    assert loaded["private_measured_bytes"] <= loaded["private_predicted_bytes"]
    assert ended["margin"] == {"excess_share": 0.0, "runs": 1}
    assert not any("ping" in line for line in loads)
    assert "variant.json" in kept
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.mark.engine
def test_interrupt_ends_it_as_well(tmp_path: Path) -> None:
    with serving("--port", "0", "--store", str(tmp_path)) as (child, port):
        assert ask(port, "GET", "/api/tags") == (200, b'{"models":[]}')
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 0


def test_signals_that_keep_coming_do_not_make_the_end_a_failure(tmp_path: Path) -> None:
    with serving("--port", "0", "--store", str(tmp_path)) as (child, _):
        while child.poll() is None:
            child.send_signal(signal.SIGTERM)
            time.sleep(0.002)
        assert child.returncode == 0


def test_server_whose_store_goes_away_is_not_ready(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    with serving("--port", "0", "--store", str(store)) as (_, port):
        assert ask(port, "GET", "/readyz")[0] == 200
        store.rename(tmp_path / "away")
        status, data = ask(port, "GET", "/readyz")
        assert (status, json.loads(data)["reasons"]) == (503, ["the store is no longer there"])
        assert ask(port, "GET", "/healthz")[0] == 200


def test_port_in_use_is_one_line_and_a_hint(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run("--port", str(port), "--store", str(tmp_path))
    assert ended.returncode == 1
    assert ended.stdout == ""
    error, hint = ended.stderr.splitlines()
    assert error == (
        f"satchel-server: error: cannot listen on 127.0.0.1:{port}: address already in use"
    )
    assert hint.startswith("satchel-server: hint: ")


@pytest.mark.parametrize(
    ("words", "env", "code", "text"),
    [
        (("--host", "0.0.0.0"), {}, 1, "listening on 0.0.0.0 lets other machines in"),
        (("--config", "/absent/satchel.toml"), {}, 2, "does not exist"),
        (("--port", "70000"), {}, 2, "server.port"),
        (("--nonsense",), {}, 2, "unrecognized arguments"),
        (("--api-keys-file", "/absent/keys"), {}, 1, "/absent/keys: cannot be read"),
        ((), {"SATCHEL_KEEP_ALIVE": "soon"}, 2, "SATCHEL_KEEP_ALIVE"),
    ],
)
def test_start_that_makes_no_sense_is_refused(
    tmp_path: Path, words: tuple[str, ...], env: dict[str, str], code: int, text: str
) -> None:
    ended = run("--store", str(tmp_path), "--port", "0", *words, env=env)
    assert ended.returncode == code
    assert text in ended.stderr
    assert "Traceback" not in ended.stderr


def test_store_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifests").write_text("not a directory")
    ended = run("--store", str(tmp_path), "--port", "0")
    assert ended.returncode == 15
    assert ended.stderr.startswith("satchel-server: error: cannot list the models")
    assert "hint: " in ended.stderr


def test_ignored_variables_are_named_once(tmp_path: Path) -> None:
    with serving("--port", "0", "--store", str(tmp_path), env={"OLLAMA_DEBUG": "1"}) as (child, _):
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=30)
    assert err.startswith("satchel-server: warning: OLLAMA_DEBUG is ignored: ")


def test_socket_of_the_service_manager_is_used(tmp_path: Path) -> None:
    """The socket is descriptor 3 of the process, as a service manager passes it."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        words = f'exec 3<&{sock.fileno()}; exec "$0" "$@"'
        child = subprocess.Popen(
            ["bash", "-c", words, sys.executable, "-c", PASS_SOCKET, "--store", str(tmp_path)],
            pass_fds=(sock.fileno(),),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(LISTEN_FDS="1"),
        )
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == f"listening on http://127.0.0.1:{port}\n"
            assert ask(port, "GET", "/healthz")[0] == 200
            child.send_signal(signal.SIGTERM)
            assert child.wait(30) == 0
        finally:
            child.kill()
            child.communicate()


def test_version_is_told() -> None:
    ended = run("--version")
    assert ended.returncode == 0
    assert ended.stdout.startswith("satchel-server ")


def test_name_that_stands_for_another_address_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a resolver asks the network for ``*.localhost``."""
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, None, 0, "", ("0.0.0.0", 0))]
    )
    config = Config.load(
        environ={},
        flags={"server.host": "x.localhost", "server.port": 0, "store.path": str(tmp_path)},
    )
    with pytest.raises(ServerError, match=r"listening on 0\.0\.0\.0 lets other machines in"):
        listening(config, Keys(), {})


def heard(manager: socket.socket, wanted: str) -> None:
    """Read what the service manager is told until this is among it."""
    manager.settimeout(60)
    while wanted not in manager.recv(4096).decode().split("\n"):
        pass


def test_service_manager_is_told_and_keys_are_read_again(tmp_path: Path) -> None:
    store, keys = tmp_path / "store", tmp_path / "keys"
    one, two = (f"sha256:{hashlib.sha256(key).hexdigest()}\n" for key in (b"one", b"two"))
    keys.write_text(one)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"}
        words = ("--port", "0", "--store", str(store), "--api-keys-file", str(keys))
        with serving(*words, env=env) as (child, port):

            def status(key: str) -> int:
                return ask(port, "GET", "/api/tags", key=key)[0]

            heard(manager, "READY=1")
            heard(manager, "WATCHDOG=1")
            assert (status("one"), status("two")) == (200, 401)
            for text, expected in ((two, (401, 200)), ("no key\n", (401, 200)), (one, (200, 401))):
                keys.write_text(text)
                child.send_signal(signal.SIGHUP)
                heard(manager, "RELOADING=1")
                heard(manager, "READY=1")
                assert (status("one"), status("two")) == expected
            child.send_signal(signal.SIGTERM)
            heard(manager, "STOPPING=1")
            _, err = child.communicate(timeout=30)
            assert child.returncode == 0
    assert "reload: the API keys stay as they were: " in err
    assert "no key" not in err


def test_reload_without_keys_changes_nothing(tmp_path: Path) -> None:
    with serving("--port", "0", "--store", str(tmp_path / "store")) as (child, port):
        child.send_signal(signal.SIGHUP)
        assert ask(port, "GET", "/api/tags")[0] == 200
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=30)
    assert child.returncode == 0
    assert "reload: no API keys are configured" in err
