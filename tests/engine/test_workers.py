"""A model on several machines, all of them this one: real workers, tunnels, engine and text."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwprobe.engine import dry_run, self_test
from hwprobe.errors import DoesNotFitError, EngineCheckError
from hwprobe.estimate import layer_pools
from hwprobe.gguf import model_profile, read_header
from hwprobe.machine import Cpu, Machine, Memory
from hwprobe.placement import Candidate, Placement, Wish, place
from hwprobe.remote.devices import KEY_VARIABLE, PEERS_VARIABLE
from hwprobe.remote.fleet import Fleet
from hwprobe.remote.terms import WorkerAddress
from hwprobe.remote.tls import Trust
from server.errors import LoadFailedError, RunnerCrashedError
from server.planner import SNAPSHOT_AGE_S
from server.runner import protocol
from server.runner.process import Runner, Stream
from server.wishes import SamplingOptions
from tests.engine.runner_driver import DEMO, Driver, settings
from tests.fakes.synthetic_models import write_family
from tests.fakes.workers import Keys, lending, make_keys
from tests.functional.test_program import ask, put_demo, run, serving

pytestmark = pytest.mark.engine

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
SKY = CHAT.format("Why is the sky blue?")
GIB = 1 << 30


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    made = make_keys(tmp_path_factory.mktemp("keys"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, str(made.user.key))
        patch.setenv(PEERS_VARIABLE, str(made.user.peers))
        yield made


def host(size_bytes: int) -> Machine:
    return Machine(
        cpu=Cpu(online=2, allowed=2, allowed_cores=2, big_cores=2),
        memory=Memory(total_bytes=size_bytes, available_bytes=size_bytes),
    )


def planned(model: Path, addresses: list[WorkerAddress], keys: Keys, **wish: Any) -> Placement:
    """Where placement puts a model on a host of 2 GiB with these workers."""
    fleet = Fleet(addresses, Trust(keys.user, server=False), tell=lambda _line: None)
    profile = model_profile(read_header(model))
    candidate = Candidate(variant="it", profile=profile)
    return place(fleet.joined(host(2 * GIB)), [candidate], Wish(**wish))


def rest(stream: Stream) -> None:
    while stream.next(30.0) is not None:
        pass


def test_the_text_is_that_of_one_machine(keys: Keys) -> None:
    with Driver(settings()) as driver:
        alone = driver.generate(SKY, num_predict=40)
    with lending(keys.worker) as one, lending(keys.worker) as two:
        shared = settings(
            num_gpu=5, tensor_split=(2.0, 3.0), workers=(str(one.address), str(two.address))
        )
        with Driver(shared) as driver:
            assert driver.ready is not None, driver.failed
            row = driver.generate(SKY, num_predict=40)
            both = [driver.start(SKY, num_predict=40), driver.start("The sea", num_predict=40)]
            rows = [driver.finish(request) for request in both]
            remote = [name for name in driver.ready.memory if name.startswith("RPC")]
    assert row.text == alone.text
    assert rows[0].text == alone.text
    assert len(remote) == 2


class TestFailures:
    def test_a_worker_that_is_not_there_is_a_failed_load(self, keys: Keys) -> None:
        with lending(keys.worker) as lent:
            address = str(lent.address)
        with Driver(settings(num_gpu=7, workers=(address,))) as driver:
            assert driver.failed is not None
            assert driver.failed.message.startswith(f"worker {address}: cannot be reached")

    def test_without_keys_it_is_a_failed_load(
        self, keys: Keys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv(KEY_VARIABLE)
        with (
            lending(keys.worker) as lent,
            Driver(settings(num_gpu=7, workers=(str(lent.address),))) as driver,
        ):
            assert driver.failed is not None
            assert "workers need a key" in driver.failed.message

    def test_more_than_a_worker_has_is_a_failed_load(self, keys: Keys, tmp_path: Path) -> None:
        """Its child may take what is offered and no more; the engine is told, nothing is killed."""
        large = write_family("llama-8b", tmp_path)
        with (
            lending(keys.worker, memory_bytes=64 << 20) as lent,
            Driver(
                settings(num_gpu=99, use_mmap=False, workers=(str(lent.address),)), model=large
            ) as driver,
        ):
            assert driver.failed is not None
            assert "could not load the model" in driver.failed.message

    def test_the_end_of_a_worker_is_a_crash_that_names_it(self, keys: Keys) -> None:
        with lending(keys.worker) as lent:
            load = protocol.Load(
                model_path=str(DEMO), settings=settings(num_gpu=7, workers=(str(lent.address),))
            )
            runner = Runner.start(load)
            endless = SamplingOptions(
                num_predict=400,
                logit_bias=tuple((token, -100.0) for token in (3059, 3061, 3065)),
            )
            stream = runner.generate(protocol.Generate(id=0, prompt=SKY, sampling=endless))
            assert stream.next(30.0) is not None
            lent.worker.close()  # with all that it serves
            with pytest.raises(RunnerCrashedError, match=f"worker {lent.address}: the connection"):
                rest(stream)
            assert runner.autopsy is not None
            assert str(lent.address) in runner.autopsy.assertion
        with pytest.raises(LoadFailedError, match="cannot be reached"):
            Runner.start(load)


class TestEmulatedGpus:
    """Two workers that say they have 8 and 24 GiB stand for GPUs of that size."""

    def test_a_plan_over_both_is_one_the_engine_takes(self, keys: Keys, tmp_path: Path) -> None:
        model = write_family("llama-8b", tmp_path, ggml_type="F16", output_type="F16")
        profile = model_profile(read_header(model))
        with (
            lending(keys.worker, memory_bytes=8 * GIB) as small,
            lending(keys.worker, memory_bytes=24 * GIB) as large,
        ):
            addresses = [small.address, large.address]
            spread = planned(model, addresses, keys, num_ctx=98304, slots=1)
            chosen = spread.settings
            assert {"gpu0", "gpu1"} <= set(layer_pools(profile, chosen))
            assert chosen.workers == tuple(map(str, addresses))
            measured = dry_run(model, profile, chosen)
            for pool, budget in spread.budgets.items():
                if pool.startswith("gpu"):
                    found = measured.total_bytes(pool)
                    assert 0 < found <= budget
                    assert found == pytest.approx(spread.estimate.total_bytes(pool), rel=0.1)
            assert {pool for pool in measured.pools if pool != "host"} == {"gpu0", "gpu1"}

    def test_a_model_that_fits_this_machine_stays_here(self, keys: Keys) -> None:
        with lending(keys.worker, memory_bytes=8 * GIB) as small:
            stays = planned(DEMO, [small.address], keys)
            assert (stays.settings.num_gpu, stays.settings.workers) == (0, ())
            sent = planned(DEMO, [small.address], keys, num_gpu=3)
            assert (sent.settings.num_gpu, sent.settings.workers) == (3, (str(small.address),))

    def test_a_model_that_fits_nowhere_is_refused_with_what_is_short(
        self, keys: Keys, tmp_path: Path
    ) -> None:
        model = write_family("llama-8b", tmp_path, ggml_type="F16", output_type="F16")
        with lending(keys.worker, memory_bytes=8 * GIB) as small, pytest.raises(DoesNotFitError):
            planned(model, [small.address], keys, num_ctx=8192)

    def test_a_plan_over_both_really_loads(self, keys: Keys) -> None:
        """The demo model on workers that have room for a part of it each."""
        profile = model_profile(read_header(DEMO))
        with (
            lending(keys.worker, memory_bytes=150 << 20) as small,
            lending(keys.worker, memory_bytes=450 << 20) as large,
        ):
            fleet = Fleet(
                [small.address, large.address],
                Trust(keys.user, server=False),
                tell=lambda _line: None,
            )
            candidate = Candidate(variant="it", profile=profile)
            wish = Wish(num_ctx=2048, slots=4, num_gpu=7)
            placement = place(fleet.joined(host(2 * GIB)), [candidate], wish)
            chosen = replace(placement.settings, threads=1)
            assert set(layer_pools(profile, chosen)) == {"gpu0", "gpu1"}
            assert self_test(DEMO, chosen).ok
            with Driver(chosen) as driver, Driver(settings()) as alone:
                row = driver.generate(SKY, num_predict=30)
                assert row.text == alone.generate(SKY, num_predict=30).text

    def test_a_worker_that_has_gone_is_an_error_of_the_dry_run(self, keys: Keys) -> None:
        with lending(keys.worker) as lent:
            address = str(lent.address)
        profile = model_profile(read_header(DEMO))
        with pytest.raises(EngineCheckError, match="cannot be reached"):
            dry_run(DEMO, profile, settings(num_gpu=7, workers=(address,)))


class TestPrograms:
    """``satchel worker`` and ``satchel-server`` as operators start them."""

    def satchel(self, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "appliance.cli", "worker", *words]
        return subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
        )

    def test_a_key_is_made_once(self, tmp_path: Path) -> None:
        made = self.satchel("key", "here", "--json", cwd=tmp_path)
        assert made.returncode == 0, made.stderr
        assert set(json.loads(made.stdout)) == {"key", "certificate", "sha256"}
        assert (tmp_path / "here.key").stat().st_mode & 0o777 == 0o600
        again = self.satchel("key", "here", cwd=tmp_path)
        assert again.returncode == 2
        assert "here.key: is there already" in again.stderr

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (("serve", "--key", "none.key", "--peers", "none.crt"), "none.crt: no such file"),
            (("serve", "--key", "a.key", "--peers", "a.crt", "--listen", "x:y"), "HOST:PORT"),
            (("serve", "--key", "a.key", "--peers", "a.crt", "--memory", "much"), "a size such as"),
            (("show", "127.0.0.1:1", "--key", "a.key", "--peers", "a.crt"), "cannot be reached"),
            (("serve",), "--key"),
        ],
    )
    def test_what_cannot_work_is_refused(
        self, tmp_path: Path, words: tuple[str, ...], text: str
    ) -> None:
        self.satchel("key", "a", cwd=tmp_path)
        done = self.satchel(*words, cwd=tmp_path)
        assert done.returncode != 0
        assert text in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_server_uses_a_worker_and_outlives_it(self, tmp_path: Path) -> None:
        for name in ("worker", "user"):
            assert self.satchel("key", name, cwd=tmp_path).returncode == 0
        child = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "appliance.cli", "worker", "serve"),
                *("--listen", f"127.0.0.1:{free_port()}"),
                *("--key", "worker.key", "--peers", "user.crt", "--memory", "1 GiB"),
            ],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert child.stdout is not None
            line = child.stdout.readline()
            assert line.startswith("offering "), line
            address = line.split()[-1]
            shown = self.satchel(
                "show", address, "--key", "user.key", "--peers", "worker.crt", cwd=tmp_path
            )
            assert "serves 0 connection(s)" in shown.stdout, shown.stderr
            put_demo(tmp_path / "store")
            config = tmp_path / "satchel.toml"
            config.write_text(
                f'[store]\npath = "{tmp_path / "store"}"\nreserve = 0\n'
                f'[engine]\nworkers = ["{address}"]\n'
                f'key = "{tmp_path / "user.key"}"\npeers = "{tmp_path / "worker.crt"}"\n'
                "[model.demo]\nnum_gpu = 4\n"
            )
            with serving("--port", "0", "--config", str(config)) as (_, port):
                body = {
                    "model": "demo",
                    "messages": [{"role": "user", "content": "Why is the sky blue?"}],
                    "options": {"temperature": 0, "num_predict": 40},
                    "think": False,
                    "stream": False,
                }
                status, data = ask(port, "POST", "/api/chat", body)
                assert status == 200, data
                assert "Rayleigh" in json.loads(data)["message"]["content"]
                models = json.loads(ask(port, "GET", "/api/ps")[1])["models"]
                assert models[0]["size_vram"] > 0
                os.kill(child.pid, signal.SIGTERM)
                assert child.wait(30) == 0
                # A plan may rest on what was measured a moment ago: then the loss itself is told.
                status, data = ask(port, "POST", "/api/chat", body)
                assert status == 507 or b"cannot be reached" in data, data
                time.sleep(SNAPSHOT_AGE_S)
                status, data = ask(port, "POST", "/api/chat", body)
                assert status == 507, data  # asked for layers elsewhere, and told what is short
                assert ask(port, "GET", "/api/version")[0] == 200
        finally:
            child.kill()
            child.communicate()

    def test_a_server_whose_keys_are_missing_does_not_start(self, tmp_path: Path) -> None:
        config = tmp_path / "satchel.toml"
        (tmp_path / "store").mkdir()
        config.write_text(
            f'[store]\npath = "{tmp_path / "store"}"\n[engine]\nworkers = ["127.0.0.1"]\n'
        )
        done = run("--port", "0", "--config", str(config))
        assert done.returncode != 0
        assert "engine.workers: needs engine.key and engine.peers" in done.stderr


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        return int(reserved.getsockname()[1])
