"""What a Go template tells of the model's output: how thinking is marked. Pure.

It stands between the first and the last text beside the place where ``.Thinking`` of a message is
printed. How calls are written is found out by rendering one, see `server.detection`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from server.prompt.gotemplate.nodes import Action, Body, Node, Range, Text
from server.prompt.gotemplate.walk import bodies_of, fields_of, nodes_of


def thinking_tags(trees: Mapping[str, Body]) -> tuple[str, str] | None:
    """The tags around thinking; ``None`` if the template does not show them."""
    for body in trees.values():
        for node in nodes_of(body):
            if not isinstance(node, Range) or "Messages" not in set(fields_of(node.pipe)):
                continue
            for inner in _bodies(node.body):
                if any(map(_prints_thinking, inner)):
                    return _tags(inner)
    return None


def _bodies(body: Body) -> Iterator[Body]:
    """A body and all inside it."""
    yield body
    for node in body:
        for inner in bodies_of(node):
            yield from _bodies(inner)


def _prints_thinking(node: Node) -> bool:
    return isinstance(node, Action) and "Thinking" in set(fields_of(node.pipe))


def _tags(body: Body) -> tuple[str, str] | None:
    texts = [node.text.strip() for node in body if isinstance(node, Text)]
    if not texts or not texts[0] or not texts[-1]:
        return None
    return texts[0], texts[-1]
