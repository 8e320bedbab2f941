"""The line a person types: editing, history, messages of several lines, an editor for long ones.

The owner of prompt_toolkit. It is imported when a conversation begins, not before.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from prompt_toolkit import PromptSession
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output
from prompt_toolkit.output.vt100 import Vt100_Output

PROMPT: Final = ">>> "
CONTINUED: Final = "... "
PLACEHOLDER: Final = "Send a message (/? for help)"
MAX_ENTRIES: Final = 100
"""As many lines of history as Ollama keeps."""
_LEAVE: Final = "Use Ctrl + d or /bye to exit."


class FileHistory(History):
    r"""The last messages, one a line, in a file only its owner can read.

    Line breaks inside a message are written as ``\n`` and backslashes doubled.
    A file that cannot be read or written is no reason to stop a conversation: it is left alone.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def load_history_strings(self) -> Iterable[str]:
        """Newest first."""
        return [_decoded(line) for line in reversed(self._lines())]

    def store_string(self, string: str) -> None:
        """Append one and forget the oldest beyond the limit."""
        if not string.strip():
            return
        lines = [*self._lines(), _encoded(string)][-MAX_ENTRIES:]
        part = self._path.with_name(self._path.name + ".part")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
                file.writelines(line + "\n" for line in lines)
            part.replace(self._path)

    def _lines(self) -> list[str]:
        try:
            text = self._path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        return text.split("\n")[:-1][-MAX_ENTRIES:]


def history_path() -> Path:
    """Where typed lines are kept when the operator wants them kept."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state else Path.home() / ".local" / "state") / "satchel" / "history"


def _encoded(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\r", "").replace("\n", "\\n")


def _decoded(line: str) -> str:
    parts = line.split("\\\\")
    return "\\".join(part.replace("\\n", "\n") for part in parts)


class Keyboard:
    """Reads messages from the terminal this process was started on."""

    def __init__(self, *, history: bool) -> None:
        if editor := os.environ.get("SATCHEL_EDITOR") or os.environ.get("OLLAMA_EDITOR"):
            os.environ["VISUAL"] = editor  # what prompt_toolkit starts
        self._session: PromptSession[str] = _session(_history(keep=history))

    def keep_history(self, *, keep: bool) -> None:
        """Keep what is typed from now on in the file, or in memory only."""
        self._session = _session(_history(keep=keep))

    def ask(self, unfinished: Callable[[str], bool]) -> str | None:
        """One message; ``None`` at the end of the input, an empty one after Ctrl-C."""
        try:
            text = self._session.prompt(PROMPT, placeholder=PLACEHOLDER)
            while unfinished(text):
                text += "\n" + self._session.prompt(CONTINUED, placeholder="")
        except EOFError:
            return None
        except KeyboardInterrupt:
            print(f"\n{_LEAVE}")
            return ""
        return text


def _history(*, keep: bool) -> History:
    return FileHistory(history_path()) if keep else InMemoryHistory()


def _session(history: History) -> PromptSession[str]:
    # No question about the cursor's position: a serial console does not answer it.
    output = create_output(sys.stdout)
    if isinstance(output, Vt100_Output):
        output.enable_cpr = False
    return PromptSession(
        history=history,
        key_bindings=_bindings(),
        output=output,
        enable_open_in_editor=True,
        reserve_space_for_menu=0,
    )


def _bindings() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("c-c")
    def _empty_or_leave(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt())

    @keys.add("c-g")
    def _edit(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor(validate_and_handle=False)

    del _empty_or_leave, _edit
    return keys
