"""From a request to the tokens the model continues: template, context, fill-in-the-middle."""

from __future__ import annotations

import datetime as dt
import functools
from dataclasses import dataclass
from pathlib import Path

from hwprobe.errors import GgufError
from hwprobe.gguf import read_header
from server.catalogue import ServedModel
from server.chat import ChatRequest, GenerateRequest, Message
from server.conversation import PROMPT_TOO_LONG, assemble, fit
from server.errors import BadRequestError, LoadFailedError
from server.prompt.gotemplate.messages import PromptInput
from server.prompt.gotemplate.prompt import PromptTemplate
from server.prompt.gotemplate.template import TemplateError
from server.prompt.guard import Guard, escape_marks, without_marks
from server.prompt.jinja import TemplateBrokenError
from server.prompt.layer import render_guarded
from server.prompt.model import guard_of, renderer_of
from server.prompt.render import Renderer
from server.runner.process import Runner
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
    request: ChatRequest,
    model: ServedModel,
    lease: Lease,
    *,
    think: bool | str | None,
    today: dt.date,
) -> Prompt:
    """Render a conversation, without its oldest messages where it is too long.

    Args:
        request: the conversation.
        model: who continues it.
        lease: its runner, to count tokens.
        think: what the template is told.
        today: the local date, for templates that write it.

    Raises:
        BadRequestError: it is too long and may not be cut, or cannot be rendered.
    """
    installed = model.installed
    messages = assemble(request.messages, system=installed.system, opening=installed.messages)
    num_ctx = lease.settings.num_ctx

    def measure(kept: tuple[Message, ...]) -> Prompt:
        given = PromptInput(
            messages=kept, tools=request.tools, think=think, style=model.template.style
        )
        text = _render(model, given, today=today)
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
    request: GenerateRequest,
    model: ServedModel,
    lease: Lease,
    *,
    template: PromptTemplate | None,
    think: bool | str | None,
    today: dt.date,
) -> Prompt:
    """Render a single prompt, or take it as it is.

    Args:
        request: the prompt.
        model: who continues it.
        lease: its runner, to count tokens.
        template: the request's own, in place of the model's.
        think: what the template is told.
        today: the local date, for templates that write it.

    Raises:
        BadRequestError: it is too long and may not be cut, or cannot be rendered.
    """
    runner = lease.runner
    inserts = inserting(model, template)
    if request.tokens:
        _check_token_ids(request.tokens, runner.ready.n_vocab, field="prompt")
        prompt = Prompt(text="", tokens=request.tokens)
    elif request.suffix and inserts is not None and not request.raw:
        given = PromptInput(prompt=request.prompt, suffix=request.suffix, think=think)
        text = _render(model, given, template=inserts, today=today)
        prompt = Prompt(text=text, tokens=runner.tokenize(text))
    elif request.suffix and model.traits.fim is not None:
        prompt = _filled_in(request, model.traits.fim, runner)
    elif request.raw:
        text = escape_marks(request.prompt)
        prompt = Prompt(text=text, tokens=runner.tokenize(text))
    else:
        given = PromptInput(messages=_one_turn(request, model), think=think)
        text = _render(model, given, template=template, today=today)
        prompt = _behind(request.context, text, runner)
    _refuse_overlong(prompt, lease.settings.num_ctx, cut=request.truncate and request.shift)
    return prompt


def inserting(model: ServedModel, template: PromptTemplate | None) -> PromptTemplate | None:
    """The Go template that can fill a gap: the request's, else the model's; ``None`` without."""
    for candidate in (template, model.template.go):
        if candidate is not None and "insert" in candidate.capabilities:
            return candidate
    return None


def _filled_in(request: GenerateRequest, fim: tuple[int, int, int], runner: Runner) -> Prompt:
    """Around a gap, with the vocabulary's fill-in-the-middle tokens."""
    prefix, suffix, middle = fim
    head = runner.tokenize(request.prompt, add_bos=False, parse_special=False)
    tail = runner.tokenize(request.suffix, add_bos=False, parse_special=False)
    opening = runner.tokenize("")
    return Prompt(text="", tokens=(*opening, prefix, *head, suffix, *tail, middle))


def _behind(context: tuple[int, ...], text: str, runner: Runner) -> Prompt:
    """A text behind the tokens of earlier turns."""
    if not context:
        return Prompt(text=text, tokens=runner.tokenize(text))
    _check_token_ids(context, runner.ready.n_vocab, field="context")
    own = runner.tokenize(text, add_bos=False)
    before = escape_marks(runner.detokenize(context))
    return Prompt(text=before + text, tokens=(*context, *own))


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
    given: PromptInput,
    *,
    template: PromptTemplate | None = None,
    today: dt.date,
) -> str:
    """Apply a Go template that a request brings, else the one chosen for the model.

    Raises:
        BadRequestError: the request's template failed, or the model's refuses the messages.
        LoadFailedError: the model's file cannot be read.
        ServerError: the model's template is broken.
    """
    choice = model.template
    try:
        if template is not None and template is not choice.go:
            return render_guarded(template, given, _guard(model.installed.model_path), today=today)
        if choice.source == "jinja":
            renderer = _renderer(model.installed.model_path, choice.text)
            return renderer.chat(given.messages, given.tools, think=given.think)
        if choice.go is None:
            raise TemplateBrokenError(f"{model.installed.name.short()}: {choice.fault}")
        return _by_layer(choice.go, given, _guard(model.installed.model_path), today=today)
    except (GgufError, OSError) as error:
        raise LoadFailedError(f"{model.installed.name.short()}: cannot be read") from error


def _by_layer(go: PromptTemplate, given: PromptInput, guard: Guard, *, today: dt.date) -> str:
    """What fails here is the model's template, not the client's."""
    try:
        return render_guarded(go, given, guard, today=today)
    except TemplateError as error:
        raise TemplateBrokenError(f"the model's template failed: {error}") from error


@functools.lru_cache(maxsize=16)
def _renderer(model_path: Path, template: str) -> Renderer:
    """Cached by path: a blob's path holds its digest. A vocabulary takes some megabytes."""
    return renderer_of(read_header(model_path), template)


@functools.lru_cache(maxsize=16)
def _guard(model_path: Path) -> Guard:
    """Cached as `_renderer`."""
    return guard_of(read_header(model_path))


def _check_token_ids(tokens: tuple[int, ...], n_vocab: int, *, field: str) -> None:
    if max(tokens) >= n_vocab:
        raise BadRequestError(f"{field}: expected token ids below {n_vocab}, found {max(tokens)}")


def _refuse_overlong(prompt: Prompt, num_ctx: int, *, cut: bool) -> None:
    """A prompt that leaves no room for a token is cut by the runner, if the client lets it."""
    if len(prompt.tokens) >= num_ctx and not cut:
        raise BadRequestError(PROMPT_TOO_LONG)
