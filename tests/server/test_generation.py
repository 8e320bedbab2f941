"""One completion on a runner that is a real process without an engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hwprobe.settings import EngineSettings
from server.chat import Tool
from server.chunks import FinishReason, Piece, TextChunk, ThinkingChunk, ToolCallChunk
from server.errors import BadRequestError, ClientGoneError, RunnerCrashedError
from server.generation import Outcome, complete
from server.output.families.hermes import HERMES
from server.output.stream import OutputStream
from server.runner import protocol
from server.runner.process import Runner
from server.wishes import SamplingOptions
from tests.fakes import fake_runner


@contextmanager
def runner(tmp_path: Path, **script: Any) -> Iterator[Runner]:
    path = tmp_path / "script.json"
    path.write_text(json.dumps(script))
    started = Runner.start(
        protocol.Load(model_path=str(path), settings=EngineSettings(num_ctx=64, slots=2)),
        command=fake_runner.command(),
    )
    try:
        yield started
    finally:
        started.stop(1.0)


def run(
    on: Runner,
    outcome: Outcome,
    *,
    thinks: bool = False,
    gone: Any = bool,
    **request: Any,
) -> list[Piece]:
    output = OutputStream(thinking=thinks)
    asked = protocol.Generate(**{"id": 0, "prompt": "p", **request})
    pieces = complete(on, asked, output=output, gone=gone, outcome=outcome)
    return [*pieces]


def text(pieces: list[Piece], kind: type[TextChunk | ThinkingChunk] = TextChunk) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, kind))


def test_rows_become_text_and_an_outcome(tmp_path: Path) -> None:
    with runner(tmp_path, words=["a ", "b ", "c"]) as on:
        outcome = Outcome()
        assert text(run(on, outcome)) == "a b c"
        assert outcome.reason is FinishReason.STOP
        assert outcome.row is not None
        assert outcome.row.completion_tokens == 3
        assert len(outcome.generated) == 3


def test_limit_of_tokens_is_the_reason_length(tmp_path: Path) -> None:
    with runner(tmp_path, words=["a ", "b ", "c"]) as on:
        outcome = Outcome()
        assert text(run(on, outcome, sampling=SamplingOptions(num_predict=2))) == "a b "
        assert outcome.reason is FinishReason.LENGTH


def test_request_the_engine_does_not_take_is_the_clients_error(tmp_path: Path) -> None:
    with runner(tmp_path, num_ctx=2) as on, pytest.raises(BadRequestError, match="at most 2"):
        run(on, Outcome(), prompt="one two three", truncate=False)


def test_runner_that_dies_in_prefill_has_said_nothing(tmp_path: Path) -> None:
    with runner(tmp_path, words=["a"], crash_after_steps=1) as on:
        outcome = Outcome()
        with pytest.raises(RunnerCrashedError):
            run(on, outcome)
        assert not outcome.started


def test_runner_that_dies_later_has_said_something(tmp_path: Path) -> None:
    with runner(tmp_path, words=["a", "b"], crash_after_steps=2) as on:
        outcome = Outcome()
        with pytest.raises(RunnerCrashedError):
            run(on, outcome)
        assert outcome.started


def test_client_that_leaves_in_prefill_frees_the_slot(tmp_path: Path) -> None:
    with runner(tmp_path, hang=True) as on, pytest.raises(ClientGoneError):
        run(on, Outcome(), gone=lambda: True)


def test_client_that_leaves_while_rows_come_frees_the_slot(tmp_path: Path) -> None:
    with runner(tmp_path, words=["a "] * 10_000, step_s=0.001) as on:
        outcome = Outcome()
        with pytest.raises(ClientGoneError):
            run(on, outcome, gone=lambda: len(outcome.generated) > 3)
        assert len(outcome.generated) < 100


def test_answer_that_is_whole_is_ended_and_its_rest_not_told(tmp_path: Path) -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    tool = Tool(name="f", description="", parameters={})
    with runner(tmp_path, words=["Well. ", call + " and", *[call] * 10_000], step_s=0.001) as on:
        output = OutputStream(family=HERMES, tools=(tool,), one_call=True)
        outcome = Outcome()
        asked = protocol.Generate(id=0, prompt="p")
        pieces = [*complete(on, asked, output=output, gone=bool, outcome=outcome)]
        assert [piece.kind for piece in pieces if isinstance(piece, ToolCallChunk)] == ["tool_call"]
        assert text(pieces) == "Well."
        assert outcome.reason is FinishReason.STOP
        assert outcome.row is not None
        assert len(outcome.generated) < 5_000


def test_closing_the_pieces_frees_the_slot(tmp_path: Path) -> None:
    with runner(tmp_path, words=["a "] * 10_000, step_s=0.001) as on:
        output = OutputStream()
        pieces = complete(
            on,
            protocol.Generate(id=0, prompt="p"),
            output=output,
            gone=bool,
            outcome=Outcome(),
        )
        next(pieces)
        pieces.close()
        # Both slots would be taken for ten seconds otherwise.
        for _ in range(3):
            run(on, Outcome(), sampling=SamplingOptions(num_predict=1))


def test_logprobs_come_with_their_text(tmp_path: Path) -> None:
    with runner(tmp_path, words=["a ", "b"]) as on:
        pieces = run(on, Outcome(), top_logprobs=1)
        entries = [entry for piece in pieces for entry in piece.logprobs]  # type: ignore[union-attr]  # text only
        assert [entry.token for entry in entries] == ["a ", "b"]
        assert entries[0].top[0][0] == "a "


def test_logprobs_of_held_back_text_are_not_lost(tmp_path: Path) -> None:
    with runner(tmp_path, words=["<think>", "x", "</think>", "y"]) as on:
        pieces = run(on, Outcome(), thinks=True, top_logprobs=0)
        entries = [entry for piece in pieces for entry in piece.logprobs]  # type: ignore[union-attr]  # text only
        assert [entry.token for entry in entries] == ["<think>", "x", "</think>", "y"]
