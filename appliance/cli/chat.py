"""A prompt and its answer: the answer streams as it is made."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import typer

from appliance import duration, human
from appliance.cli.attachments import attach, names_images
from appliance.cli.commands import State
from appliance.cli.wrapping import Wrapping
from appliance.client import Client
from appliance.errors import RequestError

_GREY, _PLAIN = "\x1b[90m", "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Looks:
    """How an answer is shown.

    Attributes:
        hide_thinking: leave the reasoning out.
        wordwrap: break lines between words, on a terminal.
    """

    hide_thinking: bool = False
    wordwrap: bool = True

    @classmethod
    def of(cls, state: State) -> Looks:
        """As the session has it."""
        return cls(hide_thinking=state.hide_thinking, wordwrap=state.wordwrap)


def one_shot(client: Client, state: State, prompt: str, *, json_: bool = False) -> None:
    """Ask once; without a prompt the model is only loaded.

    Raises:
        ServerUnreachableError: no server.
        ServerRefusedError: the server's own text.
        RequestError: an image cannot be read.
    """
    text, images, told = _with_images(client, state.model, prompt)
    body: dict[str, Any] = {"model": state.model, "prompt": text, **state.options()}
    if images:
        body["images"] = list(images)
    rows = client.stream("/api/generate", body)
    if json_:
        for row in rows:
            typer.echo(json.dumps(row, ensure_ascii=True))
        return
    for line in told:
        typer.echo(line, err=True)
    last = show_answer(rows, "generate", Looks.of(state))
    if prompt:
        typer.echo("\n")
    if state.verbose:
        show_cost(last.row)


def _with_images(
    client: Client, model: str, prompt: str
) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Files named in the prompt are attached if the model can see; it is asked only then."""
    if not names_images(prompt):
        return prompt, (), ()
    facts = client.post("/api/show", {"model": model})
    return attach(prompt) if "vision" in facts.get("capabilities", ()) else (prompt, (), ())


def embed_once(
    client: Client, state: State, text: str, *, truncate: bool | None, dimensions: int | None
) -> None:
    """Print the vector of a text as one line of JSON.

    Raises:
        RequestError: there is no text.
    """
    if not text:
        raise RequestError(
            "embedding models require input text. "
            f'Usage: satchel run {state.model} "your text here"'
        )
    body: dict[str, Any] = {"model": state.model, "input": text, **state.options()}
    body |= {} if truncate is None else {"truncate": truncate}
    body |= {} if dimensions is None else {"dimensions": dimensions}
    answer = client.post("/api/embed", body)
    typer.echo(json.dumps((answer.get("embeddings") or [[]])[0]))


@dataclass(slots=True)
class Answer:
    """What was shown: the visible text, and the last row with its numbers."""

    text: str = ""
    row: Mapping[str, Any] = field(default_factory=dict)


def columns() -> int:
    """Of the terminal right now, 0 if there is none."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return 0


def _texts(
    rows: Iterator[Mapping[str, Any]], dialect: str
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Reasoning, visible text and the row itself, for each row of either endpoint."""
    for row in rows:
        part = row.get("message", {}) if dialect == "chat" else row
        text = part.get("content" if dialect == "chat" else "response", "")
        yield str(part.get("thinking") or ""), str(text or ""), row


def show_answer(rows: Iterator[Mapping[str, Any]], dialect: str, looks: Looks) -> Answer:
    """Write an answer as it comes. In a conversation Ctrl-C ends it; closing stops the server."""
    answer = Answer()
    thinking = False
    on_terminal = sys.stdout.isatty()
    pen = _Pen(columns() if on_terminal and looks.wordwrap else 0, colour=on_terminal)
    with contextlib.ExitStack() as stack:
        if on_terminal and sys.stdin.isatty():
            stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        for thought, text, row in _texts(rows, dialect):
            if thought and not looks.hide_thinking:
                if not thinking:
                    pen.mark("Thinking...\n")
                pen.write(thought)
                thinking = True
            if text:
                if thinking:
                    pen.mark("\n...done thinking.\n\n")
                pen.write(text)
                thinking = False
                answer.text += text
            answer.row = row
    return answer


class _Pen:
    """Writes on stdout; on a terminal in lines of whole words, and nothing that steers it."""

    def __init__(self, width: int, *, colour: bool) -> None:
        self._wrapping = Wrapping(width)
        self._colour = colour

    def write(self, text: str) -> None:
        """Text of the model."""
        self._out(self._wrapping.feed(human.printable(text) if self._colour else text))

    def mark(self, text: str) -> None:
        """Text of ours between two kinds of the model's."""
        shown = self._wrapping.feed(text)
        self._out(f"{_GREY}{shown}{_PLAIN}" if self._colour else shown)

    @staticmethod
    def _out(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def show_cost(row: Mapping[str, Any]) -> None:
    """Ollama's summary: names padded to 22 columns, on stderr; zeros are left out."""
    lines = [
        ("total duration:", _span(row, "total_duration")),
        ("load duration:", _span(row, "load_duration")),
        ("prompt eval count:", _tokens(row, "prompt_eval_count")),
        ("prompt eval duration:", _span(row, "prompt_eval_duration")),
        ("prompt eval rate:", _rate(row, "prompt_eval")),
        ("eval count:", _tokens(row, "eval_count")),
        ("eval duration:", _span(row, "eval_duration")),
        ("eval rate:", _rate(row, "eval")),
    ]
    for name, value in lines:
        if value:
            typer.echo(f"{name:<22}{value}", err=True)


def _span(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name, 0)
    return duration.show(value / 10**9) if value else ""


def _tokens(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name, 0)
    return f"{value} token(s)" if value else ""


def _rate(row: Mapping[str, Any], name: str) -> str:
    count, span_ns = row.get(f"{name}_count", 0), row.get(f"{name}_duration", 0)
    return f"{count * 10**9 / span_ns:.2f} tokens/s" if count and span_ns else ""
