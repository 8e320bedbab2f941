from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.runner.pace import Pace
from server.runner.proposing import MOST_PROPOSED, NEVER, PAUSE, Lookup, Odds, Proposer


class TestOdds:
    def test_nothing_is_tried_where_a_row_costs_as_much_as_it_saves(self) -> None:
        assert Odds(1.0).most(NEVER) == 0
        assert Odds(1.0).most(1.0) == 0

    def test_sure_tokens_fill_the_step(self) -> None:
        assert Odds(1.0).most(0.5) == MOST_PROPOSED

    def test_each_further_token_must_be_worth_its_row(self) -> None:
        assert Odds(0.5).most(0.3) == 1
        assert Odds(0.5).most(0.2) == 2
        assert Odds(0.5).most(0.6) == 0

    def test_poor_source_turns_itself_off_and_is_tried_again(self) -> None:
        odds = Odds(0.5)
        for _ in range(10):
            odds.note(right=0, wrong=1)

        assert [odds.most(0.3) for _ in range(PAUSE + 1)] == [0] * (PAUSE - 1) + [1, 0]

    def test_good_source_is_trusted_again(self) -> None:
        odds = Odds(0.1)
        for _ in range(20):
            odds.note(right=1, wrong=0)

        assert odds.most(0.4) > 1


class TestLookup:
    def test_repeated_text_is_continued(self) -> None:
        assert Lookup([1, 2, 3, 4, 5, 9, 1, 2, 3]).propose(3) == (4, 5, 9)

    def test_new_text_is_not(self) -> None:
        assert Lookup([1, 2, 3, 4]).propose(3) == ()
        assert Lookup([]).propose(3) == ()

    @given(st.lists(st.integers(0, 2), max_size=40), st.integers(0, 8))
    def test_proposals_stood_behind_the_same_three_tokens(
        self, tokens: list[int], most: int
    ) -> None:
        found = Lookup(tokens).propose(most)

        key = tokens[-3:]
        places = [i for i in range(len(tokens) - 3) if tokens[i : i + 3] == key]
        assert len(found) <= most
        if len(tokens) > 3 and most:
            assert bool(found) == bool(places)
            assert not places or list(found) == tokens[places[-1] + 3 :][:most]


class TestProposer:
    def test_forced_tokens_come_before_looked_up_ones(self) -> None:
        subject = Proposer((1, 2, 3, 4, 1, 2))
        subject.push(3)

        assert subject.propose((7, 8), 0.4) == (7, 8)
        assert subject.propose((), 0.4) == (4,)

    def test_what_became_of_them_is_counted(self) -> None:
        subject = Proposer(())
        assert subject.propose((7, 8, 9), 0.4) == (7, 8, 9)
        subject.settle(proposed=3, right=2)

        assert (subject.proposed, subject.accepted) == (3, 2)


class TestPace:
    def test_row_costs_all_it_saves_as_long_as_the_base_is_unknown(self) -> None:
        assert Pace(512, 100.0).ratio(1) == 1.0

    @pytest.mark.parametrize("decoding", [1, 4, 16])
    def test_base_is_shared_by_all_who_decode(self, decoding: int) -> None:
        pace = Pace(512, 100.0)
        for _ in range(100):
            pace.measure(1, 0, 0.05)

        assert pace.ratio(decoding) == pytest.approx(0.01 / (0.04 / decoding + 0.01), rel=0.01)
