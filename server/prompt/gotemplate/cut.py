"""Take away what a Go template holds behind the place of the model's answer. Pure.

A template without ``.Messages`` writes whole turns. For the turn to be answered, everything
behind ``.Response`` goes; ``.Response`` itself stays and prints what there is of an answer.
"""

from __future__ import annotations

from dataclasses import replace

from server.prompt.gotemplate.nodes import (
    Action,
    Body,
    Branch,
    Call,
    Command,
    Field,
    Node,
    Operand,
    Pipe,
    Range,
    Variable,
)

RESPONSE = "Response"


def cut_behind_response(body: Body) -> Body:
    """A body up to and with its first ``.Response`` that is printed; a condition does not count."""
    return _Cutter().body(body)


def with_response(body: Body) -> Body:
    """A body with ``{{ .Response }}`` at its end."""
    command = Command(operands=(Field(names=(RESPONSE,)),))
    pipe = Pipe(commands=(command,), targets=(), assigns=False, line=0)
    return (*body, Action(pipe=pipe))


class _Cutter:
    def __init__(self) -> None:
        self._found = False

    def body(self, body: Body) -> Body:
        kept: list[Node] = []
        for node in body:
            if self._found:
                break
            left = self._node(node)
            if left is not None:
                kept.append(left)
        return tuple(kept)

    def _node(self, node: Node) -> Node | None:
        match node:
            case Action():
                pipe = self._pipe(node.pipe)
                return None if pipe is None else replace(node, pipe=pipe)
            case Branch():
                # Conditions stay, so that the same arm is taken; what is in later arms goes.
                arms = tuple((pipe, self.body(arm)) for pipe, arm in node.arms)
                return replace(node, arms=arms, otherwise=self.body(node.otherwise))
            case Range():
                inner = self.body(node.body)
                return replace(node, body=inner, otherwise=self.body(node.otherwise))
            case Call() if node.pipe is not None:
                self._operand(node.pipe)
        return node

    def _pipe(self, pipe: Pipe) -> Pipe | None:
        """Without what is behind; ``None`` if a command of it would lose everything."""
        commands: list[Command] = []
        for command in pipe.commands:
            operands = [kept for each in command.operands if (kept := self._operand(each))]
            if not operands:
                return None
            commands.append(Command(operands=tuple(operands)))
        return replace(pipe, commands=tuple(commands))

    def _operand(self, operand: Operand) -> Operand | None:
        if self._found:
            return None
        match operand:
            case Field(names=names) if RESPONSE in names:
                self._found = True
            case Variable(name="$", names=names) if RESPONSE in names:
                self._found = True
            case Pipe():
                return self._pipe(operand)
        return operand
