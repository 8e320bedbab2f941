"""How an answer is read: the model's family, its tags, and the tools of the request."""

from __future__ import annotations

import secrets
import string

from server.catalogue import ServedModel
from server.chat import ChatRequest, GenerateRequest, RequestOptions
from server.output.layout import CallIds, Tags
from server.output.stream import OutputStream
from server.prompt.gotemplate.prompt import PromptTemplate

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


def new_call_id(kind: CallIds) -> str:
    """An id for a call: Ollama's form, or the only one that Mistral's templates accept."""
    if kind == "short":
        return "".join(secrets.choice(_ANY) for _ in range(9))
    return "call_" + "".join(secrets.choice(_LOWER) for _ in range(8))
