"""Go ``text/template``, as far as Ollama's TEMPLATEs use it. Pure and bounded.

``parse(source).render(data)`` gives what Go gives with ``missingkey=zero`` and Ollama's functions.
A template reads the data it is given and nothing else, and cannot run for ever: see `Limits`.

Not here: methods with arguments, channels, functions as values, and ``%p``.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from server.prompt.gotemplate.budget import Budget, Limits
from server.prompt.gotemplate.errors import TemplateError
from server.prompt.gotemplate.eval import run
from server.prompt.gotemplate.functions import NAMES
from server.prompt.gotemplate.literals import finished
from server.prompt.gotemplate.nodes import Body
from server.prompt.gotemplate.parser import parse_trees
from server.prompt.gotemplate.values import from_python
from server.prompt.gotemplate.walk import mentioned

__all__ = ["DEFAULT_LIMITS", "Limits", "Template", "TemplateError", "parse"]

DEFAULT_LIMITS = Limits()


def parse(source: str) -> Template:
    """Parse a template.

    Raises:
        TemplateError: it is malformed; ``line`` says where.
    """
    try:
        return Template(source, parse_trees(source, NAMES))
    except RecursionError as error:
        raise TemplateError("nested too deep") from error


class Template:
    """A parsed template; it does not change, so threads may share it.

    Attributes:
        source: what it was parsed from.
        trees: the bodies by name, the main one under the empty name.
    """

    __slots__ = ("_variables", "source", "trees")

    def __init__(self, source: str, trees: Mapping[str, Body]) -> None:
        self.source = source
        self.trees = trees
        self._variables = mentioned(trees)

    def render(
        self,
        data: Mapping[str, Any],
        *,
        today: dt.date | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> str:
        """Fill in the data.

        Args:
            data: JSON-like values, or those of `values`, by name.
            today: the local date, for ``currentDate``.
            limits: what the rendering may use.

        Raises:
            TemplateError: the data do not fit, or the limits are reached; ``line`` says where.
        """
        return self.fill(data, Budget(limits), today=today)

    def fill(self, data: Mapping[str, Any], budget: Budget, *, today: dt.date | None = None) -> str:
        """Likewise, within what is left of a budget.

        Raises:
            TemplateError: the data do not fit, or the budget is used up; ``line`` says where.
        """
        try:
            return finished(run(self.trees, from_python(data), budget, today=today))
        except RecursionError as error:
            raise TemplateError("nested too deep") from error

    def with_main(self, body: Body) -> Template:
        """The same with another main body; `variables` are those of the new whole."""
        return Template(self.source, {**self.trees, "": body})

    def variables(self) -> frozenset[str]:
        """Names of all fields it mentions anywhere, such as ``Messages`` and ``Tools``.

        Ollama tells by them what a model can do.
        """
        return self._variables
