"""Durations, sizes, ages and tables as Go and Ollama write them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance import duration, human


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("5m", 300),
        ("1h30m", 5400),
        ("300ms", 0.3),
        ("1.5h", 5400),
        ("-1m", -60),
        ("+2s", 2),
        ("1us", 1e-6),
        ("1µs", 1e-6),
        (".5s", 0.5),
        ("1h1m1s1ms1ns", 3661.001000001),
    ],
)
def test_go_durations(text: str, seconds: float) -> None:
    assert duration.parse(text) == seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("300", 'time: missing unit in duration "300"'),
        ("1.5", 'time: missing unit in duration "1.5"'),
        ("", 'time: invalid duration ""'),
        ("-", 'time: invalid duration "-"'),
        ("s", 'time: invalid duration "s"'),
        (".s", 'time: invalid duration ".s"'),
        ("5x", 'time: invalid duration "5x"'),
        ("5m ", 'time: invalid duration "5m "'),
        ("9999999999h", 'time: invalid duration "9999999999h"'),
    ],
)
def test_other_texts_are_refused_in_go_s_words(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        duration.parse(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (300, "5m0s"),
        (5400, "1h30m0s"),
        (0.0015, "1.5ms"),
        (1.234567891, "1.234567891s"),
        (-90, "-1m30s"),
        (1e-9, "1ns"),
        (3661, "1h1m1s"),
    ],
)
def test_durations_are_shown_as_go_does(seconds: float, text: str) -> None:
    assert duration.show(seconds) == text


@given(st.integers(-(10**15), 10**15))
@settings(deadline=None)
def test_a_shown_duration_reads_back(total_us: int) -> None:
    seconds = total_us / 10**6
    assert duration.parse(duration.show(seconds)) == pytest.approx(seconds, abs=1e-6)


@given(st.text(max_size=20))
@settings(deadline=None)
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    for read in (duration.parse, duration.parse_lenient):
        try:
            read(text)
        except ValueError as error:
            assert str(error).startswith("time: ")  # noqa: PT017 - either way is right


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KB"),
        (1234, "1.2 KB"),
        (11_067_232, "11 MB"),
        (1_321_098_329, "1.3 GB"),
        (45_960_996, "45 MB"),
        (2_000_000_000, "2 GB"),
        (5_000_000_000_000, "5 TB"),
    ],
)
def test_sizes(size_bytes: int, text: str) -> None:
    assert human.size(size_bytes) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (8_000_000_000, "8B"),
        (1_235_814_432, "1.2B"),
        (22_700_000, "22.70M"),
        (5_512, "6K"),
        (7, "7"),
    ],
)
def test_counts(number: int, text: str) -> None:
    assert human.count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "Less than a second ago"),
        (1, "1 second ago"),
        (59, "59 seconds ago"),
        (60, "About a minute ago"),
        (125, "2 minutes ago"),
        (3600, "About an hour ago"),
        (47 * 3600, "47 hours ago"),
        (48 * 3600, "2 days ago"),
        (14 * 86400, "2 weeks ago"),
        (60 * 86400, "2 months ago"),
        (3 * 365 * 86400, "3 years ago"),
        (-300, "5 minutes from now"),
        (-292 * 365 * 86400, "Forever"),
    ],
)
def test_moments(seconds: float, text: str) -> None:
    assert human.moment(1_000_000_000 - seconds, now_s=1_000_000_000) == text


def test_no_moment_is_never() -> None:
    assert human.moment(None, now_s=0) == "Never"


@pytest.mark.parametrize(
    ("size", "vram", "text"),
    [
        (100, 0, "100% CPU"),
        (100, 100, "100% GPU"),
        (100, 52, "48%/52% CPU/GPU"),
        (0, 5, "Unknown"),
        (5, 6, "Unknown"),
    ],
)
def test_processors(size: int, vram: int, text: str) -> None:
    assert human.processor(size, vram) == text


def test_table_is_left_aligned_with_four_spaces_after_each_column() -> None:
    assert human.table(("NAME", "ID"), [("a", "longer"), ("demo", "x")]) == (
        "NAME    ID        \na       longer    \ndemo    x         "
    )


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert human.printable("a\tb\nc") == "a\tb\nc"
    assert human.printable("\x1b[2J\x07\x9b\r") == "\ufffd[2J\ufffd\ufffd\ufffd"
