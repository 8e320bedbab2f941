"""The Modelfile grammar, as Ollama reads it, and its inverse. Pure.

Rules:
 * a line is ``COMMAND value``; commands are case-insensitive words;
 * ``#`` opens a comment only as the first visible character of a line;
 * a value is the trimmed rest of the line; one that starts with three quotes, or with one quote,
   runs until a line break before which the trimmed text ends with the same quotes;
 * there are no escapes: quotes and line breaks inside stand for themselves.

`render` writes what `parse` reads back equal, and refuses the few texts no Modelfile can hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from bundler.format.errors import ModelfileError

ParameterValue = str | int | float | bool
ParameterKind = Literal["float", "int", "bool", "text"]

MAX_MODELFILE_BYTES: Final = 4 << 20
"""Why: the largest known ones carry a few licences and a template, some hundred kilobytes."""

PARAMETERS: Final[dict[str, ParameterKind]] = {
    "temperature": "float",
    "top_p": "float",
    "min_p": "float",
    "typical_p": "float",
    "repeat_penalty": "float",
    "presence_penalty": "float",
    "frequency_penalty": "float",
    "num_ctx": "int",
    "num_batch": "int",
    "num_gpu": "int",
    "main_gpu": "int",
    "num_thread": "int",
    "num_keep": "int",
    "num_predict": "int",
    "seed": "int",
    "top_k": "int",
    "repeat_last_n": "int",
    "draft_num_predict": "int",
    "use_mmap": "bool",
    "stop": "text",
}
"""Every parameter with its type; ``stop`` accumulates, of the others the last one counts."""

DEPRECATED_PARAMETERS: Final = frozenset(
    {
        "penalize_newline",
        "low_vram",
        "f16_kv",
        "logits_all",
        "vocab_only",
        "use_mlock",
        "mirostat",
        "mirostat_tau",
        "mirostat_eta",
        "numa",
    }
)
"""Read without an error and dropped, as Ollama does."""

ROLES: Final = ("system", "user", "assistant")

SEMVER: Final = re.compile(r"v?\d+\.\d+\.\d+(?:[-+][0-9A-Za-z.+-]+)?", re.ASCII)
"""What REQUIRES may say."""

_COMMANDS: Final = (
    "from",
    "license",
    "template",
    "system",
    "adapter",
    "draft",
    "renderer",
    "parser",
    "parameter",
    "message",
    "requires",
)
_TRUE: Final = ("1", "t", "T", "TRUE", "true", "True")
_FALSE: Final = ("0", "f", "F", "FALSE", "false", "False")
_BLANK: Final = " \t"
# Go's TrimSpace of a value, less the line breaks that end it.
_UNPRINTABLE: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Modelfile:
    """What a Modelfile says, in the order it says it.

    Attributes:
        from_: every FROM value: paths or model names.
        parameters: pairs of name and value, typed; deprecated ones are dropped.
        template: the last TEMPLATE, or ``None``.
        system: the last SYSTEM, or ``None``.
        adapters: every ADAPTER value.
        drafts: every DRAFT value.
        licenses: every LICENSE text.
        messages: pairs of role and text.
        renderer: the last RENDERER, or ``None``.
        parser: the last PARSER, or ``None``.
        requires: the last REQUIRES, or ``None``.
    """

    from_: tuple[str, ...] = ()
    parameters: tuple[tuple[str, ParameterValue], ...] = ()
    template: str | None = None
    system: str | None = None
    adapters: tuple[str, ...] = ()
    drafts: tuple[str, ...] = ()
    licenses: tuple[str, ...] = ()
    messages: tuple[tuple[str, str], ...] = ()
    renderer: str | None = None
    parser: str | None = None
    requires: str | None = None

    def parameter_object(self) -> dict[str, ParameterValue | list[str]]:
        """The parameters as Ollama's params layer holds them: ``stop`` a list, others single."""
        values: dict[str, ParameterValue | list[str]] = {}
        stops = [str(value) for name, value in self.parameters if name == "stop"]
        values.update((name, value) for name, value in self.parameters if name != "stop")
        return values | ({"stop": stops} if stops else {})


@dataclass(frozen=True, slots=True)
class _Instruction:
    """One command with its words; ``line`` is where it starts, from 1."""

    line: int
    command: str
    name: str
    value: str


def decode(data: bytes) -> str:
    """Text of a Modelfile: UTF-8, or UTF-16 with a byte order mark.

    Raises:
        ModelfileError: too large, or neither encoding.
    """
    if len(data) > MAX_MODELFILE_BYTES:
        raise ModelfileError(
            f"modelfile: expected at most {MAX_MODELFILE_BYTES} bytes, found {len(data)}"
        )
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        found = f"another byte at {error.start}"
        raise ModelfileError(f"modelfile: expected {encoding}, found {found}") from error


def parse(text: str, *, require_from: bool = True) -> Modelfile:
    """Read a Modelfile.

    Args:
        text: the whole file.
        require_from: refuse a file without FROM; off where the weights are given otherwise.

    Raises:
        ModelfileError: with the line of the fault.
    """
    instructions = tuple(_instructions(text))
    parameters = tuple(
        _parameter(one)
        for one in instructions
        if one.command == "parameter" and one.name not in DEPRECATED_PARAMETERS
    )
    for one in instructions:
        if one.command == "requires" and not SEMVER.fullmatch(one.value):
            raise ModelfileError("requires must be a valid semver (e.g. 0.14.0)", line=one.line)
    from_ = _every(instructions, "from")
    if require_from and not from_:
        raise ModelfileError("no FROM line", hint="begin the file with FROM and a model or a path")
    messages = tuple((one.name, one.value) for one in instructions if one.command == "message")
    return Modelfile(
        from_=from_,
        parameters=parameters,
        template=_last(instructions, "template"),
        system=_last(instructions, "system"),
        adapters=_every(instructions, "adapter"),
        drafts=_every(instructions, "draft"),
        licenses=_every(instructions, "license"),
        messages=messages,
        renderer=_last(instructions, "renderer"),
        parser=_last(instructions, "parser"),
        requires=_last(instructions, "requires"),
    )


def _every(instructions: tuple[_Instruction, ...], command: str) -> tuple[str, ...]:
    return tuple(one.value for one in instructions if one.command == command)


def _last(instructions: tuple[_Instruction, ...], command: str) -> str | None:
    return next(reversed(_every(instructions, command)), None)


def deprecated(text: str) -> tuple[str, ...]:
    """Names of parameters in the file that are read and dropped, for a warning.

    Raises:
        ModelfileError: the file is malformed.
    """
    found = (one.name for one in _instructions(text) if one.command == "parameter")
    return tuple(dict.fromkeys(name for name in found if name in DEPRECATED_PARAMETERS))


def _instructions(text: str) -> Iterator[_Instruction]:
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    at = 0
    while at < len(lines):
        start, line = at, _UNPRINTABLE.sub("", lines[at]).lstrip(_BLANK)
        at += 1
        if not line or line.startswith("#"):
            continue
        command, rest = _command(line, start + 1)
        name = ""
        if command in ("parameter", "message"):
            name, rest = _name(command, rest, start + 1)
        value, at = _value(lines, rest, at, start + 1, name)
        yield _Instruction(start + 1, command, name, value)


def _command(line: str, number: int) -> tuple[str, str]:
    match = re.match(r"([A-Za-z]+)([ \t]+|$)", line)
    if match is None or match[1].lower() not in _COMMANDS:
        *most, last = (f'"{command}"' for command in _COMMANDS)
        raise ModelfileError(f"command must be one of {', '.join(most)}, or {last}", line=number)
    return match[1].lower(), line[match.end() :]


def _name(command: str, rest: str, number: int) -> tuple[str, str]:
    """The word after PARAMETER or MESSAGE, and what follows it."""
    match = re.match(r"([A-Za-z0-9_]+)([ \t]+|$)", rest)
    if match is None:
        raise ModelfileError(f"{command}: expected a name, found {rest[:40]!r}", line=number)
    if command == "message" and match[1] not in ROLES:
        raise ModelfileError(
            'message role must be one of "system", "user", or "assistant"', line=number
        )
    return match[1], rest[match.end() :]


def _value(lines: list[str], rest: str, at: int, number: int, name: str) -> tuple[str, int]:
    """The value that starts with ``rest``, and the line after it."""
    of_name = f": {name}" if name else ""
    if not rest.rstrip(_BLANK):
        raise ModelfileError(f"unexpected EOF{of_name}", line=number, hint="a value is missing")
    quote = next((mark for mark in ('"""', '"') if rest.startswith(mark)), "")
    if not quote:
        return rest.rstrip(_BLANK), at
    # The opening quotes must not also count as the closing ones.
    body = [rest[len(quote) :]]
    while not body[-1].rstrip(_BLANK).endswith(quote):
        if at == len(lines):
            raise ModelfileError(
                f"unexpected EOF{of_name}",
                line=number,
                hint="a quoted value ends with its quotes at the end of a line",
            )
        body.append(lines[at])
        at += 1
    body[-1] = body[-1].rstrip(_BLANK).removesuffix(quote)
    return "\n".join(body), at


def _parameter(one: _Instruction) -> tuple[str, ParameterValue]:
    kind = PARAMETERS.get(one.name)
    if kind is None:
        raise ModelfileError(f"unknown parameter '{one.name}'", line=one.line)
    text = one.value
    try:
        match kind:
            case "text":
                return one.name, text
            case "int":
                return one.name, _integer(text)
            case "float":
                return one.name, _float(text)
            case "bool":
                return one.name, _boolean(text)
    except ValueError as error:
        raise ModelfileError(f"invalid {kind} value [{text[:40]}]", line=one.line) from error


def _integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise ValueError(text)
    return int(text)


def _float(text: str) -> float:
    if not re.fullmatch(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", text):
        raise ValueError(text)
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _boolean(text: str) -> bool:
    if text not in _TRUE + _FALSE:
        raise ValueError(text)
    return text in _TRUE


def render(modelfile: Modelfile) -> str:
    """Write a Modelfile; ``parse(render(m), require_from=False) == m``.

    Raises:
        ModelfileError: a text cannot be written without loss: it has a carriage return, ends
            one of its lines with three quotes, or is empty where a value must stand.
    """
    lines = [_line("FROM", value) for value in modelfile.from_]
    lines += [_line("ADAPTER", value) for value in modelfile.adapters]
    lines += [_line("DRAFT", value) for value in modelfile.drafts]
    single = (
        ("TEMPLATE", modelfile.template),
        ("SYSTEM", modelfile.system),
        ("RENDERER", modelfile.renderer),
        ("PARSER", modelfile.parser),
        ("REQUIRES", modelfile.requires),
    )
    lines += [_line(command, value) for command, value in single if value is not None]
    lines += [_line(f"PARAMETER {name}", _shown(value)) for name, value in modelfile.parameters]
    lines += [_line("LICENSE", value) for value in modelfile.licenses]
    lines += [_line(f"MESSAGE {role}", text) for role, text in modelfile.messages]
    return "".join(line + "\n" for line in lines)


def _shown(value: ParameterValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)


def _line(command: str, value: str) -> str:
    """One instruction, quoted with as few quotes as give the value back."""
    for quoted in (value, f'"{value}"', f'"""{value}"""'):
        try:
            read = tuple(_instructions(f"{command} {quoted}\n#"))
        except ModelfileError:
            continue
        if len(read) == 1 and read[0].value == value:
            return f"{command} {quoted}"
    raise ModelfileError(f"{command}: expected a text that quotes can hold, found {value[:40]!r}")
