"""What a rendering may use, and the count of what it has used."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from dataclasses import dataclass
from typing import Any

from jinja2.utils import Namespace

_STEPS_PER_LOOK = 16
"""Steps between two looks at the clock. Why: a look costs little more than a step."""


class TemplateLimitError(Exception):
    """A template wanted more steps, characters or time than it may have."""


class GivenList(list[Any]):
    """A list that came from outside: a template may read it, not append to it."""

    characters = 0


class GivenDict(dict[str, Any]):
    """A mapping that came from outside."""

    characters = 0


def give(value: Any) -> Any:
    """A copy of JSON-like data that a template may read; lists and mappings know their size."""
    if isinstance(value, Mapping):
        mapping = GivenDict({str(key): give(item) for key, item in value.items()})
        mapping.characters = sum(map(_size, mapping)) + sum(map(_size, mapping.values()))
        return mapping
    if isinstance(value, list | tuple):
        items = GivenList(map(give, value))
        items.characters = sum(map(_size, items))
        return items
    return value


def _size(value: object) -> int:
    if isinstance(value, GivenList | GivenDict):
        return value.characters + len(value)
    return len(value) if isinstance(value, str) else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What one rendering may use.

    Attributes:
        steps: operations, and elements of the containers the template makes.
        characters: of all texts built, those in between included. Default: 64 Mi; a template
            builds its output two or three times.
        cpu_s: CPU time of the thread.
    """

    steps: int = 5_000_000
    characters: int = 64 << 20
    cpu_s: float = 2.0


class Meter:
    """Counts what a rendering uses; raises `TemplateLimitError` when it is too much.

    Attributes:
        steps: steps that are left.
    """

    def __init__(self, budget: Budget, clock: Callable[[], float] = time.thread_time) -> None:
        self.steps = budget.steps
        self._characters = budget.characters
        self._clock = clock
        self._until_s = clock() + budget.cpu_s
        self._look = 0

    def step(self, count: int = 1) -> None:
        """Use steps."""
        self.steps -= count
        self._look -= count
        if self.steps < 0:
            raise TemplateLimitError("the chat template takes too many steps")
        if self._look < 0:
            self._look = _STEPS_PER_LOOK
            if self._clock() > self._until_s:
                raise TemplateLimitError("the chat template takes too long")

    def produce(self, characters: int) -> None:
        """Build text."""
        self._characters -= characters
        if self._characters < 0:
            raise TemplateLimitError("the chat template builds too much text")
        self.step()

    def weigh(self, *values: object) -> int:
        """Characters in values; each element the template has put into a container is a step.

        Containers are followed as often as they are held: that is what printing them costs.
        """
        characters = 0
        stack = list(values)
        while stack:
            value = stack.pop()
            if isinstance(value, str):
                characters += len(value)
            elif isinstance(value, GivenList | GivenDict):
                characters += value.characters
            else:
                elements = list(_elements(value))
                self.step(len(elements))
                characters += len(elements)
                stack += elements
        return characters + len(values)

    def convert(self, *values: object) -> None:
        """Build the text of values."""
        self.produce(self.weigh(*values))


METER: contextvars.ContextVar[Meter] = contextvars.ContextVar("METER")
"""The meter of the rendering that runs in this thread."""


def _elements(value: object) -> Iterator[object]:
    if isinstance(value, Namespace):
        # Its attributes are behind a name of its own, so that templates cannot reach it.
        value = object.__getattribute__(value, "_Namespace__attrs")
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    elif isinstance(value, list | tuple | KeysView | ValuesView | ItemsView):
        yield from value
