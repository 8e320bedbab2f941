from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.errors import EngineRefusedError
from server.runner.batching import FOLLOW_TOKENS, Batching
from server.runner.saved import SavedStates
from server.runner.window import fit_prompt, kept_tokens, longest_answer, slide_range
from server.runner.work import (
    Chunk,
    Discard,
    Drop,
    Effect,
    Limits,
    Restore,
    Save,
    Share,
    Slide,
    Work,
)

CONTEXT = 16
Cell = list[Any]


class Cache:
    """A KV cache that refuses what the engine would abort on or answer with an error.

    A cell is its token, and whether it is where it was computed. Two sequences may hold the same.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.sequences: dict[int, list[Cell]] = {n: [] for n in range(limits.sequences)}
        self.states: dict[int, list[Cell]] = {}
        self.bad = False
        self.failed: list[Restore] = []
        self.unsaved: list[int] = []

    def apply(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Drop(sequence, start):
                    cells = self.sequences[sequence]
                    assert self.limits.divisible or start in (0, len(cells))
                    del cells[start:]
                case Share(source, target, end):
                    assert not self.sequences[target]
                    assert end <= len(self.sequences[source])
                    assert self.limits.divisible or end == len(self.sequences[source])
                    self.sequences[target] = self.sequences[source][:end]
                case Slide(sequence, start, end):
                    assert self.limits.can_slide
                    cells = self.sequences[sequence]
                    others = [
                        c for n, held in self.sequences.items() if n != sequence for c in held
                    ]
                    assert not any(cell is other for cell in cells[end:] for other in others)
                    for cell in cells[end:]:
                        cell[1] = False
                    del cells[start:end]
                case _:
                    self._keep(effect)

    def _keep(self, effect: Save | Restore | Discard) -> None:
        match effect:
            case Save(sequence, state, size):
                assert all(exact for _token, exact in self.sequences[sequence])
                if size != len(self.sequences[sequence]):
                    self.unsaved.append(state)
                    return
                self.states[state] = [list(cell) for cell in self.sequences[sequence]]
            case Restore(state, sequence):
                assert not self.sequences[sequence]
                if self.bad or state in self.unsaved:
                    self.failed.append(effect)
                else:
                    self.sequences[sequence] = [list(cell) for cell in self.states[state]]
                    assert self.used() <= self.limits.cells, "the cache is full"
            case Discard(state):
                self.states.pop(state, None)

    def measure(self, sequence: int) -> int:
        return len(self.sequences[sequence])

    def compute(self, chunks: Sequence[Chunk]) -> None:
        assert 0 < sum(len(chunk.tokens) for chunk in chunks) <= self.limits.batch_tokens
        assert len({chunk.sequence for chunk in chunks}) == len(chunks)
        for chunk in chunks:
            cells = self.sequences[chunk.sequence]
            assert chunk.start == len(cells), "positions must go on without a gap"
            cells += [[token, True] for token in chunk.tokens]
        assert self.used() <= self.limits.cells, "the cache is full"

    def used(self) -> int:
        return len({id(cell) for cells in self.sequences.values() for cell in cells})

    def tokens(self, sequence: int) -> list[int]:
        return [cell[0] for cell in self.sequences[sequence]]


def limits(**changes: int | bool) -> Limits:
    fields: dict[str, int | bool] = {
        "slots": 2,
        "cells": 2 * CONTEXT,
        "context_tokens": CONTEXT,
        "sequences": 4,
        "batch_tokens": 8,
    }
    return Limits(**{**fields, **changes})  # type: ignore[arg-type]


def work(number: int, prompt: Sequence[int], most: int = 4, **changes: int | bool | str) -> Work:
    return Work(id=number, prompt=tuple(prompt), most_tokens=most, **changes)  # type: ignore[arg-type]


class Bench:
    """A batching and a cache that follow each other."""

    def __init__(
        self,
        bounds: Limits,
        resumable: Callable[[int, int], bool] = lambda _held, _position: True,
        *,
        budget: int = 0,
    ) -> None:
        """``resumable`` is asked with how much a sequence holds, and a position."""
        self.cache = Cache(bounds)
        self.batching = Batching(bounds, saved=SavedStates(budget), measure=self.cache.measure)
        self._resumable = resumable

    def admit(self) -> None:
        self.cache.apply(
            self.batching.admit(
                lambda sequence, position: self._resumable(
                    len(self.cache.sequences[sequence]), position
                )
            )
        )

    def step(self, budget: int = 100) -> tuple[Chunk, ...]:
        self.admit()
        chunks = self.batching.plan(budget)
        if chunks:
            self.cache.compute(chunks)
        for chunk in chunks:
            self.batching.advance(chunk)
            run = self.batching.running[chunk.id]
            assert self.cache.tokens(chunk.sequence) == run.held.tokens[: run.evaluated]
        return chunks

    def run(self, number: int, answer: Sequence[int]) -> int:
        """Run one request alone to its end; returns how many prompt tokens were cached."""
        self.admit()
        cached = self.batching.running[number].cached
        for token in answer:
            while not any(chunk.output for chunk in self.step()):
                assert self.batching.running[number].pending
            self.cache.apply(self.batching.append(number, token) or ())
        self.cache.apply(self.batching.finish(number))
        return cached


class TestPromptReuse:
    def test_next_turn_computes_only_what_is_new(self) -> None:
        bench = Bench(limits())
        bench.batching.submit(work(1, [1, 2, 3]))
        bench.run(1, [4, 5])
        bench.batching.submit(work(2, [1, 2, 3, 4, 9]))

        assert bench.run(2, [7]) == 4

    def test_last_token_of_a_known_prompt_is_computed_again(self) -> None:
        bench = Bench(limits())
        for number in (1, 2):
            bench.batching.submit(work(number, [1, 2, 3]))
            cached = bench.run(number, [4])

        assert cached == 2

    def test_beginning_is_shared_with_a_running_request(self) -> None:
        bench = Bench(limits())
        bench.batching.submit(work(1, [1, 2, 3, 4]))
        bench.step()
        bench.batching.submit(work(2, [1, 2, 3, 9]))
        bench.step()

        assert bench.batching.running[2].cached == 3
        assert bench.cache.used() == 5

    def test_idle_prompt_survives_one_that_shares_only_its_beginning(self) -> None:
        bench = Bench(limits())
        bench.batching.submit(work(1, range(1, 10)))
        bench.run(1, [50])
        bench.batching.submit(work(2, [1, 2, 70]))
        bench.run(2, [71])
        bench.batching.submit(work(3, [*range(1, 10), 80]))

        assert bench.run(3, [81]) == 9

    def test_state_that_cannot_be_divided_is_reused_whole_or_not_at_all(self) -> None:
        bench = Bench(limits(divisible=False, can_slide=False))
        for number, prompt in enumerate(([1, 2, 3], [1, 2, 9], [1, 2, 9, 4]), start=1):
            bench.batching.submit(work(number, prompt))
            cached = bench.run(number, [50])

        assert cached == 3

    @pytest.mark.parametrize("divisible", [True, False])
    def test_prompt_that_parts_from_another_leaves_a_checkpoint_there(
        self,
        divisible: bool,  # noqa: FBT001
    ) -> None:
        """The first cannot be gone back to, the second leaves a mark, the third finds it."""
        bench = Bench(
            limits(
                divisible=divisible,
                can_slide=False,
                checkpoints=True,
                cells=400,
                context_tokens=100,
                batch_tokens=64,
            ),
            resumable=lambda held, position: held == position,
        )
        cached = []
        for number in range(4):
            bench.batching.submit(work(number, [*range(40), 50 + number, 60]))
            cached.append(bench.run(number, [9]))

        assert cached == [0, 0, 40, 40]

    def test_next_turn_goes_on_behind_the_prompt_when_the_answer_reads_differently(self) -> None:
        bench = Bench(limits(divisible=False, can_slide=False, checkpoints=True))
        bench.batching.submit(work(1, [1, 2, 3]))
        bench.run(1, [4, 5])
        bench.batching.submit(work(2, [1, 2, 3, 8, 9]))

        assert bench.run(2, [7]) == 3

    def test_sequence_that_cannot_be_resumed_is_not_reused(self) -> None:
        bench = Bench(limits())
        bench.batching.submit(work(1, [1, 2, 3]))
        bench.run(1, [4])
        bench.batching.submit(work(2, [1, 2, 3, 5]))
        bench.batching.admit(lambda _sequence, _position: False)

        assert bench.batching.running[2].cached == 0


class TestSteps:
    def test_prompt_that_cannot_run_is_refused(self) -> None:
        with pytest.raises(ValueError, match="found 16"):
            Batching(limits()).submit(work(1, range(16)))

    def test_decoding_comes_before_prefill(self) -> None:
        bench = Bench(limits())
        bench.batching.submit(work(1, [1, 2]))
        bench.step()
        bench.batching.append(1, 3)
        bench.batching.submit(work(2, range(20, 34), most=1))

        chunks = bench.step(budget=5)

        assert [(chunk.id, len(chunk.tokens)) for chunk in chunks] == [(1, 1), (2, 5)]

    def decoding_beside(self, prompt: int, *, tile: int) -> Bench:
        """Two requests decode, and a prompt of another client has come."""
        bench = Bench(
            limits(slots=3, cells=400, context_tokens=100, batch_tokens=64, tile_rows=tile)
        )
        for number in (1, 2):
            bench.batching.submit(work(number, [number, 5], most=50))
        bench.step()
        for number in (1, 2):
            bench.batching.append(number, 9)
        bench.batching.submit(work(3, range(prompt), most=5))
        return bench

    def test_prefill_that_fills_a_tile_takes_turns_with_decoding(self) -> None:
        bench = self.decoding_beside(40, tile=16)
        planned: list[list[tuple[int, int]]] = []
        while not planned or any(run.pending > 1 for run in bench.batching.running.values()):
            bench.admit()
            alone = bench.batching.prefills_alone(16)
            chunks = bench.step(budget=16)
            planned.append([(chunk.id, len(chunk.tokens)) for chunk in chunks])
            assert alone == (planned[-1][0][0] == 3)
            for chunk in chunks:
                if chunk.output:
                    bench.batching.append(chunk.id, 9)

        both = [(1, 1), (2, 1)]
        assert planned == [both, [(3, 16)], both, [(3, 16)], [*both, (3, 8)]]

    def test_all_are_in_one_step_where_one_of_them_is_looked_for(self) -> None:
        bench = self.decoding_beside(40, tile=16)
        bench.admit()
        for _ in range(2):
            chunks = bench.batching.plan(16, together=True)

            assert [chunk.id for chunk in chunks] == [1, 2, 3]

    def test_prefill_of_less_than_a_tile_is_beside_decoding(self) -> None:
        for bench in (self.decoding_beside(13, tile=16), self.decoding_beside(40, tile=0)):
            chunks = bench.step(budget=13)

            assert [(chunk.id, len(chunk.tokens)) for chunk in chunks] == [(1, 1), (2, 1), (3, 13)]

    def test_decoding_has_every_second_step_however_much_prefill_comes(self) -> None:
        bench = self.decoding_beside(90, tile=4)
        decoded = []
        for number in range(10, 20):
            bench.batching.submit(work(number, range(number, number + 90), most=2))
            chunks = bench.step(budget=4)
            decoded.append({chunk.id for chunk in chunks} >= {1, 2})
            for chunk in chunks:
                if chunk.output:
                    bench.batching.append(chunk.id, 9)

        assert decoded == [True, False] * 5

    def test_short_prompt_overtakes_a_long_one(self) -> None:
        bench = Bench(limits())
        bench.batching.submit(work(1, range(10), most=1))
        bench.batching.submit(work(2, [20, 21], most=1))

        chunks = bench.step(budget=3)

        assert [(chunk.id, chunk.output) for chunk in chunks] == [(2, True), (1, False)]

    def test_long_prompt_is_not_starved_by_short_ones(self) -> None:
        bench = Bench(limits(cells=4096, context_tokens=2048, batch_tokens=64))
        bench.batching.submit(work(0, range(1000), most=1))
        for number in range(1, 200):
            bench.batching.submit(work(number, [number, 1, 2, 3], most=1))
            for chunk in bench.step(budget=4):
                if chunk.output and chunk.id:
                    bench.cache.apply(bench.batching.finish(chunk.id, keep=False))

        assert bench.batching.running[0].evaluated > 0

    def test_parked_request_goes_on_when_another_ends(self) -> None:
        bench = Bench(limits())
        for number in (1, 2):
            bench.batching.submit(work(number, [number, 5, 6]))
        bench.step()
        bench.cache.apply(bench.batching.preempt())

        for number in (1, 2):
            bench.batching.append(number, 9)
        assert [chunk.id for chunk in bench.step()] == [1]
        assert not bench.batching.preempt()
        bench.cache.apply(bench.batching.finish(1))
        assert [(chunk.id, chunk.start) for chunk in bench.step()] == [(2, 0)]


class TestStates:
    """What leaves the cache and comes back."""

    BEGIN = range(100, 100 + 2 * FOLLOW_TOKENS)
    OTHER = range(300, 300 + 2 * FOLLOW_TOKENS)

    def bench(self, budget: int = 1000, **changes: int | bool) -> Bench:
        fields: dict[str, int | bool] = {
            "slots": 1,
            "cells": 100,
            "context_tokens": 100,
            "sequences": 2,
            "batch_tokens": 100,
        }
        return Bench(limits(**{**fields, **changes}), budget=budget)

    def cached(self, bench: Bench, *prompts: Sequence[int]) -> list[int]:
        found = []
        for number, prompt in enumerate(prompts):
            bench.batching.submit(work(number, prompt))
            found.append(bench.run(number, [9]))
        return found

    @pytest.mark.parametrize("whole", [True, False])
    def test_prompt_that_was_evicted_comes_back(self, whole: bool) -> None:  # noqa: FBT001
        bench = self.bench(checkpoints=whole)
        prompts = ([*self.BEGIN], [*self.OTHER], [*self.BEGIN, 5], [*self.OTHER, 6])

        assert self.cached(bench, *prompts) == [0, 0, len(self.BEGIN), len(self.OTHER)]

    def test_nothing_is_kept_without_a_budget(self) -> None:
        bench = self.bench(budget=0)

        assert self.cached(bench, self.BEGIN, self.OTHER, self.BEGIN) == [0, 0, 0]
        assert not bench.cache.states

    def test_state_larger_than_the_budget_is_not_kept(self) -> None:
        bench = self.bench(budget=2 * FOLLOW_TOKENS - 1)

        assert self.cached(bench, self.BEGIN, self.OTHER, self.BEGIN) == [0, 0, 0]

    def test_longest_unused_state_gives_way(self) -> None:
        bench = self.bench(budget=4 * FOLLOW_TOKENS)
        third = range(500, 500 + 2 * FOLLOW_TOKENS)
        self.cached(bench, self.BEGIN, self.OTHER, third, range(10, 90))

        kept = [bench.batching.saved.find("", one, whole=False)[1] for one in (self.BEGIN, third)]

        assert kept == [0, len(third)]

    def test_other_scope_gets_nothing_of_a_state(self) -> None:
        bench = self.bench()
        for number, (prompt, scope) in enumerate(
            ((self.BEGIN, "a"), (self.OTHER, "a"), (self.BEGIN, "b"))
        ):
            bench.batching.submit(work(number, prompt, scope=scope))
            assert bench.run(number, [9]) == 0

    def test_request_that_was_preempted_goes_on_where_it_was(self) -> None:
        bench = self.bench(slots=2, cells=200, batch_tokens=200)
        for number in (1, 2):
            bench.batching.submit(work(number, [number, *self.BEGIN]))
        bench.step(budget=200)
        bench.cache.apply(bench.batching.preempt())
        for number in (1, 2):
            bench.batching.append(number, 9)
        bench.cache.apply(bench.batching.finish(1))

        (chunk,) = bench.step()

        assert (chunk.id, chunk.start) == (2, len(self.BEGIN) + 1)


class TestCoalescing:
    """A beginning that several requests have is computed by one of them."""

    BEGIN = range(100, 100 + 2 * FOLLOW_TOKENS)

    def bench(self, **changes: int | bool) -> Bench:
        fields: dict[str, int | bool] = {
            "slots": 8,
            "cells": 8 * 256,
            "context_tokens": 256,
            "sequences": 16,
            "batch_tokens": 64,
        }
        return Bench(limits(**{**fields, **changes}))

    def prefill(self, bench: Bench) -> dict[int, int]:
        """Compute all prompts; returns how many of its tokens each request computed."""
        computed: dict[int, int] = {}
        while any(run.pending > 1 for run in bench.batching.running.values()) or not computed:
            for chunk in bench.step():
                prompt = len(bench.batching.running[chunk.id].work.prompt)
                if chunk.start < prompt:
                    computed[chunk.id] = computed.get(chunk.id, 0) + len(chunk.tokens)
                if chunk.output:
                    bench.batching.append(chunk.id, 7)
        return computed

    @pytest.mark.parametrize("divisible", [True, False])
    def test_requests_of_one_step_compute_their_beginning_once(self, divisible: bool) -> None:  # noqa: FBT001
        bench = self.bench(divisible=divisible, can_slide=divisible)
        for number in range(8):
            bench.batching.submit(work(number, [*self.BEGIN, number, 5]))

        computed = self.prefill(bench)

        assert sum(computed.values()) == len(self.BEGIN) + 8 * 2
        cached = sorted(run.cached for run in bench.batching.running.values())
        assert cached == [0] + 7 * [len(self.BEGIN)]

    def test_request_joins_one_that_is_half_way(self) -> None:
        bench = self.bench()
        bench.batching.submit(work(1, [*self.BEGIN, 1]))
        bench.step(budget=10)
        bench.batching.submit(work(2, [*self.BEGIN, 2]))

        assert sum(self.prefill(bench).values()) == len(self.BEGIN) + 2 - 10

    def test_follower_goes_on_with_what_a_leader_left_behind(self) -> None:
        bench = self.bench()
        for number in range(3):
            bench.batching.submit(work(number, [*self.BEGIN, number]))
        bench.step(budget=30)
        bench.cache.apply(bench.batching.finish(0))

        assert sum(self.prefill(bench).values()) == len(self.BEGIN) - 30 + 2

    def test_follower_computes_what_a_leader_took_along(self) -> None:
        bench = self.bench()
        for number in range(3):
            bench.batching.submit(work(number, [*self.BEGIN, number]))
        bench.step(budget=30)
        bench.cache.apply(bench.batching.finish(0, keep=False))

        assert sum(self.prefill(bench).values()) == len(self.BEGIN) + 2

    def test_leader_of_a_short_prompt_is_as_urgent_as_that(self) -> None:
        bench = self.bench()
        bench.batching.submit(work(1, [*self.BEGIN, *range(120)]))
        bench.step(budget=1)
        bench.batching.submit(work(2, [*self.BEGIN, 9]))
        bench.batching.submit(work(3, range(300, 300 + 2 * FOLLOW_TOKENS + 2)))

        assert [chunk.id for chunk in bench.step(budget=20)] == [1]

    def test_few_common_tokens_are_not_waited_for(self) -> None:
        bench = self.bench()
        for number in range(2):
            bench.batching.submit(work(number, [1, 2, 3, number]))

        assert len(bench.step()) == 2

    def test_other_scope_shares_nothing(self) -> None:
        bench = self.bench()
        bench.batching.submit(work(1, [*self.BEGIN, 1], scope="a"))
        bench.run(1, [5])
        for number, scope in ((2, "a"), (3, "b"), (4, "b")):
            bench.batching.submit(work(number, [*self.BEGIN, number], scope=scope))

        computed = self.prefill(bench)

        assert computed == {2: 1, 3: len(self.BEGIN) + 1, 4: 1}

    def test_shared_cells_are_reserved_once(self) -> None:
        bench = self.bench(cells=2 * FOLLOW_TOKENS + 8 * 8, context_tokens=100)
        for number in range(8):
            bench.batching.submit(work(number, [*self.BEGIN, number], most=6))
        bench.step()

        assert len(bench.batching.running) == 8


class TestTenants:
    def test_slots_go_to_who_has_fewest(self) -> None:
        bench = Bench(limits())
        for number in range(4):
            bench.batching.submit(work(number, [number, 1], tenant="greedy"))
        bench.batching.submit(work(9, [9, 1], tenant="modest"))
        bench.step()

        assert sorted(bench.batching.running) == [0, 9]

    def test_prefill_is_shared_between_tenants_whatever_they_bring(self) -> None:
        bench = Bench(
            limits(slots=9, cells=9 * 2048, context_tokens=2048, sequences=9, batch_tokens=512)
        )
        for number in range(8):
            prompt = range(number * 2000, number * 2000 + 1000)
            bench.batching.submit(work(number, prompt, tenant="greedy"))
        bench.batching.submit(work(8, range(90_000, 91_500), tenant="modest"))
        computed = {"greedy": 0, "modest": 0}
        for _ in range(5):
            for chunk in bench.step(budget=200):
                tenant = bench.batching.running[chunk.id].work.tenant
                computed[tenant] += len(chunk.tokens)

        assert abs(computed["greedy"] - computed["modest"]) <= 64


class TestFullContext:
    def test_request_that_may_not_slide_is_told(self) -> None:
        bench = Bench(limits())
        bench.batching.submit(work(1, range(15), most=100))
        bench.step()
        bench.step()

        assert bench.batching.append(1, 99) is None

    def test_old_tokens_go_and_kept_ones_stay(self) -> None:
        bench = Bench(limits())
        bench.batching.submit(work(1, range(15), most=100, keep=3, slide=True))
        bench.step()
        bench.step()

        effects = bench.batching.append(1, 99)

        assert effects == (Slide(0, 3, 9),)
        assert bench.batching.running[1].held.tokens == [0, 1, 2, 9, 10, 11, 12, 13, 14, 99]

    def test_shared_cells_are_not_moved(self) -> None:
        bench = Bench(limits())
        bench.batching.submit(work(1, range(14), most=100, keep=3, slide=True))
        bench.step()
        bench.step()
        bench.batching.submit(work(2, [*range(13), 50], most=1))
        bench.step()
        bench.cache.apply(bench.batching.append(1, 98) or ())
        bench.step()

        effects = bench.batching.append(1, 99)

        assert effects == (Drop(bench.batching.running[1].held.sequence, 3),)


class TestWindow:
    def test_empty_prompt_is_refused(self) -> None:
        with pytest.raises(EngineRefusedError, match="empty"):
            fit_prompt([], context_tokens=8, keep=0, truncate=True)

    def test_overlong_prompt_is_refused_in_ollama_s_words(self) -> None:
        with pytest.raises(EngineRefusedError, match="the input length exceeds the context length"):
            fit_prompt(range(8), context_tokens=8, keep=0, truncate=False)

    @given(st.integers(1, 80), st.integers(-2, 80), st.integers(5, 40), st.booleans())
    def test_cut_prompt_keeps_both_ends_and_leaves_room(
        self,
        length: int,
        num_keep: int,
        context: int,
        bos: bool,  # noqa: FBT001
    ) -> None:
        tokens = range(length)
        keep = kept_tokens(num_keep, context_tokens=context, prompt_tokens=length, bos=bos)
        kept = fit_prompt(tokens, context_tokens=context, keep=keep, truncate=True)

        assert 0 < len(kept) < context
        if length < context:
            assert kept == tuple(tokens)
        else:
            assert kept[:keep] == tuple(range(keep))
            assert kept[keep:] == tuple(range(length))[length - len(kept) + keep :]
            assert kept[-1] == length - 1

    def test_open_ended_answer_is_bounded(self) -> None:
        assert longest_answer(-1, context_tokens=100) == 1000
        assert longest_answer(5000, context_tokens=100) == 1000
        assert longest_answer(5, context_tokens=100) == 5

    @given(st.integers(5, 100), st.integers(0, 96))
    def test_slide_always_makes_room(self, length: int, keep: int) -> None:
        keep = min(keep, length - 4)
        start, end = slide_range(length, keep=keep)

        assert keep == start < end <= length


class BatchingMachine(RuleBasedStateMachine):
    """Any order of requests, steps, ends, aborts and evictions against the strict cache."""

    @initialize(
        divisible=st.booleans(),
        can_slide=st.booleans(),
        slots=st.integers(1, 3),
        spare=st.integers(0, 2),
        cells=st.integers(CONTEXT, 3 * CONTEXT),
        batch=st.integers(1, 12),
        follow=st.integers(1, 4),
        checkpoints=st.booleans(),
        window=st.sampled_from([3, CONTEXT]),
        budget=st.sampled_from([0, 12, 60]),
        tile=st.sampled_from([0, 1, 4]),
    )
    def start(
        self,
        *,
        divisible: bool,
        can_slide: bool,
        slots: int,
        spare: int,
        cells: int,
        batch: int,
        follow: int,
        checkpoints: bool,
        window: int,
        budget: int,
        tile: int,
    ) -> None:
        self.window = window
        self.limits = limits(
            checkpoints=checkpoints or not divisible,
            divisible=divisible,
            can_slide=can_slide and divisible,
            slots=slots,
            sequences=slots + spare,
            cells=cells,
            batch_tokens=batch,
            tile_rows=tile,
        )
        self.cache = Cache(self.limits)
        self.batching = Batching(
            self.limits,
            follow_tokens=follow,
            saved=SavedStates(budget),
            measure=self.cache.measure,
        )
        self.next = 0
        self.known: dict[int, list[int]] = {}
        self.sampled: dict[int, int] = {}
        self.token = 100

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=CONTEXT - 1),
        most=st.integers(0, 40),
        keep=st.integers(0, 6),
        slide=st.booleans(),
        tenant=st.sampled_from("ab"),
    )
    def submit(self, *, prompt: list[int], most: int, keep: int, slide: bool, tenant: str) -> None:
        """Tokens of one scope never occur in another, so that a mixture is seen."""
        self.next += 1
        own = [token + 10 * "ab".index(tenant) for token in prompt]
        self.known[self.next] = own
        self.batching.submit(
            work(self.next, own, most, keep=keep, slide=slide, tenant=tenant, scope=tenant)
        )

    @rule(budget=st.integers(1, 12), steps=st.integers(1, 30))
    def go_on(self, *, budget: int, steps: int) -> None:
        for _ in range(steps):
            chunks = self._plan(budget)
            if chunks:
                self.cache.compute(chunks)
                self._take(chunks)

    @rule(budget=st.integers(1, 12), kept=st.sampled_from([0.0, 0.5, 1.0]))
    def abort(self, *, budget: int, kept: float) -> None:
        chunks = self._plan(budget)
        if chunks and kept:
            self.cache.compute(chunks)
        for chunk in chunks:
            # A running state cannot go back: what is there is all that was computed.
            share = kept if self.limits.divisible else float(kept > 0)
            position = chunk.start + int(len(chunk.tokens) * share)
            self.cache.apply(self.batching.rewind(chunk.id, position))

    @rule()
    def find_the_cache_full(self) -> None:
        self.cache.apply(self.batching.evict() or self.batching.preempt())

    def _resumable(self, sequence: int, position: int) -> bool:
        """As if only the last positions of a sequence were there to go back to."""
        return len(self.cache.sequences[sequence]) - position <= self.window

    @rule(bad=st.booleans())
    def spoil(self, *, bad: bool) -> None:
        """From now on no state can be restored, or all can again."""
        self.cache.bad = bad

    def _admit(self) -> None:
        self.cache.apply(self.batching.admit(self._resumable))
        for failed in self.cache.failed:
            self.cache.states.pop(failed.state, None)
            self.cache.apply(self.batching.lose(failed.state, failed.id))
        self.cache.failed.clear()
        for state in self.cache.unsaved:
            self.batching.lose(state)
        self.cache.unsaved.clear()

    def _plan(self, budget: int) -> tuple[Chunk, ...]:
        before = set(self.batching.running)
        self._admit()
        self._count_cells()
        for number in set(self.batching.running) - before:
            run = self.batching.running[number]
            cells = self.cache.sequences[run.held.sequence]
            assert len(cells) == run.evaluated < len(run.work.prompt)
            assert run.cached in (0, run.evaluated)
            assert all(exact for _token, exact in cells), (
                "a moved cell was taken for a computed one"
            )
        return self.batching.plan(budget)

    def _take(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            self.batching.advance(chunk)
        for chunk in chunks:
            if chunk.output:
                self._sample(chunk)

    def _sample(self, chunk: Chunk) -> None:
        self.token += 1
        run = self.batching.running[chunk.id]
        assert run.evaluated == len(run.held.tokens)
        offset = 10 * "ab".index(run.work.tenant)
        effects = self.batching.append(chunk.id, self.token % 2 + offset)
        self.sampled[chunk.id] = self.sampled.get(chunk.id, 0) + 1
        if effects is None:
            assert not run.work.slide
        else:
            self.cache.apply(effects)
        # A request ends with the last token it was admitted for: its reservation holds no more.
        if effects is None or self.sampled[chunk.id] >= run.work.most_tokens:
            self.cache.apply(self.batching.finish(chunk.id))
            del self.known[chunk.id]

    @precondition(lambda self: self.known)
    @rule(choice=st.integers(0, 100), keep=st.booleans())
    def end(self, *, choice: int, keep: bool) -> None:
        """Also what a cancel does, wherever the request stands."""
        number = sorted(self.known)[choice % len(self.known)]
        self.cache.apply(self.batching.finish(number, keep=keep))
        del self.known[number]

    @invariant()
    def cache_holds_what_batching_believes(self) -> None:
        if not hasattr(self, "batching"):
            return
        for run in self.batching.running.values():
            held = self.cache.tokens(run.held.sequence)
            assert held == run.held.tokens[: run.evaluated]
            assert run.pending > 0
            assert len(run.held.tokens) <= CONTEXT
        for idle in self.batching.idle:
            assert self.cache.tokens(idle.sequence) == idle.tokens

    def _count_cells(self) -> None:
        cells = self.batching.cells
        assert cells.used == self.cache.used() <= self.limits.cells
        for sequence, held in self.cache.sequences.items():
            assert cells.length(sequence) == len(held)

    @invariant()
    def every_cell_is_counted_once(self) -> None:
        if hasattr(self, "batching"):
            self._count_cells()

    @invariant()
    def states_are_what_is_counted(self) -> None:
        if not hasattr(self, "batching"):
            return
        saved = self.batching.saved
        assert len(saved) == len(self.cache.states)
        assert saved.used_bytes == sum(map(len, self.cache.states.values()))
        assert saved.used_bytes <= saved.budget_bytes

    @invariant()
    def who_follows_is_led_to_what_it_shares(self) -> None:
        if not hasattr(self, "batching"):
            return
        for run in self.batching.running.values():
            if run.leader is None:
                continue
            assert run.leader.order < run.order
            assert run.leader.held.scope == run.held.scope
            assert run.held.tokens[: run.fork_at] == run.leader.held.tokens[: run.fork_at]

    @invariant()
    def every_sequence_has_one_owner(self) -> None:
        if not hasattr(self, "batching"):
            return
        owners = [run.held.sequence for run in self.batching.running.values()]
        owners += [idle.sequence for idle in self.batching.idle]
        assert len(owners) == len(set(owners))
        for sequence, cells in self.cache.sequences.items():
            assert sequence in owners or not cells

    @invariant()
    def all_requests_are_somewhere(self) -> None:
        if not hasattr(self, "batching"):
            return
        waiting = [item.id for item in self.batching.waiting]
        assert sorted([*waiting, *self.batching.running]) == sorted(self.known)
        assert len(self.batching.running) <= self.limits.slots

    @invariant()
    def somebody_can_always_go_on(self) -> None:
        if not hasattr(self, "batching") or not self.known:
            return
        self._admit()
        assert any(run.active for run in self.batching.running.values())

    def teardown(self) -> None:
        """Whatever has happened, who is left gets an answer."""
        for _ in range(4000):
            if not getattr(self, "known", None):
                break
            chunks = self._plan(4)
            assert chunks, "somebody waits and nobody is computed"
            self.cache.compute(chunks)
            self._take(chunks)
        else:
            raise AssertionError("a request is starved")


TestBatchingMachine = BatchingMachine.TestCase
TestBatchingMachine.settings = settings(deadline=None, max_examples=100, stateful_step_count=40)
