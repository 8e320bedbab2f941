"""Workers without the engine: addresses, offers, keys, relays, and who is refused."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprobe.errors import WorkerError
from hwprobe.machine import Cpu, Gpu, Machine, Memory
from hwprobe.remote.dialling import Tunnel, is_own_socket, offer_of, release
from hwprobe.remote.fleet import Fleet
from hwprobe.remote.relay import pump, read_line
from hwprobe.remote.serving import MOST_STRANGERS
from hwprobe.remote.terms import (
    DEFAULT_PORT,
    Offer,
    WorkerAddress,
    refusal,
    request,
    wants_service,
)
from hwprobe.remote.tls import Identity, Trust
from tests.fakes.workers import Keys, lending, make_keys

counts = st.integers(0, 2**63)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


class TestAddresses:
    @pytest.mark.parametrize(
        ("text", "host", "port"),
        [
            ("a", "a", DEFAULT_PORT),
            ("a:7", "a", 7),
            ("10.0.0.2:50052", "10.0.0.2", 50052),
            ("[::1]:9", "::1", 9),
            ("::1", "::1", DEFAULT_PORT),
        ],
    )
    def test_they_are_read_and_written(self, text: str, host: str, port: int) -> None:
        address = WorkerAddress.parse(text)
        assert (address.host, address.port) == (host, port)
        assert WorkerAddress.parse(str(address)) == address

    @pytest.mark.parametrize("text", ["", ":", "a:", "a:0", "a:65536", "a b:1", "a:x", ":5", "a:१"])
    def test_others_are_refused(self, text: str) -> None:
        with pytest.raises(WorkerError, match="expected HOST:PORT"):
            WorkerAddress.parse(text)


class TestTerms:
    @given(counts, counts, counts, st.text(max_size=80))
    def test_an_offer_survives_the_line(
        self, memory: int, threads: int, busy: int, name: str
    ) -> None:
        offer = Offer(release=name, memory_bytes=memory, threads=threads, busy=busy)
        line = offer.encode()
        assert line.count(b"\n") == 1
        assert Offer.decode(line) == offer

    @given(st.binary(max_size=200))
    def test_anything_else_is_refused(self, line: bytes) -> None:
        for read in (Offer.decode, wants_service):
            with pytest.raises(WorkerError):
                read(line)

    @pytest.mark.parametrize(
        "line",
        [
            b'{"worker":2,"release":"1","memory_bytes":1,"threads":1,"busy":0}',
            b'{"worker":1,"release":"1","memory_bytes":-1,"threads":1,"busy":0}',
            b'{"worker":1,"release":"1","memory_bytes":true,"threads":1,"busy":0}',
            b'{"worker":1,"release":3,"memory_bytes":1,"threads":1,"busy":0}',
            b"[" * 4000,
        ],
    )
    def test_half_an_offer_is_refused(self, line: bytes) -> None:
        with pytest.raises(WorkerError):
            Offer.decode(line)

    def test_requests_and_refusals(self) -> None:
        assert wants_service(request(serve=True)) is True
        assert wants_service(request(serve=False)) is False
        with pytest.raises(WorkerError, match="it refuses: full"):
            Offer.decode(refusal("full"))


class TestTrust:
    def test_files_that_are_none(self, keys: Keys, tmp_path: Path) -> None:
        empty = tmp_path / "empty"
        empty.write_text("nothing")
        for identity, text in (
            (Identity(tmp_path / "none", keys.user.peers), "no such file"),
            (Identity(keys.user.key, tmp_path / "none"), "no such file"),
            (Identity(keys.user.key, empty), "expected certificates of peers"),
            (Identity(empty, keys.user.peers), "expected a private key and its certificate"),
            (Identity(keys.user.peers, keys.user.peers), "expected a private key"),
        ):
            with pytest.raises(WorkerError, match=text):
                Trust(identity, server=False)

    def test_a_stranger_is_refused_by_both(self, keys: Keys, tmp_path: Path) -> None:
        other = make_keys(tmp_path)
        with lending(keys.worker) as lent:
            with pytest.raises(WorkerError):  # the worker does not know its key
                offer_of(
                    lent.address, Trust(Identity(other.user.key, keys.user.peers), server=False)
                )
            with pytest.raises(WorkerError, match="certificate is none we know"):
                offer_of(
                    lent.address, Trust(Identity(keys.user.key, other.user.peers), server=False)
                )
            until(lambda: len(lent.said) == 2)

    def test_without_a_key_nothing_is_said(self, keys: Keys) -> None:
        with lending(keys.worker) as lent:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            with (
                socket.create_connection((lent.address.host, lent.address.port)) as plain,
                context.wrap_socket(plain) as bare,
                pytest.raises(ssl.SSLError),
            ):
                bare.recv(1)

    def test_plain_text_is_refused(self, keys: Keys) -> None:
        with lending(keys.worker) as lent:
            with socket.create_connection((lent.address.host, lent.address.port)) as plain:
                plain.sendall(b"\x00" * 64)
                with contextlib.suppress(ConnectionError):
                    assert b"worker" not in plain.recv(4096)
            until(lambda: bool(lent.said))
            assert "no TLS connection" in lent.said[0]

    def test_strangers_that_say_nothing_do_not_keep_others_out_for_ever(self, keys: Keys) -> None:
        with lending(keys.worker) as lent:
            silent = [
                socket.create_connection((lent.address.host, lent.address.port))
                for _ in range(MOST_STRANGERS + 4)
            ]
            for one in silent:
                one.close()
            trust = Trust(keys.user, server=False)
            until(lambda: answers(lent.address, trust))


def answers(address: WorkerAddress, trust: Trust) -> bool:
    try:
        offer_of(address, trust)
    except WorkerError:
        return False
    return True


def until(met: Callable[[], bool], patience_s: float = 20.0) -> None:
    begin_s = time.monotonic()
    while not met():
        assert time.monotonic() - begin_s < patience_s
        time.sleep(0.01)


class TestAsking:
    def test_what_is_offered(self, keys: Keys) -> None:
        with lending(keys.worker, memory_bytes=5 << 30) as lent:
            offer = offer_of(lent.address, Trust(keys.user, server=False))
        assert (offer.memory_bytes, offer.threads, offer.busy) == (5 << 30, 1, 0)
        assert offer.release == release()

    def test_nobody_there(self, keys: Keys) -> None:
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            port = reserved.getsockname()[1]
        with pytest.raises(WorkerError, match="cannot be reached: connection refused"):
            offer_of(WorkerAddress("127.0.0.1", port), Trust(keys.user, server=False))

    def test_another_release_is_refused(self, keys: Keys) -> None:
        trust = Trust(keys.user, server=False)
        with (
            lending(keys.worker, its_release="0.0.1") as lent,
            pytest.raises(WorkerError, match=r"has the engine of llama-cpp-python 0\.0\.1"),
        ):
            Tunnel(lent.address, trust)


class TestRelay:
    @given(
        parts=st.lists(st.binary(min_size=1, max_size=1 << 17), max_size=5),
        backwards=st.booleans(),
    )
    @settings(max_examples=20, deadline=None)
    def test_all_bytes_arrive(self, parts: list[bytes], *, backwards: bool) -> None:
        (here, one), (other, there) = socket.socketpair(), socket.socketpair()
        source, target = (there, here) if backwards else (here, there)
        thread = threading.Thread(target=pump, args=(one, other))
        thread.start()
        sender = threading.Thread(target=send_and_close, args=(source, parts))
        sender.start()
        got = b""
        wanted = b"".join(parts)
        target.settimeout(20.0)
        while len(got) < len(wanted):
            got += target.recv(1 << 16)
        sender.join()
        thread.join()
        assert got == wanted
        for end in (here, there, one, other):
            end.close()

    def test_a_line_is_read_and_nothing_behind_it(self) -> None:
        here, there = socket.socketpair()
        with here, there:
            there.sendall(b"one\ntwo")
            assert read_line(here, 10) == b"one\n"
            assert here.recv(10) == b"two"
            there.sendall(b"x" * 20)
            with pytest.raises(WorkerError):
                read_line(here, 10)


def send_and_close(source: socket.socket, parts: list[bytes]) -> None:
    for part in parts:
        source.sendall(part)
    source.shutdown(socket.SHUT_WR)


def test_a_socket_is_told_from_those_of_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as mine:
            assert is_own_socket(mine.getsockname()[1], port)
            assert not is_own_socket(mine.getsockname()[1], port ^ 1)


class Asking:
    """Offers by address; ``None`` does not answer."""

    def __init__(self, **offers: int | None) -> None:
        self.offers = dict(offers)

    def __call__(self, address: WorkerAddress, _trust: Trust) -> Offer:
        found = self.offers[address.host]
        if found is None:
            raise WorkerError(f"worker {address}: cannot be reached")
        return Offer(release="1", memory_bytes=found, threads=2)


@pytest.fixture
def fleet(keys: Keys) -> tuple[Fleet, Asking, list[str]]:
    asking = Asking(a=8 << 30, b=None, c=24 << 30)
    said: list[str] = []
    addresses = [WorkerAddress(name, 1) for name in ("a", "b", "c")]
    trust = Trust(keys.user, server=False)
    return Fleet(addresses, trust, tell=said.append, ask=asking), asking, said


def test_those_that_answer_are_planned_with(fleet: tuple[Fleet, Asking, list[str]]) -> None:
    subject, asking, said = fleet
    assert said == ["worker b:1: cannot be reached"]
    joined = subject.joined(plain())
    assert [(gpu.index, gpu.worker, gpu.free_bytes) for gpu in joined.planned_gpus] == [
        (0, "a:1", 8 << 30),
        (1, "c:1", 24 << 30),
    ]
    asking.offers |= {"a": None, "b": 1, "c": 20 << 30}
    later = subject.joined(plain())
    assert [(gpu.worker, gpu.free_bytes) for gpu in later.planned_gpus] == [
        ("a:1", 0),
        ("c:1", 20 << 30),
    ]


def test_a_machine_with_a_gpu_uses_that(fleet: tuple[Fleet, Asking, list[str]]) -> None:
    card = Gpu(index=0, total_bytes=1 << 30, free_bytes=1 << 30)
    has_one = replace(plain(), gpus=(card,), engine_offload=True)
    assert fleet[0].joined(has_one) is has_one
    shared = replace(has_one, gpus=(Gpu(index=0, unified=True),))
    assert fleet[0].joined(shared) is shared


def plain() -> Machine:
    return Machine(
        cpu=Cpu(online=2, allowed=2, allowed_cores=2, big_cores=2),
        memory=Memory(total_bytes=4 << 30, available_bytes=4 << 30),
    )
