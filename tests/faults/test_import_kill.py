"""kill -9 at any point of an import leaves every installed model usable, and no half one."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.policyfile import load_policy
from appliance.rolling import roll_back
from bundler.format.name import ModelName
from tests.appliance.sites import Desk, make_desk
from tests.fakes.forge import forge, tiny_model

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[2]
OLD = tiny_model(1)
NEW = (ROOT / "tests/demo-model/demo-f16.gguf").read_bytes()
POINTS = 20
LAYERS = (("license", b"MIT"), ("params", b'{"temperature":0}'))


class Rig:
    """A site with an old model, a stick with a new one, and the number of calls an import takes."""

    def __init__(self, folder: Path) -> None:
        self.desk = make_desk(folder)
        self.desk.carry(forge({"F16": OLD}, seq=1))
        newer = forge({"F16": NEW}, seq=2, chunk_bytes=1 << 20, layers=LAYERS)  # type: ignore[arg-type]
        self.bundle = newer.write(folder / "stick")
        self.pristine = folder / "pristine"
        shutil.copytree(self.root, self.pristine, symlinks=True)
        done = self.run(0)
        assert done.returncode == 0, done.stderr
        self.calls = int(done.stdout)

    @property
    def root(self) -> Path:
        return self.desk.store.paths.root

    def reset(self) -> None:
        shutil.rmtree(self.root)
        shutil.copytree(self.pristine, self.root, symlinks=True)

    def run(self, limit: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable,
                *("-m", "tests.appliance.killed_import"),
                *(str(limit), str(self.bundle), str(self.root)),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return Rig(tmp_path_factory.mktemp("kill"))


def assert_whole(desk: Desk) -> None:
    """Every blob is what its name says, every model reads, and the name stands for one of two."""
    for blob in desk.store.paths.blobs.glob("sha256-*"):
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name.removeprefix("sha256-")
    survey = desk.store.survey()
    assert survey.faults == ()
    assert [model.name.short() for model in survey.models] == ["demo:latest"]
    assert survey.models[0].model_path.read_bytes() in (OLD, NEW)
    assert load_policy(desk.store.paths.trust).highest("prod") in (1, 2)


def assert_finished(desk: Desk) -> None:
    """As after an import that nobody disturbed: the new model, and nothing left over."""
    model = desk.store.resolve(ModelName.parse("demo"))
    assert model.model_path.read_bytes() == NEW
    assert model.licenses == ("MIT",)
    assert load_policy(desk.store.paths.trust).highest("prod") == 2
    assert list(desk.store.paths.staging.iterdir()) == []
    # Weights, config, two layers; and weights and config of the version before.
    assert len(list(desk.store.paths.blobs.iterdir())) == 6
    assert len(list(desk.store.paths.provenances.iterdir())) == 2
    roll_back(model.name, desk.store)
    assert desk.store.resolve(model.name).model_path.read_bytes() == OLD


@pytest.mark.parametrize("number", range(POINTS))
def test_import_killed_at_a_random_point_leaves_the_store_whole(rig: Rig, number: int) -> None:
    point = random.Random(number).randint(1, rig.calls)
    rig.reset()
    killed = rig.run(point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert_whole(rig.desk)
    rig.desk.take(rig.bundle)
    assert_finished(rig.desk)


@pytest.mark.parametrize("number", range(5))
def test_import_killed_again_while_it_recovers_leaves_the_store_whole(
    rig: Rig, number: int
) -> None:
    chance = random.Random(1000 + number)
    rig.reset()
    rig.run(chance.randint(rig.calls // 2, rig.calls))
    assert_whole(rig.desk)
    rig.run(chance.randint(1, rig.calls // 2))
    assert_whole(rig.desk)
    rig.desk.take(rig.bundle)
    assert_finished(rig.desk)


def test_killed_at_its_last_calls_the_import_is_finished_by_the_next(rig: Rig) -> None:
    for point in range(rig.calls - 25, rig.calls + 1):
        rig.reset()
        rig.run(point)
        assert_whole(rig.desk)
        rig.desk.take(rig.bundle)
        assert_finished(rig.desk)


def test_chunks_that_were_flushed_are_not_read_from_the_medium_again(rig: Rig) -> None:
    for point in range(rig.calls // 3, rig.calls, 5):
        rig.reset()
        rig.run(point)
        if list(rig.desk.store.paths.staging.glob("*.marker")):
            break
    else:
        pytest.fail("no point of the import left a marker")
    # A chunk at the front cannot be read any more; the import goes on from the marker.
    (segment,) = (
        path for path in (rig.bundle / "blobs/sha256").iterdir() if path.stat().st_size > 1 << 20
    )
    data = bytearray(segment.read_bytes())
    data[100] ^= 1
    segment.write_bytes(data)
    try:
        rig.desk.take(rig.bundle)
    finally:
        data[100] ^= 1
        segment.write_bytes(data)
    assert_finished(rig.desk)
