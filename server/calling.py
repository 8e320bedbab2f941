"""How an answer is read: the model's family, its tags, and the tools of the request."""

from __future__ import annotations

import functools
import secrets
import string
from typing import Protocol

from server.catalogue import ServedModel
from server.chat import ChatRequest, Constraint, GenerateRequest, RequestOptions
from server.errors import BadRequestError
from server.output.demand import calls_grammar
from server.output.layout import CallIds, Tags
from server.output.stream import OutputStream
from server.prompt.gotemplate.prompt import PromptTemplate


class Tokenize(Protocol):
    """What this module needs of a runner."""

    def __call__(self, text: str, *, special: bool) -> tuple[int, ...]:
        """Token ids of a text; ``special`` parses control tokens."""


_LOWER = string.ascii_lowercase + string.digits
_ANY = string.ascii_letters + string.digits


def output_stream(
    request: RequestOptions,
    model: ServedModel,
    prompt: str,
    *,
    template: PromptTemplate | None,
    think: bool | str | None,
) -> OutputStream:
    """What splits the answer to a request.

    Args:
        request: what is answered; raw prompts are answered by raw text.
        model: who answers.
        prompt: its end tells whether the answer begins inside the reasoning.
        template: the request's own template, which tells tags too.
        think: reasoning is wanted.
    """
    if isinstance(request, GenerateRequest) and request.raw:
        return OutputStream()
    tags = model.output.tags
    if template is not None and template.thinking_tags is not None:
        tags = Tags(open=template.thinking_tags[0], close=template.thinking_tags[1])
    opened = prompt.rstrip().endswith(tags.open)
    return OutputStream(
        family=model.output.family,
        tags=tags,
        thinking=bool(think) or opened,
        opened=opened,
        tools=request.tools if isinstance(request, ChatRequest) else (),
        new_call_id=new_call_id,
    )


def call_constraint(
    request: RequestOptions, model: ServedModel, tokenize: Tokenize
) -> Constraint | None:
    """What binds the answer to calls where the request demands one; else ``None``.

    Args:
        request: what is answered.
        model: who answers.
        tokenize: gives the ids of a text, with or without control tokens parsed.

    Raises:
        BadRequestError: the model is set to an output format without calls.
    """
    if not isinstance(request, ChatRequest) or not request.tool_choice.demanded:
        return None
    choice, family = request.tool_choice, model.output.family
    tools = [tool for tool in request.tools if choice.name in ("", tool.name)]

    @functools.cache
    def special(text: str) -> int | None:
        ids = tokenize(text, special=True)
        framing = text.startswith("<") and text.endswith(">")
        own = len(ids) == 1 and (framing or ids != tokenize(text, special=False))
        return ids[0] if own else None

    several = choice.parallel and not choice.name
    grammar = calls_grammar(family, tools, special, several=several)
    if grammar is None:
        raise BadRequestError(
            f"{request.model}: tool_choice: its output format, {family.name}, has no calls"
        )
    return Constraint(kind="lark", source=grammar)


def new_call_id(kind: CallIds) -> str:
    """An id for a call: Ollama's form, or the only one that Mistral's templates accept."""
    if kind == "short":
        return "".join(secrets.choice(_ANY) for _ in range(9))
    return "call_" + "".join(secrets.choice(_LOWER) for _ in range(8))
