"""Use a real server for long, and see whether it gives everything back.

    .venv/bin/python -P tests/soak.py [--requests N] [--cycles N]

A `Footprint` is what the server and all its children hold: private memory that is written
(``RssAnon``), open files, threads, processes. Loads and requests go over HTTP to the demo model.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

CLIENTS = 8
STREAMED, BOUND, LEFT = 3, 5, 10
"""Every so-many-th request is streamed, bound to JSON, and left by its client."""

ENVIRONMENT = {"SATCHEL_MAX_QUEUE": "16"}
"""Why: a thread of the server takes memory when it is first used. With few threads all of them are
used soon, and what grows after that is a leak."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process and its children hold.

    Attributes:
        server_bytes: private memory the process has written to.
        child_bytes: the same of its children.
        files: open descriptors.
        threads: of all of them.
        processes: how many they are.
    """

    server_bytes: int
    child_bytes: int
    files: int
    threads: int
    processes: int

    def __str__(self) -> str:
        return (
            f"{self.server_bytes / (1 << 20):6.1f} MiB  {self.child_bytes / (1 << 20):6.1f} MiB in "
            f"children  {self.files:3} files  "
            f"{self.threads:2} threads  {self.processes} processes"
        )


def footprint(pid: int) -> Footprint:
    """What the process and its children hold now."""
    root = psutil.Process(pid)
    family = [root, *root.children(recursive=True)]
    return Footprint(
        server_bytes=_anonymous_bytes(pid),
        child_bytes=sum(_anonymous_bytes(one.pid) for one in family[1:]),
        files=sum(one.num_fds() for one in family),
        threads=sum(one.num_threads() for one in family),
        processes=len(family),
    )


def settled(pid: int, *, processes: int, patience_s: float = 20.0) -> Footprint:
    """The footprint once so many processes are left and two looks agree on files and threads."""
    deadline = time.monotonic() + patience_s
    last: Footprint | None = None
    while time.monotonic() < deadline:
        try:
            now = footprint(pid)
        except psutil.NoSuchProcess:  # a child ended while it was looked at
            continue
        same = last is not None and (now.files, now.threads) == (last.files, last.threads)
        if now.processes == processes and same:
            return now
        last = now
        time.sleep(0.2)
    raise TimeoutError(f"expected {processes} processes that are still: {last}")


def cycle(port: int, *, count: int) -> None:
    """Load the model, get an answer of one word, unload it; so many times."""
    for _ in range(count):
        answer = ask(port, {"prompt": "ping", "options": {"num_predict": 1}, "stream": False})
        assert answer["done"], answer
        unloaded = ask(port, {"keep_alive": 0, "stream": False})
        assert unloaded["done_reason"] == "unload", unloaded
        while loaded(port):
            time.sleep(0.02)


def request(port: int, *, count: int) -> None:
    """Ask so many short questions, each another one, from `CLIENTS` clients at once."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        for _ in pool.map(lambda number: _one(port, number), range(count)):
            pass


def _one(port: int, number: int) -> None:
    body: dict[str, Any] = {
        "prompt": f"question {number}",
        "options": {"num_predict": 2, "seed": number},
        "keep_alive": -1,
        "stream": number % STREAMED == 0,
    }
    if number % BOUND == 0:
        body["format"] = "json"
    if number % LEFT == 0:
        leave(port, {**body, "stream": True, "options": {"num_predict": 200}})
        return
    answer = ask(port, body)
    assert answer["done"], answer


def leave(port: int, body: dict[str, Any]) -> None:
    """Ask, take the first line of the answer, and hang up."""
    connection = _connection(port)
    try:
        connection.request("POST", "/api/generate", json.dumps({"model": "demo", **body}))
        assert connection.getresponse().readline()
    finally:
        connection.close()


def ask(port: int, body: dict[str, Any]) -> Any:
    """The last line of an answer."""
    connection = _connection(port)
    try:
        connection.request("POST", "/api/generate", json.dumps({"model": "demo", **body}))
        response = connection.getresponse()
        data = response.read()
        assert response.status == 200, data
        return json.loads(data.splitlines()[-1])
    finally:
        connection.close()


def loaded(port: int) -> list[Any]:
    """The models in memory."""
    connection = _connection(port)
    try:
        connection.request("GET", "/api/ps")
        models: list[Any] = json.loads(connection.getresponse().read())["models"]
        return models
    finally:
        connection.close()


def _connection(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=120)


def _anonymous_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        raise psutil.NoSuchProcess(pid) from None
    return next((int(one.split()[1]) << 10 for one in lines if one.startswith("RssAnon:")), 0)


def parts(total: int, most: int) -> Iterator[int]:
    """``total`` in pieces of at most ``most``."""
    for begin in range(0, total, most):
        yield min(most, total - begin)


def main() -> None:
    """Print the footprint as it goes; end with 1 if it grew by more than the tests allow."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.functional.test_program import put_demo, serving

    options = argparse.ArgumentParser(description="use a real server for long")
    options.add_argument("--requests", type=int, default=10_000)
    options.add_argument("--cycles", type=int, default=50)
    wanted = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="satchel-soak-") as folder:
        put_demo(Path(folder) / "store")
        arguments = ("--port", "0", "--store", f"{folder}/store")
        with serving(*arguments, env=ENVIRONMENT) as (server, port):
            cycle(port, count=3)
            before = settled(server.pid, processes=1)
            print(f"{'idle':>22}  {before}", flush=True)
            cycle(port, count=wanted.cycles)
            after = settled(server.pid, processes=1)
            print(f"{f'{wanted.cycles} loads later':>22}  {after}", flush=True)
            request(port, count=500)
            warm = settled(server.pid, processes=2)
            print(f"{'500 requests':>22}  {warm}", flush=True)
            done = 500
            end = warm
            for part in parts(wanted.requests, 2000):
                request(port, count=part)
                done += part
                end = settled(server.pid, processes=2)
                print(f"{f'{done} requests':>22}  {end}", flush=True)
    sys.exit(grew(before, after) or grew(warm, end))


MOST_GROWTH_BYTES = 16 << 20
"""Why: allocators keep some of what was freed; a leak of 2 KiB per request would be 20 MB."""


def grew(before: Footprint, after: Footprint) -> bool:
    """Whether more is held than before, beyond what an allocator may keep."""
    counts = (after.files, after.threads, after.processes)
    more = any(b > a for a, b in zip((before.files, before.threads, before.processes), counts,
                                     strict=True))  # fmt: skip
    held, now = (one.server_bytes + one.child_bytes for one in (before, after))
    return more or now > held + MOST_GROWTH_BYTES


if __name__ == "__main__":
    main()
