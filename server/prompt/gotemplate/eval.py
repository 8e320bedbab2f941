"""Run a parsed Go template on its data. Pure; the last of three stages.

Rules:
 * a nil of its own has nil fields; a nil that an element of a list or an object holds has none,
   and asking for one is an error, as in Go with ``missingkey=zero``;
 * a pipeline's value that came from an element is taken out of it;
 * every node, command, operand and element costs a step; texts cost by their length;
 * templates call each other by name and see no variables but their own.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum, auto
from typing import Literal as Choice

from server.prompt.gotemplate.budget import Budget, Writer
from server.prompt.gotemplate.errors import TemplateError
from server.prompt.gotemplate.format import NO_VALUE, sorted_keys, write_value
from server.prompt.gotemplate.functions import FUNCTIONS, SHORT_CIRCUITS, Context, GoFunction
from server.prompt.gotemplate.literals import quote
from server.prompt.gotemplate.nodes import (
    Action,
    Body,
    Branch,
    Call,
    Chain,
    Command,
    Constant,
    Dot,
    Field,
    Function,
    Jump,
    Nil,
    Node,
    Number,
    Operand,
    Pipe,
    Range,
    Text,
    Variable,
)
from server.prompt.gotemplate.values import (
    Absent,
    Map,
    Slice,
    Value,
    element,
    field_of,
    taken,
    truth,
    type_name,
)
from server.prompt.gotemplate.walk import shown

_VARIABLES_PER_STEP = 16
"""Variables looked through that count as one step."""


class _Nothing(Enum):
    """No value was piped in."""

    PIPED = auto()


_Piped = Value | Choice[_Nothing.PIPED]
_Held = Value | Absent
_Jump = Choice["break", "continue"] | None


def run(
    trees: Mapping[str, Body],
    data: Value,
    budget: Budget,
    *,
    today: dt.date | None = None,
) -> str:
    """Run the main template.

    Args:
        trees: the bodies by name, the main one under the empty name.
        data: the cursor to begin with, and ``$``.
        budget: what it may use.
        today: the local date, for ``currentDate``.

    Raises:
        TemplateError: the data do not fit the template, or it asks too much; with a line.
    """
    runner = _Runner(trees, budget, today)
    try:
        runner.template("", data)
    except TemplateError as error:
        raise TemplateError(error.reason, line=error.line or runner.line) from error
    return runner.output.text()


class _Runner:
    def __init__(self, trees: Mapping[str, Body], budget: Budget, today: dt.date | None) -> None:
        self._trees = trees
        self._budget = budget
        self._context = Context(budget=budget, today=today)
        self._depth = 0
        self._variables: list[tuple[str, _Held]] = []
        self.output = Writer(budget)
        self.line = 0

    # Nodes.

    def template(self, name: str, data: Value) -> None:
        """Run a template by name, with variables of its own."""
        self._require(name)
        outer, self._variables = self._variables, [("$", data)]
        self._body(data, self._trees[name])
        self._variables = outer

    def _require(self, name: str) -> None:
        if name not in self._trees:
            raise TemplateError(f"template {quote(name)} not defined")

    def _body(self, dot: _Held, body: Body) -> _Jump:
        if self._depth >= self._budget.limits.depth:
            raise TemplateError(f"exceeded maximum template depth ({self._depth})")
        self._depth += 1
        jump: _Jump = None
        for node in body:
            self._budget.step()
            jump = self._node(dot, node)
            if jump is not None:
                break
        self._depth -= 1
        return jump

    def _node(self, dot: _Held, node: Node) -> _Jump:
        match node:
            case Text():
                self.output.write(node.text)
            case Action():
                value = self._pipe(dot, node.pipe)
                if not node.pipe.targets:
                    self._print(value)
            case Branch():
                return self._branch(dot, node)
            case Range():
                return self._range(dot, node)
            case Call():
                self.line = node.line
                self._require(node.name)
                data = None if node.pipe is None else self._pipe(dot, node.pipe)
                self.template(node.name, data)
            case Jump():
                return node.kind
        return None

    def _print(self, value: Value) -> None:
        if value is None:
            self.output.write(NO_VALUE)
        else:
            write_value(value, self.output)

    def _branch(self, dot: _Held, node: Branch) -> _Jump:
        mark = len(self._variables)
        body = node.otherwise
        for pipe, arm in node.arms:
            self._budget.step()
            value = self._pipe(dot, pipe)
            if truth(value):
                body = arm
                dot = value if node.kind == "with" else dot
                break
        jump = self._body(dot, body)
        del self._variables[mark:]
        return jump

    def _range(self, dot: _Held, node: Range) -> _Jump:
        outer = len(self._variables)
        value = self._pipe(dot, node.pipe)
        mark = len(self._variables)
        turns = 0
        for index, item in self._elements(value, node.pipe):
            turns += 1
            self._budget.step()
            self._set_targets(node.pipe, index, item)
            left = self._body(item, node.body)
            del self._variables[mark:]
            if left == "break":
                break
        jump = self._body(dot, node.otherwise) if turns == 0 else None
        del self._variables[outer:]
        # In the else, break ends this range and continue goes on with the one around it.
        return "continue" if jump == "continue" else None

    def _elements(self, value: Value, pipe: Pipe) -> Iterator[tuple[Value, _Held]]:
        match value:
            case None:
                pass
            case Slice():
                for index, item in enumerate(value.items):
                    yield index, element(item)
            case Map():
                keys = sorted_keys(value.entries)
                self._budget.step(len(keys))
                for key in keys:
                    yield key, element(value.entries[key])
            case int() if not isinstance(value, bool):
                if len(pipe.targets) > 1:
                    raise TemplateError(f"can't use {value} to iterate over more than one variable")
                for number in range(value):
                    yield None, type(value)(number)
            case _:
                raise TemplateError(f"range can't iterate over type {type_name(value)}")

    def _set_targets(self, pipe: Pipe, index: Value, item: _Held) -> None:
        """Give the variables of a range their values for this element."""
        values = (item,) if len(pipe.targets) == 1 else (index, item)
        if pipe.assigns:
            for name, value in zip(pipe.targets, values, strict=True):
                self._assign(name, value)
        elif pipe.targets:
            # They are the topmost, declared when the pipeline was evaluated.
            top = len(self._variables) - len(pipe.targets)
            self._variables[top:] = zip(pipe.targets, values, strict=True)

    # Variables.

    def _assign(self, name: str, value: _Held) -> None:
        for position in range(len(self._variables) - 1, -1, -1):
            if self._variables[position][0] == name:
                self._variables[position] = (name, value)
                self._looked(position)
                return
        raise TemplateError(f"undefined variable: {name}")

    def _lookup(self, name: str) -> _Held:
        for position in range(len(self._variables) - 1, -1, -1):
            if self._variables[position][0] == name:
                self._looked(position)
                return self._variables[position][1]
        raise TemplateError(f"undefined variable: {name}")

    def _looked(self, position: int) -> None:
        self._budget.step((len(self._variables) - position) // _VARIABLES_PER_STEP)

    # Pipelines.

    def _pipe(self, dot: _Held, pipe: Pipe) -> Value:
        self.line = pipe.line
        piped: _Piped = _Nothing.PIPED
        for command in pipe.commands:
            self._budget.step()
            piped = taken(self._command(dot, command, piped))
        assert not isinstance(piped, _Nothing)  # the parser lets no empty pipeline through
        for name in pipe.targets:
            if pipe.assigns:
                self._assign(name, piped)
            else:
                self._variables.append((name, piped))
        return piped

    def _command(self, dot: _Held, command: Command, piped: _Piped) -> _Held:
        first, *arguments = command.operands
        given = bool(arguments) or piped is not _Nothing.PIPED
        match first:
            case Function():
                return self._function(dot, first.name, arguments, piped)
            case Field() | Chain():
                return self._operand(dot, first, given=given)
            case Variable(names=names) if names:
                return self._operand(dot, first, given=given)
            case Nil() if not given:
                raise TemplateError("nil is not a command")
        if given:
            raise TemplateError(f"can't give argument to non-function {shown(first)}")
        return self._operand(dot, first)

    def _operand(self, dot: _Held, operand: Operand, *, given: bool = False) -> _Held:
        """The value of an operand; ``given`` tells that it has arguments, which fields refuse."""
        self._budget.step()
        match operand:
            case Pipe():
                return self._pipe(dot, operand)
            case Function():
                return self._function(dot, operand.name, (), _Nothing.PIPED)
            case Field():
                return self._fields(dot, operand.names, given=given)
            case Variable():
                return self._fields(self._lookup(operand.name), operand.names, given=given)
            case Chain():
                inner = self._operand(dot, operand.operand)
                return self._fields(inner, operand.names, given=given)
            case _:
                return dot if isinstance(operand, Dot) else _constant(operand)

    def _fields(self, value: _Held, names: Sequence[str], *, given: bool) -> _Held:
        for index, name in enumerate(names):
            self._budget.step()
            value = field_of(value, name, given=given and index == len(names) - 1)
        return value

    # Functions.

    def _function(
        self, dot: _Held, name: str, arguments: Sequence[Operand], piped: _Piped
    ) -> Value:
        if name in SHORT_CIRCUITS:
            return self._short_circuit(dot, name, arguments, piped)
        function = FUNCTIONS[name]
        _check_count(name, function.fixed, len(arguments), piped, variadic=function.variadic)
        given: list[Value] = []
        for position, argument in enumerate(arguments):
            given.append(taken(self._operand(dot, argument)))
            self._check_text(function, position, given[-1], argument)
        if not isinstance(piped, _Nothing):
            given.append(piped)
            self._check_text(function, len(given) - 1, piped, None)
        self._weigh(given)
        try:
            result = function.run(self._context, given)
        except TemplateError as error:
            raise TemplateError(f"error calling {name}: {error.reason}") from error
        self._weigh((result,))
        return result

    def _short_circuit(
        self, dot: _Held, name: str, arguments: Sequence[Operand], piped: _Piped
    ) -> Value:
        _check_count(name, 1, len(arguments), piped, variadic=True)
        value: Value = None
        for argument in arguments:
            value = taken(self._operand(dot, argument))
            if truth(value) == (name == "or"):
                return value
        return value if isinstance(piped, _Nothing) else piped

    def _check_text(
        self, function: GoFunction, position: int, value: Value, operand: Operand | None
    ) -> None:
        if isinstance(value, str) or 0 <= function.texts <= position:
            return
        if isinstance(operand, Nil):
            raise TemplateError("cannot assign nil to string")
        if isinstance(operand, Constant | Number):
            raise TemplateError(f"expected string; found {shown(operand)}")
        if value is None:
            raise TemplateError("invalid value; expected string")
        raise TemplateError(f"wrong type for value; expected string; got {type_name(value)}")

    def _weigh(self, values: Sequence[Value]) -> None:
        for value in values:
            if isinstance(value, str):
                self._budget.text(len(value))


def _check_count(name: str, fixed: int, arguments: int, piped: _Piped, *, variadic: bool) -> None:
    count = arguments + (piped is not _Nothing.PIPED)
    if variadic and count < fixed:
        raise TemplateError(
            f"wrong number of args for {name}: want at least {fixed} got {arguments}"
        )
    if not variadic and count != fixed:
        raise TemplateError(f"wrong number of args for {name}: want {fixed} got {count}")


def _constant(operand: Nil | Constant | Number) -> Value:
    match operand:
        case Nil():
            return None
        case Constant():
            return operand.value
        case Number():
            if operand.literal.overflow:
                raise TemplateError(f"{operand.literal.text} overflows int")
            return operand.literal.value
