"""Creating a model under kill -9, on a full disk, and many at once: whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from appliance.creating import create
from appliance.creation import CreateRequest
from appliance.errors import AppError, ModelMissingError, NoSpaceError
from appliance.layout import Paths
from appliance.store import Store
from appliance.uploads import UploadLimits
from bundler.format.digest import Digest
from bundler.format.name import ModelName
from tests.appliance.killed_create import workshop
from tests.fakes.gguf_writer import write_tiny_llama
from tests.faults.test_import_space import disk, fill
from tests.functional.live import LiveServer, put_model

__all__ = ["disk"]
pytestmark = [pytest.mark.faults, pytest.mark.engine]

ROOT = Path(__file__).resolve().parents[2]
DEMO = (ROOT / "tests/demo-model/demo-f16.gguf").read_bytes()
DIGEST = Digest.of(DEMO)
MADE = ModelName.parse("made")
UNLIMITED = UploadLimits(max_bytes=0, reserve_bytes=0)
REQUEST = CreateRequest(
    name="made",
    files=(("demo.gguf", str(DIGEST)),),
    quantize="Q8_0",
    system="Be brief.",
    parameters={"temperature": 0.5},
)


def send(store: Store, data: bytes) -> None:
    with store.receiving(Digest.of(data), UNLIMITED) as upload:
        upload.write(data)


def assert_whole(store: Store) -> None:
    for blob in store.paths.blobs.glob("sha256-*"):
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name.removeprefix("sha256-")
    assert store.survey().faults == ()


class Rig:
    """A store with the file and an older model of the name, and how many calls a creation takes."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "store"
        self.store = Store(Paths(self.root))
        put_model(self.store, "made", folder)
        send(self.store, DEMO)
        self.pristine = folder / "pristine"
        shutil.copytree(self.root, self.pristine, symlinks=True)
        done = self.run(0)
        assert done.returncode == 0, done.stderr
        self.calls = int(done.stdout)

    def reset(self) -> None:
        shutil.rmtree(self.root)
        shutil.copytree(self.pristine, self.root, symlinks=True)

    def run(self, limit: int) -> subprocess.CompletedProcess[str]:
        words = [str(limit), json.dumps(REQUEST.to_json()), str(self.root)]
        return subprocess.run(
            [sys.executable, "-m", "tests.appliance.killed_create", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return Rig(tmp_path_factory.mktemp("kill"))


@pytest.mark.parametrize("number", range(10))
def test_killed_at_a_random_point_the_store_is_whole(rig: Rig, number: int) -> None:
    rig.reset()
    point = random.Random(number).randint(1, rig.calls)
    killed = rig.run(point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert_whole(rig.store)
    assert rig.store.resolve(MADE).system in {"", "Be brief."}
    create(REQUEST, workshop(rig.root), lambda _: None)
    assert_whole(rig.store)
    assert rig.store.resolve(MADE).profile.quantization == "Q8_0"
    assert not list(rig.store.paths.uploads.iterdir())
    assert not list(rig.store.paths.staging.iterdir())


def test_a_server_killed_while_a_blob_arrives_leaves_no_half_one(tmp_path: Path) -> None:
    store = tmp_path / "store"
    ready = tmp_path / "ready"
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "server", "--port", "0"),
            *("--store", str(store), "--ready-file", str(ready)),
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            if ready.exists():
                break
            time.sleep(0.05)
        address = urlsplit(ready.read_text().strip())
        with socket.create_connection((address.hostname, address.port), timeout=30) as sock:
            head = f"POST /api/blobs/{DIGEST} HTTP/1.1\r\nHost: localhost\r\n"
            sock.sendall(f"{head}Content-Length: {len(DEMO)}\r\n\r\n".encode() + DEMO[: 1 << 20])
            uploads = store / "satchel" / "uploads"
            for _ in range(600):
                if uploads.is_dir() and list(uploads.iterdir()):
                    break
                time.sleep(0.05)
            server.kill()
    finally:
        server.kill()
        server.wait()
    again = Store(Paths(store))
    assert list(again.paths.blobs.iterdir()) == []
    assert len(list(again.paths.uploads.iterdir())) == 1
    with again.writing():
        pass
    assert list(again.paths.uploads.iterdir()) == []


def test_a_disk_too_full_for_the_result_is_refused_before_the_work(disk: Path) -> None:
    store = Store(Paths(disk / "store"))
    send(store, DEMO)
    fill(disk, leave_bytes=1 << 20)
    steps: list[object] = []
    with pytest.raises(NoSpaceError):
        create(REQUEST, workshop(store.paths.root), steps.append)
    assert not any("quantizing" in str(step) for step in steps)
    assert_whole(store)
    assert not list(store.paths.uploads.iterdir())
    assert store.paths.blob(DIGEST).exists()


def test_a_disk_that_fills_while_it_is_written_leaves_the_store_as_it_was(disk: Path) -> None:
    store = Store(Paths(disk / "store"))
    data = write_tiny_llama(disk / "m.gguf").read_bytes()
    (disk / "m.gguf").unlink()
    send(store, data)
    with store.writing():
        pass
    request = CreateRequest(
        name="made", files=(("m.gguf", str(Digest.of(data))),), licenses=("x" * 100_000,)
    )
    for leave_bytes in (0, 4096, 16 << 10, 64 << 10):
        filler = fill(disk, leave_bytes=leave_bytes)
        with pytest.raises(NoSpaceError):
            create(request, workshop(store.paths.root), lambda _: None)
        assert store.names() == ()
        assert_whole(store)
        filler.unlink()
    create(request, workshop(store.paths.root), lambda _: None)
    assert store.resolve(MADE).licenses == ("x" * 100_000,)
    assert not list(store.paths.uploads.iterdir())


def test_a_blob_that_does_not_fit_is_refused_and_its_room_given_back(disk: Path) -> None:
    store = Store(Paths(disk / "store"))
    with store.writing():
        pass
    free = os.statvfs(disk).f_bavail
    with (
        pytest.raises(NoSpaceError),
        store.receiving(DIGEST, UNLIMITED) as upload,
    ):
        upload.reserve(1 << 30)
    with pytest.raises(NoSpaceError):
        send(store, b"\0" * (30 << 20))
    assert os.statvfs(disk).f_bavail == free


def test_many_at_once_and_removals_between_them(tmp_path: Path) -> None:
    """Every creation succeeds or says that its base has gone; nothing breaks."""
    with LiveServer(tmp_path) as live:
        put_model(live.store, "base", tmp_path)
        outcomes: list[str] = []

        def make(number: int) -> None:
            body = {"model": f"made{number}", "from": "base", "system": str(number)}
            status, data = live.ask("POST", "/api/create", {**body, "stream": False})
            outcomes.append(f"{status} {data.decode()}")

        def disturb() -> None:
            for _ in range(3):
                live.ask("DELETE", "/api/delete", {"model": "base"})
                try:
                    put_model(live.store, "base", tmp_path)
                except AppError:
                    time.sleep(0.2)

        threads = [threading.Thread(target=make, args=(number,)) for number in range(4)]
        threads.append(threading.Thread(target=disturb))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for outcome in outcomes:
            assert outcome.startswith(("200 ", "404 ")), outcome
        assert_whole(live.store)
        assert not list(live.store.paths.uploads.iterdir())


def test_a_base_removed_while_a_model_is_made_of_it_lives_on_in_it(tmp_path: Path) -> None:
    store = Store(Paths(tmp_path / "store"))
    put_model(store, "base", tmp_path, weights=DEMO)
    base = ModelName.parse("base")
    removed: list[int] = []

    def tell(event: object) -> None:
        if "layer" in str(event) and not removed:
            removed.append(store.remove(base))

    create(CreateRequest(name="made", base="base", system="x"), workshop(store.paths.root), tell)
    assert removed[0] > len(DEMO)
    assert store.resolve(MADE).model_path.read_bytes() == DEMO
    with pytest.raises(ModelMissingError):
        store.resolve(base)


def test_a_client_that_leaves_ends_the_work(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as live:
        send(live.store, DEMO)
        connection = live.connect()
        body = {"model": "made", "files": dict(REQUEST.files), "quantize": "Q8_0"}
        connection.request("POST", "/api/create", json.dumps(body))
        response = connection.getresponse()
        assert b"parsing GGUF" in response.readline()
        response.close()
        connection.close()
        for _ in range(600):
            if not _children():
                break
            time.sleep(0.05)
        assert not _children()
        assert_whole(live.store)


def _children() -> list[str]:
    """Processes of ours that run jobs."""
    tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
    children = [pid for task in tasks for pid in (task / "children").read_text().split()]
    lines = []
    for pid in children:
        try:
            lines.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return [line for line in lines if "appliance.job" in line]
