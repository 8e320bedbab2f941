"""From a request to the tokens the model continues: template, context, fill-in-the-middle."""

from __future__ import annotations

import base64
import datetime as dt
import functools
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from hwprobe.errors import GgufError
from hwprobe.gguf import read_header
from server.catalogue import ServedModel
from server.chat import ChatRequest, GenerateRequest, Message
from server.conversation import PROMPT_TOO_LONG, assemble, fit
from server.errors import BadRequestError, LoadFailedError
from server.infill import gap_prompt, gap_text
from server.options import resolve_options
from server.output.harmony import ANSWER_HEADER
from server.placing import Marks
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
        tokens: what the engine gets; -1 - N stands for image N.
        images: files in base64.
        extra: tokens that images take beyond one each.
        dropped: messages left out because the context is too small.
    """

    text: str
    tokens: tuple[int, ...]
    images: tuple[str, ...] = ()
    extra: int = 0
    dropped: int = 0

    @property
    def length(self) -> int:
        """Tokens, with those that images take."""
        return len(self.tokens) + self.extra

    @property
    def shown(self) -> str:
        """The text as a person should see it."""
        return without_marks(self.text)


class Album:
    """The images of one request: where they stand, and how many tokens each takes.

    Attributes:
        marks: stand for them while the prompt is rendered.
    """

    def __init__(self, runner: Runner, images: Iterable[bytes]) -> None:
        """Ask the runner how many tokens the images take.

        Raises:
            BadRequestError: one cannot be decoded.
        """
        self.marks = Marks(secrets.token_hex(16))
        self._runner = runner
        self._coded = {data: base64.b64encode(data).decode() for data in images}
        sizes = runner.look(tuple(self._coded.values())) if self._coded else ()
        self._sizes = dict(zip(self._coded, sizes, strict=True))

    def prompt(self, text: str, images: tuple[bytes, ...], *, add_bos: bool = True) -> Prompt:
        """The tokens of a rendered text; ``images`` by the numbers of their marks."""
        if not images:
            return Prompt(text=text, tokens=self._runner.tokenize(text, add_bos=add_bos))
        tokens: list[int] = []
        extra = 0
        for index, part in enumerate(self.marks.split(text)):
            if isinstance(part, int):
                tokens.append(-1 - part)
                extra += self._sizes[images[part]] - 1
            else:
                tokens += self._runner.tokenize(part, add_bos=add_bos and not index)
        return Prompt(
            text=self.marks.shown(text),
            tokens=tuple(tokens),
            images=tuple(self._coded[data] for data in images),
            extra=extra,
        )


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
    album = Album(lease.runner, (image for one in messages for image in one.images))

    begun = ""
    if request.continued and messages:
        *earlier, last = messages
        messages = tuple(earlier)
        begun = _begun(model, last.content)

    def measure(kept: tuple[Message, ...]) -> Prompt:
        placed, images = album.marks.place(kept)
        given = PromptInput(
            messages=placed, tools=request.tools, think=think, style=model.template.style
        )
        return album.prompt(_render(model, given, today=today) + begun, images)

    if request.truncate:
        prompt, dropped = fit(
            messages, measure=measure, fits=lambda prompt: prompt.length <= num_ctx
        )
        prompt = replace(prompt, dropped=dropped)
    else:
        prompt = measure(messages)
    _refuse_overlong(prompt, num_ctx, cut=request.truncate and request.shift)
    return prompt


def _begun(model: ServedModel, text: str) -> str:
    """How an answer begins behind the prompt; harmony says a header first.

    Raises:
        LoadFailedError: the model's file cannot be read.
    """
    try:
        guarded = _guard(model.installed.model_path).text(text)
    except (GgufError, OSError) as error:
        raise LoadFailedError(f"{model.installed.name.short()}: cannot be read") from error
    return f"{ANSWER_HEADER}{guarded}" if model.output.family.harmony else guarded


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
    elif request.infill is not None:
        prompt = _gap_filled(request, model, lease, template=inserts, today=today)
    elif request.suffix and inserts is not None and not request.raw:
        given = PromptInput(prompt=request.prompt, suffix=request.suffix, think=think)
        text = _render(model, given, template=inserts, today=today)
        prompt = Prompt(text=text, tokens=runner.tokenize(text))
    elif request.suffix and model.traits.fim is not None:
        prompt = _filled_in(request, model.traits.fim, runner)
    elif request.raw:
        album = Album(runner, request.images)
        asked = Message(role="user", content=request.prompt, images=request.images)
        (turn,), images = album.marks.place((asked,))
        prompt = album.prompt(escape_marks(turn.content), images)
    else:
        album = Album(runner, request.images)
        messages, images = album.marks.place(_one_turn(request, model))
        given = PromptInput(messages=messages, think=think)
        text = _render(model, given, template=template, today=today)
        prompt = _behind(request.context, text, runner, album, images)
    _refuse_overlong(prompt, lease.settings.num_ctx, cut=request.truncate and request.shift)
    return prompt


def inserting(model: ServedModel, template: PromptTemplate | None) -> PromptTemplate | None:
    """The Go template that can fill a gap: the request's, else the model's; ``None`` without."""
    for candidate in (template, model.template.go):
        if candidate is not None and "insert" in candidate.capabilities:
            return candidate
    return None


def _gap_filled(
    request: GenerateRequest,
    model: ServedModel,
    lease: Lease,
    *,
    template: PromptTemplate | None,
    today: dt.date,
) -> Prompt:
    """Around a gap with other texts, by the vocabulary's own tokens, else by the template."""
    gap, runner = request.infill, lease.runner
    assert gap is not None
    tokens = model.gap_tokens
    if tokens is None:
        given = PromptInput(prompt=gap_text(gap), suffix=gap.suffix)
        text = _render(model, given, template=template, today=today)
        return Prompt(text=text, tokens=runner.tokenize(text))
    tokenize = functools.partial(runner.tokenize, add_bos=False, parse_special=False)
    num_ctx = lease.settings.num_ctx
    answer = resolve_options(model.installed.parameters, request.options)[0].num_predict
    answer = min(answer if answer >= 0 else num_ctx, num_ctx // 4)
    ids = gap_prompt(
        gap, tokens, tokenize, opening=runner.tokenize(""), room=num_ctx - max(answer, 1)
    )
    return Prompt(text="", tokens=ids)


def _filled_in(request: GenerateRequest, fim: tuple[int, int, int], runner: Runner) -> Prompt:
    """Around a gap, with the vocabulary's fill-in-the-middle tokens."""
    prefix, suffix, middle = fim
    head = runner.tokenize(request.prompt, add_bos=False, parse_special=False)
    tail = runner.tokenize(request.suffix, add_bos=False, parse_special=False)
    opening = runner.tokenize("")
    return Prompt(text="", tokens=(*opening, prefix, *head, suffix, *tail, middle))


def _behind(
    context: tuple[int, ...], text: str, runner: Runner, album: Album, images: tuple[bytes, ...]
) -> Prompt:
    """A text behind the tokens of earlier turns."""
    if not context:
        return album.prompt(text, images)
    _check_token_ids(context, runner.ready.n_vocab, field="context")
    own = album.prompt(text, images, add_bos=False)
    before = escape_marks(runner.detokenize(context))
    return replace(own, text=before + own.text, tokens=(*context, *own.tokens))


def _one_turn(request: GenerateRequest, model: ServedModel) -> tuple[Message, ...]:
    """System, the model's opening messages unless the context holds them, and the prompt."""
    installed = model.installed
    return assemble(
        (Message(role="user", content=request.prompt, images=request.images),),
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
    """A prompt that leaves no room for a token is cut by the runner, if the client lets it.

    One with images is not cut.
    """
    if prompt.length >= num_ctx and (prompt.images or not cut):
        raise BadRequestError(PROMPT_TOO_LONG)
