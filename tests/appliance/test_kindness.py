"""An import beside a server: what the server has in memory stays, and it comes first."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from appliance.stocktaking import take_stock
from bundler.format import fsio
from bundler.format.digest import Digest
from bundler.format.name import ModelName
from tests.appliance.sites import Desk
from tests.fakes.deltas import delta_of
from tests.fakes.forge import forge

DEMO = ModelName.parse("demo")
DATA = (Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf").read_bytes()
CHANGED = DATA[:-4096] + bytes(byte ^ 1 for byte in DATA[-4096:])
IN_MEMORY = ("tmpfs", "ramfs")


def resident(path: Path) -> float:
    """Which share of a file's pages the kernel has in memory."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = np.frombuffer(mapped, dtype=np.uint8)
        pages = -(-len(view) // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * pages)()
        address = ctypes.c_void_p(view.ctypes.data)
        status = ctypes.CDLL(None).mincore(address, ctypes.c_size_t(len(view)), found)
        del view
    assert status == 0
    return sum(page & 1 for page in found) / pages


def lies_on_disk(path: Path) -> bool:
    """Whether its file system keeps files elsewhere than in memory."""
    best = ""
    kind = ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4]
        if path.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind not in IN_MEMORY


@contextmanager
def served(path: Path) -> Iterator[None]:
    """A runner that has the file mapped, every page of it touched."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) >= 0
        yield


def test_a_model_that_is_being_served_stays_in_memory(desk: Desk) -> None:
    """Although the import copies from that very file, and hashes it."""
    desk.carry(forge({"F16": DATA}, chunk_bytes=1 << 20))
    live = desk.store.resolve(DEMO).model_path
    with served(live):
        assert resident(live) == 1.0
        desk.carry(delta_of(CHANGED, DATA, chunk_bytes=1 << 20))
        desk.carry(forge({"F16": DATA}, chunk_bytes=1 << 20, seq=3))
        take_stock((), desk.site, desk.observer)
        assert resident(live) == 1.0


def test_what_an_import_reads_and_writes_leaves_memory_again(desk: Desk) -> None:
    bundle = forge({"F16": DATA}, chunk_bytes=1 << 20)
    directory = bundle.write(desk.medium)
    segment = bundle.segment_path(desk.medium)
    os.sync()  # pages that are not written yet cannot leave
    desk.take(directory)
    written = desk.store.paths.blob(Digest.of(DATA))
    if lies_on_disk(written):
        # The gate reads the header, and the kernel reads ahead of it.
        assert resident(written) < 0.3
        assert resident(segment) < 0.3
    else:
        assert resident(written) == 1.0


def test_a_file_system_without_advice_is_none_the_worse() -> None:
    reading, writing = os.pipe()
    fsio.pass_over(reading, 0, 10)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(("verb", "nice"), [("import", 19), ("list", 0)])
def test_verbs_that_move_gigabytes_let_others_go_first(verb: str, nice: int) -> None:
    code = (
        "import os, sys; import appliance.cli as cli;"
        "cli.run = lambda words: print(os.nice(0)) or 0; cli.main()"
    )
    before = os.nice(0)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, verb],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert int(done.stdout) == max(nice, before)
