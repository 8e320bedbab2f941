"""The engine's samplers in this process: they need no model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.chat import SamplingOptions
from server.errors import EngineRefusedError
from server.runner import sampling
from server.runner.chain import Candidates, Chain
from server.runner.sampler import Sampler

pytestmark = pytest.mark.engine

SIZE = 2000
CONTEXT = 64
CANDIDATES = Candidates(SIZE)


def rows(seed: int, count: int) -> list[sampling.Row]:
    generator = np.random.default_rng(seed)
    return [generator.normal(0, 4, SIZE).astype(np.float32) for _ in range(count)]


def sampler(options: SamplingOptions, prompt: Sequence[int] = (1, 2, 3)) -> Sampler:
    return Sampler(
        options,
        candidates=CANDIDATES,
        vocabulary_size=SIZE,
        context_tokens=CONTEXT,
        prompt=prompt,
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


class TestUnusableLogits:
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
