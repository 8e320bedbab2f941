"""One import with one system call that kills it, or fails: what strace injects, and what must hold.

    rig = Rig(folder)                       # a site with an old model, a stick with a newer one
    for call in rig.calls(): ...            # every call of an import that changes a file system
    rig.run(call, "signal=KILL")            # an import in a child, in which that call is the last
    rig.check()                             # the invariants, whatever happened
    rig.recover()                           # the next import finishes, and leaves nothing over

Invariants, after every fault (reference: bundles, T4):
 I1 an object that is visible under a digest has that digest;
 I2 a model that is listed has every file;
 I3 the model that was active answers, or its successor does;
 I4 counters, clock and keys never go back, and go on only with the model;
 I5 after the next import nothing is left over;
 I6 the medium is as it was.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.policyfile import load_policy
from bundler.format.name import ModelName
from tests.appliance.sites import make_desk
from tests.fakes.forge import forge, tiny_model

ROOT = Path(__file__).resolve().parents[2]
STRACE = shutil.which("strace")
CHANGING = (
    "write", "pwrite64", "pwritev", "pwritev2", "fsync", "fdatasync", "rename", "renameat",
    "renameat2", "ftruncate", "fallocate", "fchmod", "unlink", "unlinkat", "mkdir", "link",
)  # fmt: skip
"""Calls that change a file system."""
ERRORS = ("ENOSPC", "EIO", "EINTR", "EDQUOT", "EROFS", "EMFILE")
OLD, NEW = tiny_model(1), tiny_model(2)
LAYERS: Any = (("license", b"MIT"), ("params", b'{"temperature":0}'))
_CODES = {0, 1, 10, 13, 15}
"""Exit codes an import may end with when the file system fails."""
_LINE = re.compile(r"^\d+\s+(\w+)\(", re.MULTILINE)


@dataclass(frozen=True, slots=True, order=True)
class Call:
    """The N-th call of a kind, counted from 1 in each thread."""

    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name} {self.number}"


def may_trace() -> bool:
    """Whether strace is there and allowed to trace."""
    if STRACE is None:
        return False
    done = subprocess.run([STRACE, "-qq", "-o", os.devnull, "true"], check=False)
    return done.returncode == 0


class Rig:
    """A site that is put back before each fault."""

    def __init__(self, folder: Path) -> None:
        self.desk = make_desk(folder)
        self.desk.carry(forge({"F32": OLD}, seq=1))
        self.medium = folder / "stick"
        self.bundle = forge(
            {"F32": NEW}, seq=2, encoding="zstd-frames", layers=LAYERS, segment_bytes=10_000
        ).write(self.medium)
        self._log = folder / "strace.log"
        self._pristine = folder / "pristine"
        self._before = _digests(self.medium)
        self._blobs = {path.name for path in self.desk.store.paths.blobs.iterdir()}
        shutil.copytree(self.root, self._pristine, symlinks=True)

    @property
    def root(self) -> Path:
        """Of the store."""
        return self.desk.store.paths.root

    def reset(self) -> None:
        """As before the first fault."""
        shutil.rmtree(self.root)
        shutil.copytree(self._pristine, self.root, symlinks=True)

    def calls(self) -> tuple[Call, ...]:
        """Every call of an undisturbed import that changes a file system."""
        self.reset()
        done = self._import("-e", f"trace={','.join(CHANGING)}", "-o", str(self._log))
        assert done.returncode == 0, done.stderr
        counted = Counter(_LINE.findall(self._log.read_text()))
        self.reset()
        return tuple(
            Call(name, number)
            for name, times in sorted(counted.items())
            for number in range(1, times + 1)
        )

    def run(self, call: Call, inject: str) -> int:
        """One import in which a call is hit; returns its exit status as a shell says it."""
        done = self._import(
            *("-o", os.devnull, "-e", f"trace={call.name}"),
            *("-e", f"inject={call.name}:{inject}:when={call.number}"),
        )
        if "signal=" not in inject:
            assert done.returncode in _CODES, (call, inject, done.stderr)
            assert "internal error" not in done.stderr, (call, inject, done.stderr)
            assert done.returncode == 0 or "satchel: error: " in done.stderr
        return done.returncode

    def _import(self, *options: str) -> subprocess.CompletedProcess[str]:
        command = [
            *(sys.executable, "-m", "appliance.cli", "import"),
            *(str(self.bundle), "--store", str(self.root)),
        ]
        return subprocess.run(
            [str(STRACE), "-f", "-qq", *options, *command],
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),
                "PYTHONDONTWRITEBYTECODE": "1",
                "SATCHEL_STORE_RESERVE": "0",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def check(self) -> None:
        """I1 to I4 and I6."""
        store = self.desk.store
        for blob in store.paths.blobs.glob("sha256-*"):
            data = hashlib.sha256(blob.read_bytes()).hexdigest()
            assert data == blob.name.removeprefix("sha256-"), "I1"
        survey = store.survey()
        assert survey.faults == (), "I2"
        assert [model.name.short() for model in survey.models] == ["demo:latest"], "I3"
        (model,) = survey.models
        weights = model.model_path.read_bytes()
        assert weights in (OLD, NEW), "I3"
        if weights == NEW:
            assert model.licenses == ("MIT",), "I2"
        policy = load_policy(store.paths.trust)
        assert policy.active_keys(), "I4"
        assert policy.highest("prod") in ((1, 2) if weights == NEW else (1,)), "I4"
        assert policy.clock >= "2026-11-21T02:00:00Z", "I4"
        assert _digests(self.medium) == self._before, "I6"

    def recover(self) -> None:
        """The next import, undisturbed; then all invariants with I5."""
        self.desk.take(self.bundle)
        self.check()
        store = self.desk.store
        model = store.resolve(ModelName.parse("demo"))
        assert model.model_path.read_bytes() == NEW
        assert load_policy(store.paths.trust).highest("prod") == 2
        assert list(store.paths.staging.iterdir()) == [], "I5"
        leftovers = list(store.paths.root.rglob(".*.part"))
        assert leftovers == [], f"I5: {leftovers}"
        used = {part.name for part in store.paths.blobs.iterdir()} - self._blobs
        assert len(used) == 4, "I5"  # weights, config, two layers


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def faults(calls: tuple[Call, ...]) -> Iterator[tuple[Call, str]]:
    """Every call with everything that may befall it."""
    for call in calls:
        yield call, "signal=KILL"
        for error in ERRORS:
            yield call, f"error={error}"
        if call.name in ("write", "pwrite64"):
            yield call, "retval=1"  # a short write: one byte was taken, the others were not
