"""How an answer is read and bound: by the model's family, its tags, and the request's tools."""

from __future__ import annotations

import functools
import secrets
import string
from dataclasses import replace
from typing import Protocol

from server.catalogue import ServedModel
from server.chat import ChatRequest, GenerateRequest, RequestOptions
from server.errors import BadRequestError
from server.output.demand import answer_lead, begun_calls, calls_grammar
from server.output.lark import Special
from server.output.layout import CallIds, Tags
from server.output.stream import OutputStream
from server.prompt.gotemplate.prompt import PromptTemplate
from server.wishes import Constraint


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
        request: what is answered; raw prompts and gaps are answered by raw text.
        model: who answers.
        prompt: its end tells whether the answer begins inside the reasoning.
        template: the request's own template, which tells tags too.
        think: reasoning is wanted.
    """
    if _is_plain(request):
        return OutputStream()
    tags = model.output.tags
    if template is not None and template.thinking_tags is not None:
        tags = Tags(open=template.thinking_tags[0], close=template.thinking_tags[1])
    opened = prompt.rstrip().endswith(tags.open)
    chat = request if isinstance(request, ChatRequest) else None
    return OutputStream(
        family=model.output.family,
        tags=tags,
        thinking=bool(think) or opened,
        opened=opened,
        tools=chat.tools if chat is not None else (),
        new_call_id=new_call_id,
        one_call=chat is not None and not chat.tool_choice.parallel,
    )


def answer_constraint(
    request: RequestOptions, model: ServedModel, output: OutputStream, tokenize: Tokenize
) -> Constraint | None:
    """What binds the answer: calls where the request demands one, else the format it wants.

    Without either, a request with tools binds what calls its answer begins.

    Args:
        request: what is answered.
        model: who answers.
        output: reads the answer; what it takes for reasoning is free.
        tokenize: gives the ids of a text, with or without control tokens parsed.

    Returns:
        ``None`` if the answer is free.

    Raises:
        BadRequestError: the model is set to an output format without calls.
    """
    special = functools.cache(functools.partial(_special, tokenize))
    constraint = request.constraint
    if isinstance(request, ChatRequest) and request.tool_choice.demanded:
        constraint = _calls(request, model, special)
    elif constraint is not None and not _is_plain(request):
        constraint = replace(constraint, lead=answer_lead(model.output.family, special))
    elif isinstance(request, ChatRequest) and request.tools and model.constrains_calls:
        constraint = _begun(request, model, special)
    if constraint is not None and output.thinks:
        constraint = replace(constraint, reasoning=output.reasoning)
    return constraint


def _is_plain(request: RequestOptions) -> bool:
    """Whether the answer is text and nothing else."""
    if not isinstance(request, GenerateRequest):
        return False
    return request.raw or request.infill is not None


def _calls(request: ChatRequest, model: ServedModel, special: Special) -> Constraint:
    choice, family = request.tool_choice, model.output.family
    tools = [tool for tool in request.tools if choice.name in ("", tool.name)]
    several = choice.parallel and not choice.name
    grammar = calls_grammar(family, tools, special, several=several)
    if grammar is None:
        raise BadRequestError(
            f"{request.model}: tool_choice: its output format, {family.name}, has no calls"
        )
    return Constraint(kind="lark", source=grammar)


def _begun(request: ChatRequest, model: ServedModel, special: Special) -> Constraint | None:
    """What binds the calls that an answer begins; ``None`` where it is not known how it does.

    A template that only mentions a family's marks says too little to bind anything.
    """
    found = model.output
    if found.by == "mention" and not found.family.harmony:
        return None
    several = request.tool_choice.parallel
    calls = begun_calls(found.family, request.tools, special, several=several)
    if calls is None:
        return None
    strict = any(tool.strict for tool in request.tools)
    return Constraint(kind="lark", source=calls.grammar, begins=calls.begins, optional=not strict)


def _special(tokenize: Tokenize, text: str) -> int | None:
    """The id of a text that is one control token; see `Special`."""
    ids = tokenize(text, special=True)
    framing = text.startswith("<") and text.endswith(">")
    own = len(ids) == 1 and (framing or ids != tokenize(text, special=False))
    return ids[0] if own else None


def new_call_id(kind: CallIds) -> str:
    """An id for a call: Ollama's form, or the only one that Mistral's templates accept."""
    if kind == "short":
        return "".join(secrets.choice(_ANY) for _ in range(9))
    return "call_" + "".join(secrets.choice(_LOWER) for _ in range(8))
