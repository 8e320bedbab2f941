from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from server.runner.text import TextStream

TEXTS = st.text(alphabet="abé€😀\n", max_size=40)
STOPS = st.lists(st.text(alphabet="abé\n", min_size=1, max_size=4), max_size=3).map(tuple)


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(raw) + 1) for place in places), len(raw)]
    return [raw[start:end] for start, end in itertools.pairwise(bounds)]


def run(pieces: list[bytes], stops: tuple[str, ...]) -> tuple[list[str], TextStream]:
    stream = TextStream(stops)
    out = [stream.feed(piece) for piece in pieces]
    return [*out, stream.finish()], stream


def expected(text: str, stops: tuple[str, ...]) -> str:
    """The text up to the stop that is complete first, the longest of those."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


class TestTextStream:
    @given(TEXTS, STOPS, st.lists(st.integers(0, 500), max_size=12))
    @settings(deadline=None)
    def test_output_does_not_depend_on_how_bytes_are_cut(
        self, text: str, stops: tuple[str, ...], places: list[int]
    ) -> None:
        out, stream = run(cut(text.encode(), places), stops)

        assert "".join(out) == expected(text, stops)
        assert stream.stopped == (expected(text, stops) != text or any(map(text.endswith, stops)))

    @given(TEXTS, STOPS)
    @settings(deadline=None)
    def test_no_stop_text_and_no_part_of_a_character_is_ever_given_out(
        self, text: str, stops: tuple[str, ...]
    ) -> None:
        out, stream = run([bytes([byte]) for byte in text.encode()], stops)

        whole = "".join(out)
        assert not any(stop in whole for stop in stops)
        assert "\ufffd" not in whole
        assert stream.released == len(whole)

    @given(st.binary(max_size=60), st.lists(st.integers(0, 500), max_size=12))
    @settings(deadline=None)
    def test_any_bytes_give_whole_characters(self, raw: bytes, places: list[int]) -> None:
        pieces = "".join(run(cut(raw, places), ())[0])

        assert pieces == "".join(run([raw], ())[0])
        pieces.encode()

    def test_beginning_of_a_stop_text_is_held_back_until_it_is_none(self) -> None:
        stream = TextStream(("</s>",))

        assert stream.feed(b"ab</") == "ab"
        assert stream.feed(b"x") == "</x"

    def test_held_back_text_comes_at_the_end(self) -> None:
        stream = TextStream(("STOP",))

        assert stream.feed(b"a ST") == "a "
        assert stream.finish() == "ST"

    def test_stop_text_that_is_complete_first_wins(self) -> None:
        assert run([b"abc"], ("abc", "b"))[0] == ["a", ""]

    def test_nothing_follows_a_stop_text(self) -> None:
        stream = TextStream(("b",))

        assert stream.feed(b"abc") == "a"
        assert stream.stopped
        assert stream.feed(b"d") == ""
        assert stream.finish() == ""

    def test_bytes_of_an_incomplete_character_are_dropped_at_the_end(self) -> None:
        assert run(["€".encode()[:2]], ())[0] == ["", ""]

    def test_empty_stop_text_stops_nothing(self) -> None:
        assert run([b"ab"], ("",))[0] == ["ab", ""]
