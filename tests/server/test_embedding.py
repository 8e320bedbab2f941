"""Texts into frames, vectors into what a client gets, jobs from first to last row."""

from __future__ import annotations

import base64
import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import EngineRefusedError
from server.runner.embedding import Frame, Job, shape_vector, write_vector
from server.runner.feed import TextFeed
from server.runner.protocol import VectorForm
from server.runner.work import Chunk

FRAME = Frame(opening=(1,), closing=(2,), between=(3,))
SINGLE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def vector(*numbers: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array(numbers, np.float32)


class TestFrame:
    def test_overlong_text_that_may_not_be_cut_is_refused(self) -> None:
        with pytest.raises(EngineRefusedError, match="the input length exceeds the context length"):
            FRAME.around(range(7), limit=8, truncate=False)

    def test_context_that_holds_no_text_beside_the_frame_is_refused(self) -> None:
        with pytest.raises(EngineRefusedError, match="input after truncation exceeds maximum"):
            FRAME.around((9,), limit=2, truncate=True)

    def test_overlong_query_is_refused(self) -> None:
        with pytest.raises(EngineRefusedError, match="input after truncation exceeds maximum"):
            FRAME.pair(range(20), (9,), limit=8, truncate=True)

    def test_text_stands_in_its_frame(self) -> None:
        assert FRAME.around((7, 8), limit=4, truncate=False) == (1, 7, 8, 2)
        assert FRAME.around((), limit=2, truncate=False) == (1, 2)

    def test_cut_text_keeps_its_frame(self) -> None:
        assert FRAME.around(range(10, 99), limit=4, truncate=True) == (1, 10, 11, 2)

    def test_pair_is_parted_and_only_its_document_cut(self) -> None:
        assert FRAME.pair((7,), (8, 9), limit=7, truncate=False) == (1, 7, 2, 3, 8, 9, 2)
        assert FRAME.pair((7,), (8, 9), limit=6, truncate=True) == (1, 7, 2, 3, 8, 2)


class TestVector:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_number_that_is_none_is_refused(self, bad: float) -> None:
        with pytest.raises(EngineRefusedError, match="embedding contains NaN or Inf values"):
            shape_vector(vector(1, bad), dimensions=0, normalize=False)

    def test_cut_vector_is_scaled_again(self) -> None:
        shaped = shape_vector(vector(3, 4, 99), dimensions=2, normalize=True)
        assert shaped.tolist() == pytest.approx([0.6, 0.8])

    def test_more_dimensions_than_there_are_change_nothing(self) -> None:
        assert shape_vector(vector(3, 4), dimensions=9, normalize=False).tolist() == [3, 4]

    def test_zero_vector_stays_zero(self) -> None:
        assert shape_vector(vector(0, 0), dimensions=0, normalize=True).tolist() == [0, 0]

    @given(numbers=st.lists(SINGLE, min_size=1, max_size=8))
    def test_every_form_reads_back_as_the_same_numbers(self, numbers: list[float]) -> None:
        given_ = vector(*numbers)
        forms: tuple[VectorForm, ...] = ("float32", "float64")
        for form in forms:
            read = json.loads(write_vector(given_, form))
            assert vector(*read).tobytes() == given_.tobytes()
        raw = base64.b64decode(write_vector(given_, "base64"))
        assert struct.unpack(f"<{len(numbers)}f", raw) == tuple(given_.tolist())

    def test_single_precision_is_written_short_and_double_in_full(self) -> None:
        assert write_vector(vector(0.1), "float32") == "[0.1]"
        assert write_vector(vector(0.1), "float64") == "[0.10000000149011612]"


class TestJob:
    def test_vectors_go_out_in_the_order_of_the_texts(self) -> None:
        job = Job(request=5, texts=[(1,), (2, 3), (4,)], normalize=False)
        job.put(1, vector(1))
        assert job.row() is None
        job.put(0, vector(0))
        row = job.row()
        assert row is not None
        assert row.vectors == ("[0.0]", "[1.0]")
        assert row.done is None
        job.put(2, vector(2))
        last = job.row()
        assert last is not None
        assert (last.vectors, last.done, last.prompt_tokens) == (("[2.0]",), "stop", 4)
        assert job.done

    def test_fault_ends_the_job(self) -> None:
        job = Job(request=5, texts=[(1,)])
        row = job.fault("no", refused=True)
        assert (row.id, row.fault, row.refused, job.done) == (5, "no", True, True)


class TestFeed:
    def test_jobs_take_turns(self) -> None:
        feed = TextFeed()
        feed.add(Job(request=1, texts=[(1,), (2,), (3,)]))
        feed.add(Job(request=2, texts=[(4,)]))
        works = []
        while feed.waiting:
            works.append(feed.start())
        assert [work.prompt for work in works] == [(1,), (4,), (2,), (3,)]
        assert len({work.id for work in works}) == 4
        assert [feed.owner(work.id) for work in works] == [1, 2, 1, 1]
        assert all(work.id < 0 and work.most_tokens == 0 for work in works)

    def test_last_token_of_a_text_waits_for_a_step_of_single_tokens(self) -> None:
        feed = TextFeed()
        feed.add(Job(request=1, texts=[(5, 6, 7)]))
        work = feed.start()
        text = Chunk(id=work.id, sequence=0, start=0, tokens=(5, 6, 7), output=True)
        prompt = Chunk(id=3, sequence=1, start=0, tokens=(1, 2), output=True)
        answer = Chunk(id=4, sequence=2, start=9, tokens=(8,), output=True)

        first, vectors = feed.shape((text, prompt, answer))
        assert not vectors
        assert first == (
            Chunk(id=work.id, sequence=0, start=0, tokens=(5, 6), output=False),
            prompt,
            answer,
        )

        last = Chunk(id=work.id, sequence=0, start=2, tokens=(7,), output=True)
        second, vectors = feed.shape((last, prompt, answer))
        assert vectors
        assert second == (last, answer)

    def test_dropped_job_tells_which_works_to_end(self) -> None:
        feed = TextFeed()
        feed.add(Job(request=1, texts=[(1,), (2,)]))
        work = feed.start()
        job, works = feed.drop(1)
        assert job is not None
        assert works == (work.id,)
        assert not feed.waiting
        assert not feed.owns(work.id)
        assert feed.drop(1) == (None, ())
