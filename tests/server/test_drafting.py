"""The draft model's cache beside the large one's, on an engine that refuses what real ones do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.runner.drafting import ABORTED, NO_ROOM, OK, Drafter, Wanted
from server.runner.shape import Shape
from server.runner.work import Discard, Drop, Restore, Save, Share, Slide

SIZE, SEQUENCES, CONTEXT = 50, 4, 40


class Batch:
    def __init__(self) -> None:
        self.parts: list[tuple[tuple[int, ...], int, int, int]] = []

    def clear(self) -> None:
        self.parts = []

    def add(self, tokens: Sequence[int], *, position: int, sequence: int, output: int) -> None:
        assert tokens
        assert 0 <= output <= 1
        self.parts.append((tuple(tokens), position, sequence, output))


class Engine:
    """Says that a token is followed by the next number."""

    def __init__(self) -> None:
        self.prefill_rate = 1000.0
        self.batch = Batch()
        self.shape = Shape(
            context_tokens=CONTEXT,
            cells=CONTEXT * 2,
            batch_tokens=32,
            sequences=SEQUENCES,
            output_rows=SEQUENCES + 8,
            vocabulary_size=SIZE,
            divisible=True,
            can_shift=True,
            window_tokens=0,
        )
        self.cache: dict[int, list[int]] = {number: [] for number in range(SEQUENCES)}
        self.answers: list[int] = []
        self.decodes = 0
        self._rows: list[int] = []

    def decode(self) -> int:
        self.decodes += 1
        assert self.batch.parts
        assert sum(len(part[0]) for part in self.batch.parts) <= self.shape.batch_tokens
        assert len({part[2] for part in self.batch.parts}) == len(self.batch.parts)
        answer = self.answers.pop(0) if self.answers else OK
        for tokens, position, sequence, _output in self.batch.parts:
            assert position == len(self.cache[sequence])
            if answer == OK:
                self.cache[sequence] += tokens
            elif answer == ABORTED:
                self.cache[sequence] += tokens[: len(tokens) // 2]
        self._rows = [part[0][-1] for part in self.batch.parts if part[3]]
        return answer

    def logits(self, output: int) -> npt.NDArray[np.float32]:
        row = np.zeros(SIZE, np.float32)
        row[(self._rows[output] + 1) % SIZE] = 9.0
        return row

    def remove(self, sequence: int, start: int, _end: int = -1) -> bool:
        del self.cache[sequence][start:]
        return True

    def share(self, source: int, target: int, end: int) -> None:
        assert not self.cache[target]
        assert 0 < end <= len(self.cache[source])
        self.cache[target] = self.cache[source][:end]

    def slide(self, sequence: int, start: int, end: int) -> None:
        assert end <= len(self.cache[sequence])
        del self.cache[sequence][start:end]

    def last_position(self, sequence: int) -> int:
        return len(self.cache[sequence]) - 1

    def forget(self) -> None:
        for held in self.cache.values():
            held.clear()


def wanted(tokens: Sequence[int], sequence: int = 0, most: int = 3, least: float = 0.0) -> Wanted:
    return Wanted(sequence=sequence, tokens=tokens, most=most, least_chance=least)


def drafter(engine: Engine, size: int = SIZE) -> Drafter:
    return Drafter(engine, vocabulary_size=size)


class TestProposing:
    def test_the_likeliest_tokens_one_after_another(self) -> None:
        engine = Engine()
        found = drafter(engine).propose([wanted([1, 2, 3])], 32)

        assert found == {0: (4, 5, 6)}
        assert engine.cache[0] == [1, 2, 3, 4, 5]  # nothing follows the last one

    def test_what_was_taken_is_not_computed_again(self) -> None:
        engine = Engine()
        subject = drafter(engine)
        subject.propose([wanted([1, 2, 3])], 32)
        before = engine.decodes
        found = subject.propose([wanted([1, 2, 3, 4, 5, 9])], 32)

        assert found == {0: (10, 11, 12)}
        assert engine.decodes == before + 3

    def test_several_are_drafted_together(self) -> None:
        engine = Engine()
        found = drafter(engine).propose([wanted([1], 0, most=1), wanted([7, 8], 1, most=3)], 32)

        assert found == {0: (2,), 1: (9, 10, 11)}
        assert engine.decodes == 3

    def test_a_long_text_is_computed_in_parts_first(self) -> None:
        engine = Engine()
        subject = drafter(engine)
        text = list(range(20))

        assert subject.propose([wanted(text)], 8) == {}
        assert subject.propose([wanted(text)], 8) == {}
        assert subject.propose([wanted(text)], 8) == {0: (20, 21, 22)}

    def test_an_unlikely_token_ends_a_draft(self) -> None:
        engine = Engine()

        assert drafter(engine).propose([wanted([1], least=0.999)], 32) == {}
        chance = float(np.exp(9) / (np.exp(9) + SIZE - 1))
        almost = chance**2 * 0.999
        assert drafter(Engine()).propose([wanted([1], least=almost)], 32) == {0: (2, 3)}

    def test_a_token_the_draft_model_does_not_know(self) -> None:
        engine = Engine()

        assert drafter(engine, size=SIZE + 8).propose([wanted([1, SIZE + 2])], 32) == {}
        assert drafter(engine).propose([wanted([1, -1])], 32) == {}
        assert engine.decodes == 0

    def test_a_token_the_model_does_not_know_is_not_proposed(self) -> None:
        found = drafter(Engine(), size=10).propose([wanted([8])], 32)

        assert found[0][0] == 9
        assert all(token < 10 for token in found[0])

    def test_nothing_is_proposed_beyond_the_context(self) -> None:
        text = list(range(CONTEXT - 2))
        subject = drafter(Engine())
        subject.propose([wanted(text)], 32)

        assert subject.propose([wanted(text, most=8)], 32) == {0: (38, 39)}


class TestFailures:
    def test_without_room_all_is_forgotten_and_tried_again(self) -> None:
        engine = Engine()
        subject = drafter(engine)
        subject.propose([wanted([1, 2])], 32)
        engine.answers = [NO_ROOM]

        assert subject.propose([wanted([1, 2, 3, 4])], 32) == {}
        assert not any(engine.cache.values())
        assert subject.propose([wanted([1, 2, 3, 4])], 32) == {0: (5, 6, 7)}

    def test_an_abort_keeps_what_was_computed(self) -> None:
        engine = Engine()
        subject = drafter(engine)
        engine.answers = [ABORTED]

        assert subject.propose([wanted([1, 2, 3, 4])], 32) == {}
        assert engine.cache[0] == [1, 2]
        assert subject.propose([wanted([1, 2, 3, 4])], 32) == {0: (5, 6, 7)}

    def test_an_abort_in_the_middle_gives_what_there_is(self) -> None:
        engine = Engine()
        engine.answers = [OK, ABORTED]

        assert drafter(engine).propose([wanted([1, 2])], 32) == {0: (3,)}
        assert engine.decodes == 2

    def test_a_broken_engine_is_not_asked_again(self, capsys: pytest.CaptureFixture[str]) -> None:
        engine = Engine()
        subject = drafter(engine)
        engine.answers = [-3]

        assert subject.propose([wanted([1, 2])], 32) == {}
        assert subject.propose([wanted([1, 2])], 32) == {}
        assert engine.decodes == 1
        assert "the draft model failed (-3)" in capsys.readouterr().err


@given(st.lists(st.booleans(), max_size=40))
def test_odds_are_shared_by_requests_that_begin(outcomes: list[bool]) -> None:
    subject = drafter(Engine())
    for right in outcomes:
        subject.settle(right=int(right), wrong=int(not right))

    assert subject.new_odds().right == subject.odds.right
    assert 0.0 <= subject.odds.right <= 1.0


class Mirrored(RuleBasedStateMachine):
    """Whatever happens to the large model's cache, the draft's holds beginnings of the same texts.

    ``texts`` is what the large model holds; a request's text may go on behind it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine()
        self.subject = drafter(self.engine)
        self.texts: dict[int, list[int]] = {number: [] for number in range(SEQUENCES)}

    @rule(
        sequence=st.integers(0, SEQUENCES - 1),
        said=st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=6),
    )
    def says(self, sequence: int, said: list[int]) -> None:
        self.texts[sequence] = (self.texts[sequence] + said)[: CONTEXT - 2]

    @rule(
        data=st.data(),
        catch_up=st.integers(1, 20),
        answers=st.lists(st.sampled_from((OK, OK, OK, ABORTED, NO_ROOM)), max_size=3),
    )
    def drafts(self, data: st.DataObject, catch_up: int, answers: list[int]) -> None:
        candidates = [number for number, text in self.texts.items() if text]
        if not candidates:
            return
        chosen = data.draw(st.lists(st.sampled_from(candidates), min_size=1, unique=True))
        texts = {one: [*self.texts[one], data.draw(st.integers(0, SIZE - 1))] for one in chosen}
        self.engine.answers = list(answers)
        found = self.subject.propose(
            [wanted(texts[one], one, most=data.draw(st.integers(1, 8))) for one in chosen], catch_up
        )
        for sequence, tokens in found.items():
            first = (texts[sequence][-1] + 1) % SIZE
            assert list(tokens) == [(first + n) % SIZE for n in range(len(tokens))]
        self.engine.answers = []
        for one in chosen:
            self.texts[one] = texts[one]
            self.subject.obey(Drop(one, len(texts[one])))

    @rule(sequence=st.integers(0, SEQUENCES - 1), start=st.integers(0, CONTEXT))
    def drops(self, sequence: int, start: int) -> None:
        del self.texts[sequence][start:]
        self.subject.obey(Drop(sequence, start))

    @precondition(lambda self: any(self.texts.values()))
    @rule(data=st.data())
    def shares(self, data: st.DataObject) -> None:
        source = data.draw(st.sampled_from([n for n, text in self.texts.items() if text]))
        target = (source + 1) % SEQUENCES
        end = data.draw(st.integers(1, len(self.texts[source])))
        self.subject.obey(Drop(target))
        self.texts[target] = self.texts[source][:end]
        self.subject.obey(Share(source, target, end))

    @precondition(lambda self: any(len(text) > 4 for text in self.texts.values()))
    @rule(data=st.data())
    def slides(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from([n for n, t in self.texts.items() if len(t) > 4]))
        start = data.draw(st.integers(0, 2))
        end = data.draw(st.integers(start + 1, len(self.texts[sequence])))
        del self.texts[sequence][start:end]
        self.subject.obey(Slide(sequence, start, end))

    @rule(sequence=st.integers(0, SEQUENCES - 1))
    def states_leave_and_come_back(self, sequence: int) -> None:
        self.subject.obey(Save(sequence, 1, 100))
        self.subject.obey(Restore(1, sequence, 7))
        self.subject.obey(Discard(1))

    @invariant()
    def holds_beginnings(self) -> None:
        for sequence, held in self.engine.cache.items():
            assert held == self.texts[sequence][: len(held)]


TestMirrored = Mirrored.TestCase
