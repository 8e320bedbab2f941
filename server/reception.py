"""What can be known of a request before its model is in memory: the model, the checks, the load.

The order of the checks is Ollama's, because clients see the first that fails: name, existence,
raw conflicts, capabilities, options.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from server.catalogue import Catalogue, ServedModel, read_reference
from server.chat import ChatRequest, GenerateRequest, RequestOptions
from server.deadline import Deadline
from server.errors import BadRequestError, ModelNotFoundError
from server.images import check_images
from server.options import check_adapters, resolve_constraint, resolve_options, resolve_timeout
from server.planner import Planner
from server.prompt.gotemplate.prompt import PromptTemplate
from server.prompting import inserting
from server.scheduler import Demand
from server.wishes import SamplingOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
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


class Reception:
    """Finds models and checks what is asked of them. All methods may be called from any thread."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        planner: Planner,
        request_timeout_s: float = 0.0,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Put the parts together; see `server.answer.Answerer`."""
        self._catalogue = catalogue
        self._planner = planner
        self._request_timeout_s = request_timeout_s
        self._now_s = now_s

    def find_for_chat(self, text: str) -> ServedModel:
        """The model a chat names.

        Raises:
            BadRequestError: it names none.
            ModelNotFoundError: there is none of this name.
        """
        name = read_reference(text)
        if name is None:
            raise BadRequestError("model is required")
        model = self._catalogue.find(name)
        if model is None:
            raise ModelNotFoundError(f"model '{text}' not found")
        return model

    def find_for_generate(self, request: GenerateRequest) -> ServedModel:
        """The model a completion names; one that fills a gap may name none if there is one only.

        Raises:
            ModelNotFoundError: there is none of this name.
            BadRequestError: it names none, and there are several.
        """
        text = request.model
        if request.infill is not None and not text.strip():
            return self._only_inserter()
        name = read_reference(text)
        model = self._catalogue.find(name) if name is not None else None
        if model is None:
            raise ModelNotFoundError(f"model '{text}' not found")
        return model

    def _only_inserter(self) -> ServedModel:
        found = [model for model in self._catalogue.all() if model.inserts]
        if len(found) != 1:
            raise BadRequestError(f"model is required: {len(found)} models here fill gaps")
        return found[0]

    def check(self, model: ServedModel, request: RequestOptions, started_s: float) -> Task:
        """Check what can be checked without the model.

        Raises:
            BadRequestError: the model cannot do what is asked, an option is wrong, or the
                request's template is malformed.
        """
        if request.refusal:
            raise BadRequestError(request.refusal)
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
        return Task(
            request=request,
            model=model,
            demand=self._planner.demand(model, load, keep_alive_s=request.keep_alive_s),
            sampling=sampling,
            template=template,
            think=think,
            started_s=started_s,
            deadline=Deadline.after(started_s, limits_s, self._now_s),
        )


def _check_raw(request: GenerateRequest) -> None:
    if request.raw and (request.template or request.system or request.context):
        raise BadRequestError("raw mode does not support template, system, or context")


def _check_generate(
    request: GenerateRequest, model: ServedModel, template: PromptTemplate | None
) -> None:
    if not model.can("completion"):
        raise BadRequestError(f'"{request.model}" does not support generate')
    full_name = model.installed.name.full()
    if request.infill is not None and not model.inserts:
        raise BadRequestError(f"{full_name} does not support insert")
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
