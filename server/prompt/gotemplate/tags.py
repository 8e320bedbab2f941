"""What a Go template tells of the model's output: how thinking and tool calls are marked. Pure.

Rules:
 * thinking stands between the first and the last text beside the place where ``.Thinking`` of a
   message is printed;
 * a tool call begins with the first text of the block for ``.ToolCalls``, up to a ``{``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from server.prompt.gotemplate.nodes import Action, Body, Branch, Node, Range, Text
from server.prompt.gotemplate.walk import bodies_of, fields_of, nodes_of, pipes_of

DEFAULT_TOOL_TAG = "{"


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


def tool_tag(trees: Mapping[str, Body]) -> str:
    """The text a tool call begins with; ``{`` if the template shows none."""
    for kind in (Branch, Range):
        for body in trees.values():
            for node in nodes_of(body):
                block = _block_for_calls(node) if isinstance(node, kind) else None
                if block is not None:
                    text = _first_text(block) or ""
                    return text.partition("{")[0].strip() or DEFAULT_TOOL_TAG
    return DEFAULT_TOOL_TAG


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


def _block_for_calls(node: Branch | Range) -> Body | None:
    """What is written where there are calls; ``None`` if the node does not ask for them."""
    for pipe, block in zip(pipes_of(node), bodies_of(node), strict=False):
        if "ToolCalls" in set(fields_of(pipe)):
            return block
    return None


def _first_text(body: Body) -> str | None:
    """The first text that is not blank, unless an action comes before it."""
    for node in body:
        if isinstance(node, Action):
            return None
        if isinstance(node, Text) and node.text.strip():
            return node.text
        for inner in bodies_of(node):
            text = _first_text(inner)
            if text is not None:
                return text
    return None
