"""What one rendering may use, the count of what it has used, and the text it builds."""

from __future__ import annotations

from dataclasses import dataclass

from server.prompt.gotemplate.errors import TemplateError

CHARS_PER_STEP = 1024
"""Characters of text that count as one step. Why: copying that many takes about as long."""

CHARS_LOOKED_AT_PER_STEP = 8
"""Likewise, where each character is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one rendering.

    Attributes:
        steps: nodes, commands, operands and elements visited, pieces of text written. Default:
            1,000,000; about two seconds. A conversation of 1,000 messages takes 50,000.
        chars: longest text, be it the output or a value in between. Default: 16 Mi; the longest
            context of a public model is 10 Mi tokens, of which no machine here holds a tenth.
        depth: templates and blocks inside each other while running. Default: 100; real
            templates stay below 15, and each level takes up to five frames.
    """

    steps: int = 1_000_000
    chars: int = 16 << 20
    depth: int = 100


class Budget:
    """Counts steps down to zero."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._left = limits.steps

    def step(self, count: int = 1) -> None:
        """Use some steps.

        Raises:
            TemplateError: there are not as many left.
        """
        self._left -= count
        if self._left < 0:
            raise TemplateError(f"took more than {self.limits.steps} steps")

    def text(self, length: int) -> None:
        """Account for a text of ``length`` characters being read or made.

        Raises:
            TemplateError: it is too long, or there are no steps left for it.
        """
        if length > self.limits.chars:
            raise TemplateError(f"made more than {self.limits.chars} characters")
        self.step(length // CHARS_PER_STEP)

    def work(self, length: int) -> None:
        """Account for ``length`` characters being looked at one by one.

        Raises:
            TemplateError: there are no steps left for it.
        """
        self.step(length // CHARS_LOOKED_AT_PER_STEP)


class Writer:
    """Collects text within a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._parts: list[str] = []
        self._length = 0

    def write(self, text: str) -> None:
        """Append some text.

        Raises:
            TemplateError: the whole is too long, or there are no steps left.
        """
        self._length += len(text)
        self._budget.step(1 + len(text) // CHARS_PER_STEP)
        if self._length > self._budget.limits.chars:
            raise TemplateError(f"made more than {self._budget.limits.chars} characters")
        self._parts.append(text)

    def work(self, length: int) -> None:
        """Account for ``length`` characters being looked at one by one before they are written.

        Raises:
            TemplateError: there are no steps left for it.
        """
        self._budget.work(length)

    def text(self) -> str:
        """All that was written."""
        return "".join(self._parts)
