from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import EngineRefusedError
from server.runner import sampling
from server.wishes import SamplingOptions

ROWS = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).normal(0, 3, 1000).astype(np.float32)
)


def names(**changes: Any) -> list[Any]:
    steps = sampling.chain(
        SamplingOptions(**changes), seed=1, vocabulary_size=100, context_tokens=64
    )
    return [step[0] for step in steps]


class TestOptionsAreRefused:
    @pytest.mark.parametrize(
        ("changes", "found"),
        [
            ({"temperature": math.nan}, "temperature: expected a finite number, found nan"),
            ({"top_p": math.inf}, "top_p: expected a finite number, found inf"),
            ({"repeat_penalty": 0.0}, "repeat_penalty: expected more than 0, found 0.0"),
            ({"dry_base": math.nan}, "dry_base: expected a finite number, found nan"),
            ({"dry_multiplier": math.inf}, "dry_multiplier: expected a finite number, found inf"),
            ({"xtc_probability": math.nan}, "xtc_probability: expected a finite number"),
            ({"xtc_threshold": math.nan}, "xtc_threshold: expected a finite number"),
            ({"top_n_sigma": math.inf}, "top_n_sigma: expected a finite number, found inf"),
            ({"dry_sequence_breakers": ("x",) * 17}, "expected at most 16, found 17"),
            ({"dry_sequence_breakers": ("é" * 21,)}, "expected at most 40 bytes, none of zero"),
            ({"dry_sequence_breakers": ("\0",)}, "expected at most 40 bytes, none of zero"),
            ({"mirostat_tau": math.nan}, "mirostat_tau: expected a finite number, found nan"),
            ({"mirostat_eta": math.inf}, "mirostat_eta: expected a finite number, found inf"),
            ({"logit_bias": ((1, math.nan),)}, "logit_bias: expected finite numbers, found nan"),
            ({"mirostat": 3}, "mirostat: expected 0, 1 or 2, found 3"),
            ({"logit_bias": ((100, 1.0),)}, "logit_bias: expected tokens 0 to 99, found 100"),
            ({"logit_bias": ((-1, 1.0),)}, "logit_bias: expected tokens 0 to 99, found -1"),
            ({"logit_bias": ((1, math.inf),)}, "logit_bias: expected finite numbers, found inf"),
        ],
    )
    def test_value_the_engine_would_take_silently(
        self, changes: dict[str, Any], found: str
    ) -> None:
        with pytest.raises(EngineRefusedError, match=found):
            sampling.check_options(SamplingOptions(**changes), vocabulary_size=100)

    def test_defaults_pass(self) -> None:
        sampling.check_options(SamplingOptions(), vocabulary_size=100)


class TestChain:
    def test_order_is_llama_cpp_s(self) -> None:
        assert names(repeat_penalty=1.1, logit_bias=((1, 2.0),)) == [
            *("logit_bias", "penalties", "top_k", "typical", "top_p", "min_p", "temp", "dist")
        ]

    def test_extensions_stand_where_llama_cpp_has_them(self) -> None:
        assert names(
            repeat_penalty=1.1, dry_multiplier=0.8, top_n_sigma=1.0, xtc_probability=0.5
        ) == [
            *("penalties", "dry", "top_n_sigma", "top_k", "typical", "top_p", "min_p"),
            *("xtc", "temp", "dist"),
        ]

    def test_extensions_that_change_nothing_are_left_out(self) -> None:
        assert "dry" not in names(dry_multiplier=0.8, dry_penalty_last_n=0)
        assert "top_n_sigma" not in names(top_n_sigma=0.0)
        assert names(temperature=0.0, top_n_sigma=1.0, xtc_probability=1.0) == ["greedy"]

    def test_temperature_zero_takes_the_likeliest_after_the_penalties(self) -> None:
        assert names(temperature=0.0, repeat_penalty=1.1) == ["penalties", "greedy"]

    @pytest.mark.parametrize(("version", "last"), [(1, "mirostat"), (2, "mirostat_v2")])
    def test_mirostat_replaces_the_cuts(self, version: int, last: str) -> None:
        assert names(mirostat=version) == ["temp", last]

    def test_penalties_that_change_nothing_are_left_out(self) -> None:
        assert "penalties" not in names()
        assert "penalties" not in names(repeat_penalty=1.1, repeat_last_n=0)

    def test_same_token_biased_twice_gets_the_sum(self) -> None:
        options = SamplingOptions(logit_bias=((5, 1.0), (5, 2.0)))

        assert sampling.merged_bias(options) == ((5, 3.0),)

    def test_negative_look_back_means_the_context(self) -> None:
        options = SamplingOptions(repeat_last_n=-1)

        assert sampling.last_tokens(options, context_tokens=64) == 64

    def test_negative_seed_is_drawn_anew(self) -> None:
        assert len({sampling.draw_seed(-1) for _ in range(20)}) > 1
        assert sampling.draw_seed(7) == 7
        assert sampling.draw_seed(2**32 + 7) == 7


class TestLikeliest:
    @given(ROWS, st.integers(1, 250))
    @settings(deadline=None)
    def test_holds_all_of_the_largest(self, row: sampling.Row, count: int) -> None:
        found = set(sampling.likeliest(row, count).tolist())

        assert set(np.argsort(-row)[:count].tolist()) <= found

    @given(st.integers(1, 40))
    def test_equal_logits_are_all_taken(self, count: int) -> None:
        row = np.zeros(1000, np.float32)

        assert len(sampling.likeliest(row, count)) == 1000

    def test_impossible_tokens_do_not_disturb(self) -> None:
        row = np.full(1000, -np.inf, np.float32)
        row[[3, 500]] = 1.0

        assert {3, 500} <= set(sampling.likeliest(row, 2).tolist())

    @pytest.mark.parametrize(
        ("changes", "needed"),
        [
            ({"top_k": 40}, 45),
            ({"temperature": 0.0}, 6),
            ({"top_k": 0}, None),
            ({"top_k": 900}, None),
            ({"mirostat": 2}, None),
            ({"top_n_sigma": 1.0}, None),
            ({"top_n_sigma": 1.0, "temperature": 0.0}, 6),
            ({"dry_multiplier": 0.8, "temperature": 0.0}, None),
            ({"xtc_probability": 1.0}, 45),
        ],
    )
    def test_all_tokens_are_seen_where_the_chain_does_not_cut_first(
        self, changes: dict[str, Any], needed: int | None
    ) -> None:
        options = SamplingOptions(**changes)

        assert sampling.candidates_needed(options, 5, vocabulary_size=1000) == needed


class TestLogProbabilities:
    @given(ROWS, st.integers(0, 999), st.integers(0, 20))
    @settings(deadline=None)
    def test_they_are_those_of_the_softmax(self, row: sampling.Row, token: int, top: int) -> None:
        exact = row.astype(np.float64)
        exact = exact - exact.max()
        exact = exact - math.log(np.exp(exact).sum())

        value, best = sampling.log_probabilities(row, token, top)

        assert value == pytest.approx(exact[token], abs=1e-9)
        assert [i for i, _ in best] == np.argsort(-row, kind="stable")[:top].tolist()
        assert [v for _, v in best] == pytest.approx(sorted(exact, reverse=True)[:top], abs=1e-9)
