"""A medium that cannot be read stops an import; what was read is kept for the next try."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.appliance.sites import Desk
from tests.appliance.sites import make_desk as _make_desk
from tests.fakes.forge import forge, tiny_model

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = (ROOT / "tests/demo-model/demo-f16.gguf").read_bytes()


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return _make_desk(tmp_path)


def _command(desk: Desk, bundle: Path) -> list[str]:
    store = str(desk.store.paths.root)
    return [sys.executable, "-m", "appliance.cli", "import", str(bundle), "--store", store]


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "SATCHEL_STORE_RESERVE": "0", "SATCHEL_CONFIG": ""}


def test_unreadable_medium_is_said_and_the_next_try_goes_on(desk: Desk) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    bundle = forge({"F16": WEIGHTS}, chunk_bytes=1 << 20).write(desk.medium)
    failing = subprocess.run(
        [
            *(strace, "-f", "-qq", "-o", os.devnull, "-e", "trace=preadv,preadv2"),
            *("-e", "inject=preadv,preadv2:error=EIO:when=6+", *_command(desk, bundle)),
        ],
        env=_environment(),
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    if "ptrace" in failing.stderr.lower() or "PTRACE" in failing.stderr:
        pytest.skip("tracing is not allowed here")
    assert failing.returncode == 1, failing.stderr
    assert "the medium cannot be read" in failing.stderr
    assert "what was read is kept" in failing.stderr
    assert desk.names() == []
    assert list(desk.store.paths.staging.glob("*.part"))
    assert desk.take(bundle).changed
    assert desk.names() == ["demo:latest"]
    assert list(desk.store.paths.staging.iterdir()) == []


def test_importers_at_the_same_time_finish_or_say_who_is_busy(desk: Desk) -> None:
    bundle = forge({"F16": WEIGHTS}, chunk_bytes=64 << 10).write(desk.medium)
    importers = [
        subprocess.Popen(
            _command(desk, bundle),
            env=_environment(),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    errors = [importer.communicate()[1] for importer in importers]
    codes = [importer.returncode for importer in importers]
    assert set(codes) <= {0, 15}, errors
    assert 0 in codes
    for code, error in zip(codes, errors, strict=True):
        if code == 15:
            assert "being written by process" in error
    assert desk.store.list()[0].model_path.read_bytes() == WEIGHTS


def test_second_importer_names_the_first(desk: Desk) -> None:
    bundle = forge({"F32": tiny_model(1)}).write(desk.medium)
    with desk.store.writing():
        second = subprocess.run(
            _command(desk, bundle),
            env=_environment(),
            cwd=ROOT,
            check=False,
            capture_output=True,
            text=True,
        )
    assert second.returncode == 15
    assert f"the store is being written by process {os.getpid()}" in second.stderr
