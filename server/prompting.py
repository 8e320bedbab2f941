"""From a request to the tokens the model continues: template, context, fill-in-the-middle."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from hwprobe.errors import GgufError
from hwprobe.gguf import read_header
from server.catalogue import ServedModel
from server.chat import ChatRequest, GenerateRequest, Message, Tool
from server.conversation import PROMPT_TOO_LONG, assemble, fit
from server.errors import BadRequestError, LoadFailedError
from server.prompt.guard import escape_marks, without_marks
from server.prompt.model import renderer_of
from server.prompt.render import Renderer
from server.scheduler import Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the model continues.

    Attributes:
        text: as rendered, with the marks that guard control tokens; empty for
            fill-in-the-middle, which has no text form.
        tokens: what the engine gets.
        dropped: messages left out because the context is too small.
    """

    text: str
    tokens: tuple[int, ...]
    dropped: int = 0

    @property
    def shown(self) -> str:
        """The text as a person should see it."""
        return without_marks(self.text)


def chat_prompt(
    request: ChatRequest, model: ServedModel, lease: Lease, *, think: bool | str | None
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
    request: GenerateRequest, model: ServedModel, lease: Lease, *, think: bool | str | None
) -> Prompt:
    """Render a single prompt, or take it as it is.

    Raises:
        BadRequestError: it is too long and may not be cut, or cannot be rendered.
    """
    runner = lease.runner
    if request.suffix and model.traits.fim is not None:
        prefix, suffix, middle = model.traits.fim
        head = runner.tokenize(request.prompt, add_bos=False, parse_special=False)
        tail = runner.tokenize(request.suffix, add_bos=False, parse_special=False)
        opening = runner.tokenize("")
        prompt = Prompt(text="", tokens=(*opening, prefix, *head, suffix, *tail, middle))
    elif request.raw:
        text = renderer(model).plain(request.prompt)
        prompt = Prompt(text=text, tokens=runner.tokenize(text))
    else:
        text = _render(model, _one_turn(request, model), tools=(), think=think)
        if request.context:
            _check_context(request.context, runner.ready.n_vocab)
            own = runner.tokenize(text, add_bos=False)
            before = escape_marks(runner.detokenize(request.context))
            prompt = Prompt(text=before + text, tokens=(*request.context, *own))
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
    think: bool | str | None,
) -> str:
    """Apply the model's template.

    Raises:
        BadRequestError: it has none that can be used, or the template refuses the messages.
        ServerError: the template is broken.
    """
    if model.traits.jinja is None and model.installed.template is not None:
        raise BadRequestError(
            f"{model.installed.name.full()} has only a Go template, which is not supported; "
            "raw mode works"
        )
    return renderer(model).chat(messages, tools, think=think)


def renderer(model: ServedModel) -> Renderer:
    """The renderer of a model; it is made once for each blob.

    Raises:
        LoadFailedError: the model's file cannot be read.
        ServerError: its template is broken.
    """
    try:
        return _renderer(model.installed.model_path)
    except (GgufError, OSError) as error:
        raise LoadFailedError(f"{model.installed.name.short()}: cannot be read") from error


@functools.lru_cache(maxsize=16)
def _renderer(model_path: Path) -> Renderer:
    """Cached by path: a blob's path holds its digest. A vocabulary takes some megabytes."""
    return renderer_of(read_header(model_path))


def _check_context(context: tuple[int, ...], n_vocab: int) -> None:
    if max(context) >= n_vocab:
        raise BadRequestError(f"context: expected token ids below {n_vocab}, found {max(context)}")


def _refuse_overlong(prompt: Prompt, num_ctx: int, *, cut: bool) -> None:
    """A prompt that leaves no room for a token is cut by the runner, if the client lets it."""
    if len(prompt.tokens) >= num_ctx and not cut:
        raise BadRequestError(PROMPT_TOO_LONG)
