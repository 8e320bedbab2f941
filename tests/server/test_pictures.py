"""Places of pictures in prompts, the marks for them, and whose turn a step is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.chat import Message
from server.placing import Marks
from server.runner.batching import Batching
from server.runner.gaze import Gaze, shows_picture
from server.runner.pictures import (
    before_picture,
    key_of,
    only_tokens,
    picture_key,
    places,
    row_of,
    stretch,
)
from server.runner.work import Chunk, Drop, Limits, Share, Work

CAT, DOG = picture_key(b"cat"), picture_key(b"dog")


def limits(*, whole: bool) -> Limits:
    return Limits(
        slots=2, cells=200, context_tokens=100, sequences=4, batch_tokens=16, whole_pictures=whole
    )


def work(number: int, *prompt: int) -> Work:
    return Work(id=number, prompt=prompt, most_tokens=4)


def run_all(batching: Batching, budget: int) -> list[Chunk]:
    """Compute everything that is planned, one step after another."""
    done: list[Chunk] = []
    for _ in range(50):
        batching.admit(lambda *_: True)
        chunks = [chunk for chunk in batching.plan(budget) if chunk.tokens]
        if not chunks:
            return done
        for chunk in chunks:
            batching.advance(chunk)
            done.append(chunk)
            if chunk.output:
                batching.finish(chunk.id)
    raise AssertionError("it does not come to an end")


@given(st.integers(0, 2**128 - 1), st.integers(1, 5000))
def test_places_know_their_picture_and_row(key: int, rows: int) -> None:
    made = places(key, rows)
    assert [row_of(place) for place in made] == list(range(rows))
    assert {key_of(place) for place in made} == {key}
    assert max(made) < 0
    assert only_tokens((5, *made, 6)) == (5, 6)


def test_stretches_are_text_or_one_picture() -> None:
    prompt = (1, 2, *places(CAT, 3), *places(CAT, 2), *places(DOG, 1), 3)
    cuts = [0]
    while cuts[-1] < len(prompt):
        cuts.append(stretch(prompt, cuts[-1], len(prompt)))
    assert cuts == [0, 2, 5, 7, 8, 9]
    assert stretch(prompt, 3, 4) == 4
    assert [before_picture(prompt, length) for length in range(10)] == [
        0, 1, 2, 2, 2, 5, 5, 7, 8, 9,
    ]  # fmt: skip


@pytest.mark.parametrize("whole", [False, True])
def test_chunks_hold_text_or_one_picture(*, whole: bool) -> None:
    batching = Batching(limits(whole=whole))
    batching.submit(work(1, 1, 2, 3, *places(CAT, 7), *places(DOG, 5), 4, 5))
    chunks = run_all(batching, 4)
    sizes = [len(chunk.tokens) for chunk in chunks]
    assert sizes == ([3, 7, 5, 2] if whole else [3, 4, 3, 4, 1, 2])
    assert [shows_picture(chunk) for chunk in chunks].count(True) == (2 if whole else 4)


@pytest.mark.parametrize("whole", [False, True])
def test_what_is_shared_ends_before_a_picture_that_is_seen_whole(*, whole: bool) -> None:
    batching = Batching(limits(whole=whole))
    batching.submit(work(1, 1, *places(CAT, 6), 9))
    run_all(batching, 16)
    batching.submit(work(2, 1, *places(CAT, 6)))
    effects = batching.admit(lambda *_: True)
    assert batching.running[2].cached == (1 if whole else 6)
    assert all(isinstance(effect, Drop | Share) for effect in effects)


def test_another_picture_at_the_same_place_shares_the_text_before_it() -> None:
    batching = Batching(limits(whole=False))
    batching.submit(work(1, 1, 2, *places(CAT, 3), 9))
    run_all(batching, 16)
    batching.submit(work(2, 1, 2, *places(DOG, 3), 9))
    batching.admit(lambda *_: True)
    assert batching.running[2].cached == 2


def chunk(number: int, *tokens: int) -> Chunk:
    return Chunk(id=number, sequence=number, start=0, tokens=tokens, output=False)


def test_text_and_pictures_take_turns() -> None:
    text, cat, dog = chunk(1, 7), chunk(2, *places(CAT, 2)), chunk(3, *places(DOG, 2))
    gaze = Gaze()
    planned = (text, cat, dog)
    turns = [gaze.narrow(planned, lambda key: key == DOG) for _ in range(4)]
    assert turns == [(dog,), (text,), (dog,), (text,)]
    assert gaze.narrow((text,), lambda _: False) == (text,)
    assert gaze.narrow((cat, dog), lambda _: False) == (cat,)
    assert gaze.narrow((cat, dog), lambda _: False) == (cat,)
    assert gaze.narrow((), lambda _: False) == ()


def test_marks_stand_where_the_message_says_and_before_it_otherwise() -> None:
    marks = Marks("ab12")
    turns = (
        Message(role="user", content="a [img] b", images=(b"1", b"2")),
        Message(role="user", content="c", images=(b"3",)),
    )
    placed, images = marks.place(turns)
    assert images == (b"1", b"2", b"3")
    assert marks.shown(placed[0].content) == "[img-1]a [img-0] b"
    assert marks.split(placed[1].content) == ("", 2, "c")


@given(st.text(alphabet="[img-0:ab12]\ue000 ", max_size=60))
def test_a_client_cannot_write_a_mark(text: str) -> None:
    marks = Marks("0123456789abcdef0123456789abcdef")
    assert marks.split(text) == (text,)
    assert marks.shown(text) == text
