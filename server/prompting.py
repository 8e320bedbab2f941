"""From a request to the tokens the model continues: template, context, fill-in-the-middle."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from server.catalogue import ServedModel
from server.chat import ChatRequest, GenerateRequest, Message, Tool
from server.conversation import PROMPT_TOO_LONG, assemble, fit
from server.errors import BadRequestError
from server.prompt.jinja import JinjaTemplate
from server.scheduler import Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the model continues.

    Attributes:
        text: as rendered; empty for fill-in-the-middle, which has no text form.
        tokens: what the engine gets.
        dropped: messages left out because the context is too small.
    """

    text: str
    tokens: tuple[int, ...]
    dropped: int = 0


def chat_prompt(
    request: ChatRequest, model: ServedModel, lease: Lease, *, think: bool | str
) -> Prompt:
    """Render a conversation, without its oldest messages where it is too long.

    Raises:
        BadRequestError: it is too long and may not be cut, or cannot be rendered.
    """
    installed = model.installed
    messages = assemble(request.messages, system=installed.system, opening=installed.messages)
    num_ctx = lease.settings.num_ctx

    def measure(kept: tuple[Message, ...]) -> Prompt:
        text = _render(model, kept, tools=request.tools, think=think)
        return Prompt(text=text, tokens=lease.runner.tokenize(text))

    if request.truncate:
        prompt, dropped = fit(
            messages, measure=measure, fits=lambda prompt: len(prompt.tokens) <= num_ctx
        )
        prompt = Prompt(text=prompt.text, tokens=prompt.tokens, dropped=dropped)
    else:
        prompt = measure(messages)
    _refuse_overlong(prompt, num_ctx, cut=request.truncate and request.shift)
    return prompt


def generate_prompt(
    request: GenerateRequest, model: ServedModel, lease: Lease, *, think: bool | str
) -> Prompt:
    """Render a single prompt, or take it as it is.

    Raises:
        BadRequestError: it is too long and may not be cut, or cannot be rendered.
    """
    runner = lease.runner
    if request.suffix and model.traits.fim is not None:
        prefix, suffix, middle = model.traits.fim
        before = runner.tokenize(request.prompt, add_bos=False, parse_special=False)
        after = runner.tokenize(request.suffix, add_bos=False, parse_special=False)
        opening = runner.tokenize("")
        prompt = Prompt(text="", tokens=(*opening, prefix, *before, suffix, *after, middle))
    elif request.raw:
        prompt = Prompt(text=request.prompt, tokens=runner.tokenize(request.prompt))
    else:
        text = _render(model, _one_turn(request, model), tools=(), think=think)
        if request.context:
            _check_context(request.context, runner.ready.n_vocab)
            own = runner.tokenize(text, add_bos=False)
            text = runner.detokenize(request.context) + text
            prompt = Prompt(text=text, tokens=(*request.context, *own))
        else:
            prompt = Prompt(text=text, tokens=runner.tokenize(text))
    _refuse_overlong(prompt, lease.settings.num_ctx, cut=request.truncate and request.shift)
    return prompt


def _one_turn(request: GenerateRequest, model: ServedModel) -> tuple[Message, ...]:
    """System, the model's opening messages unless the context holds them, and the prompt."""
    installed = model.installed
    return assemble(
        (Message(role="user", content=request.prompt),),
        system=installed.system if request.system is None else request.system,
        opening=() if request.context else installed.messages,
    )


def _render(
    model: ServedModel,
    messages: tuple[Message, ...],
    *,
    tools: tuple[Tool, ...],
    think: bool | str,
) -> str:
    """Apply the model's template.

    Raises:
        BadRequestError: it has none that can be used, or the template refuses the messages.
        ServerError: the template is broken.
    """
    traits = model.traits
    if traits.jinja is None:
        if model.installed.template is not None:
            raise BadRequestError(
                f"{model.installed.name.full()} has only a Go template, which is not supported; "
                "raw mode works"
            )
        return "".join(message.content for message in messages if message.role != "system")
    variables: dict[str, Any] = {"enable_thinking": bool(think), "thinking": bool(think)}
    if isinstance(think, str):
        variables["reasoning_effort"] = think
    return _template(traits.jinja, traits.bos_token, traits.eos_token).render(
        [_message(message) for message in messages],
        [_tool(tool) for tool in tools] or None,
        **variables,
    )


@functools.lru_cache(maxsize=64)
def _template(source: str, bos_token: str, eos_token: str) -> JinjaTemplate:
    return JinjaTemplate(source, bos_token=bos_token, eos_token=eos_token)


def _message(message: Message) -> dict[str, Any]:
    """A message as templates know it: OpenAI's form, arguments as an object."""
    shown: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thinking:
        shown["reasoning_content"] = message.thinking
    if message.tool_calls:
        shown["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_name:
        shown["name"] = message.tool_name
    if message.tool_call_id:
        shown["tool_call_id"] = message.tool_call_id
    return shown


def _tool(tool: Tool) -> dict[str, Any]:
    """A tool as the client sent it, with its type."""
    return {"type": "function", **tool.raw}


def _check_context(context: tuple[int, ...], n_vocab: int) -> None:
    if max(context) >= n_vocab:
        raise BadRequestError(f"context: expected token ids below {n_vocab}, found {max(context)}")


def _refuse_overlong(prompt: Prompt, num_ctx: int, *, cut: bool) -> None:
    """A prompt that leaves no room for a token is cut by the runner, if the client lets it."""
    if len(prompt.tokens) >= num_ctx and not cut:
        raise BadRequestError(PROMPT_TOO_LONG)
