"""Answer a request: find the model, load it, make the prompt, generate, and count the cost.

The order of the checks is Ollama's, because clients see the first that fails: name, existence,
unload, raw conflicts, capabilities, options, load, load-only, prompt.

Rules:
 * nothing happens before the first chunk is asked for; errors come with it;
 * a runner that dies before it said anything is tried once more on a fresh one, unseen;
 * a request that crashes runners is refused for a while, see `server.quarantine`;
 * once something was said, death is a `FaultChunk`, and nothing follows it;
 * prompts and answers are never logged.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from server.calling import answer_constraint, output_stream
from server.catalogue import Catalogue, ServedModel, read_reference
from server.chat import (
    ChatRequest,
    Chunk,
    Conformity,
    Constraint,
    FaultChunk,
    FinishChunk,
    FinishReason,
    GenerateRequest,
    Piece,
    RequestOptions,
    SamplingOptions,
    StartChunk,
    TextChunk,
    Usage,
)
from server.conformance.check import conformity, is_to_be_checked
from server.deadline import Deadline
from server.errors import (
    BadRequestError,
    BusyError,
    ClientGoneError,
    DeadlineError,
    ModelNotFoundError,
    RunnerCrashedError,
    ServerError,
)
from server.generation import Gone, Outcome, complete
from server.images import check_images
from server.options import check_adapters, resolve_constraint, resolve_options, resolve_timeout
from server.planner import Planner
from server.prompt.gotemplate.prompt import PromptTemplate
from server.prompting import Prompt, chat_prompt, generate_prompt, inserting
from server.residency import BUSY_TEXT
from server.runner import protocol
from server.scheduler import Demand, Lease, Scheduler

LOG = logging.getLogger("satchel.server")

Chunks = Generator[Chunk, None, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """A request that has passed every check that needs no model in memory.

    Attributes:
        template: the Go template the request brings in place of the model's.
        deadline: when it has to be over.
    """

    request: RequestOptions
    model: ServedModel
    demand: Demand
    sampling: SamplingOptions
    template: PromptTemplate | None
    think: bool | str | None
    started_s: float
    deadline: Deadline


def _today() -> dt.date:
    return dt.datetime.now().astimezone().date()


class Admission:
    """Counts the requests that generate or wait, because each holds a thread of the listener."""

    def __init__(self, most: int) -> None:
        self._free = threading.BoundedSemaphore(most)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Stay inside while the request lasts.

        Raises:
            BusyError: there are too many.
        """
        if not self._free.acquire(blocking=False):
            raise BusyError(BUSY_TEXT)
        try:
            yield
        finally:
            self._free.release()


class Answerer:
    """Turns requests into chunks. All methods may be called from any thread.

    Attributes:
        admission: counts the requests that generate or wait.
    """

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        scheduler: Scheduler,
        planner: Planner,
        max_requests: int,
        request_timeout_s: float = 0.0,
        isolated: bool = True,
        now_s: Callable[[], float] = time.monotonic,
        today: Callable[[], dt.date] = _today,
    ) -> None:
        """Put the parts together.

        Args:
            catalogue: finds models.
            scheduler: lends runners.
            planner: knows how to load.
            max_requests: most requests that generate or wait; more are refused.
            request_timeout_s: longest time for any request; 0 means no limit.
            isolated: requests of different API keys share nothing that was computed.
            now_s: monotonic time in seconds.
            today: the local date, for templates that write it.
        """
        self.admission = Admission(max_requests)
        self._catalogue = catalogue
        self._scheduler = scheduler
        self._planner = planner
        self._request_timeout_s = request_timeout_s
        self._isolated = isolated
        self._now_s = now_s
        self._today = today

    def chat(self, request: ChatRequest, gone: Gone) -> Chunks:
        """Continue a conversation.

        Raises:
            ServerError: with the first chunk, when there will be no answer.
        """
        started_s = self._now_s()
        model = self._find_for_chat(request.model)
        if not request.messages and request.keep_alive_s == 0:
            yield self._unload(model)
            return
        task = self._task(model, request, started_s)
        with self.admission.enter():
            yield from self._answer(task, gone, empty=not request.messages)

    def generate(self, request: GenerateRequest, gone: Gone) -> Chunks:
        """Complete a prompt.

        Raises:
            ServerError: with the first chunk, when there will be no answer.
        """
        started_s = self._now_s()
        model = self._find_for_generate(request.model)
        empty = not (request.prompt or request.tokens)
        if empty and request.keep_alive_s == 0:
            yield self._unload(model)
            return
        task = self._task(model, request, started_s)
        with self.admission.enter():
            yield from self._answer(task, gone, empty=empty)

    def render_chat(self, request: ChatRequest, gone: Gone) -> str:
        """The prompt a chat comes to; loads the model to measure it.

        Raises:
            ServerError: there would be no answer.
        """
        model = self._find_for_chat(request.model)
        return self._render(self._task(model, request, self._now_s()), gone)

    def count_chat(self, request: ChatRequest, gone: Gone) -> int:
        """How many tokens the prompt of a chat has. Raises as `render_chat`."""
        model = self._find_for_chat(request.model)
        task = self._task(model, request, self._now_s())
        with self.admission.enter(), self._acquire(task, gone) as lease:
            return self._prompt(task, lease).length

    def render_generate(self, request: GenerateRequest, gone: Gone) -> str:
        """The prompt a completion comes to. Raises as `render_chat`."""
        model = self._find_for_generate(request.model)
        return self._render(self._task(model, request, self._now_s()), gone)

    def _find_for_chat(self, text: str) -> ServedModel:
        name = read_reference(text)
        if name is None:
            raise BadRequestError("model is required")
        model = self._catalogue.find(name)
        if model is None:
            raise ModelNotFoundError(f"model '{text}' not found")
        return model

    def _find_for_generate(self, text: str) -> ServedModel:
        name = read_reference(text)
        model = self._catalogue.find(name) if name is not None else None
        if model is None:
            raise ModelNotFoundError(f"model '{text}' not found")
        return model

    def _unload(self, model: ServedModel) -> FinishChunk:
        self._scheduler.unload(model.key)
        return FinishChunk(reason=FinishReason.UNLOAD, usage=Usage())

    def _task(self, model: ServedModel, request: RequestOptions, started_s: float) -> _Task:
        """Check what can be checked without the model.

        Raises:
            BadRequestError: the model cannot do what is asked, an option is wrong, or the
                request's template is malformed.
        """
        wanted = resolve_constraint(request.constraint, request.options)
        request = replace(request, constraint=wanted)
        template = None
        if isinstance(request, GenerateRequest):
            _check_raw(request)
            template = PromptTemplate(request.template) if request.template else None
        shown = template.capabilities if template is not None else frozenset()
        can_think = model.can("thinking") or "thinking" in shown
        think = request.think
        if think and not can_think:
            if not request.think_if_able:
                raise BadRequestError(f'"{request.model}" does not support thinking')
            think = None
        if isinstance(request, GenerateRequest):
            _check_generate(request, model, template)
        elif isinstance(request, ChatRequest):
            _check_chat(request, model)
        sampling, load = resolve_options(model.installed.parameters, request.options)
        check_adapters(sampling.lora, len(model.installed.adapters))
        limits_s = (self._request_timeout_s, resolve_timeout(request.options))
        if think is None and can_think:
            think = True
        return _Task(
            request=request,
            model=model,
            demand=self._planner.demand(model, load, keep_alive_s=request.keep_alive_s),
            sampling=sampling,
            template=template,
            think=think,
            started_s=started_s,
            deadline=Deadline.after(started_s, limits_s, self._now_s),
        )

    def _render(self, task: _Task, gone: Gone) -> str:
        with self.admission.enter(), self._acquire(task, gone) as lease:
            prompt = self._prompt(task, lease)
            return prompt.shown or lease.runner.detokenize(prompt.tokens)

    def _prompt(self, task: _Task, lease: Lease) -> Prompt:
        request, today = task.request, self._today()
        if isinstance(request, ChatRequest):
            return chat_prompt(request, task.model, lease, think=task.think, today=today)
        assert isinstance(request, GenerateRequest)
        return generate_prompt(
            request, task.model, lease, template=task.template, think=task.think, today=today
        )

    def _answer(self, task: _Task, gone: Gone, *, empty: bool) -> Chunks:
        """Load the model and generate; once more if the runner dies unheard."""
        for attempt in (1, 2):
            outcome = Outcome(deadline=task.deadline)
            try:
                with self._acquire(task, gone) as lease:
                    if empty:
                        yield FinishChunk(reason=FinishReason.LOAD, usage=Usage())
                        return
                    yield from self._generate(task, lease, gone, outcome, again=attempt > 1)
                    return
            except RunnerCrashedError as error:
                crash = crashed(error)
                if outcome.started:
                    yield FaultChunk(message=str(crash), status=crash.status)
                    return
                if attempt == 2:  # noqa: PLR2004 - the second and last
                    raise crash from error
                LOG.warning("%s: %s; trying once more", task.model.installed.name.short(), error)
            except ClientGoneError as error:
                raise told(error, task.deadline, gone) from error
            except ServerError as error:
                if not outcome.started:
                    raise
                yield FaultChunk(message=str(error), status=error.status)
                return

    def _acquire(self, task: _Task, gone: Gone) -> Lease:
        """Wait for a runner no longer than the request has time.

        Raises:
            DeadlineError: its time was over first; a load that has begun goes on.
        """
        deadline = task.deadline
        try:
            return self._scheduler.acquire(task.demand, gone=lambda: gone() or deadline.passed)
        except ClientGoneError as error:
            raise told(error, deadline, gone) from error

    def _generate(
        self, task: _Task, lease: Lease, gone: Gone, outcome: Outcome, *, again: bool
    ) -> Chunks:
        prompt = self._prompt(task, lease)
        output = output_stream(
            task.request, task.model, prompt.text, template=task.template, think=task.think
        )
        request = task.request
        runner = lease.runner
        constraint = answer_constraint(
            request,
            task.model,
            output,
            lambda text, *, special: runner.tokenize(text, add_bos=False, parse_special=special),
        )
        command = _command(task, prompt, constraint, isolated=self._isolated)
        said: list[str] = []
        mark = lease.coroner.mark(lease.key, command)
        with lease.coroner.watching(
            lease.runner.pid,
            mark,
            again=again,
            model=lease.key,
            gone=lambda: gone() or task.deadline.passed,
        ):
            pieces = complete(
                lease.runner,
                command,
                output=output,
                gone=gone,
                outcome=outcome,
            )
            if is_to_be_checked(command.constraint):
                pieces = _heard(pieces, said)
            yield from _announced(pieces, prompt.length) if request.announced else pieces
        lease.coroner.answered(mark)
        wants_context = isinstance(request, GenerateRequest) and not request.raw
        yield _finish(
            outcome,
            load_s=lease.load_s,
            total_s=self._now_s() - task.started_s,
            with_context=wants_context,
            fits=_conformity(command.constraint, outcome, said),
        )


def told(error: ClientGoneError, deadline: Deadline, gone: Gone) -> ServerError:
    """Who gave up: the client, or its deadline while the request waited."""
    if gone() or not deadline.passed:
        return error
    return DeadlineError(
        f"request: not begun within {deadline.limit_s:g} s",
        hint="load the model before, or allow more with the option request_timeout",
    )


def _announced(pieces: Generator[Piece, None, None], prompt_tokens: int) -> Chunks:
    """Tell the length of the prompt before the first piece, or before the end without one."""
    with contextlib.closing(pieces):
        first = next(pieces, None)
        yield StartChunk(prompt_tokens=prompt_tokens)
        if first is not None:
            yield first
            yield from pieces


def _heard(pieces: Generator[Piece, None, None], said: list[str]) -> Generator[Piece, None, None]:
    """Pass pieces on and keep their visible text."""
    with contextlib.closing(pieces):
        for piece in pieces:
            if isinstance(piece, TextChunk):
                said.append(piece.text)
            yield piece


def _conformity(
    constraint: Constraint | None, outcome: Outcome, said: Sequence[str]
) -> Conformity | None:
    """Check what was said, where keywords of its schema were left out."""
    relaxed = outcome.row.relaxed if outcome.row is not None else ()
    if constraint is None or not relaxed or not is_to_be_checked(constraint):
        return None
    return conformity(constraint.source, "".join(said), relaxed)


def _check_raw(request: GenerateRequest) -> None:
    if request.raw and (request.template or request.system or request.context):
        raise BadRequestError("raw mode does not support template, system, or context")


def _check_generate(
    request: GenerateRequest, model: ServedModel, template: PromptTemplate | None
) -> None:
    if not model.can("completion"):
        raise BadRequestError(f'"{request.model}" does not support generate')
    full_name = model.installed.name.full()
    if request.suffix and not model.can("insert") and inserting(model, template) is None:
        raise BadRequestError(f"{full_name} does not support insert")
    if request.images and not model.can("vision"):
        raise BadRequestError(f"{full_name} does not support vision")
    if request.images and request.suffix:
        raise BadRequestError("images: expected none beside a suffix")
    check_images(request.images)


def _check_chat(request: ChatRequest, model: ServedModel) -> None:
    if not model.can("completion"):
        raise BadRequestError(f'"{request.model}" does not support chat')
    full_name = model.installed.name.full()
    if request.tools and not model.can("tools"):
        raise BadRequestError(f"{full_name} does not support tools")
    images = tuple(image for message in request.messages for image in message.images)
    if images and not model.can("vision"):
        raise BadRequestError(f"{full_name} does not support vision")
    check_images(images)


def _command(
    task: _Task,
    prompt: Prompt,
    constraint: Constraint | None,
    *,
    isolated: bool,
) -> protocol.Generate:
    return protocol.Generate(
        id=0,
        tokens=prompt.tokens,
        images=prompt.images,
        sampling=task.sampling,
        truncate=task.request.truncate,
        shift=task.request.shift,
        top_logprobs=task.request.top_logprobs,
        constraint=constraint,
        tenant=task.request.tenant,
        scope=task.request.tenant if isolated else "",
    )


def _finish(
    outcome: Outcome,
    *,
    load_s: float,
    total_s: float,
    with_context: bool,
    fits: Conformity | None,
) -> FinishChunk:
    row = outcome.row
    assert row is not None
    usage = Usage(
        prompt_tokens=row.prompt_tokens,
        cached_tokens=row.cached_tokens,
        completion_tokens=max(row.completion_tokens, len(outcome.generated)),
        reasoning_tokens=outcome.reasoning_tokens,
        load_s=load_s,
        prompt_s=row.prompt_s,
        eval_s=outcome.eval_s,
        total_s=total_s,
    )
    context = (*row.prompt_ids, *outcome.generated) if with_context else ()
    return FinishChunk(reason=outcome.reason, usage=usage, context=context, conformity=fits)


def crashed(error: RunnerCrashedError) -> RunnerCrashedError:
    """The runner's death in the words clients know, with its cause behind them."""
    return RunnerCrashedError(
        "model runner has unexpectedly stopped, this may be due to resource limitations or an "
        f"internal error: {error}",
        hint=error.hint,
    )
