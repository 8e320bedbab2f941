"""Which sequences begin like a prompt: a radix tree over token ids. Pure.

A tree, not a list to walk: looking a prompt up compares each of its tokens once, however many
sequences begin the same way, which prompts behind one system prompt all do. Edges are slices of
tokens, compared at the speed of memory; a path has one node per branching, not per token.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Generic, TypeVar

Owner = TypeVar("Owner", bound=Hashable)


@dataclass(slots=True)
class _Node(Generic[Owner]):
    """Tokens on the way here, and whose tokens go this way."""

    edge: tuple[int, ...] = ()
    owners: set[Owner] = field(default_factory=set)
    children: dict[int, _Node[Owner]] = field(default_factory=dict)


class PrefixTree(Generic[Owner]):
    """Tokens by their beginnings; each owner has one entry."""

    def __init__(self) -> None:
        self._root: _Node[Owner] = _Node()
        self._entries: dict[Owner, tuple[int, ...]] = {}

    def __len__(self) -> int:
        """How many owners have an entry."""
        return len(self._entries)

    def length(self, owner: Owner) -> int:
        """How long an owner's entry is."""
        return len(self._entries.get(owner, ()))

    def put(self, owner: Owner, tokens: Sequence[int]) -> None:
        """Set an owner's entry; no tokens are no entry."""
        self.remove(owner)
        if not tokens:
            return
        entry = tuple(tokens)
        self._entries[owner] = entry
        node, at = self._root, 0
        while at < len(entry):
            child = node.children.get(entry[at])
            if child is None:
                node.children[entry[at]] = _Node(entry[at:], {owner})
                return
            length = common_prefix(child.edge, entry[at : at + len(child.edge)])
            if length < len(child.edge):
                child = _split(node, child, length)
            child.owners.add(owner)
            node, at = child, at + length

    def remove(self, owner: Owner) -> None:
        """Forget an owner's entry, if there is one."""
        entry = self._entries.pop(owner, ())
        path, at = [self._root], 0
        while at < len(entry):
            node = path[-1].children[entry[at]]
            node.owners.discard(owner)
            path.append(node)
            at += len(node.edge)
        for parent, node in reversed(list(pairwise(path))):
            if node.owners:
                _join(node)
            else:
                del parent.children[node.edge[0]]

    def matches(self, tokens: Sequence[int]) -> Iterator[tuple[int, frozenset[Owner]]]:
        """Who begins like these tokens: lengths and owners, the longest first.

        Each owner is named once, with the length of its entry's common beginning with ``tokens``.
        """
        wanted = tuple(tokens)
        path: list[tuple[int, _Node[Owner]]] = []
        node, at = self._root, 0
        while at < len(wanted) and (child := node.children.get(wanted[at])) is not None:
            length = common_prefix(child.edge, wanted[at : at + len(child.edge)])
            node, at = child, at + length
            path.append((at, child))
            if length < len(child.edge):
                break
        deeper: set[Owner] = set()
        for length, node in reversed(path):
            if owners := frozenset(node.owners - deeper):
                yield length, owners
            deeper = node.owners


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning; compares slices, so the cost is that of memory."""
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _split(parent: _Node[Owner], child: _Node[Owner], length: int) -> _Node[Owner]:
    """Put a node on the way to ``child``; returns it."""
    upper: _Node[Owner] = _Node(child.edge[:length], set(child.owners))
    child.edge = child.edge[length:]
    upper.children[child.edge[0]] = child
    parent.children[upper.edge[0]] = upper
    return upper


def _join(node: _Node[Owner]) -> None:
    """Take the only way on into this node, if all its owners go that way."""
    while len(node.children) == 1:
        (child,) = node.children.values()
        if child.owners != node.owners:
            return
        node.edge += child.edge
        node.children = child.children
