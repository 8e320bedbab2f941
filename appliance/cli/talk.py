"""``satchel run``, ``ps`` and ``stop``: the verbs that need the server."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any

import typer

from appliance import duration, human
from appliance.cli.chat import Session, converse, one_shot
from appliance.cli.frame import (
    ConfigOption,
    HostOption,
    JsonOption,
    load_config,
    print_json,
    server,
)
from appliance.errors import RequestError, ServerRefusedError

_NOT_FOUND = 404
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
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    prompt: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...")] = None,
    *,
    keepalive: Annotated[str, typer.Option(help="How long the model stays, such as 5m.")] = "",
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what the answer cost.")] = False,
    format_: Annotated[str, typer.Option("--format", help="json, for an answer in JSON.")] = "",
    think: Annotated[
        str,
        typer.Option(help="true, false, low, medium, high or max; alone it means true."),
    ] = "",
    hide_thinking: Annotated[
        bool, typer.Option("--hidethinking", help="Leave the reasoning out.")
    ] = False,
    config: ConfigOption = None,
    host: HostOption = None,
    json_: JsonOption = False,
) -> None:
    """Ask a model, once or in a conversation."""
    session = Session(
        client=server(load_config(config, None), host),
        model=model,
        options=_run_options(keepalive, format_, think),
        verbose=verbose,
        hide_thinking=hide_thinking,
        json=json_,
    )
    text = " ".join([*_piped(), *(prompt or [])])
    if text or json_ or not sys.stdin.isatty() or not sys.stdout.isatty():
        one_shot(session, text)
    else:
        converse(session)


def _run_options(keepalive: str, format_: str, think: str) -> Mapping[str, Any]:
    options: dict[str, Any] = {}
    if keepalive:
        try:
            duration.parse(keepalive)
        except ValueError as error:
            raise RequestError(f"keepalive: {error}") from error
        options["keep_alive"] = keepalive
    if format_:
        options["format"] = format_
    if think:
        if think not in _THINK_LEVELS:
            raise RequestError(f"think: expected {', '.join(_THINK_LEVELS)}, found {think!r}")
        options["think"] = _THINK_LEVELS[think]
    return options


def _piped() -> Iterator[str]:
    if not sys.stdin.isatty():
        with contextlib.suppress(OSError):
            text = sys.stdin.read()
            if text:
                yield text


def ps_command(
    prefix: Annotated[str, typer.Argument(help="Only names that begin like this.")] = "",
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
    typer.echo(human.table(header, [_ps_row(model, now_s) for model in models]))


def _ps_row(model: Mapping[str, Any], now_s: float) -> tuple[str, ...]:
    size, vram = _count(model, "size"), _count(model, "size_vram")
    until = _time(str(model.get("expires_at", "")))
    return (
        human.printable(str(model.get("name", ""))),
        human.printable(str(model.get("digest", ""))).removeprefix("sha256:")[:12],
        human.size(size),
        human.processor(size, vram),
        human.printable(str(model.get("context_length", ""))),
        "Stopping..." if until is not None and until < now_s else human.moment(until, now_s=now_s),
    )


def _count(model: Mapping[str, Any], name: str) -> int:
    value = model.get(name)
    return value if isinstance(value, int) else 0


def _time(text: str) -> float | None:
    """Seconds since the epoch of an RFC 3339 time with up to nine digits of a second."""
    head, dot, rest = text.partition(".")
    if dot:
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        text = f"{head}.{digits[:6]}{rest[len(digits) :]}"
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.timestamp() if moment.year > 1 else None


def stop_command(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    config: ConfigOption = None,
    host: HostOption = None,
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
