"""A prompt and its answer, once or in a loop; the answer streams as it is made."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import typer

from appliance import duration, human
from appliance.client import Client
from appliance.errors import AppError

_HELP = """Available Commands:
  /clear          Clear session context
  /bye            Exit
  /?, /help       Help for a command

Use \"\"\" to begin a multi-line message."""
_GREY, _PLAIN = "\x1b[90m", "\x1b[0m"
_QUOTES = '"""'


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """How answers are asked for and shown.

    Attributes:
        client: the server.
        model: as the user typed it.
        options: members every request carries, such as ``keep_alive``.
        verbose: show what an answer cost.
        hide_thinking: leave the reasoning out.
        json: print the answer's own lines.
    """

    client: Client
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    verbose: bool = False
    hide_thinking: bool = False
    json: bool = False


def one_shot(session: Session, prompt: str) -> None:
    """Ask once; without a prompt the model is only loaded.

    Raises:
        ServerUnreachableError: no server.
        ServerRefusedError: the server's own text.
    """
    body = {"model": session.model, "prompt": prompt, **session.options}
    rows = session.client.stream("/api/generate", body)
    if session.json:
        for row in rows:
            typer.echo(json.dumps(row, ensure_ascii=True))
        return
    last = _show(session, _texts(rows, "generate"))
    if prompt:
        typer.echo("\n")
    if session.verbose:
        _show_cost(last.row)


def converse(session: Session) -> None:
    """Ask and answer until ``/bye`` or end of file; Ctrl-C stops an answer, not the session."""
    session.client.post("/api/generate", {"model": session.model, **session.options})
    messages: list[dict[str, str]] = []
    while (text := _ask()) is not None:
        command = text.strip()
        if command in {"/bye", "/exit"}:
            return
        if command == "/clear":
            messages.clear()
            typer.echo("Cleared session context")
        elif command in {"/?", "/help"}:
            typer.echo(_HELP)
        elif command.startswith("/"):
            typer.echo(f"Unknown command '{command.split()[0]}'. Type /? for help")
        elif command:
            _turn(session, messages, text)


def _turn(session: Session, messages: list[dict[str, str]], text: str) -> None:
    messages.append({"role": "user", "content": text})
    body = {"model": session.model, "messages": messages, **session.options}
    rows = session.client.stream("/api/chat", body)
    try:
        answer = _show(session, _texts(rows, "chat"))
    except AppError as error:
        messages.pop()
        typer.echo(f"\nsatchel: error: {error}", err=True)
        return
    typer.echo("\n")
    messages.append({"role": "assistant", "content": answer.text})
    if session.verbose:
        _show_cost(answer.row)


def _ask() -> str | None:
    """One message; three quotes open a longer one. ``None`` at the end of the input."""
    try:
        text = input(">>> ")
        if not text.lstrip().startswith(_QUOTES):
            return text
        body = text.lstrip().removeprefix(_QUOTES)
        while not body.rstrip().endswith(_QUOTES):
            body += "\n" + input("... ")
        return body.rstrip().removesuffix(_QUOTES)
    except EOFError:
        typer.echo()
        return None
    except KeyboardInterrupt:
        typer.echo("\nUse Ctrl + d or /bye to exit.")
        return ""


@dataclass(slots=True)
class _Answer:
    """What was shown: the visible text, and the last row with its numbers."""

    text: str = ""
    row: Mapping[str, Any] = field(default_factory=dict)


def _texts(
    rows: Iterator[Mapping[str, Any]], dialect: str
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Reasoning, visible text and the row itself, for each row of either endpoint."""
    for row in rows:
        part = row.get("message", {}) if dialect == "chat" else row
        text = part.get("content" if dialect == "chat" else "response", "")
        yield str(part.get("thinking") or ""), str(text or ""), row


def _show(session: Session, parts: Iterator[tuple[str, str, Mapping[str, Any]]]) -> _Answer:
    """Write an answer as it comes. In a conversation Ctrl-C ends it; closing stops the server."""
    answer = _Answer()
    thinking = False
    grey = sys.stdout.isatty()
    shown = human.printable if grey else str
    interactive = grey and sys.stdin.isatty()
    with contextlib.ExitStack() as stack:
        if interactive:
            stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        for thought, text, row in parts:
            if thought and not session.hide_thinking:
                _write(("" if thinking else _mark("Thinking...\n", grey=grey)) + shown(thought))
                thinking = True
            if text:
                _write(
                    (_mark("\n...done thinking.\n\n", grey=grey) if thinking else "") + shown(text)
                )
                thinking = False
                answer.text += text
            answer.row = row
    return answer


def _mark(text: str, *, grey: bool) -> str:
    return f"{_GREY}{text}{_PLAIN}" if grey else text


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _show_cost(row: Mapping[str, Any]) -> None:
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
