"""What a line of a conversation means: a message, or one of Ollama's slash commands. Pure.

`interpret` takes the state and a line and gives the next state, what to say, and what is wanted
of the world outside: an answer, a page about the model, a model loaded or saved, the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from bundler.format.errors import ModelfileError
from bundler.format.modelfile import ParameterValue, parse

QUOTES: Final = '"""'
THINK_LEVELS: Final = ("low", "medium", "high", "max")
PAGES: Final = ("info", "license", "modelfile", "parameters", "system", "template")

HELP: Final = """Available Commands:
  /set            Change what this session asks for
  /show           Show what the model is
  /load MODEL     Go on with another model
  /save MODEL     Keep this session as a model
  /list [PREFIX]  List the installed models
  /clear          Forget what was said
  /bye            Leave
  /?, /help       This help; also /? set, /? show, /? shortcuts

Three quotes (\"\"\") begin and end a message of several lines."""
_HELP_SET: Final = """Available Commands:
  /set parameter NAME VALUE...  Set a parameter of the model
  /set system TEXT              Set the system message
  /set history                  Keep what you type in a file from now on
  /set nohistory                Keep it in memory only
  /set wordwrap                 Break long lines between words
  /set nowordwrap               Leave them to the terminal
  /set format json              Ask for JSON
  /set noformat                 Ask for text
  /set verbose                  Show what each answer cost
  /set quiet                    Do not show it
  /set think [LEVEL]            Let the model think; low, medium, high or max
  /set nothink                  Do not let it think"""
_HELP_SHOW: Final = """Available Commands:
  /show info        What the model is
  /show license     Its licences
  /show modelfile   Its Modelfile
  /show parameters  Its parameters and yours
  /show system      The system message
  /show template    The prompt template"""
_HELP_SHORTCUTS: Final = """Available keyboard shortcuts:
  Ctrl + a    To the start of the line
  Ctrl + e    To the end of the line
  Alt + b     One word back
  Alt + f     One word forward
  Ctrl + k    Delete to the end of the line
  Ctrl + u    Delete to the start of the line
  Ctrl + w    Delete the word before the cursor
  Ctrl + l    Clear the screen
  Ctrl + g    Write the message in an editor ($SATCHEL_EDITOR, $VISUAL or $EDITOR)
  Ctrl + c    Stop the answer, or empty the line
  Ctrl + d    Leave"""
_LINE: Final = re.compile(r"^\(line \d+\): ")
"""A single parameter has no line numbers to speak of."""
_TOPICS: Final = {"set": _HELP_SET, "show": _HELP_SHOW, "shortcuts": _HELP_SHORTCUTS}


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What this session asks for.

    Attributes:
        model: as the user typed it.
        messages: the conversation so far, as ``/api/chat`` takes it.
        system: set here, or ``None`` for the model's own.
        parameters: set here.
        format: of ``/api/chat``, or ``None``.
        think: of ``/api/chat``, or ``None`` for the model's default.
        keep_alive: of ``/api/chat``, or empty.
        verbose: show what an answer cost.
        hide_thinking: leave the reasoning out.
        wordwrap: break lines between words.
        history: keep what is typed in a file.
    """

    model: str
    messages: tuple[Mapping[str, Any], ...] = ()
    system: str | None = None
    parameters: Mapping[str, ParameterValue | list[str]] = field(default_factory=dict)
    format: str | Mapping[str, Any] | None = None
    think: bool | str | None = None
    keep_alive: str = ""
    verbose: bool = False
    hide_thinking: bool = False
    wordwrap: bool = True
    history: bool = False

    def request(self) -> dict[str, Any]:
        """The body of ``/api/chat`` that asks for the next answer."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {"model": self.model, "messages": [*system, *self.messages], **self.options()}

    def options(self) -> dict[str, Any]:
        """The members every request carries."""
        return {
            **({"options": dict(self.parameters)} if self.parameters else {}),
            **({"format": self.format} if self.format else {}),
            **({"think": self.think} if self.think is not None else {}),
            **({"keep_alive": self.keep_alive} if self.keep_alive else {}),
        }

    def saved(self, name: str) -> dict[str, Any]:
        """The body of ``/api/create`` that keeps this session as a model."""
        return {
            "model": name,
            "from": self.model,
            **({"system": self.system} if self.system else {}),
            **({"parameters": dict(self.parameters)} if self.parameters else {}),
            **({"messages": [dict(one) for one in self.messages]} if self.messages else {}),
        }


@dataclass(frozen=True, slots=True)
class Want:
    """Something only the world outside can do.

    Attributes:
        what: ``ask`` for an answer to ``text``; ``show`` the page ``text``; ``load``, ``save``,
            ``list``: a model or a prefix; ``quit``.
        text: what it is about.
    """

    what: Literal["ask", "show", "load", "save", "list", "quit"]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """What follows from a line: the next state, what to say, what is wanted."""

    state: State
    said: str = ""
    want: Want | None = None


def unfinished(text: str) -> bool:
    """Whether three quotes were opened and not closed: the message goes on in the next line."""
    start = text.lstrip().removeprefix("/set system ").lstrip()
    return start.startswith(QUOTES) and not (
        len(start.rstrip()) >= 2 * len(QUOTES) and start.rstrip().endswith(QUOTES)
    )


def interpret(state: State, text: str) -> Step:
    """What one message or command means."""
    line = text.strip()
    if not line:
        return Step(state)
    if line.startswith(QUOTES):
        return Step(state, want=Want("ask", _unquoted(line)))
    if not line.startswith("/") or _looks_like_a_path(line):
        return Step(state, want=Want("ask", text))
    command, _, rest = line.partition(" ")
    meaning = _COMMANDS.get(command)
    if meaning is None:
        return Step(state, f"Unknown command '{command}'. Type /? for help")
    return meaning(state, rest.strip())


def _looks_like_a_path(line: str) -> bool:
    """A message may begin with the path of an image; no command has a second slash."""
    return "/" in line.split(maxsplit=1)[0][1:]


def _quit(state: State, _: str) -> Step:
    return Step(state, want=Want("quit"))


def _clear(state: State, _: str) -> Step:
    return Step(replace(state, messages=()), "Cleared session context")


def _help(state: State, topic: str) -> Step:
    return Step(state, _TOPICS.get(topic.removeprefix("/"), HELP))


def _list(state: State, prefix: str) -> Step:
    return Step(state, want=Want("list", prefix))


def _load(state: State, rest: str) -> Step:
    one = len(rest.split()) == 1
    return Step(state, want=Want("load", rest)) if one else Step(state, "Usage:\n  /load MODEL")


def _save(state: State, rest: str) -> Step:
    one = len(rest.split()) == 1
    return Step(state, want=Want("save", rest)) if one else Step(state, "Usage:\n  /save MODEL")


def _show(state: State, rest: str) -> Step:
    if rest in PAGES:
        return Step(state, want=Want("show", rest))
    if not rest:
        return Step(state, _HELP_SHOW)
    return Step(state, f"Unknown command '/show {rest}'. Type /? for help")


def _set(state: State, rest: str) -> Step:
    what, _, value = rest.partition(" ")
    value = value.strip()
    if not what:
        return Step(state, _HELP_SET)
    if what in _SWITCHES and not value:
        changes, said = _SWITCHES[what]
        return Step(replace(state, **changes), said)
    if (setting := _SETTINGS.get(what)) is not None:
        return setting(state, value)
    return Step(state, f"Unknown command '/set {what}'. Type /? for help")


def _set_system(state: State, text: str) -> Step:
    if not text:
        return Step(state, "Usage:\n  /set system TEXT")
    return Step(replace(state, system=_unquoted(text)), "Set system message.")


def _set_format(state: State, name: str) -> Step:
    if name != "json":
        return Step(state, "Invalid or missing format. Only json is known: /set format json")
    return Step(replace(state, format="json"), "Set format to 'json' mode.")


def _set_think(state: State, level: str) -> Step:
    if not level:
        return Step(replace(state, think=True), "Set 'think' mode.")
    if level not in THINK_LEVELS:
        return Step(state, f"Unknown level '{level}', use one of: {', '.join(THINK_LEVELS)}")
    return Step(replace(state, think=level), f"Set 'think' mode to '{level}'.")


def _set_parameter(state: State, text: str) -> Step:
    name, _, rest = text.partition(" ")
    values = rest.split()
    if not values:
        return Step(state, "Usage:\n  /set parameter NAME VALUE...")
    lines = "\n".join(f"PARAMETER {name} {value}" for value in values)
    try:
        typed = parse(lines, require_from=False).parameter_object()
    except ModelfileError as error:
        reason = _LINE.sub("", str(error))
        return Step(state, f'Couldn\'t set parameter: "{reason}"')
    if not typed:
        return Step(state, f"Couldn't set parameter: \"unknown parameter '{name}'\"")
    return Step(
        replace(state, parameters={**state.parameters, **typed}),
        f"Set parameter '{name}' to '{', '.join(values)}'",
    )


def _unquoted(text: str) -> str:
    """Without the three quotes around it, or the one pair Ollama also takes off."""
    if text.startswith(QUOTES):
        return text.removeprefix(QUOTES).rstrip().removesuffix(QUOTES).strip("\n")
    return text


_Meaning = Callable[[State, str], Step]
_COMMANDS: Final[Mapping[str, _Meaning]] = {
    "/?": _help,
    "/help": _help,
    "/bye": _quit,
    "/exit": _quit,
    "/clear": _clear,
    "/set": _set,
    "/show": _show,
    "/load": _load,
    "/save": _save,
    "/list": _list,
}
_SETTINGS: Final[Mapping[str, _Meaning]] = {
    "parameter": _set_parameter,
    "system": _set_system,
    "format": _set_format,
    "think": _set_think,
}
_SWITCHES: Final[Mapping[str, tuple[Mapping[str, Any], str]]] = {
    "history": ({"history": True}, ""),
    "nohistory": ({"history": False}, ""),
    "wordwrap": ({"wordwrap": True}, "Set 'wordwrap' mode."),
    "nowordwrap": ({"wordwrap": False}, "Set 'nowordwrap' mode."),
    "verbose": ({"verbose": True}, "Set 'verbose' mode."),
    "quiet": ({"verbose": False}, "Set 'quiet' mode."),
    "noformat": ({"format": None}, "Disabled format."),
    "nothink": ({"think": False}, "Set 'nothink' mode."),
}
"""Settings without a value: what changes, and what is said."""
