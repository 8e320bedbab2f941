"""Questions about a parsed Go template: what it mentions, how a part of it is written. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from server.prompt.gotemplate.literals import quote
from server.prompt.gotemplate.nodes import (
    Action,
    Body,
    Branch,
    Call,
    Chain,
    Constant,
    Field,
    Function,
    Nil,
    Node,
    Number,
    Operand,
    Pipe,
    Range,
    Variable,
)


def mentioned(trees: Mapping[str, Body]) -> frozenset[str]:
    """Names of all fields that any of the bodies mentions."""
    return frozenset(
        name
        for body in trees.values()
        for node in nodes_of(body)
        for pipe in pipes_of(node)
        for name in fields_of(pipe)
    )


def nodes_of(body: Body) -> Iterator[Node]:
    """All nodes, those inside blocks too, in the order of the text."""
    for node in body:
        yield node
        for inner in bodies_of(node):
            yield from nodes_of(inner)


def bodies_of(node: Node) -> tuple[Body, ...]:
    """The bodies a node holds, in the order of the text."""
    match node:
        case Branch():
            return (*(body for _, body in node.arms), node.otherwise)
        case Range():
            return (node.body, node.otherwise)
    return ()


def pipes_of(node: Node) -> tuple[Pipe, ...]:
    """The pipelines of a node itself."""
    match node:
        case Action() | Range():
            return (node.pipe,)
        case Branch():
            return tuple(pipe for pipe, _ in node.arms)
        case Call() if node.pipe is not None:
            return (node.pipe,)
    return ()


def fields_of(operand: Operand) -> Iterator[str]:
    """Names of the fields an operand or pipeline mentions."""
    match operand:
        case Field() | Variable():
            yield from operand.names
        case Chain():
            yield from fields_of(operand.operand)
            yield from operand.names
        case Pipe():
            for command in operand.commands:
                for inner in command.operands:
                    yield from fields_of(inner)


def shown(operand: Operand) -> str:
    """An operand as error messages write it."""
    match operand:
        case Constant():
            return quote(operand.value) if isinstance(operand.value, str) else _truth(operand)
        case Number():
            return operand.literal.text
        case Variable() | Field():
            name = operand.name if isinstance(operand, Variable) else ""
            return ".".join((name, *operand.names))
        case Function():
            return operand.name
        case Pipe() | Chain():
            return "pipeline"
    return "nil" if isinstance(operand, Nil) else "."


def _truth(operand: Constant) -> str:
    return "true" if operand.value else "false"
