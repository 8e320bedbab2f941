"""Compare packing, checking and importing bundles with the tools people would use instead.

    python -m bench.bundles [--mebibytes 512] [--rounds 3] [--where DIRECTORY] [--json FILE]

Every row is a ratio within one round, the peer's time over ours on the same file and the same
file system, by the clock and by CPU time of all processes; rounds alternate, and the median is
printed. The weights are gaussian noise in F16, which no compressor does much with; ours are packed
with byte planes, the peer's as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from appliance.reading import Source
from appliance.rebuilding import rebuilt_chunks
from bundler.format.errors import BundleError, DamagedError
from bundler.format.index import parse_index
from bundler.format.keys import SigningKey
from bundler.format.name import ModelName
from bundler.format.parity import Accumulator
from bundler.format.volume import BundleDirectory
from bundler.pack import Packed, pack
from bundler.plan import PackRequest, make_plan
from bundler.progress import Silent
from bundler.source.gguf_file import open_gguf
from tests.fakes.gguf_writer import tiny_llama_metadata, tiny_llama_tensors, write_gguf

MIB = 1 << 20
CHUNK_BYTES = 4 * MIB
KEY = SigningKey.from_seed(b"B" * 32)


@dataclass(slots=True)
class Rows:
    """Costs by row and side."""

    costs: dict[str, dict[str, list[Cost]]] = field(default_factory=dict)
    goals: dict[str, str] = field(default_factory=dict)

    def add(self, row: str, goal: str, **sides: Cost) -> None:
        """One round of one row; the first side is ours."""
        self.goals[row] = goal
        for side, taken in sides.items():
            self.costs.setdefault(row, {}).setdefault(side, []).append(taken)


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of the clock, and of all CPUs together, children included."""

    wall: float
    cpu: float


def took(work: Callable[[], object]) -> Cost:
    """What some work costs."""
    before, started_s = os.times(), time.perf_counter()
    work()
    after, wall = os.times(), time.perf_counter() - started_s
    return Cost(wall, sum(after[:4]) - sum(before[:4]))


def model(path: Path, size_bytes: int) -> Path:
    """A GGUF file of about this size: an F16 tensor of gaussian weights beside a tiny model."""
    generator = np.random.default_rng(1)
    tensors = list(tiny_llama_tensors("F32"))
    first = tensors[0]
    rows = size_bytes // (2 * 4096)
    weights = generator.standard_normal(4096 * 256, dtype=np.float32).astype(np.float16).tobytes()
    data = weights * (rows // 256 + 1)
    big = type(first)(
        name="ballast.weight",
        dimensions=(4096, rows),
        ggml_type="F16",
        data=data[: 2 * 4096 * rows],
    )
    return write_gguf(path, tiny_llama_metadata(), [*tensors, big])


def packed(source: Path, out: Path, *, parity: bool) -> Packed:
    """Pack it, read back and signed."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    request = PackRequest(
        source=source,
        name=ModelName.parse("bench"),
        out=out,
        channel="bench",
        seq=1,
        include_source=True,
        keys=(KEY,),
        issued=datetime(2026, 1, 1, tzinfo=UTC),
        reproducible=True,
        work=out.parent,
        parity=parity,
    )
    opened = open_gguf(source)
    return pack(request, make_plan(request, opened.profile, chunks=len(opened.cuts)), Silent())


def hash_all_cores(path: Path) -> None:
    """Hashlib's SHA-256 over every 4 MiB of a file, on every core."""
    size = path.stat().st_size
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(os.cpu_count()) as pool:

        def one(offset: int) -> bytes:
            return hashlib.sha256(os.pread(file.fileno(), CHUNK_BYTES, offset)).digest()

        for _ in pool.map(one, range(0, size, CHUNK_BYTES)):
            pass


def shell(command: str) -> None:
    """A pipeline of the peers."""
    subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True)


def satchel(*words: str) -> None:
    """Our command, in a process of its own, as an operator runs it."""
    environment = {**os.environ, "SATCHEL_STORE_RESERVE": "0"}
    subprocess.run(
        [sys.executable, "-P", "-m", "appliance.cli", *words],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )


def one_round(rows: Rows, source: Path, folder: Path, *, ours_first: bool) -> None:
    """Every row once."""
    stick, store = folder / "stick", folder / "store"
    zst = folder / "peer.zst"
    peers = f"zstd -1 -T2 -q -f {source} -o {zst}"
    sides = [
        lambda: took(lambda: packed(source, stick, parity=False)),
        lambda: took(lambda: shell(peers)),
    ]
    first = sides[0 if ours_first else 1]()
    second = sides[1 if ours_first else 0]()
    ours, theirs = (first, second) if ours_first else (second, first)
    rows.add("pack, with read-back", ">= 1 x zstd -1 -T2", ours=ours, zstd=theirs)

    made = packed(source, stick, parity=False)
    stored = made.directory / "blobs/sha256" / made.manifest.artifacts[0].segments[0].digest.hex
    key = folder / "bench.pub"
    key.write_text(KEY.public_key.text())
    shutil.rmtree(store, ignore_errors=True)
    where = ("--store", str(store))
    words = KEY.public_key.words()
    satchel("trust", "add", str(key), "--words", words, "--label", "bench", *where)
    verify = took(lambda: satchel("verify", str(stick), "--all", *where))
    hashed = took(lambda: hash_all_cores(stored))
    rows.add("verify", ">= 0.9 x hashlib, all cores", ours=verify, hashlib=hashed)
    taken = took(lambda: satchel("import", str(stick), "--all", *where))
    piped = took(lambda: shell(f"zstd -dc {zst} | sha256sum > /dev/null"))
    rows.add("import", ">= 2 x zstd -dc | sha256sum", ours=taken, zstd_sha256sum=piped)
    one_parity_round(rows, source, stick)


def one_parity_round(rows: Rows, source: Path, stick: Path) -> None:
    """What parity adds to packing, what its arithmetic does, and how fast a group comes back."""
    plain = took(lambda: packed(source, stick, parity=False))
    made: list[Packed] = []
    with_parity = took(lambda: made.append(packed(source, stick, parity=True)))
    rows.add("pack with parity", "told", ours=with_parity, without=plain)
    members = [os.urandom(CHUNK_BYTES) for _ in range(4)]

    def encode() -> None:
        sums = Accumulator(CHUNK_BYTES)
        for number in range(64):
            sums.add(members[number % 4])

    def digest() -> None:
        found = hashlib.sha256()
        for number in range(64):
            found.update(members[number % 4])

    rows.add("parity, 64 chunks encoded", "told", ours=took(encode), hashlib=took(digest))
    artifact = made[0].manifest.artifacts[0]
    bundle = BundleDirectory(made[0].directory)
    index = parse_index(bundle.read_blob(artifact.index.digest))
    reader = Source(bundle=bundle, artifact=artifact, index=index)
    gaps: dict[int, BundleError] = {place: DamagedError("lost") for place in (0, 1)}
    places = len(index.records)
    again = took(lambda: list(rebuilt_chunks(reader, gaps)))
    stored = stick / "satchel/bench-000001/blobs/sha256" / artifact.segments[0].digest.hex
    hashed = took(lambda: hash_all_cores(stored))
    rows.add(f"repair, 2 chunks of {places}", "told", ours=again, hashlib=hashed)


def table(rows: Rows) -> list[dict[str, object]]:
    """A line per row: the peer's time divided by ours, so that more is better."""
    found = []
    for row, sides in rows.costs.items():
        (_, ours), (peer, theirs) = sides.items()
        pairs = list(zip(ours, theirs, strict=True))
        ratios = [b.wall / max(a.wall, 1e-9) for a, b in pairs]
        work = [b.cpu / max(a.cpu, 1e-9) for a, b in pairs]
        found.append(
            {
                "row": row,
                "peer": peer,
                "ratio": round(statistics.median(ratios), 3),
                "lowest": round(min(ratios), 3),
                "highest": round(max(ratios), 3),
                "cpu_ratio": round(statistics.median(work), 3),
                "ours_s": round(statistics.median(one.wall for one in ours), 3),
                "ours_cpu_s": round(statistics.median(one.cpu for one in ours), 3),
                "goal": rows.goals[row],
            }
        )
    return found


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.bundles", description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--where", type=Path, default=None, help="directory to work in")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    rows = Rows()
    with tempfile.TemporaryDirectory(prefix="satchel-bench-", dir=given.where) as made:
        folder = Path(made)
        source = model(folder / "model.gguf", given.mebibytes * MIB)
        for number in range(given.rounds):
            one_round(rows, source, folder, ours_first=number % 2 == 0)
    lines = table(rows)
    load = os.getloadavg()[0]
    print(f"{given.mebibytes} MiB, {given.rounds} rounds, {os.cpu_count()} CPUs, load {load:.1f}")
    for line in lines:
        print(
            f"{line['row']:<28} {line['ratio']:>7} x {line['peer']:<14} wall "
            f"({line['lowest']} to {line['highest']}), {line['cpu_ratio']:>6} x in CPU time; "
            f"ours {line['ours_s']} s, {line['ours_cpu_s']} CPU s; goal {line['goal']}"
        )
    if given.json is not None:
        with contextlib.suppress(FileNotFoundError):
            given.json.unlink()
        given.json.write_text(json.dumps({"load": load, "rows": lines}, indent=1))


if __name__ == "__main__":
    main()
