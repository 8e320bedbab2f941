"""``satchel-bundle``: make keys, pack models into signed bundles, look into bundles."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import typer

from bundler.cli.frame import PROGRAM
from bundler.format.errors import BundleError
from hwprobe.completion import ASK, SHELLS, answer, script
from hwprobe.errors import GgufError, ProbeError, io_sentence

_EXIT_FAILED: Final = 1
_EXIT_USAGE: Final = 2
_EXIT_MALFORMED: Final = 10
_EXIT_INTERRUPTED: Final = 130

_VERBS: Final[Mapping[str, tuple[str, str]]] = {
    "keygen": (
        "keys",
        "Make a signing key: NAME.key stays here, NAME.pub goes to the target.",
    ),
    "public": ("keys", "Print the public half of a key, as the file for satchel trust add."),
    "pack": ("packing", "Pack a model into a signed bundle."),
    "sign": ("signatures", "Add a signature to a finished bundle; the weights are not needed."),
    "permit": (
        "signatures",
        "Let a site take an older bundle, once; for keys of the root's role rollback.",
    ),
    "plan": (
        "planning",
        "Say how large a bundle gets, on how many volumes, and how long it takes; write nothing.",
    ),
    "prove": (
        "planning",
        "Fill a medium's free space, read it back, and empty it again: is it as large as it says?",
    ),
    "copy": ("copies", "Copy a bundle, or one volume of it, to a medium, and read it back."),
    "publish": (
        "publishing",
        "Put a bundle into a registry, from which satchel pull takes it.",
    ),
    "repair": ("repairs", "Pack only the chunks that a site asks for."),
    "contents": ("signatures", "List what a bundle says it holds. Nothing is verified."),
    "receipt": ("receipts", "Check receipts that came back from a site."),
    "root": (
        "roots",
        "Say who may sign for which channel, and change it in a way sites can follow.",
    ),
    "trust": ("updates", "Carry revocations and new keys to sites without a bundle."),
}
"""Verb → its module of this package, and its line in the help. Only the module of the verb that
was typed is imported: the codecs and the sources' tools of the others cost most of a start."""


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - slow, and rarely asked for

        print(f"{PROGRAM} {version('satchel')}")
        raise typer.Exit


def _options(
    context: typer.Context,
    show_version: Annotated[
        bool,
        typer.Option("--version", "-v", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    del show_version
    if context.invoked_subcommand is None:
        print(context.get_help())


def _completion(
    shell: Annotated[str, typer.Argument(metavar="SHELL", autocompletion=lambda: SHELLS)],
) -> None:
    """Print the completion script for bash, zsh or fish."""
    if shell not in SHELLS:
        raise typer.BadParameter(f"expected {', '.join(SHELLS)}, found {shell!r}")
    print(script(PROGRAM, shell), end="")


def make_app(verb: str = "") -> typer.Typer:
    """The command line, in which this verb works and the others are lines of the help."""
    app = typer.Typer(
        name=PROGRAM,
        help="Pack models into signed bundles, on a connected computer.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_options)
    module = _VERBS[verb][0] if verb in _VERBS else ""
    added = False
    for name, (its_module, line) in _VERBS.items():
        if its_module != module:
            app.command(name, help=line)(_unloaded)
        elif not added:
            importlib.import_module(f"{__name__}.{module}").add_to(app)
            added = True
    app.command("completion")(_completion)
    return app


def _unloaded() -> None:
    """In the place of a verb that was not typed."""
    raise AssertionError("unreachable: the verb that was typed is loaded")


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors go to stderr in one form."""
    try:
        code = _typed(arguments)
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted", "", _EXIT_INTERRUPTED)
    except typer.TyperException as error:
        text = getattr(error, "format_message", error.__str__)()
        return _complain(
            text[:1].lower() + text[1:].rstrip("."), f"see: {PROGRAM} --help", _EXIT_USAGE
        )
    except (BundleError, ProbeError, OSError) as error:
        return _complain(*_explained(error))
    if code == _EXIT_INTERRUPTED:
        # typer turns an interrupt of a running command into this code, without a word.
        return _complain("interrupted", "", _EXIT_INTERRUPTED)
    return code if isinstance(code, int) else 0


def _typed(arguments: Sequence[str]) -> Any:
    """Run a verb, or answer a completion script."""

    def app_for(words: Sequence[str]) -> typer.Typer:
        return make_app(next((word for word in words if not word.startswith("-")), ""))

    if list(arguments[:1]) == [ASK]:
        print(answer(arguments[1:], program=PROGRAM, app_for=app_for), end="")
        return 0
    return app_for(arguments)(args=list(arguments), prog_name=PROGRAM, standalone_mode=False)


def _explained(error: BundleError | ProbeError | OSError) -> tuple[str, str, int]:
    """Message, hint and exit code."""
    match error:
        case BundleError():
            return str(error), error.hint, error.exit_code
        case GgufError():
            return str(error), error.hint, _EXIT_MALFORMED
        case ProbeError():
            return str(error), error.hint, _EXIT_FAILED
        case _:
            return io_sentence(error), "", _EXIT_FAILED


def _complain(message: str, hint: str, code: int) -> int:
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)
    if hint:
        print(f"{PROGRAM}: hint: {hint}", file=sys.stderr)
    return code


def main() -> None:
    """Entry point."""
    sys.exit(run(sys.argv[1:]))
