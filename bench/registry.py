"""Which cases there are: a short list for five minutes, a long one for a table to be kept.

The order is that of what matters most, because the short list stops when its time is up.
"""

from __future__ import annotations

from bench.schemas import SCHEMAS
from bench.stage import Case
from bench.workloads import contention, formats, lifetime, throughput

WORKLOADS = tuple(f"W{number}" for number in range(1, 13))


def quick() -> tuple[Case, ...]:
    """About five minutes on two cores."""
    return (
        throughput.one_stream(tokens=128, rounds=3),
        throughput.prefill(prompt=512, rounds=3),
        throughput.many_streams(streams=4, tokens=64, rounds=2),
        contention.long_prompt(prompt=1024, tokens=192, peer_batch=2048, rounds=2),
        contention.cancellation(where="decode", repeats=3, rounds=1),
        contention.cancellation(where="prefill", repeats=2, rounds=1),
        contention.shared_prefix(streams=8, rounds=1),
        throughput.many_streams(streams=16, tokens=64, rounds=1),
        lifetime.start(files="warm file", rounds=2),
        formats.schema(name="array, enum, pattern", streams=1, rounds=2),
        formats.embeddings(texts=32, words=16, rounds=2),
        lifetime.memory(words=128, rounds=1),
        throughput.sampling(model="thin-262k", sampler="top-k 40", tokens=64, rounds=2),
    )


def full() -> tuple[Case, ...]:
    """Everything: up to three hours on two cores."""
    return (
        throughput.one_stream(tokens=256, rounds=7),
        *(throughput.prefill(prompt=prompt, rounds=5) for prompt in (512, 2048, 8192)),
        *(throughput.many_streams(streams=n, tokens=128, rounds=5) for n in (4, 8, 16)),
        *(contention.shared_prefix(streams=streams, rounds=5) for streams in (8, 16)),
        *(
            contention.long_prompt(prompt=4096, tokens=512, peer_batch=batch, rounds=5)
            for batch in (2048, 256)
        ),
        lifetime.start(files="cold file", rounds=5),
        lifetime.start(files="warm file", rounds=5),
        lifetime.restart(rounds=5),
        # Fewer of the longer texts: 256 of 512 tokens take ten minutes a round on two cores.
        *(
            formats.embeddings(texts=texts, words=words, rounds=3)
            for texts, words in ((256, 16), (128, 128), (32, 512))
        ),
        formats.beside(texts=64, words=128, tokens=512, rounds=5),
        *(
            formats.schema(name=name, streams=streams, rounds=5)
            for name in SCHEMAS
            for streams in (1, 8)
        ),
        contention.cancellation(where="prefill", repeats=6, rounds=5),
        contention.cancellation(where="decode", repeats=10, rounds=5),
        contention.cancellation(where="not streamed", repeats=6, rounds=5),
        contention.cancellation(where="queue", repeats=6, rounds=5),
        contention.overload(requests=64, rounds=3),
        *(
            throughput.sampling(model=model, sampler=sampler, tokens=128, rounds=5)
            for model in ("thin-32k", "thin-152k", "thin-262k")
            for sampler in throughput.SAMPLERS
        ),
        lifetime.memory(words=2000, rounds=2),
    )
