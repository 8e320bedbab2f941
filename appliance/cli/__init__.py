"""The command ``satchel``: the operator's verbs."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from appliance.errors import AppError
from bundler.format.errors import BundleError, printable
from hwprobe.errors import DoesNotFitError, GgufError, ProbeError, io_sentence

INTERRUPTED = 130
_PROBE_CODES: dict[type[ProbeError], int] = {GgufError: 10, DoesNotFitError: 14}

_MODULES: Mapping[str, tuple[str, ...]] = {
    "bundles": ("import", "verify"),
    "models": ("list", "ls", "show", "rm", "cp"),
    "making": ("create", "pull", "push"),
    "leaving": ("export",),
    "upkeep": ("prune",),
    "reporting": ("inventory", "device"),
    "scrub": ("scrub",),
    "site": ("config", "health", "crashes", "trust"),
    "talk": ("run", "ps", "stop"),
}
"""Module of this package → its verbs, in the order of the help. Only the module of the verb that
was typed is imported, so that `satchel list` starts without codecs and the engine's tools."""

_NOT_HERE: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("serve", "start"), ("the server is a program of its own", "start it with: satchel-server")
    ),
    **dict.fromkeys(
        ("signin", "signout", "login", "logout"),
        ("there is no account: nothing here reaches a network", "trust keys with: satchel trust"),
    ),
    "launch": (
        "other programs are not set up from here",
        "point them at the server's address, as at an Ollama's",
    ),
}
"""Ollama's verbs that mean something else here → why, and what to do."""


def _version(wanted: bool | None) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - slow, and rarely asked for

        typer.echo(f"satchel version is {version('satchel')}")
        raise typer.Exit


def _root(
    context: typer.Context,
    _: Annotated[
        bool | None,
        typer.Option("--version", "-v", callback=_version, is_eager=True, help="Show the version."),
    ] = None,
) -> None:
    """Keep verified models on this machine, and talk to its server."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _version_command() -> None:
    """Show the version."""
    _version(wanted=True)


def make_app(modules: Iterable[str] = tuple(_MODULES)) -> typer.Typer:
    """The command line, with the verbs of these modules of this package."""
    app = typer.Typer(
        name="satchel",
        help="Keep verified models on this machine, and talk to its server.",
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    app.command("version")(_version_command)
    for module in modules:
        importlib.import_module(f"appliance.cli.{module}").add_to(app)
    return app


def _needed(arguments: Sequence[str]) -> tuple[str, ...]:
    """The module of the verb that was typed; all of them for the help or an unknown verb."""
    verb = next((word for word in arguments if not word.startswith("-")), "")
    if verb == "version" or any(word in ("--version", "-v") for word in arguments[:1]):
        return ()
    found = tuple(module for module, verbs in _MODULES.items() if verb in verbs)
    return found or tuple(_MODULES)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors go to stderr in one form."""
    if arguments and arguments[0] in _NOT_HERE:
        message, hint = _NOT_HERE[arguments[0]]
        return _complain(f"{arguments[0]}: {message}", hint, 1)
    try:
        app = make_app(_needed(arguments))
        code: Any = app(args=_with_values(arguments), standalone_mode=False, prog_name="satchel")
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted", "", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output left. Python would complain once more at exit; nobody reads it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the outermost edge: one line, not a trace
        return _explain(error)
    # Typer swallows Ctrl-C and returns the code it means.
    if code == INTERRUPTED:
        return _complain("interrupted", "", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> int:
    match error:
        case AppError() | BundleError():
            return _complain(str(error), error.hint, error.exit_code)
        case ProbeError():
            return _complain(str(error), error.hint, _PROBE_CODES.get(type(error), 1))
        case typer.TyperException():
            text = getattr(error, "format_message", error.__str__)()
            code = getattr(error, "exit_code", 2)
            return _complain(_sentence(text), "see: satchel --help", code)
        case OSError():
            return _complain(io_sentence(error), "", 1)
    if os.environ.get("SATCHEL_DEBUG"):
        raise error
    text = f"internal error: {type(error).__name__}: {error}"
    return _complain(printable(text), "SATCHEL_DEBUG=1 shows the trace", 1)


def _complain(message: str, hint: str, code: int) -> int:
    typer.echo(f"satchel: error: {message}", err=True)
    if hint:
        typer.echo(f"satchel: hint: {hint}", err=True)
    return code


def _sentence(text: str) -> str:
    """A usage error of the option parser in our form: lower case, no full stop."""
    return text[:1].lower() + text[1:].rstrip(".")


def main() -> None:
    """Entry point."""
    sys.exit(run(sys.argv[1:]))


def _with_values(arguments: Sequence[str]) -> list[str]:
    """Write out ``--think`` without a value, which Ollama's command line allows."""
    options = list(arguments)
    end = options.index("--") if "--" in options else len(options)
    words = ["--think=true" if word == "--think" else word for word in options[:end]]
    return [*words, *options[end:]]
