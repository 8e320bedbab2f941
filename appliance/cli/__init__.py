"""The command ``satchel``: the operator's verbs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from appliance.cli import bundles, leaving, making, models, scrub, site, talk, upkeep
from appliance.errors import AppError
from appliance.measuring import version
from bundler.format.errors import BundleError, printable
from hwprobe.errors import DoesNotFitError, GgufError, ProbeError

INTERRUPTED = 130
_PROBE_CODES: dict[type[ProbeError], int] = {GgufError: 10, DoesNotFitError: 14}

app = typer.Typer(
    name="satchel",
    help="Keep verified models on this machine, and talk to its server.",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool | None) -> None:
    if wanted:
        typer.echo(f"satchel version is {version()}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    _: Annotated[
        bool | None,
        typer.Option("--version", "-v", callback=_version, is_eager=True, help="Show the version."),
    ] = None,
) -> None:
    """Keep verified models on this machine, and talk to its server."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("version")
def version_command() -> None:
    """Show the version."""
    _version(wanted=True)


bundles.add_to(app)
models.add_to(app)
making.add_to(app)
leaving.add_to(app)
upkeep.add_to(app)
scrub.add_to(app)
site.add_to(app)
talk.add_to(app)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors go to stderr in one form."""
    try:
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
