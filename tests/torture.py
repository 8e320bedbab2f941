"""Hit every system call of an import that changes a file system, one after the other.

    .venv/bin/python -P tests/torture.py [--part N/M] [--seconds S]

Each call is the last one of a killed process, and fails with each of ENOSPC, EIO, EINTR, EDQUOT,
EROFS and EMFILE; writes also take one byte only. After each the invariants I1 to I6 hold
(`tests/faults/system_calls.py`), and the next import finishes. Then pairs of kills, the second one
while the first is recovered from. Needs strace and the right to trace.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.system_calls import Call, Rig, faults, may_trace

PAIRS = 100


def main() -> None:
    """Go through all of them; the first broken invariant ends it with a trace."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", default="1/1", help="only every M-th fault, beginning with N")
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop after so long")
    options = parser.parse_args()
    first, step = map(int, options.part.split("/"))
    if not may_trace():
        sys.exit("torture: strace is not here, or may not trace")
    begun = time.monotonic()
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="satchel-torture-") as folder:
        rig = Rig(Path(folder))
        calls = rig.calls()
        print(f"{len(calls)} calls: {dict(Counter(call.name for call in calls))}", flush=True)
        chance = random.Random(1)
        work: list[tuple[tuple[Call, ...], str]] = [
            ((one,), inject) for one, inject in faults(calls)
        ]
        work += [(tuple(chance.choices(calls, k=2)), "signal=KILL") for _ in range(PAIRS)]
        for hit, inject in work[first - 1 :: step]:
            if time.monotonic() - begun > options.seconds:
                print("stopped: out of time")
                break
            rig.reset()
            try:
                for call in hit:
                    rig.run(call, inject)
                    rig.check()
                rig.recover()
            except AssertionError:
                print(f"BROKEN after {' and '.join(map(str, hit))}: {inject}", flush=True)
                raise
            done["two kills" if len(hit) > 1 else inject] += 1
    print(f"{sum(done.values())} faults: {dict(done)}")


if __name__ == "__main__":
    main()
