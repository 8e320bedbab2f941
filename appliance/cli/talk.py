"""``satchel run``, ``ps`` and ``stop``: the verbs that need the server."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from appliance import duration, human
from appliance.cli.chat import embed_once, one_shot
from appliance.cli.commands import State
from appliance.cli.frame import (
    ConfigOption,
    HostOption,
    JsonOption,
    ModelArgument,
    installed,
    load_config,
    print_json,
    server,
)
from appliance.cli.lists import count, seconds
from appliance.client import Client
from appliance.errors import RequestError, ServerRefusedError

_NOT_FOUND = 404
_MAKES_NO_TEXT = "does not support generate"
_THINK_LEVELS: Mapping[str, bool | str] = {
    "true": True,
    "false": False,
    **{level: level for level in ("low", "medium", "high", "max")},
}


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command("run")(run_command)
    app.command("ps")(ps_command)
    app.command("stop")(stop_command)


def run_command(
    model: ModelArgument,
    prompt: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...")] = None,
    *,
    keepalive: Annotated[str, typer.Option(help="How long the model stays, such as 5m.")] = "",
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what the answer cost.")] = False,
    format_: Annotated[str, typer.Option("--format", help="json, for an answer in JSON.")] = "",
    think: Annotated[
        str,
        typer.Option(
            help="true, false, low, medium, high or max; alone it means true.",
            autocompletion=lambda: list(_THINK_LEVELS),
        ),
    ] = "",
    hide_thinking: Annotated[
        bool, typer.Option("--hidethinking", help="Leave the reasoning out.")
    ] = False,
    nowordwrap: Annotated[
        bool, typer.Option("--nowordwrap", help="Leave long lines to the terminal.")
    ] = False,
    truncate: Annotated[
        str, typer.Option(help="For embedding models: false refuses text that is too long.")
    ] = "",
    dimensions: Annotated[
        int | None, typer.Option(min=1, help="For embedding models: length of the vector.")
    ] = None,
    _insecure: Annotated[
        bool, typer.Option("--insecure", hidden=True, help="Means nothing here.")
    ] = False,
    config: ConfigOption = None,
    host: HostOption = None,
    json_: JsonOption = False,
) -> None:
    """Ask a model, once or in a conversation.

    Text on stdin goes before PROMPT. Without either, on a terminal, a conversation begins.
    """
    client = server(load_config(config, None), host)
    state = State(
        model=model,
        keep_alive=_keep_alive(keepalive),
        format=format_ or None,
        think=_think(think),
        verbose=verbose,
        hide_thinking=hide_thinking,
        wordwrap=not nowordwrap,
        history=_history_wanted(os.environ),
    )
    shorten = _flag("truncate", truncate)
    text = " ".join([*_piped(), *(prompt or [])])
    if shorten is not None or dimensions is not None:
        embed_once(client, state, text, truncate=shorten, dimensions=dimensions)
    elif text or json_ or not sys.stdin.isatty() or not sys.stdout.isatty():
        _once(client, state, text, json_=json_)
    else:
        from appliance.cli.conversation import Conversation  # noqa: PLC0415 - slow to import

        Conversation.begin(client, state).go_on()


def _once(client: Client, state: State, text: str, *, json_: bool) -> None:
    """One answer; a model that makes no text is asked for a vector instead."""
    try:
        one_shot(client, state, text, json_=json_)
    except ServerRefusedError as error:
        if _MAKES_NO_TEXT not in str(error):
            raise
        embed_once(client, state, text, truncate=None, dimensions=None)


def _keep_alive(text: str) -> str:
    if text:
        try:
            duration.parse(text)
        except ValueError as error:
            raise RequestError(f"keepalive: {error}") from error
    return text


def _think(text: str) -> bool | str | None:
    if text and text not in _THINK_LEVELS:
        raise RequestError(f"think: expected {', '.join(_THINK_LEVELS)}, found {text!r}")
    return _THINK_LEVELS.get(text)


def _flag(name: str, text: str) -> bool | None:
    if text not in {"", "true", "false"}:
        raise RequestError(f"{name}: expected true or false, found {text!r}")
    return text == "true" if text else None


def _history_wanted(environ: Mapping[str, str]) -> bool:
    """Only if the operator says so: what is typed is nobody else's business."""
    refused = environ.get("OLLAMA_NOHISTORY", "") not in {"", "0", "false"}
    return environ.get("SATCHEL_HISTORY", "") in {"1", "true", "yes"} and not refused


def _piped() -> Iterator[str]:
    if not sys.stdin.isatty():
        with contextlib.suppress(OSError):
            text = sys.stdin.read()
            if text:
                yield text


def ps_command(
    prefix: Annotated[
        str, typer.Argument(help="Only names that begin like this.", autocompletion=installed)
    ] = "",
    config: ConfigOption = None,
    host: HostOption = None,
    json_: JsonOption = False,
) -> None:
    """Show the models in memory, where they lie, and until when."""
    answer = server(load_config(config, None), host).get("/api/ps")
    listed = answer.get("models")
    models = [
        model
        for model in (listed if isinstance(listed, list) else ())
        if isinstance(model, dict)
        and str(model.get("name", "")).lower().startswith(prefix.strip().lower())
    ]
    if json_:
        print_json({"models": models})
        return
    now_s = time.time()
    header = ("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL")
    rows = [_ps_row(model, now_s) for model in models]
    typer.echo(human.table(header, rows, width=human.TERMINAL_COLUMNS))


def _ps_row(model: Mapping[str, Any], now_s: float) -> tuple[str, ...]:
    size, vram = count(model, "size"), count(model, "size_vram")
    until = seconds(str(model.get("expires_at", "")))
    return (
        human.printable(str(model.get("name", ""))),
        human.printable(str(model.get("digest", ""))).removeprefix("sha256:")[:12],
        human.size(size),
        human.processor(size, vram),
        human.printable(str(model.get("context_length", ""))),
        "Stopping..." if until is not None and until < now_s else human.moment(until, now_s=now_s),
    )


def stop_command(
    model: ModelArgument,
    config: ConfigOption = None,
    host: HostOption = None,
    json_: JsonOption = False,
) -> None:
    """Unload a model."""
    client = server(load_config(config, None), host)
    try:
        client.post("/api/generate", {"model": model, "keep_alive": 0})
    except ServerRefusedError as error:
        if error.status != _NOT_FOUND:
            raise
        raise ServerRefusedError(
            f'couldn\'t find model "{model}" to stop', status=error.status
        ) from error
    if json_:
        print_json({"stopped": model})
