"""The decode thread: one step after another, until the server hangs up.

A step: obey commands, start waiting requests, compute a batch, sample, send one frame.
No failure of one request ends another: a batch the engine refuses is computed request by request,
and only the one it refuses alone gets a fault.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from server.errors import EngineRefusedError
from server.runner import library
from server.runner.batching import Batching
from server.runner.carrying import Carrier
from server.runner.chain import Candidates
from server.runner.drafting import Drafter
from server.runner.embedding import Job
from server.runner.feed import TextFeed
from server.runner.gaze import Gaze, shows_picture
from server.runner.generation import Generation
from server.runner.inbox import Arrival, Inbox, Item
from server.runner.library import Engine
from server.runner.pace import Pace
from server.runner.pictures import key_of, only_tokens, row_of
from server.runner.proposing import MOST_PROPOSED, Proposer
from server.runner.protocol import Row, Step
from server.runner.sampler import Sampler
from server.runner.saved import SavedStates
from server.runner.shelf import Shelf
from server.runner.sight import Picture
from server.runner.speculating import Speculation
from server.runner.turns import Scales, Turns
from server.runner.work import Chunk, Limits


class Loop:
    """All requests of one runner.

    Attributes:
        steps: decode steps so far.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        slots: int,
        inbox: Inbox,
        send: Callable[[Step], None],
        drafter: Drafter | None = None,
        clock: Callable[[], float] = time.monotonic,
        shelf: Shelf | None = None,
    ) -> None:
        """Begin with nothing to do.

        Args:
            engine: the model.
            slots: most requests at once.
            inbox: what is asked.
            send: called once per step, in this thread.
            drafter: a draft model; ``None`` without one.
            clock: in seconds.
            shelf: has what outlived others; ``None`` without one.
        """
        shape = engine.shape
        self.steps = 0
        self._engine = engine
        self._inbox = inbox
        self._send = send
        self._clock = clock
        apart = shape.tile_rows > 0
        self._pace = Pace(shape.batch_tokens, engine.prefill_rate, apart=apart)
        self._candidates = Candidates(shape.vocabulary_size)
        self._arrivals: dict[int, Arrival] = {}
        self._generations: dict[int, Generation] = {}
        self._suspects: list[int] = []
        self._shrink = 0
        self._texts = TextFeed()
        self._turns = Turns()
        self._scales: dict[int, Scales] = {}
        self._shows_hidden = False
        # A state or a window that has moved on cannot take rows back.
        exact = shape.divisible and not shape.window_tokens
        most_proposed = MOST_PROPOSED if exact else 0
        self._gaze = Gaze()
        self._pictures: dict[int, Mapping[int, Picture]] = {}
        self._batching = Batching(
            Limits(
                slots=slots,
                cells=shape.cells,
                context_tokens=shape.context_tokens,
                sequences=shape.sequences,
                batch_tokens=shape.batch_tokens,
                proposed_tokens=most_proposed,
                divisible=shape.divisible,
                can_slide=shape.can_shift,
                checkpoints=not shape.divisible or shape.window_tokens > 0,
                whole_pictures=shape.whole_pictures,
                parted_pictures=shape.parted_pictures,
                tile_rows=shape.tile_rows,
            ),
            saved=SavedStates(shape.saved_bytes),
            measure=engine.state_bytes,
        )
        self._drafter = drafter
        mirror = (lambda _effect: None) if drafter is None else drafter.obey
        self._carrier = Carrier(engine, self._batching, mirror, shelf=shelf)
        self._speculation = Speculation(
            most=most_proposed, pace=self._pace, door=inbox, drafter=drafter
        )

    def run(self) -> None:
        """Step until the inbox is closed."""
        while (items := self._inbox.take(wait=not self._has_work())) is not None:
            rows = [row for item in items for row in self._obey(item)]
            self._carrier.apply(self._batching.admit(self._engine.can_resume))
            self._feed()
            self._greet()
            computed = self._compute()
            if computed is not None:
                self.steps += 1
                rows += computed
            if rows or computed is not None:
                self._send(Step(n=self.steps, rows=tuple(rows)))

    def keep(self, until_s: float) -> None:
        """After the last step: put computed prompts on the shelf, until so late on `monotonic`."""
        self._carrier.keep(until_s)

    def close(self) -> None:
        """Free what the requests hold."""
        for generation in self._generations.values():
            generation.close()
        for arrival in self._arrivals.values():
            if arrival.gate is not None:
                arrival.gate.close()

    def _has_work(self) -> bool:
        return bool(self._batching.running or self._batching.waiting or self._texts.waiting)

    def _obey(self, item: Item) -> Iterable[Row]:
        if isinstance(item, Job):
            self._texts.add(item)
            return ()
        if isinstance(item, Arrival):
            self._arrivals[item.work.id] = item
            self._batching.submit(item.work)
            return ()
        if item.id in self._generations:
            row = self._generations[item.id].end("cancelled")
            self._dismiss(item.id)
            return (row,)
        if (arrival := self._arrivals.pop(item.id, None)) is not None:
            self._carrier.apply(self._batching.finish(item.id))
            if arrival.gate is not None:
                arrival.gate.close()
            prompt = arrival.work.prompt
            return (
                Row(id=item.id, done="cancelled", prompt_tokens=len(prompt), prompt_ids=prompt),
            )
        job = self._drop_job(item.id)
        return () if job is None else (job.end("cancelled"),)

    def _feed(self) -> None:
        """Start texts where slots are free and nobody waits for them."""
        batching = self._batching
        slots = batching.limits.slots
        while self._texts.waiting and not batching.waiting and len(batching.running) < slots:
            batching.submit(self._texts.start())
            self._carrier.apply(batching.admit(self._engine.can_resume))

    def _greet(self) -> None:
        """Make a generation for every request that has just got a sequence."""
        for request, run in self._batching.running.items():
            if self._texts.owns(request):
                continue
            if request in self._generations:
                self._generations[request].cached_tokens = run.cached
                continue
            arrival = self._arrivals.pop(request)
            shape, vocabulary = self._engine.shape, self._engine.vocabulary
            generation = Generation(
                request=request,
                prompt=arrival.work.prompt,
                most_tokens=arrival.work.most_tokens,
                stops=arrival.sampling.stop,
                top_logprobs=arrival.top_logprobs,
                sampler=Sampler(
                    arrival.sampling,
                    candidates=self._candidates,
                    vocabulary_size=shape.vocabulary_size,
                    context_tokens=shape.context_tokens,
                    prompt=arrival.work.prompt,
                    gate=arrival.gate,
                    dry=arrival.dry,
                ),
                pieces=vocabulary,
                proposer=self._new_proposer(arrival),
                relaxed=arrival.relaxed,
                clock=self._clock,
            )
            self._scales[request] = arrival.adapters
            self._pictures[request] = arrival.pictures
            generation.admitted(run.cached)
            self._generations[request] = generation

    def _new_proposer(self, arrival: Arrival) -> Proposer | None:
        if not arrival.sampling.speculate:
            return None
        return Proposer(
            only_tokens(arrival.work.prompt),
            drafts=None if self._drafter is None else self._drafter.new_odds(),
            drafted_tokens=arrival.sampling.draft_num_predict,
        )

    def _compute(self) -> list[Row] | None:
        """Decode one batch and sample from it; ``None`` if there was nothing to compute."""
        chunks, hidden = self._texts.shape(self._next_chunks())
        if not chunks:
            return None
        rows = [(len(chunk.tokens), 1 + chunk.proposed) for chunk in chunks]
        decoding = sum(size for size, wanted in rows if size == wanted)
        prefill = sum(size for size, wanted in rows if size != wanted)
        requests = frozenset(self._texts.owner(chunk.id) for chunk in chunks)
        if not self._inbox.begin(requests, self._pace.expect(decoding, prefill)):
            return None
        if hidden != self._shows_hidden:
            self._engine.show_hidden(wanted=hidden)
            self._shows_hidden = hidden
        begin_s = self._clock()
        looks = shows_picture(chunks[0])
        try:
            answer = self._look(chunks[0]) if looks else self._read(chunks)
        except EngineRefusedError as refusal:
            return [self._fault(chunks[0].id, str(refusal))]
        finally:
            self._inbox.end()
        if answer == library.OK:
            if not looks:
                self._pace.measure(decoding, prefill, self._clock() - begin_s)
            self._shrink = 0
            del self._suspects[:1]
            return self._sample(chunks)
        if answer == library.NO_ROOM:
            return self._make_room(chunks)
        self._resynchronise(chunks)
        return [] if answer == library.ABORTED else self._isolate(chunks, answer)

    def _read(self, chunks: tuple[Chunk, ...]) -> int:
        """Decode text."""
        batch = self._engine.batch
        batch.clear()
        for chunk in chunks:
            batch.add(
                chunk.tokens,
                position=self._engine.position(chunk.sequence, chunk.start),
                sequence=chunk.sequence,
                output=chunk.outputs,
            )
        return self._engine.decode()

    def _look(self, chunk: Chunk) -> int:
        """Compute a picture unless its rows are in hand, and decode the rows of the chunk.

        Raises:
            EngineRefusedError: the engine could not compute the picture.
        """
        first = chunk.tokens[0]
        return self._engine.decode_picture(
            self._pictures[chunk.id][key_of(first)],
            first=row_of(first),
            count=len(chunk.tokens),
            place=chunk.start,
            sequence=chunk.sequence,
            output=chunk.output,
        )

    def _next_chunks(self) -> tuple[Chunk, ...]:
        protected = self._batching.decoding
        if not self._engine.shape.divisible and len(self._batching.running) > 1:
            protected = max(protected, 1)  # no step is aborted for one of several: keep it short
        budget = max(self._pace.budget(protected) >> self._shrink, 1)
        together = bool(self._suspects)  # each of them must be in the step to be found out
        proposals = {} if self._batching.prefills_alone(budget) else self._proposals()
        chunks = self._in_turn(self._batching.plan(budget, proposals, together=together))
        sight = self._engine.sight
        if sight is not None:
            chunks = self._gaze.narrow(chunks, sight.in_hand)
        while self._suspects:
            alone = tuple(chunk for chunk in chunks if chunk.id == self._suspects[0])
            if alone:
                return alone
            del self._suspects[0]
        return chunks

    def _in_turn(self, chunks: tuple[Chunk, ...]) -> tuple[Chunk, ...]:
        """Those requests of a step that use the adapters at the scales whose turn it is."""
        usual = self._engine.scales
        if not (usual and chunks):
            return chunks
        settings = [self._scales.get(chunk.id, usual) for chunk in chunks]
        chosen = self._turns.next(settings)
        self._engine.use_adapters(chosen)
        pairs = zip(chunks, settings, strict=True)
        return tuple(chunk for chunk, scales in pairs if scales == chosen)

    def _sample(self, chunks: tuple[Chunk, ...]) -> list[Row]:
        rows: list[Row] = []
        outputs = 0
        for chunk in chunks:
            self._batching.advance(chunk)
            if chunk.output and self._texts.owns(chunk.id):
                rows += self._embed_one(chunk.id, outputs)
            elif chunk.output:
                rows += self._sample_one(chunk, outputs)
            outputs += chunk.outputs
        return rows

    def _embed_one(self, work: int, output: int) -> tuple[Row, ...]:
        """Take the vector of a text that is computed."""
        request = self._texts.owner(work)
        self._carrier.apply(self._batching.finish(work, keep=False))
        try:
            job = self._texts.finish(work, self._engine.hidden(output))
        except EngineRefusedError as refusal:
            return (self._fault(request, str(refusal), refused=True),)
        row = job.row()
        if job.done:
            self._drop_job(request)
        return () if row is None else (row,)

    def _drop_job(self, request: int) -> Job | None:
        job, works = self._texts.drop(request)
        for work in works:
            self._carrier.apply(self._batching.finish(work, keep=False))
        return job

    def _sample_one(self, chunk: Chunk, output: int) -> Iterator[Row]:
        """Sample from a request's rows as long as they follow what was said."""
        request = chunk.id
        proposed = chunk.tokens[len(chunk.tokens) - chunk.proposed :]
        for right in range(chunk.proposed + 1):
            token, row = self._sample_row(request, output + right)
            yield row
            if request not in self._generations:
                return
            if right == chunk.proposed or token != proposed[right]:
                break
            self._batching.confirm(request)
        if proposed:
            generation = self._generations[request]
            self._speculation.settle(generation, proposed=len(proposed), right=right)
            self._carrier.apply(self._batching.retract(request))

    def _proposals(self) -> dict[int, tuple[int, ...]]:
        """What the next step may compute ahead; nothing while something is wrong."""
        if self._shrink or self._suspects:
            return {}
        batching = self._batching
        return self._speculation.new_proposals(
            batching.decoding,
            batching.running,
            self._generations,
            sees=lambda request: bool(self._pictures.get(request)),
        )

    def _sample_row(self, request: int, output: int) -> tuple[int, Row]:
        generation = self._generations[request]
        try:
            token, row = generation.step(self._engine.logits(output))
        except EngineRefusedError as refusal:
            return -1, self._fault(request, str(refusal))
        if generation.done is None:
            effects = self._batching.append(request, token)
            if effects is None:
                row = generation.end("length", last=row)
            else:
                self._carrier.apply(effects)
        if generation.done is not None:
            self._dismiss(request)
        return token, row

    def _make_room(self, chunks: tuple[Chunk, ...]) -> list[Row]:
        """The cache had no cells, and nothing changed: give up idle ones, go slower, wait."""
        if effects := self._batching.evict():
            self._carrier.apply(effects)
        elif sum(len(chunk.tokens) for chunk in chunks) > len(chunks):
            self._shrink += 1
        elif effects := self._batching.preempt():
            self._carrier.apply(effects)
        else:
            return [self._fault(chunks[0].id, "the KV cache has no room for this request")]
        return []

    def _isolate(self, chunks: tuple[Chunk, ...], answer: int) -> list[Row]:
        """The engine failed: find out for whom by computing each request alone."""
        if len(chunks) > 1:
            self._suspects = [chunk.id for chunk in chunks]
            return []
        del self._suspects[:1]
        return [self._fault(chunks[0].id, f"the engine failed to compute this request ({answer})")]

    def _resynchronise(self, chunks: tuple[Chunk, ...]) -> None:
        """After a decode that did not finish, believe the cache."""
        for chunk in chunks:
            known = self._engine.last_position(chunk.sequence) + 1
            self._carrier.apply(self._batching.rewind(chunk.id, known))

    def _fault(self, request: int, message: str, *, refused: bool = False) -> Row:
        job = self._drop_job(self._texts.owner(request))
        if job is not None:
            return job.fault(message, refused=refused)
        self._dismiss(request, keep=False)
        return Row(id=request, fault=message.encode("utf-8", "replace").decode())

    def _dismiss(self, request: int, *, keep: bool = True) -> None:
        self._generations.pop(request).close()
        self._scales.pop(request, None)
        self._pictures.pop(request, None)
        self._carrier.apply(self._batching.finish(request, keep=keep))
