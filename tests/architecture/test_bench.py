"""The measuring scripts measure what they say."""

from __future__ import annotations

import http.server
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import client, gguf, measure, registry, report, schemas, vocabulary
from bench.play import Result
from bench.server import Ask
from bench.sides import spoken
from hwprobe.gguf import read_header


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers in each of the forms the client reads; ``/slow`` goes on until the client leaves."""

    protocol_version = "HTTP/1.1"
    left = threading.Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/missing":
            self._head(404, "text/plain", length=9)
            self.wfile.write(b"not found")
            return
        if self.path == "/whole":
            body = json.dumps({"response": "all of it", "done": True}).encode()
            self._head(200, "application/json", length=len(body))
            self.wfile.write(body)
            return
        self._head(200, "text/event-stream")
        try:
            for record in self._records():
                self._chunk(record)
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.left.set()

    def _records(self) -> Iterator[bytes]:
        if self.path == "/sse":
            yield b'data: {"content": "one", "stop": false}\n\ndata: {"con'
            yield b'tent": "two"}\n\n: ping\n\ndata: {"content": "", "stop": true}\n\n'
            yield b"data: [DONE]\n\n"
        elif self.path == "/ndjson":
            yield b'{"response": "one", "done": false}\n{"response": "two", "done": false}\n'
            yield b'{"response": "", "done": true}\n'
        while self.path == "/slow":
            yield b'{"response": "more"}\n'
            time.sleep(0.01)

    def _head(self, status: int, kind: str, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def log_message(self, *_args: Any) -> None:
        return


@contextmanager
def answering() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def request(port: int, path: str, **more: Any) -> client.Request:
    forms: dict[str, client.Form] = {"/sse": "sse", "/whole": "json"}
    fields = {"id": path, "form": forms.get(path, "ndjson"), **more}
    return client.Request(port=port, path=path, body={}, **fields)


def test_a_failed_request_is_told_with_its_status() -> None:
    with answering() as port:
        told = client.converse([request(port, "/missing")], limit_s=10).exchanges["/missing"]

    assert (told.status, told.fault, told.pieces_s) == (404, "404 not found", [])


def test_a_server_that_is_not_there_is_a_fault_of_the_exchange() -> None:
    told = client.converse([request(1, "/sse")], limit_s=10).exchanges["/sse"]

    assert told.status == 0
    assert told.fault.startswith("ConnectionRefusedError")


def test_a_script_of_too_many_requests_is_refused() -> None:
    many = [request(1, "/sse", id=str(index)) for index in range(client.MAX_REQUESTS + 1)]

    with pytest.raises(client.ClientError, match="at most"):
        client.converse(many, limit_s=1)


def test_the_client_reads_every_form_and_times_each_piece() -> None:
    with answering() as port:
        told = client.converse(
            [request(port, path) for path in ("/sse", "/ndjson", "/whole")], limit_s=10
        ).exchanges

    assert [told[path].text for path in ("/sse", "/ndjson")] == ["onetwo", "onetwo"]
    assert told["/whole"].text == "all of it"
    for one in told.values():
        assert not one.fault
        assert one.sent_s <= one.pieces_s[0] <= one.pieces_s[-1] <= one.end_s
    assert [len(told[path].pieces_s) for path in ("/sse", "/ndjson", "/whole")] == [2, 2, 1]
    assert told["/sse"].last["stop"] is True


def test_a_cut_request_closes_its_socket_and_starts_what_waits_for_its_end() -> None:
    Answers.left.clear()
    with answering() as port:
        slow = request(port, "/slow", cut_after_pieces=3)
        behind = request(port, "/whole", after=client.Trigger(ids=("/slow",), pieces=1 << 30))
        told = client.converse([slow, behind], limit_s=10).exchanges
        assert Answers.left.wait(10)

    assert told["/slow"].cut
    assert len(told["/slow"].pieces_s) == 3
    assert told["/whole"].sent_s >= told["/slow"].pieces_s[-1]


def test_what_is_not_finished_in_time_is_a_fault() -> None:
    with answering() as port:
        told = client.converse([request(port, "/slow")], limit_s=0.5).exchanges["/slow"]

    assert told.fault == "not finished in time"
    assert told.pieces_s


def test_a_vocabulary_too_small_for_words_is_refused() -> None:
    with pytest.raises(ValueError, match="4096 or more"):
        vocabulary.make(300)


@given(st.integers(vocabulary.SMALLEST, 60_000))
@settings(deadline=None, max_examples=10)
def test_merges_come_after_their_parts_and_make_the_tokens(size: int) -> None:
    made = vocabulary.make(size)
    ranks = {token: rank for rank, token in enumerate(made.tokens)}

    assert len(ranks) == size
    assert len(made.words) > 100
    first = size - len(made.merges)
    for rank, merge in enumerate(made.merges, start=first):
        left, right = merge.split(" ")
        assert left + right == made.tokens[rank]
        assert max(ranks[left], ranks[right]) < rank


def encode(made: vocabulary.Vocabulary, word: str) -> list[str]:
    """Byte-pair encoding as its definition says."""
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(made.merges)}
    parts = list(word.replace(" ", "Ġ"))
    while True:
        pairs = [
            (ranks.get((a, b), len(ranks)), at)
            for at, (a, b) in enumerate(itertools.pairwise(parts))
        ]
        rank, at = min(pairs, default=(len(ranks), 0))
        if rank == len(ranks):
            return parts
        parts[at : at + 2] = ["".join(parts[at : at + 2])]


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_a_word_is_one_token(data: st.DataObject) -> None:
    made = vocabulary.make(30_000)
    word = data.draw(st.sampled_from(made.words))

    assert encode(made, word) == [word.replace(" ", "Ġ")]


def test_the_byte_alphabet_has_every_byte_once() -> None:
    assert len(set(vocabulary.byte_alphabet())) == 256


def test_the_products_strict_reader_reads_what_the_writer_writes(tmp_path: Path) -> None:
    path = tmp_path / "made.gguf"
    metadata: dict[str, gguf.Value] = {
        "general.architecture": "llama",
        "flag": True,
        "count": 3,
        "ratio": 0.5,
        "texts": ("a", "ü"),
        "numbers": (1, -1),
    }
    tensor = gguf.Tensor(
        name="matrix.weight",
        dimensions=(3, 2),
        kind="F16",
        make=lambda: np.ones((2, 3), dtype=np.float32),
    )
    gguf.write(path, metadata, [tensor, tensor_of_ones("vector.weight")])

    header = read_header(path)

    assert [one.name for one in header.tensors] == ["matrix.weight", "vector.weight"]
    assert header.tensors[0].dimensions == (3, 2)
    assert header.metadata["count"] == 3
    assert header.metadata["ratio"] == 0.5


def tensor_of_ones(name: str) -> gguf.Tensor:
    return gguf.Tensor(
        name=name, dimensions=(4,), kind="F32", make=lambda: np.ones(4, dtype=np.float32)
    )


def test_the_ratio_of_equal_series_is_one_and_its_interval_holds_it() -> None:
    found = measure.ratio([3.0, 1.0, 2.0], [3.0, 1.0, 2.0])

    assert found == measure.Ratio(value=1.0, low=1.0, high=1.0)


@pytest.mark.parametrize("theirs", [[], [0.0], [-1.0]])
def test_there_is_no_ratio_to_nothing(theirs: list[float]) -> None:
    assert measure.ratio([1.0] * len(theirs), theirs) is None


@given(st.lists(st.tuples(st.floats(1, 1e6), st.floats(1, 1e6)), min_size=3, max_size=9))
@settings(deadline=None, max_examples=20)
def test_the_interval_of_a_ratio_lies_within_what_was_seen(
    pairs: list[tuple[float, float]],
) -> None:
    ours, theirs = zip(*pairs, strict=True)
    found = measure.ratio(ours, theirs)

    assert found is not None
    assert min(ours) / max(theirs) <= found.low <= found.high <= max(ours) / min(theirs)


@given(st.lists(st.floats(0.1, 1e6), min_size=1), st.floats(1, 100))
def test_a_percentile_is_one_of_the_values(values: list[float], percent: float) -> None:
    found = measure.percentile(values, percent)

    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100


def test_jains_index_tells_equal_shares_from_one_taking_all() -> None:
    assert measure.jain([2.0, 2.0]) == 1.0
    assert measure.jain([1.0, 0.0, 0.0, 0.0]) == 0.25


def test_cpu_time_counts_children_that_have_ended() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    parent = (
        "import subprocess, sys\n"
        "sys.stdin.readline()\n"
        f"subprocess.run([sys.executable, '-c', {burn!r}])\n"
        "print(flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        meter = measure.Meter(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        used_s, _ = meter.read()
        process.stdin.write(b"\n")

    assert used_s >= 0.25


def test_a_process_that_has_ended_is_not_measured() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()

    with pytest.raises(measure.GoneError):
        measure.Meter(process.pid)


def test_memory_of_this_process_is_more_than_nothing() -> None:
    found = measure.memory((os.getpid(),))

    assert found.pss_bytes >= found.anonymous_bytes > 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("object", "{"),
        ("object", '{"name": "a", "age": 1}'),
        ("object", '{"name": "a", "age": 151, "member": true}'),
        ("object", '{"name": "a", "age": true, "member": true}'),
        ("object", '{"name": "a", "age": 1, "member": true, "more": 1}'),
        ("array, enum, pattern", '{"items": []}'),
        ("recursive", '{"tree": {"label": "a", "next": [{"label": "b"}]}}'),
    ],
)
def test_an_answer_the_schema_does_not_allow_is_told(name: str, text: str) -> None:
    assert not schemas.matches(text, schemas.SCHEMAS[name])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("object", '{"name": "a", "age": 1, "member": true}'),
        ("recursive", '{"tree": {"label": "a", "next": [{"label": "b", "next": []}]}}'),
        ("long text", json.dumps({"text": "a" * 450})),
    ],
)
def test_an_answer_the_schema_allows_is_told(name: str, text: str) -> None:
    assert schemas.matches(text, schemas.SCHEMAS[name])


def test_a_schema_the_check_does_not_know_is_refused() -> None:
    with pytest.raises(schemas.SchemaError):
        schemas.matches("1", {"multipleOf": 3})


def test_the_full_list_has_every_workload_and_no_name_twice() -> None:
    for cases in (registry.quick(), registry.full()):
        names = [case.name for case in cases]
        assert len(set(names)) == len(names)
    assert {case.workload for case in registry.full()} == set(registry.WORKLOADS)


def test_what_was_not_measured_is_told_with_its_reason() -> None:
    case = registry.quick()[0]
    result = Result(case=case, reasons={"satchel": "404 page not found"})
    result.samples["llama-server"] = {"rate": [1.0]}

    told = list(report.lines([result]))

    assert f"not measured: {case.name}: satchel: 404 page not found" in told
    assert any(line.startswith(f"| {case.name} ") for line in told)


def test_different_engine_libraries_are_told() -> None:
    result = Result(case=registry.quick()[0])
    result.libraries = {"satchel": {"libggml-cpu": "a"}, "llama-server": {"libggml-cpu": "b"}}

    assert any("unequal engines" in line for line in report.lines([result]))


def test_a_request_keeps_its_triggers_in_the_words_of_a_side() -> None:
    after = client.Trigger(ids=("a",), pieces=2)
    ask = Ask(id="b", words=1, prompt=" babe", tokens=1, after=after, cut_after_s=1.0)

    made = spoken(ask, 1, "/", {}, "sse")

    assert (made.after, made.cut_after_s, made.form) == (after, 1.0, "sse")
