"""The engine's samplers in this process: they need no model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import EngineRefusedError
from server.runner import sampling
from server.runner.chain import Candidates, Chain, Dry
from server.runner.native import LIB
from server.runner.sampler import Sampler
from server.runner.vocabulary import Vocabulary
from server.wishes import SamplingOptions
from tests.engine.runner_driver import DEMO

pytestmark = pytest.mark.engine

SIZE = 2000
CONTEXT = 64
CANDIDATES = Candidates(SIZE)


def rows(seed: int, count: int) -> list[sampling.Row]:
    generator = np.random.default_rng(seed)
    return [generator.normal(0, 4, SIZE).astype(np.float32) for _ in range(count)]


@functools.cache
def vocabulary() -> Vocabulary:
    """The demo model's, for what breaks DRY's sequences; it has more tokens than `SIZE`."""
    LIB.llama_backend_init()
    params = LIB.llama_model_default_params()
    params.vocab_only = True
    return Vocabulary(LIB.llama_model_load_from_file(str(DEMO).encode(), params))


def dry(options: SamplingOptions) -> Dry | None:
    last = sampling.dry_tokens(options, context_tokens=CONTEXT)
    return Dry(vocabulary(), options, last_tokens=last) if last else None


def sampler(options: SamplingOptions, prompt: Sequence[int] = (1, 2, 3)) -> Sampler:
    return Sampler(
        options,
        candidates=CANDIDATES,
        vocabulary_size=SIZE,
        context_tokens=CONTEXT,
        prompt=prompt,
        dry=dry(options),
    )


def plainly(
    options: SamplingOptions, prompt: Sequence[int], logits: list[sampling.Row]
) -> list[int]:
    """The engine's chain on the whole vocabulary, nothing left out."""
    chain = Chain(
        sampling.chain(
            options,
            seed=sampling.draw_seed(options.seed),
            vocabulary_size=SIZE,
            context_tokens=CONTEXT,
        ),
        bias=sampling.merged_bias(options),
        dry=dry(options),
    )
    for token in prompt:
        chain.accept(token)
    tokens = []
    for row in logits:
        CANDIDATES.fill(row)
        tokens.append(chain.choose(CANDIDATES))
        chain.accept(tokens[-1])
    chain.close()
    return tokens


OPTIONS = st.builds(
    SamplingOptions,
    seed=st.integers(0, 2**32 - 2),
    temperature=st.sampled_from([0.0, 0.3, 0.8, 1.5]),
    top_k=st.sampled_from([0, 1, 5, 40, 200, 1999]),
    top_p=st.sampled_from([0.1, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05]),
    typical_p=st.sampled_from([0.5, 1.0]),
    repeat_last_n=st.sampled_from([-1, 0, 3, 64]),
    repeat_penalty=st.sampled_from([0.8, 1.0, 1.3]),
    presence_penalty=st.sampled_from([-1.0, 0.0, 1.0]),
    frequency_penalty=st.sampled_from([-0.5, 0.0, 0.5]),
    mirostat=st.sampled_from([0, 0, 0, 1, 2]),
    dry_multiplier=st.sampled_from([0.0, 0.0, 0.8]),
    dry_base=st.sampled_from([1.0, 1.75]),
    dry_allowed_length=st.sampled_from([0, 2]),
    dry_penalty_last_n=st.sampled_from([-1, 0, 8]),
    dry_sequence_breakers=st.sampled_from([(), ("\n", ":"), ("e",)]),
    xtc_probability=st.sampled_from([0.0, 0.5, 1.0]),
    xtc_threshold=st.sampled_from([0.0, 0.1, 0.6]),
    top_n_sigma=st.sampled_from([-1.0, -1.0, 0.5, 3.0]),
    logit_bias=st.lists(
        st.tuples(st.integers(0, SIZE - 1), st.sampled_from([-100.0, -1.0, 1.0, 20.0])),
        max_size=5,
    ).map(tuple),
)


class TestChosenTokens:
    @given(OPTIONS, st.integers(0, 2**32 - 1), st.lists(st.integers(0, SIZE - 1), max_size=80))
    @settings(deadline=None, max_examples=150)
    def test_they_are_those_of_the_whole_chain(
        self, options: SamplingOptions, seed: int, prompt: list[int]
    ) -> None:
        logits = rows(seed, 6)
        subject = sampler(options, prompt)

        tokens = [subject.sample(row) for row in logits]

        subject.close()
        assert tokens == plainly(options, prompt, logits)

    def test_same_seed_gives_the_same_tokens_and_another_others(self) -> None:
        logits = rows(1, 20)
        drawn = []
        for seed in (5, 5, 6):
            subject = sampler(SamplingOptions(seed=seed, temperature=2.0, top_k=500, top_p=1.0))
            drawn.append([subject.sample(row) for row in logits])
            subject.close()

        assert drawn[0] == drawn[1] != drawn[2]


class TestExtensions:
    def test_repeated_sequence_is_not_continued(self) -> None:
        prompt = [5, 6, 7, 8] * 3 + [5, 6, 7]
        row = np.zeros(SIZE, np.float32)
        row[[8, 9]] = 2.0, 1.5
        for multiplier, token in ((0.0, 8), (0.8, 9)):
            options = SamplingOptions(temperature=0, dry_multiplier=multiplier)
            subject = sampler(replace(options, dry_sequence_breakers=()), prompt)
            assert subject.sample(row) == token
            subject.close()

    def test_likeliest_tokens_but_the_last_are_left_out(self) -> None:
        row = np.full(SIZE, -30, np.float32)
        row[[3, 4, 5]] = 2.0, 1.9, 1.8
        options = SamplingOptions(seed=1, xtc_probability=1.0, xtc_threshold=0.1, top_p=1.0)
        subject = sampler(options)
        assert [subject.sample(row) for _ in range(5)] == [5] * 5
        subject.close()

    def test_tokens_far_below_the_likeliest_are_left_out(self) -> None:
        row = rows(3, 1)[0]
        row[3] = row.max() + 9
        options = SamplingOptions(seed=1, temperature=50.0, top_k=0, top_p=1.0)
        drawn = set()
        for sigma in (-1.0, 2.0):
            subject = sampler(replace(options, top_n_sigma=sigma))
            drawn.add(len({subject.sample(row) for _ in range(20)}))
            subject.close()
        assert min(drawn) == 1 < max(drawn)


class TestMirostat:
    """Measured against what the papers say: the surprise of a token follows ``tau``."""

    @pytest.mark.parametrize("version", [1, 2])
    def test_surprise_follows_tau(self, version: int) -> None:
        surprises = []
        logits = [row / np.float32(4) for row in rows(9, 300)]  # flat: there is much surprise
        for tau in (2.0, 6.0):
            options = SamplingOptions(
                seed=3, temperature=1.0, mirostat=version, mirostat_tau=tau, mirostat_eta=0.2
            )
            subject = sampler(options)
            drawn = [(row, subject.sample(row)) for row in logits]
            subject.close()
            taken = [-sampling.log_probabilities(row, token, 0)[0] for row, token in drawn[100:]]
            surprises.append(sum(taken) / len(taken))
        assert surprises[0] < surprises[1]

    @pytest.mark.parametrize("version", [1, 2])
    def test_same_seed_gives_the_same_tokens(self, version: int) -> None:
        drawn = []
        for _ in range(2):
            subject = sampler(SamplingOptions(seed=3, mirostat=version))
            drawn.append([subject.sample(row) for row in rows(9, 20)])
            subject.close()
        assert drawn[0] == drawn[1]


class TestBias:
    def test_biased_token_is_taken_and_a_banned_one_never(self) -> None:
        row = rows(4, 1)[0]
        best = int(row.argmax())
        for temperature in (0.0, 0.8):
            banned = SamplingOptions(seed=2, temperature=temperature, logit_bias=((best, -1e9),))
            wanted = replace(banned, logit_bias=((7, 1e9),))
            for options, expected in ((banned, None), (wanted, 7)):
                subject = sampler(options)
                taken = {subject.sample(row) for _ in range(20)}
                subject.close()
                assert best not in taken
                assert expected is None or taken == {expected}


class TestUnusableLogits:
    @pytest.mark.parametrize(
        "options",
        [
            SamplingOptions(top_k=0),
            SamplingOptions(mirostat=1),
            SamplingOptions(mirostat=2),
            SamplingOptions(dry_multiplier=0.8),
            SamplingOptions(top_n_sigma=1.0),
            SamplingOptions(xtc_probability=1.0),
            SamplingOptions(repeat_penalty=1.2, logit_bias=((77, 5.0),)),
        ],
    )
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_one_broken_logit_is_refused_by_every_chain(
        self, options: SamplingOptions, value: float
    ) -> None:
        row = rows(1, 1)[0]
        row[77] = value
        subject = sampler(options)
        with pytest.raises(EngineRefusedError, match="no usable probabilities"):
            subject.sample(row)
        subject.close()

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_row_without_probabilities_is_refused(self, value: float) -> None:
        row = np.full(SIZE, value, np.float32)
        subject = sampler(SamplingOptions())

        with pytest.raises(EngineRefusedError, match="no usable probabilities"):
            subject.sample(row)
        subject.close()

    def test_single_broken_logit_is_refused(self) -> None:
        row = rows(1, 1)[0]
        row[77] = np.nan
        subject = sampler(SamplingOptions(temperature=0.0))

        with pytest.raises(EngineRefusedError, match="no usable probabilities"):
            subject.sample(row)
        subject.close()
