"""The command line of ``satchel-server``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

PROGRAM = "satchel-server"


def read_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The command line; one that is wrong ends the process with code 2."""
    parser = _Parser(
        prog=PROGRAM, description="Serve installed models with an Ollama- and OpenAI-like API."
    )
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="TCP port (default 11434); 0 takes a free one")
    parser.add_argument("--store", help="directory of the store")
    parser.add_argument("--config", type=Path, help="configuration file")
    parser.add_argument("--admin-socket", help="Unix socket for health and administration")
    parser.add_argument("--api-keys-file", help="file with one key digest per line")
    parser.add_argument(
        "--log-requests", action="store_true", default=None, help="one line per request on stderr"
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="least severe line to print (default info)",
    )
    parser.add_argument(
        "--ready-file", type=Path, help="file to write the addresses to once listening"
    )
    parser.add_argument(
        "-v", "--version", action="version", version=f"{PROGRAM} {version('satchel')}"
    )
    return parser.parse_args(words)


def flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """Flags by the names of the settings they override."""
    return {
        "server.host": arguments.host,
        "server.port": arguments.port,
        "store.path": _absolute(arguments.store),
        "server.admin_socket": _absolute(arguments.admin_socket),
        "server.api_keys_file": _absolute(arguments.api_keys_file),
        "server.log_requests": arguments.log_requests,
    }


def _absolute(path: str | None) -> str | None:
    """What is typed is relative to where it is typed."""
    return str(Path(path).absolute()) if path else None


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the command line as all our commands do."""

    def error(self, message: str) -> NoReturn:
        """One line, a hint, code 2."""
        self.exit(2, f"{PROGRAM}: error: {message}\n{PROGRAM}: hint: see: {PROGRAM} --help\n")
