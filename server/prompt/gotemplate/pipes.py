"""Parse the inside of the actions of a Go template: pipelines and what they are made of. Pure.

Variables are checked here: each must be declared before its use, in the same block or around it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from server.prompt.gotemplate.errors import TemplateError
from server.prompt.gotemplate.lexer import Kind, Token, tokens
from server.prompt.gotemplate.literals import (
    Literal,
    quote,
    read_complex,
    read_number,
    unquote,
    unquote_char,
)
from server.prompt.gotemplate.nodes import (
    Chain,
    Command,
    Constant,
    Dot,
    Field,
    Function,
    Nil,
    Number,
    Operand,
    Pipe,
    Variable,
)

MAX_NESTING = 50
"""Blocks and parentheses inside each other. Why: real templates stay below 10, and each level
takes up to six frames of the interpreter's stack of 1,000."""


class Stream:
    """The tokens, with up to three pushed back."""

    def __init__(self, source: str) -> None:
        self._tokens: Iterator[Token] = tokens(source)
        self._pushed: list[Token] = []
        self._latest = Token(Kind.EOF, "", 1)
        self.nesting = 0

    @property
    def line(self) -> int:
        """Line of the furthest token read; Go blames that one."""
        return self._latest.line

    def next(self) -> Token:
        """Take the next token."""
        if self._pushed:
            return self._pushed.pop()
        # Behind its last token the stream repeats it; every caller fails on it first.
        self._latest = next(self._tokens, self._latest)
        return self._latest

    def push(self, *given: Token) -> None:
        """Put tokens back, the first of them in front."""
        self._pushed.extend(reversed(given))

    def peek(self) -> Token:
        """The next token, which stays."""
        token = self.next()
        self.push(token)
        return token

    def next_solid(self) -> Token:
        """Take the next token that is not a blank, and the blanks before it."""
        while (token := self.next()).kind is Kind.SPACE:
            pass
        return token

    def peek_solid(self) -> Token:
        """Likewise, but the token stays; the blanks do not."""
        token = self.next_solid()
        self.push(token)
        return token


class PipeParser:
    """The part of a template's parser that knows pipelines, variables and errors."""

    def __init__(self, stream: Stream, functions: frozenset[str]) -> None:
        self._stream = stream
        self._functions = functions
        self._declared = ["$"]
        self._visible = Counter(self._declared)
        self._action_line = 0
        self._terms: dict[Kind, Callable[[Token], Operand]] = {
            Kind.IDENTIFIER: self._function,
            Kind.DOT: lambda _: Dot(),
            Kind.NIL: lambda _: Nil(),
            Kind.VARIABLE: self._variable,
            Kind.FIELD: lambda token: Field(names=(token.text[1:],)),
            Kind.BOOL: lambda token: Constant(value=token.text == "true"),
            Kind.CHAR_CONSTANT: self._number,
            Kind.COMPLEX: self._number,
            Kind.NUMBER: self._number,
            Kind.LEFT_PAREN: self._parenthesized,
            Kind.STRING: self._string,
            Kind.RAW_STRING: self._string,
        }

    # Errors.

    def _error(self, reason: str) -> TemplateError:
        return TemplateError(reason, line=self._stream.line)

    def _unexpected(self, token: Token, context: str) -> TemplateError:
        if token.kind is not Kind.ERROR:
            return self._error(f"unexpected {token} in {context}")
        extra = ""
        if self._action_line not in (0, token.line):
            started = f" started at :{self._action_line}"
            extra = started if token.text.endswith(" action") else f" in action{started}"
        return self._error(f"{token}{extra}")

    def _expect_right(self, context: str) -> None:
        token = self._stream.next_solid()
        if token.kind is not Kind.RIGHT:
            raise self._unexpected(token, context)

    def _deeper(self, message: str) -> None:
        if self._stream.nesting >= MAX_NESTING:
            raise self._error(message)
        self._stream.nesting += 1

    # Pipelines.

    def _pipe(self, context: str, end: Kind) -> Pipe:
        line = self._stream.peek_solid().line
        targets, assigns = self._targets(context)
        commands: list[Command] = []
        while (token := self._stream.next_solid()).kind is not end:
            if token.kind not in self._terms:
                raise self._unexpected(token, context)
            self._stream.push(token)
            commands.append(self._command())
        if not commands:
            raise self._error(f"missing value for {context}")
        for stage, command in enumerate(commands[1:], start=2):
            if isinstance(command.operands[0], Constant | Dot | Nil | Number):
                raise self._error(f"non executable command in pipeline stage {stage}")
        return Pipe(commands=tuple(commands), targets=targets, assigns=assigns, line=line)

    def _targets(self, context: str) -> tuple[tuple[str, ...], bool]:
        """The variables a pipeline declares or assigns, if it begins with any."""
        targets: list[str] = []
        while (variable := self._stream.peek_solid()).kind is Kind.VARIABLE:
            self._stream.next()
            behind = self._stream.peek()
            following = self._stream.peek_solid()
            if following.kind in (Kind.ASSIGN, Kind.DECLARE):
                self._stream.next_solid()
                self._declare(variable.text)
                return (*targets, variable.text), following.kind is Kind.ASSIGN
            if following.kind is not Kind.CHARACTER or following.text != ",":
                # Not a target after all. A blank behind it separates it from what follows.
                blank = (behind,) if behind.kind is Kind.SPACE else ()
                self._stream.push(variable, *blank)
                break
            self._stream.next_solid()
            self._declare(variable.text)
            targets.append(variable.text)
            if context != "range" or len(targets) > 1:
                raise self._error(f"too many declarations in {context}")
            allowed = (Kind.VARIABLE, Kind.RIGHT, Kind.RIGHT_PAREN)
            if self._stream.peek_solid().kind not in allowed:
                raise self._error("range can only initialize variables")
        return tuple(targets), False

    def _declare(self, name: str) -> None:
        self._declared.append(name)
        self._visible[name] += 1

    def _forget(self, mark: int) -> None:
        for name in self._declared[mark:]:
            self._visible[name] -= 1
        del self._declared[mark:]

    def _command(self) -> Command:
        operands: list[Operand] = []
        while True:
            self._stream.peek_solid()
            operand = self._operand()
            if operand is not None:
                operands.append(operand)
            token = self._stream.next()
            if token.kind is Kind.SPACE:
                continue
            if token.kind in (Kind.RIGHT, Kind.RIGHT_PAREN):
                self._stream.push(token)
            elif token.kind is not Kind.PIPE:
                raise self._unexpected(token, "operand")
            break
        if not operands:
            raise self._error("empty command")
        return Command(operands=tuple(operands))

    def _operand(self) -> Operand | None:
        first = self._stream.peek_solid()
        operand = self._term()
        names: list[str] = []
        while operand is not None and self._stream.peek().kind is Kind.FIELD:
            names.append(self._stream.next().text[1:])
        if not names:
            return operand
        match operand:
            case Field():
                return Field(names=(*operand.names, *names))
            case Variable():
                return Variable(name=operand.name, names=(*operand.names, *names))
            case Pipe() | Function():
                return Chain(operand=operand, names=tuple(names))
        shown = quote(first.text)
        raise self._error(f"unexpected . after term {shown}")

    def _term(self) -> Operand | None:
        token = self._stream.next_solid()
        if token.kind in self._terms:
            return self._terms[token.kind](token)
        self._stream.push(token)
        return None

    def _function(self, token: Token) -> Function:
        if token.text not in self._functions:
            raise self._error(f"function {quote(token.text)} not defined")
        return Function(name=token.text)

    def _variable(self, token: Token) -> Variable:
        if not self._visible[token.text]:
            raise self._error(f"undefined variable {quote(token.text)}")
        return Variable(name=token.text)

    def _parenthesized(self, _token: Token) -> Pipe:
        self._deeper("max expression depth exceeded")
        pipe = self._pipe("parenthesized pipeline", Kind.RIGHT_PAREN)
        self._stream.nesting -= 1
        return pipe

    def _string(self, token: Token) -> Constant:
        return Constant(value=self._unquote(token))

    def _number(self, token: Token) -> Number:
        try:
            if token.kind is Kind.CHAR_CONSTANT:
                return Number(literal=Literal(token.text, unquote_char(token.text)))
            if token.kind is Kind.COMPLEX:
                return Number(literal=Literal(token.text, read_complex(token.text)))
            return Number(literal=read_number(token.text))
        except ValueError as error:
            raise TemplateError(str(error), line=self._stream.line) from error

    def _unquote(self, token: Token) -> str:
        try:
            return unquote(token.text)
        except ValueError as error:
            raise TemplateError(str(error), line=self._stream.line) from error
