"""What a draft model saves: processor time per token without one, with one, at its best and worse.

    .venv/bin/python -m bench.drafting [--blocks N] [--rounds N] [--threads N]

No two models that fit this repository are large and small of one family, so the large one is made
of the small one: the demo model with blocks added whose output is zero. It says what the demo model
says and costs many times as much. Its draft, the demo model itself, is then right as often as a
draft can be; with its weights at four bits it is wrong now and then. So the table shows what the
method costs and can save, not what a pair of real models would.

Texts are compared in every case: they must be those without a draft.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import psutil

from bench import gguf, models
from bundler.quantize import quantize
from hwprobe.gguf import GgufArray, GgufHeader, read_header
from hwprobe.settings import EngineSettings
from server.runner import protocol
from server.runner.process import Runner
from server.wishes import SamplingOptions

DEMO = models.ROOT / "tests" / "demo-model" / "demo-f16.gguf"
FOLDER = models.ROOT / "build" / "bench" / "models"
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
QUESTIONS = (
    "Why is the sky blue?",
    "What is a draft model?",
    "What is a large language model?",
    "How does a computer add two numbers?",
)
TOKENS = 100
ENDLESS = tuple((token, -100.0) for token in (3059, 3061, 3065))
"""Forbids the tokens that end an answer of the demo model."""
_KINDS: dict[str, type[np.float16 | np.float32]] = {"F16": np.float16, "F32": np.float32}
_SILENT = ("attn_output.weight", "ffn_down.weight")


@dataclass(frozen=True, slots=True)
class Run:
    """What one round cost.

    Attributes:
        cpu_s: of the runner, per token.
        steps: decode steps of the large model per token.
        right: of the drafted tokens, those that were said.
        texts: what was said.
    """

    cpu_s: float
    steps: float
    right: float
    texts: tuple[str, ...]


def padded(blocks: int) -> Path:
    """The demo model with so many blocks more, which compute and change nothing."""
    path = FOLDER / f"demo-padded-{blocks}.gguf"
    if path.exists():
        return path
    FOLDER.mkdir(parents=True, exist_ok=True)
    header = read_header(DEMO)
    own = header.integer("llama.block_count")
    metadata = {name: _value(value) for name, value in header.metadata.items()}
    metadata["llama.block_count"] = own + blocks
    tensors = [_tensor(header, name.name, name.name, silent=False) for name in header.tensors]
    first = [tensor.name for tensor in header.tensors if tensor.name.startswith("blk.0.")]
    for number in range(own, own + blocks):
        for name in first:
            renamed = name.replace("blk.0.", f"blk.{number}.")
            tensors.append(_tensor(header, name, renamed, silent=name.endswith(_SILENT)))
    part = path.with_suffix(".part")
    gguf.write(part, metadata, tensors)
    part.rename(path)
    return path


def rough() -> Path:
    """The demo model with four bits a weight."""
    path = FOLDER / "demo-q4_0.gguf"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        quantize(DEMO, path, "Q4_0", threads=1, advance=lambda _count: None)
    return path


def _value(value: object) -> gguf.Value:
    if isinstance(value, GgufArray | tuple):
        items = list(value)
        return [one.decode() if isinstance(one, bytes) else one for one in items]
    assert isinstance(value, bool | int | float | str)
    return value


def _tensor(header: GgufHeader, name: str, called: str, *, silent: bool) -> gguf.Tensor:
    found = next(tensor for tensor in header.tensors if tensor.name == name)
    kind = _KINDS[found.ggml_type]

    def make() -> npt.NDArray[np.float32]:
        shape = tuple(reversed(found.dimensions))
        if silent:
            return np.zeros(shape, np.float32)
        at = header.data_offset_bytes + found.offset_bytes
        values = np.fromfile(DEMO, kind, found.element_count, offset=at)
        return values.reshape(shape).astype(np.float32)

    name_of_kind: Literal["F16", "F32"] = "F16" if found.ggml_type == "F16" else "F32"
    return gguf.Tensor(name=called, dimensions=found.dimensions, kind=name_of_kind, make=make)


def measured(
    runner: Runner, streams: int, *, temperature: float, draft_num_predict: int, speculate: bool
) -> Run:
    """One round: so many requests at once, each with its own question."""
    process = psutil.Process(runner.pid)
    before = process.cpu_times()
    options = SamplingOptions(
        temperature=temperature,
        seed=1,
        num_predict=TOKENS,
        logit_bias=ENDLESS,
        draft_num_predict=draft_num_predict,
        speculate=speculate,
    )
    waiting = [
        runner.generate(protocol.Generate(id=0, prompt=CHAT.format(one), sampling=options))
        for one in QUESTIONS[:streams]
    ]
    texts, said, drafted, confirmed, rows = [], 0, 0, 0, 0
    for stream in waiting:
        text = ""
        while (row := stream.next()) is not None:
            text += row.text
            rows += bool(row.tokens)
            said += row.completion_tokens
            drafted += row.drafted
            confirmed += row.confirmed
        texts.append(text)
    after = process.cpu_times()
    spent = after.user + after.system - before.user - before.system
    return Run(
        cpu_s=spent / said,
        steps=(said - confirmed) / said,
        right=confirmed / drafted if drafted else 0.0,
        texts=tuple(texts),
    )


def cases(blocks: int, rounds: int, threads: int) -> Iterator[str]:
    """Lines of the table."""
    model = padded(blocks)
    settings = EngineSettings(num_ctx=1024, slots=4, spare_sequences=0, threads=threads)
    drafts = {"itself": DEMO, "four bits": rough()}
    for name, draft in drafts.items():
        load = protocol.Load(model_path=str(model), settings=settings, draft=str(draft))
        runner = Runner.start(load)
        try:
            for streams in (1, 2, 4):
                for temperature in (0.0, 0.8):
                    yield _compared(runner, name, streams, temperature, rounds)
        finally:
            runner.stop(5.0)


def _compared(runner: Runner, name: str, streams: int, temperature: float, rounds: int) -> str:
    ways = {"adaptive": -1, "four": 4}
    ratios: dict[str, list[float]] = {way: [] for way in ways}
    shown: dict[str, Run] = {}
    alone: list[float] = []
    same = True
    for _ in range(rounds):
        plain = measured(
            runner, streams, temperature=temperature, draft_num_predict=0, speculate=False
        )
        alone.append(plain.cpu_s)
        for way, number in ways.items():
            found = measured(
                runner, streams, temperature=temperature, draft_num_predict=number, speculate=True
            )
            ratios[way].append(found.cpu_s / plain.cpu_s)
            shown[way] = found
            same = same and found.texts == plain.texts
    parts = [
        f"{way} {statistics.median(ratios[way]):.2f} ({run.steps:.2f}, {run.right:.2f})"
        for way, run in shown.items()
    ]
    base = f"{1000 * statistics.median(alone):.1f} ms"
    equal = "same texts" if same else "texts differ"
    return f"{name:9} | {streams} | {temperature:.1f} | {base} | {' | '.join(parts)} | {equal}"


def main(words: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(words)
    sys.stdout.write(
        "draft | streams | temperature | CPU per token without | ratio (steps per token, right)\n"
    )
    for line in cases(arguments.blocks, arguments.rounds, arguments.threads):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
