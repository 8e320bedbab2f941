"""The tree a Go template is parsed into. Pure values, nothing else.

A body is a tuple of nodes. A node of an action knows its line, for error messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal as Choice

from server.prompt.gotemplate.literals import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """``.``: the cursor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nil:
    """``nil``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A string or a truth value."""

    value: str | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A number or a character."""

    literal: Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """``.Name.Name``: fields of the cursor."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """``$name`` and fields of its value; ``$`` is the data the template was called with."""

    name: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """The name of a function."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Fields of a parenthesised pipeline or of a function's result."""

    operand: Pipe | Function
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """An operand, or a function or field with its arguments."""

    operands: tuple[Operand, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipe:
    """Commands, each given the value of the one before; the last value goes into variables.

    Attributes:
        targets: names of the variables, with their dollar sign.
        assigns: they exist already.
    """

    commands: tuple[Command, ...]
    targets: tuple[str, ...]
    assigns: bool
    line: int


Operand = Dot | Nil | Constant | Number | Field | Variable | Function | Chain | Pipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Text between actions."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """Print the value of a pipeline, unless it goes into a variable."""

    pipe: Pipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """``if`` or ``with``: the first arm whose value is true, else ``otherwise``."""

    kind: Choice["if", "with"]
    arms: tuple[tuple[Pipe, Body], ...]
    otherwise: Body


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The body once per element, or ``otherwise`` if there is none."""

    pipe: Pipe
    body: Body
    otherwise: Body


@dataclass(frozen=True, slots=True, kw_only=True)
class Jump:
    """Leave the innermost range, or go on with its next element."""

    kind: Choice["break", "continue"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Put in another template, with the value of the pipeline as its data."""

    name: str
    pipe: Pipe | None
    line: int


Node = Text | Action | Branch | Range | Jump | Call
Body = tuple[Node, ...]
