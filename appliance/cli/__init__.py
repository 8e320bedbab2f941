"""The command ``satchel``: the operator's verbs."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from appliance.errors import AppError, RequestError
from appliance.idle import become_idle
from bundler.format.errors import BundleError, printable
from hwprobe.completion import ASK, SHELLS, answer, script
from hwprobe.errors import DoesNotFitError, GgufError, ProbeError, io_sentence

INTERRUPTED = 130
_PROBE_CODES: dict[type[ProbeError], int] = {GgufError: 10, DoesNotFitError: 14}

_HIDDEN = ""
"""A verb the help does not name."""

_MODULES: Mapping[str, Mapping[str, str]] = {
    "bundles": {
        "import": "Verify a bundle and install what fits this machine.",
        "verify": "Check every byte of a bundle as an import would; write nothing.",
    },
    "approve": {
        "approve": "Approve an import that waits, or list what waits; "
        "the last approval carries it out."
    },
    "listing": {"list": "List the installed models, the newest first.", "ls": _HIDDEN},
    "showing": {"show": "Show what a model is."},
    "models": {
        "rm": "Remove models, and the files nothing else uses.",
        "cp": "Give a model one more name.",
    },
    "making": {
        "create": "Make a model from a Modelfile, through the server.",
        "pull": "Install a model from a trusted bundle in one of exchange.sources, "
        "or in exchange.registry.",
        "push": "Copy a model into the directory exchange.export, a store of the same layout.",
    },
    "leaving": {"export": "Copy models out for other tools, every file checked on its way."},
    "rolling": {"rollback": "Let a model be again what it was before an import replaced it."},
    "upkeep": {"prune": "Remove the blobs that no model uses."},
    "staging": {
        "staging": "List the imports that wait for another medium.",
        "repair-request": "Ask the connected side for just the chunks that an import lacks.",
    },
    "reporting": {
        "inventory": "Say which pieces of which files are here, "
        "so that an update carries only the others.",
        "device": "Show the public half of the key "
        "that signs this machine's receipts and inventories.",
        "receipts": "What each import did: list the receipts, show one as a page, carry them out.",
    },
    "scrub": {"scrub": "Hash every file of the store again, only when CPU and disk are idle."},
    "site": {
        "config": "Show every setting, and where its value comes from.",
        "health": "Check store, last scrub, space, crashes of the last day, engine, and server.",
        "crashes": "Show how models' runners have crashed.",
        "trust": "Whom this site trusts to sign bundles.",
    },
    "worker": {
        "worker": "Lend this machine's memory and processors to another one's models.",
    },
    "talk": {
        "run": "Ask a model, once or in a conversation.",
        "ps": "Show the models in memory, where they lie, and until when.",
        "stop": "Unload a model.",
    },
    "media": {"media": "Verify what is on a plugged-in medium, and install what is trusted."},
    "machine": {"commission": "Make what a new machine needs: an API key, trust, a site."},
}
"""Module of this package → its verbs, in the order of the help, with what the help says of them.
Only the module of the verb that was typed is imported, and none for the help, so that
`satchel list` starts without codecs and the engine's tools."""

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


def _completion_command(
    shell: Annotated[str, typer.Argument(metavar="SHELL", autocompletion=lambda: SHELLS)],
) -> None:
    """Print the completion script for bash, zsh or fish."""
    if shell not in SHELLS:
        raise RequestError(f"shell: expected {', '.join(SHELLS)}, found {shell!r}")
    typer.echo(script("satchel", shell), nl=False)


def make_app(modules: Iterable[str] = tuple(_MODULES)) -> typer.Typer:
    """The command line, with the verbs of these modules, and the names of all others."""
    app = typer.Typer(
        name="satchel",
        help="Keep verified models on this machine, and talk to its server.",
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    loaded = set(modules)
    for module, verbs in _MODULES.items():
        if module in loaded:
            importlib.import_module(f"appliance.cli.{module}").add_to(app)
            continue
        for verb, about in verbs.items():
            app.command(verb, help=about, hidden=about == _HIDDEN)(_elsewhere)
    app.command("completion")(_completion_command)
    app.command("version")(_version_command)
    return app


def _elsewhere() -> None:
    """Stand for a verb whose module is not loaded; never run, because `_needed` loads it."""
    raise AssertionError


def _needed(arguments: Sequence[str]) -> tuple[str, ...]:
    """The module of the verb that was typed; none for the help, or an unknown verb."""
    verb = next((word for word in arguments if not word.startswith("-")), "")
    return tuple(module for module, verbs in _MODULES.items() if verb in verbs)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors go to stderr in one form."""
    verb = arguments[0] if arguments else ""
    if verb in _NOT_HERE:
        message, hint = _NOT_HERE[verb]
        return _complain(f"{verb}: {message}", hint, 1)
    try:
        code = _typed(arguments)
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


def _typed(arguments: Sequence[str]) -> Any:
    """Run a verb, or answer a completion script."""

    def app_for(words: Sequence[str]) -> typer.Typer:
        return make_app(_needed(words))

    if list(arguments[:1]) == [ASK]:
        typer.echo(answer(arguments[1:], program="satchel", app_for=app_for), nl=False)
        return 0
    return app_for(arguments)(
        args=_with_values(arguments), standalone_mode=False, prog_name="satchel"
    )


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


_IN_THE_BACKGROUND = ("import", "verify", "inventory", "media")
"""Verbs that read and write gigabytes beside a server that answers."""


def main() -> None:
    """Entry point."""
    if any(verb in _IN_THE_BACKGROUND for verb in sys.argv[1:2]):
        become_idle()
    sys.exit(run(sys.argv[1:]))


def _with_values(arguments: Sequence[str]) -> list[str]:
    """Write out ``--think`` without a value, which Ollama's command line allows."""
    options = list(arguments)
    end = options.index("--") if "--" in options else len(options)
    words = ["--think=true" if word == "--think" else word for word in options[:end]]
    return [*words, *options[end:]]
