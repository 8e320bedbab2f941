"""Answer a request: find the model, load it, make the prompt, generate, and count the cost.

The order of the checks is Ollama's: those of `server.reception`, an unload behind existence, and
then load, load-only, prompt.

Rules:
 * nothing happens before the first chunk is asked for; errors come with it;
 * a runner that dies before it said anything is tried once more on a fresh one, unseen;
 * a request that crashes runners is refused for a while, see `server.quarantine`;
 * once something was said, death is a `FaultChunk`, and nothing follows it;
 * prompts and answers are never logged.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from server.admission import Admission
from server.calling import answer_constraint, output_stream
from server.catalogue import Catalogue, ServedModel
from server.chat import ChatRequest, GenerateRequest
from server.chunks import FaultChunk, FinishChunk, FinishReason, Usage
from server.conformance.check import is_to_be_checked
from server.errors import ClientGoneError, RunnerCrashedError, ServerError
from server.generation import Gone, Outcome, complete
from server.planner import Planner
from server.prompting import Prompt, chat_prompt, generate_prompt
from server.reception import Reception, Task
from server.runner import protocol
from server.scheduler import Lease, Scheduler
from server.telling import Chunks, announced, checked, crashed, finish, heard, told
from server.wishes import Constraint

LOG = logging.getLogger("satchel.server")


def _today() -> dt.date:
    return dt.datetime.now().astimezone().date()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A prompt as a person should see it, and the name of the form its answer is read in."""

    text: str
    output_format: str


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
        self._scheduler = scheduler
        self._reception = Reception(
            catalogue=catalogue,
            planner=planner,
            request_timeout_s=request_timeout_s,
            now_s=now_s,
        )
        self._isolated = isolated
        self._now_s = now_s
        self._today = today

    def chat(self, request: ChatRequest, gone: Gone) -> Chunks:
        """Continue a conversation.

        Raises:
            ServerError: with the first chunk, when there will be no answer.
        """
        started_s = self._now_s()
        model = self._reception.find_for_chat(request.model)
        if not request.messages and request.keep_alive_s == 0:
            yield self._unload(model)
            return
        task = self._reception.check(model, request, started_s)
        with self.admission.enter():
            yield from self._answer(task, gone, empty=not request.messages)

    def generate(self, request: GenerateRequest, gone: Gone) -> Chunks:
        """Complete a prompt.

        Raises:
            ServerError: with the first chunk, when there will be no answer.
        """
        started_s = self._now_s()
        model = self._reception.find_for_generate(request)
        empty = not (request.prompt or request.tokens or request.infill)
        if empty and request.keep_alive_s == 0:
            yield self._unload(model)
            return
        task = self._reception.check(model, request, started_s)
        with self.admission.enter():
            yield from self._answer(task, gone, empty=empty)

    def render_chat(self, request: ChatRequest, gone: Gone) -> Rendered:
        """The prompt a chat comes to; loads the model to measure it.

        Raises:
            ServerError: there would be no answer.
        """
        model = self._reception.find_for_chat(request.model)
        return self._render(self._reception.check(model, request, self._now_s()), gone)

    def count_chat(self, request: ChatRequest, gone: Gone) -> int:
        """How many tokens the prompt of a chat has. Raises as `render_chat`."""
        model = self._reception.find_for_chat(request.model)
        task = self._reception.check(model, request, self._now_s())
        with self.admission.enter(), self._acquire(task, gone) as lease:
            return self._watched_prompt(task, lease, gone).length

    def render_generate(self, request: GenerateRequest, gone: Gone) -> Rendered:
        """The prompt a completion comes to. Raises as `render_chat`."""
        model = self._reception.find_for_generate(request)
        return self._render(self._reception.check(model, request, self._now_s()), gone)

    def _unload(self, model: ServedModel) -> FinishChunk:
        self._scheduler.unload(model.key)
        return FinishChunk(reason=FinishReason.UNLOAD, usage=Usage())

    def _render(self, task: Task, gone: Gone) -> Rendered:
        with self.admission.enter(), self._acquire(task, gone) as lease:
            prompt = self._watched_prompt(task, lease, gone)
            text = prompt.shown or lease.runner.detokenize(prompt.tokens)
            return Rendered(text=text, output_format=task.model.output.family.name)

    def _watched_prompt(
        self, task: Task, lease: Lease, gone: Gone, *, again: bool = False
    ) -> Prompt:
        """Make the prompt: the runner counts tokens and images for it, and may die of them."""
        mark = lease.coroner.mark_words(lease.key, task.request)
        with lease.coroner.watching(
            lease.runner.pid,
            mark,
            again=again,
            model=lease.key,
            gone=lambda: gone() or task.deadline.passed,
        ):
            prompt = self._prompt(task, lease)
        lease.coroner.answered(mark)
        return prompt

    def _prompt(self, task: Task, lease: Lease) -> Prompt:
        request, today = task.request, self._today()
        if isinstance(request, ChatRequest):
            return chat_prompt(request, task.model, lease, think=task.think, today=today)
        assert isinstance(request, GenerateRequest)
        return generate_prompt(
            request, task.model, lease, template=task.template, think=task.think, today=today
        )

    def _answer(self, task: Task, gone: Gone, *, empty: bool) -> Chunks:
        """Load the model and generate; once more if the runner dies unheard."""
        for attempt in (1, 2):
            outcome = Outcome(deadline=task.deadline)
            if isinstance(task.request, GenerateRequest):
                outcome.lines_s = task.request.lines_s
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

    def _acquire(self, task: Task, gone: Gone) -> Lease:
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
        self, task: Task, lease: Lease, gone: Gone, outcome: Outcome, *, again: bool
    ) -> Chunks:
        prompt = self._watched_prompt(task, lease, gone, again=again)
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
                pieces = heard(pieces, said)
            yield from announced(pieces, prompt.length) if request.announced else pieces
        lease.coroner.answered(mark)
        wants_context = isinstance(request, GenerateRequest) and not request.raw
        yield finish(
            outcome,
            load_s=lease.load_s,
            total_s=self._now_s() - task.started_s,
            with_context=wants_context,
            fits=checked(command.constraint, outcome, said),
        )


def _command(
    task: Task,
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
