"""From a conversation to a prompt, by a model's Go template, as Ollama does it. Pure.

Rules:
 * a template that mentions neither ``.Messages`` nor ``.Response`` ends with ``.Response``;
 * a prompt with a suffix is rendered at once;
 * a template with ``.Messages`` is rendered once, on the whole conversation;
 * any other is rendered once per turn, the last time only up to ``.Response``.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping

from server.prompt.gotemplate.budget import Budget
from server.prompt.gotemplate.cut import cut_behind_response, with_response
from server.prompt.gotemplate.messages import (
    PromptInput,
    chat_values,
    insert_values,
    turn_values,
    turns_of,
)
from server.prompt.gotemplate.tags import thinking_tags
from server.prompt.gotemplate.template import DEFAULT_LIMITS, Limits, Template, parse
from server.prompt.gotemplate.values import Value

DEFAULT_TEMPLATE = "{{ .Prompt }}"
"""For a model without any template."""


class PromptTemplate:
    """A model's template, ready for prompts; it does not change, so threads may share it.

    Attributes:
        source: what it was parsed from.
        capabilities: of ``tools``, ``insert`` and ``thinking`` those the template shows.
        thinking_tags: the tags around thinking, if it shows them.
    """

    def __init__(self, source: str = DEFAULT_TEMPLATE) -> None:
        """Parse a template.

        Raises:
            TemplateError: it is malformed; ``line`` says where.
        """
        template = parse(source)
        mentions = template.variables()
        if not mentions & {"Messages", "Response"}:
            template = template.with_main(with_response(template.trees[""]))
        self.source = source
        self.thinking_tags = thinking_tags(template.trees)
        shown = {
            "tools": "Tools" in mentions,
            "insert": "Suffix" in mentions,
            "thinking": self.thinking_tags is not None,
        }
        self.capabilities = frozenset(name for name, there in shown.items() if there)
        self._whole = "Messages" in mentions
        self._template = template
        self._last = template.with_main(cut_behind_response(template.trees[""]))

    def render(
        self,
        given: PromptInput,
        *,
        today: dt.date | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> str:
        """The prompt the model is to continue.

        Args:
            given: conversation, tools, texts around a gap.
            today: the local date, for ``currentDate``.
            limits: what all of it together may use.

        Raises:
            TemplateError: the template does not fit, or the limits are reached.
        """
        budget = Budget(limits)
        parts: list[str] = []
        length = 0
        for template, values in self._renderings(given):
            parts.append(template.fill(values, budget, today=today))
            length += len(parts[-1])
            budget.text(length)
        return "".join(parts)

    def _renderings(self, given: PromptInput) -> Iterator[tuple[Template, Mapping[str, Value]]]:
        """What is to be rendered, in order: a template and its data."""
        if given.prompt and given.suffix:
            yield self._template, insert_values(given)
        elif self._whole:
            yield self._template, chat_values(given)
        else:
            *turns, last = turns_of(given.messages)
            for turn in turns:
                yield self._template, turn_values(turn, think=given.think)
            yield self._last, turn_values(last, think=given.think)
