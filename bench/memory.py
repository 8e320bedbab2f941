"""Compare the predicted memory with the engine's own figures, over many architectures.

    .venv/bin/python -m bench.memory [--only NAME,…] [--real] [--out FILE]

Without ``--real`` the engine simulates the load of files of real size whose weights are a hole
(`bench.architectures`), and its breakdown is the truth: weights, cache and compute, to the byte.
With ``--real`` files of few blocks are served by a real runner, without mapping; their slots are
filled, and the truth is what the kernel says the process holds for itself (``Pss_Anon``).
The latter leaves out what is reserved and was not touched, so there only too small a prediction
is a miss. Exits with 1 when a row misses by more than 2 % and 8 MiB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench.architectures import SHAPES, fewest_blocks, write_sparse
from hwprobe.engine import dry_runs
from hwprobe.errors import EngineCheckError
from hwprobe.estimate import ENGINE_TERMS, HOST, UNCHECKED, MemoryEstimate, estimate, repacked_types
from hwprobe.gguf import ModelProfile, model_profile, read_header
from hwprobe.inventory import take_inventory
from hwprobe.search import cache_types
from hwprobe.settings import EngineSettings
from server.errors import ServerError
from server.runner import protocol
from server.runner.process import Runner
from server.wishes import SamplingOptions

MIB = 1 << 20
ALLOWED_SHARE, ALLOWED_BYTES = 0.02, 8 * MIB
"""A prediction may miss by the larger of the two."""
MOST_REAL_BYTES = 1536 * MIB
"""Larger ones are left out of ``--real``: what is loaded for real must fit beside other work."""
STEP_S = 300.0

CONFIGURATIONS = (
    EngineSettings(num_ctx=8192, slots=4),
    EngineSettings(num_ctx=32768, kv_type="q8_0", repack=False),
    EngineSettings(num_ctx=4096, slots=2, num_batch=2048, num_ubatch=2048, repack=False),
    EngineSettings(num_ctx=4096, num_batch=128, num_ubatch=64),
)
REAL = EngineSettings(num_ctx=512, slots=2, use_mmap=False, repack=False)


HEADING = (
    f"{'model':18} {'architecture':15} {'settings':24} "
    f"{'MiB':>9} {'predicted':>9} {'error':>8} {'share':>7}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model with one set of settings.

    Attributes:
        name: of `bench.architectures.SHAPES`.
        architecture: the engine's name.
        settings: in words.
        truth_bytes: what the engine or the kernel says.
        predicted_bytes: what the formulas said before.
        touched: the truth is what was touched, not what was reserved: the engine reserves for
            the largest batch it may get. Then only too small a prediction is a miss.
    """

    name: str
    architecture: str
    settings: str
    truth_bytes: int
    predicted_bytes: int
    touched: bool = False

    @property
    def error_bytes(self) -> int:
        """Positive where too much was predicted."""
        return self.predicted_bytes - self.truth_bytes

    @property
    def good(self) -> bool:
        """Whether it misses by no more than is allowed."""
        allowed = max(ALLOWED_BYTES, ALLOWED_SHARE * self.truth_bytes)
        return self.error_bytes >= -allowed and (self.touched or self.error_bytes <= allowed)

    def __str__(self) -> str:
        """One line of the table."""
        share = self.error_bytes / self.truth_bytes
        return (
            f"{self.name:18} {self.architecture:15} {self.settings:24} "
            f"{self.truth_bytes / MIB:9.1f} {self.predicted_bytes / MIB:9.1f} "
            f"{self.error_bytes / MIB:+8.1f} {share:+7.2%}{'' if self.good else '  !'}"
        )


def simulated(name: str, folder: Path) -> Iterator[Row]:
    """Rows of one model; nothing of it is loaded.

    Raises:
        EngineCheckError, ValueError: the engine cannot make or run it.
    """
    path = write_sparse(name, folder / f"{name}.gguf")
    profile = model_profile(read_header(path))
    repacked = repacked_types(take_inventory().cpu, "avx2")
    chosen = [_allowed(profile, one) for one in CONFIGURATIONS]
    for one, measured in zip(chosen, dry_runs(path, profile, chosen), strict=True):
        predicted = estimate(profile, one, repacked=repacked)
        yield Row(
            name=name,
            architecture=profile.architecture,
            settings=_words(one),
            truth_bytes=_engine_bytes(measured),
            predicted_bytes=_engine_bytes(predicted),
        )
    path.unlink()


def loaded(name: str, folder: Path) -> Row | None:
    """A model of few blocks in a real runner, its slots filled; ``None`` if it is too large.

    Raises:
        ServerError, ValueError: the engine cannot make or run it.
    """
    blocks = fewest_blocks(name)
    path = write_sparse(name, folder / f"{name}.gguf", blocks=blocks, tokenizer=True)
    profile = model_profile(read_header(path))
    if profile.weights_bytes > MOST_REAL_BYTES:
        return None
    predicted = estimate(profile, REAL, repacked=frozenset())
    runner = Runner.start(protocol.Load(model_path=str(path), settings=REAL))
    try:
        fill_slots(runner, REAL)
        truth = private_bytes(runner.pid)
    finally:
        runner.stop(5.0)
        path.unlink()
    return Row(
        name=name,
        architecture=profile.architecture,
        settings=_words(REAL) + f", {blocks} blocks",
        touched=True,
        truth_bytes=truth,
        predicted_bytes=sum(
            term.size_bytes
            for term in predicted.terms
            if term.pool == HOST and term.name != UNCHECKED
        ),
    )


def fill_slots(runner: Runner, settings: EngineSettings, *, leave_tokens: int = 8) -> int:
    """Answer a prompt that fills the context, in every slot at once; tokens that were computed."""
    length = settings.num_ctx - leave_tokens - 1
    streams = []
    for slot in range(settings.slots):
        tokens = tuple(3 + (slot + 7 * place) % 251 for place in range(length))
        streams.append(
            runner.generate(
                protocol.Generate(
                    id=0,
                    tokens=tokens,
                    sampling=SamplingOptions(seed=1, num_predict=leave_tokens),
                    shift=False,
                )
            )
        )
    for stream in streams:
        while not stream.ended:
            row = stream.next(timeout_s=STEP_S)
            if row is None:
                raise TimeoutError(f"the runner said nothing for {STEP_S:g} s")
            if row.fault is not None:
                raise ServerError(str(row.fault))
    return settings.slots * length


def private_bytes(pid: int) -> int:
    """What a process holds for itself alone, files that are mapped left out."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss_Anon:"):
            return int(line.split()[1]) << 10
    raise ValueError("this kernel does not tell Pss_Anon")


def summary(rows: Sequence[Row]) -> str:
    """What the rows come to."""
    shares = [100 * abs(row.error_bytes) / row.truth_bytes for row in rows]
    if not shares:
        return "nothing was measured"
    return (
        f"{len(rows)} rows, {len({row.architecture for row in rows})} architectures: "
        f"mean error {statistics.mean(shares):.2f} %, "
        f"median {statistics.median(shares):.2f} %, largest {max(shares):.2f} %, "
        f"missed: {sum(not row.good for row in rows)}"
    )


def main() -> int:
    """Print the table; 1 when a row misses."""
    parser = argparse.ArgumentParser(prog="bench.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="NAME,…", help="only these models")
    parser.add_argument("--real", action="store_true", help="load small ones for real")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the rows as JSON")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(SHAPES)
    rows: list[Row] = []
    print(HEADING, flush=True)
    with tempfile.TemporaryDirectory(prefix="satchel-bench-") as scratch:
        for name in names:
            try:
                if arguments.real:
                    row = loaded(name, Path(scratch))
                    new = [row] if row else []
                else:
                    new = list(simulated(name, Path(scratch)))
                rows += new
                print("\n".join(map(str, new)), flush=True)
            except (EngineCheckError, ServerError, ValueError) as error:
                sys.stderr.write(f"{name}: not measured: {error}\n")
    print(summary(rows))
    if arguments.out:
        arguments.out.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 0 if rows and all(row.good for row in rows) else 1


def _allowed(profile: ModelProfile, settings: EngineSettings) -> EngineSettings:
    kind = settings.kv_type
    return settings if kind in cache_types(profile) else replace(settings, kv_type="f16")


def _engine_bytes(memory: MemoryEstimate) -> int:
    return sum(memory.term_bytes(name) for name in ENGINE_TERMS)


def _words(settings: EngineSettings) -> str:
    return (
        f"{settings.slots} x {settings.num_ctx} {settings.kv_type} "
        f"ub {settings.num_ubatch}{' repack' if settings.repack else ''}"
    )


if __name__ == "__main__":
    sys.exit(main())
