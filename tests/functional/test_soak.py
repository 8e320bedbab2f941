"""A real server gives back what loads and requests took: memory, files, threads, processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import soak
from tests.functional.test_program import put_demo, serving

pytestmark = pytest.mark.engine


def test_loads_and_requests_leave_nothing_behind(tmp_path: Path) -> None:
    put_demo(tmp_path / "store")
    arguments = ("--port", "0", "--store", str(tmp_path / "store"))
    with serving(*arguments, env=soak.ENVIRONMENT) as (server, port):
        soak.cycle(port, count=2)
        before = soak.settled(server.pid, processes=1)
        soak.cycle(port, count=50)
        after = soak.settled(server.pid, processes=1)
        assert not soak.grew(before, after), f"{before} became {after}"

        soak.request(port, count=200)
        before = soak.settled(server.pid, processes=2)
        soak.request(port, count=1000)
        after = soak.settled(server.pid, processes=2)
        assert not soak.grew(before, after), f"{before} became {after}"


def test_growth_is_seen() -> None:
    mib = 1 << 20
    before = soak.Footprint(60 * mib, 40 * mib, 20, 10, 2)

    assert not soak.grew(before, before)
    assert not soak.grew(before, soak.Footprint(55 * mib, 40 * mib, 19, 9, 1))
    for grown in (
        soak.Footprint(77 * mib, 40 * mib, 20, 10, 2),
        soak.Footprint(60 * mib, 57 * mib, 20, 10, 2),
        soak.Footprint(60 * mib, 40 * mib, 21, 10, 2),
        soak.Footprint(60 * mib, 40 * mib, 20, 11, 2),
        soak.Footprint(60 * mib, 40 * mib, 20, 10, 3),
    ):
        assert soak.grew(before, grown)
