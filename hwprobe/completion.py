"""Shell completion of our commands: the scripts for the shells, and what they ask.

Rules:
 * a script knows no verbs; it asks the command, ``PROGRAM _complete SHELL …``;
 * the words before the cursor are read as the option parser would read them, and nothing is run;
 * what cannot be completed, completes to nothing: no error reaches the prompt.

bash hands over the line up to the cursor, because it cuts words at colons, which model names
have; zsh and fish hand over the words.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Final, Literal, get_args

import typer

ASK: Final = "_complete"
"""First word of the question a script asks."""

SHELLS: Final = ("bash", "zsh", "fish")

Kind = Literal["plain", "file", "dir"]

_BASH = """\
# bash completion of @PROGRAM@
_@NAME@() {
    local kind
    {
        read -r kind
        mapfile -t COMPREPLY
    } < <("$1" @ASK@ bash "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2>/dev/null)
    case $kind in
        file) compopt -o default ;;
        dir) compopt -o dirnames ;;
    esac
}
complete -F _@NAME@ @PROGRAM@
"""
_ZSH = """\
#compdef @PROGRAM@
_@NAME@() {
    local -a answer
    answer=("${(@f)$("$words[1]" @ASK@ zsh "${(@Q)words[1,CURRENT]}" 2>/dev/null)}")
    local kind=$answer[1]
    shift answer
    case $kind in
        file) _files ;;
        dir) _files -/ ;;
        *) (( $#answer )) && _describe -V '@PROGRAM@' answer ;;
    esac
}
if [[ $funcstack[1] == _@NAME@ ]]; then
    _@NAME@ "$@"
else
    compdef _@NAME@ @PROGRAM@
fi
"""
_FISH = """\
# fish completion of @PROGRAM@
function __fish_@NAME@
    set -l words (commandline -opc)
    set -l answer ($words[1] @ASK@ fish $words (commandline -ct) 2>/dev/null)
    switch "$answer[1]"
        case file
            __fish_complete_path (commandline -ct)
        case dir
            __fish_complete_directories (commandline -ct)
        case plain
            printf '%s\\n' $answer[2..-1]
    end
end
complete -c @PROGRAM@ -f -k -a '(__fish_@NAME@)'
"""
_SCRIPTS: Final[Mapping[str, str]] = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
_PATHS: Final[Mapping[str, Kind]] = {"FILE": "file", "DIR": "dir"}
"""Metavars of paths whose kind is known."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What may stand at the cursor.

    Attributes:
        value: the whole word.
        about: one line about it, or empty.
    """

    value: str
    about: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """All that may stand at the cursor.

    Attributes:
        kind: ``file`` and ``dir`` leave it to the shell, which knows the disk.
        candidates: for ``plain``.
    """

    kind: Kind = "plain"
    candidates: tuple[Candidate, ...] = ()


def script(program: str, shell: str) -> str:
    """The completion script of a program; empty for a shell we have none for."""
    name = program.replace("-", "_")
    text = _SCRIPTS.get(shell, "").replace("@PROGRAM@", program)
    return text.replace("@NAME@", name).replace("@ASK@", ASK)


def words_of(shell: str, arguments: Sequence[str], program: str) -> tuple[str, ...]:
    """The words behind the program's name, the last one unfinished, of a script's question."""
    if shell != "bash":
        return tuple(arguments[1:])
    line = arguments[0] if arguments else ""
    words = _split(line)
    if not line or line[-1:].isspace():
        words.append("")
    for index, word in enumerate(words):
        if PurePath(word).name == program:
            return tuple(words[index + 1 :])
    return tuple(words[1:])


def answer(
    arguments: Sequence[str], *, program: str, app_for: Callable[[Sequence[str]], typer.Typer]
) -> str:
    """The lines a script reads: the kind, then one candidate per line in the shell's form.

    Args:
        arguments: the shell, and what its script handed over.
        program: the command's name.
        app_for: gives the command line of these words.
    """
    shell, *rest = arguments or ("",)
    words = words_of(shell, rest, program) or ("",)
    with contextlib.suppress(Exception):
        found = complete(typer.main.get_command(app_for(words)), words[:-1], words[-1])
        cut = _cut(words[-1], rest[1] if shell == "bash" and len(rest) > 1 else "")
        lines = (_form(shell, one, cut) for one in found.candidates)
        return "".join(f"{line}\n" for line in (found.kind, *lines))
    return ""


@dataclass(slots=True)
class _Place:
    """Where the unfinished word stands.

    Attributes:
        command: the innermost one that was named; ``None`` behind an unknown verb.
        words: those behind its name.
        given: how many of them are arguments.
        waiting: the option whose value comes next, if one does.
        options: whether an option may come; not behind ``--``.
    """

    command: Any
    words: list[str] = field(default_factory=list)
    given: int = 0
    waiting: Any = None
    options: bool = True

    def step(self, word: str) -> None:
        """Read one finished word."""
        self.words.append(word)
        if self.waiting is not None:
            self.waiting = None
        elif self.options and word == "--":
            self.options = False
        elif self.options and word.startswith("-") and len(word) > 1:
            self.waiting = _option_that_waits(self.command, word)
        elif hasattr(self.command, "commands"):
            self.command = self.command.commands.get(word)
            self.words, self.given, self.options = [], 0, True
        else:
            self.given += 1


def complete(command: Any, words: Sequence[str], unfinished: str) -> Completion:
    """What may stand for an unfinished word behind these words.

    Args:
        command: a group or a command of the option parser.
        words: the finished words behind its name.
        unfinished: what stands before the cursor, perhaps nothing.
    """
    place = _Place(command)
    for word in words:
        place.step(word)
        if place.command is None:
            return Completion()
    if place.waiting is not None:
        return _values(place.waiting, place, unfinished)
    if place.options and unfinished.startswith("-"):
        return _options(place, unfinished)
    if hasattr(place.command, "commands"):
        return Completion(candidates=tuple(_verbs(place.command, unfinished)))
    for argument in _arguments(place.command):
        if argument.nargs < 0 or place.given < argument.nargs:
            return _values(argument, place, unfinished)
        place.given -= argument.nargs
    return Completion()


def _verbs(group: Any, unfinished: str) -> Iterator[Candidate]:
    for name, command in group.commands.items():
        if name.startswith(unfinished) and not command.hidden:
            yield Candidate(name, command.get_short_help_str(limit=80))


def _options(place: _Place, unfinished: str) -> Completion:
    """Names of options, or values behind ``--name=``."""
    name, equals, value = unfinished.partition("=")
    option = _option(place.command, name) if equals else None
    if option is not None:
        found = _values(option, place, value)
        whole = (Candidate(f"{name}={one.value}", one.about) for one in found.candidates)
        return Completion(found.kind, tuple(whole))
    known = [
        Candidate(name, _gist(option.help or ""))
        for option in place.command.params
        if option.param_type_name == "option" and not option.hidden
        for name in (*option.opts, *option.secondary_opts)
        if name.startswith("--")
    ]
    known.append(Candidate("--help", "Show this message and exit"))
    return Completion(candidates=tuple(one for one in known if one.value.startswith(unfinished)))


def _option(command: Any, name: str) -> Any:
    return next((one for one in command.params if name in (*one.opts, *one.secondary_opts)), None)


def _option_that_waits(command: Any, word: str) -> Any:
    """The option whose value is the next word, if this word is one."""
    option = _option(command, word)
    if option is None or option.param_type_name != "option" or option.is_flag or option.count:
        return None
    return option


def _arguments(command: Any) -> Iterator[Any]:
    return (one for one in command.params if one.param_type_name == "argument")


def _values(parameter: Any, place: _Place, unfinished: str) -> Completion:
    """What may stand for a parameter: its own completion, else paths where it is one."""
    kind = _PATHS.get((parameter.metavar or "").strip("[].…"))
    if kind is not None:
        return Completion(kind)
    annotation = parameter.type_descriptor.annotation
    if Path in (annotation, *get_args(annotation)):
        return Completion("file")
    context = place.command.make_context("", list(place.words), resilient_parsing=True)
    items = parameter.shell_complete(context, unfinished)
    return Completion(candidates=tuple(Candidate(item.value, item.help or "") for item in items))


def _split(line: str) -> list[str]:
    """The words of a line that may end inside of quotes."""
    for closing in ("", "'", '"', " "):
        try:
            return shlex.split(line + closing)
        except ValueError:
            continue
    return line.split()


def _cut(unfinished: str, breaks: str) -> int:
    """How much of a word bash keeps: it replaces only what stands behind the last break."""
    return max((unfinished.rfind(one) + 1 for one in ":=" if one in breaks), default=0)


def _form(shell: str, one: Candidate, cut: int) -> str:
    """One candidate as its script reads it; values of ours have no spaces."""
    about = " ".join(one.about.split())
    if shell == "bash":
        return one.value[cut:]
    if shell == "fish":
        return f"{one.value}\t{about}"
    escaped = one.value.replace("\\", "\\\\").replace(":", "\\:")
    return f"{escaped}:{about}" if about else escaped


def _gist(text: str) -> str:
    """The first sentence of a help text, or its first half."""
    return text.split(";", maxsplit=1)[0].split(". ", maxsplit=1)[0].rstrip(".")
