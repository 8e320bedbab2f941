"""The journal: one line per event, durable, and no worse for a crash in the middle of a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import StoreAccessError
from appliance.journal import Journal, timestamp


def test_events_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.events() == ()
    first = journal.record("imported", names=["a"])
    second = journal.record("removed", name="a\nb")
    assert journal.events() == (first, second)
    assert (tmp_path / "events.jsonl").read_bytes().count(b"\n") == 2


def test_line_that_was_cut_short_spoils_only_itself(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.record("imported", number=1)
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"at":"2026')
    journal.record("imported", number=2)
    assert [event.details["number"] for event in journal.events()] == [1, 2]


def test_journal_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreAccessError):
        Journal(tmp_path / "nowhere").record("imported")


def test_times_are_utc() -> None:
    assert timestamp(0) == "1970-01-01T00:00:00Z"
