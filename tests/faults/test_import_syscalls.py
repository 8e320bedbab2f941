"""An import is killed, or refused by the kernel, at system calls that change a file system.

A sample; `make torture` takes all of them. Where strace is not allowed, `test_import_kill` does
the same at calls of the interpreter.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.system_calls import ERRORS, Call, Rig, may_trace

pytestmark = pytest.mark.faults

if may_trace():
    SAMPLES = 8

    @pytest.fixture(scope="module")
    def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
        return Rig(tmp_path_factory.mktemp("calls"))

    @pytest.fixture(scope="module")
    def calls(rig: Rig) -> tuple[Call, ...]:
        found = rig.calls()
        assert {"fsync", "pwrite64", "rename", "unlink"} <= {call.name for call in found}
        return found

    @pytest.mark.parametrize("number", range(SAMPLES))
    def test_an_import_killed_at_a_system_call_is_finished_by_the_next(
        rig: Rig, calls: tuple[Call, ...], number: int
    ) -> None:
        chance = random.Random(number)
        rig.reset()
        rig.run(chance.choice(calls), "signal=KILL")
        rig.check()
        if number % 2:  # killed again while it recovers
            rig.run(chance.choice(calls), "signal=KILL")
            rig.check()
        rig.recover()

    @pytest.mark.parametrize("error", [*ERRORS, "short"])
    def test_a_system_call_that_fails_leaves_the_store_whole(
        rig: Rig, calls: tuple[Call, ...], error: str
    ) -> None:
        chance = random.Random(error)
        writing = [call for call in calls if call.name == "pwrite64"]
        call = chance.choice(writing if error == "short" else calls)
        rig.reset()
        rig.run(call, "retval=1" if error == "short" else f"error={error}")
        rig.check()
        rig.recover()

else:

    def test_where_nothing_may_be_traced_the_interpreter_s_calls_are_killed() -> None:
        assert (Path(__file__).parent / "test_import_kill.py").is_file()
