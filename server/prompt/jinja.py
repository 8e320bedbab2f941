"""Chat templates as models carry them: Jinja, rendered as the transformers library does."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2

from server.errors import BadRequestError, ServerError
from server.prompt.meter import METER, Budget, Meter, TemplateLimitError, give
from server.prompt.sandbox import ChatEnvironment

MAX_SOURCE_CHARACTERS = 1 << 20
"""1 Mi. Why: the longest templates known are 30 Ki characters."""

MAX_OUTPUT_CHARACTERS = 16 << 20
"""16 Mi: what fits a line of the runner's protocol when each takes four bytes."""

_MAX_DATE_FORMAT_CHARACTERS = 256


class TemplateBrokenError(ServerError):
    """A chat template cannot be compiled or rendered: the model's fault, not the client's."""


class TemplateRefusedError(BadRequestError):
    """A chat template does not accept these messages and says why."""


class _RaisedError(Exception):
    """What ``raise_exception`` of a template raises."""


def _now() -> dt.datetime:
    return dt.datetime.now().astimezone()


class JinjaTemplate:
    """One compiled template; may be rendered by several threads at once."""

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        budget: Budget | None = None,
        now: Callable[[], dt.datetime] = _now,
    ) -> None:
        """Compile.

        Args:
            source: the template.
            bos_token: text of the model's token for the beginning, for templates that write it.
            eos_token: likewise for the end.
            budget: what one rendering may use.
            now: for templates that write the date.

        Raises:
            TemplateBrokenError: it is no template.
        """
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise TemplateBrokenError(f"the chat template is too long: {len(source)} characters")
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._budget = budget or Budget()
        self._now = now
        self._lock = threading.Lock()
        environment = ChatEnvironment()
        self._template = self._metered(lambda: environment.from_string(source))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt for a conversation.

        Args:
            messages: as the OpenAI API has them, arguments of tool calls as the template wants.
            tools: likewise; ``None`` without any.
            add_generation_prompt: end with the opening of the assistant's turn.
            variables: whatever else the template knows, such as ``enable_thinking``.

        Raises:
            TemplateRefusedError: the template does not accept the messages.
            TemplateBrokenError: it failed, or used more than its budget.
        """
        given = {
            **variables,
            **self._tokens,
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        functions = {"raise_exception": _raise, "strftime_now": self._strftime}
        values = {name: give(value) for name, value in given.items()}
        prompt: str = self._metered(lambda: self._template.render({**values, **functions}))
        if len(prompt) > MAX_OUTPUT_CHARACTERS:
            raise TemplateBrokenError(f"the prompt is too long: {len(prompt)} characters")
        return prompt

    def _metered(self, action: Callable[[], Any]) -> Any:
        """Run what belongs to the template, and give its failures a name."""
        token = METER.set(Meter(self._budget))
        try:
            return action()
        except _RaisedError as raised:
            raise TemplateRefusedError(str(raised)) from raised
        except RecursionError as error:
            raise TemplateBrokenError("the chat template is nested too deep") from error
        except (jinja2.TemplateError, TemplateLimitError) as error:
            raise TemplateBrokenError(f"the chat template failed: {error}") from error
        # A template runs Python's operators on whatever it has: their errors are its errors.
        except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError,
                AssertionError, SyntaxError) as error:  # fmt: skip
            raise TemplateBrokenError(
                f"the chat template failed: {type(error).__name__}: {error}"
            ) from error
        finally:
            METER.reset(token)

    def _strftime(self, form: str) -> str:
        if len(form) > _MAX_DATE_FORMAT_CHARACTERS:
            raise TemplateLimitError("the chat template's date format is too long")
        return self._now().strftime(form)


def _raise(message: object = "") -> None:
    """The template does not accept the messages."""
    METER.get().convert(message)
    raise _RaisedError(str(message))
