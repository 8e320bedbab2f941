"""OpenAI's legacy completion bodies to our vocabulary. Pure.

Rules:
 * a text goes through the model's template, as in Ollama, unless ``raw`` says otherwise; token
   ids are continued as they are;
 * the model does not think: there is no place for what it would say;
 * several prompts, and several answers to each, become one request per answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from server.api.body import Fields, type_name
from server.api.keep_alive import parse_keep_alive
from server.api.ollama_parse import MOST_TOP_LOGPROBS, token_ids
from server.api.openai_parse import answer_count, repeated, sampling_options
from server.chat import GenerateRequest
from server.errors import BadRequestError

MOST_REQUESTS = 2048
"""Answers of one request, over all prompts: as many as OpenAI takes prompts."""

_GO_TYPES = {
    "boolean": "bool",
    "number": "float64",
    "null": "<nil>",
    "array": "[]interface {}",
    "object": "map[string]interface {}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A parsed body.

    Attributes:
        requests: one for each answer that is made, those of the first prompt first.
        n: answers that are told, per prompt.
        best_of: answers that are made, per prompt; the likeliest are told.
        logprobs: the client wants log-probabilities.
        echo: answers begin with their prompts.
        include_usage: the stream ends with a usage chunk.
    """

    requests: tuple[GenerateRequest, ...]
    n: int
    best_of: int
    logprobs: bool
    echo: bool
    include_usage: bool


def parse_completion(fields: Fields) -> Completion:
    """The body of ``/v1/completions``.

    Raises:
        BadRequestError: a field has the wrong type or an impossible value.
    """
    stream = fields.boolean("stream", default=False)
    echo = fields.boolean("echo", default=False)
    logprobs = _logprobs(fields)
    n = answer_count(fields, "n", 1)
    best_of = answer_count(fields, "best_of", n)
    if best_of < n:
        raise BadRequestError(f"best_of: expected at least n, which is {n}, found {best_of}")
    if best_of > n and stream:
        raise BadRequestError("best_of: expected n in a stream, found more")
    if echo and logprobs is not None:
        raise BadRequestError(
            "logprobs: expected none with echo, because prompts have no log-probabilities here"
        )
    shared = _shared(fields, stream=stream, top_logprobs=logprobs)
    if best_of > n and logprobs is None:
        shared = replace(shared, top_logprobs=0)
    prompts = _prompts(fields, shared)
    if len(prompts) * best_of > MOST_REQUESTS:
        found = len(prompts) * best_of
        raise BadRequestError(f"prompt: expected at most {MOST_REQUESTS} answers, found {found}")
    if echo and any(prompt.tokens for prompt in prompts):
        raise BadRequestError("echo: expected a text prompt, found token ids")
    return Completion(
        requests=tuple(one for prompt in prompts for one in repeated(prompt, best_of)),
        n=n,
        best_of=best_of,
        logprobs=logprobs is not None,
        echo=echo,
        include_usage=fields.object("stream_options").boolean("include_usage", default=False),
    )


def _shared(fields: Fields, *, stream: bool, top_logprobs: int | None) -> GenerateRequest:
    options = sampling_options(fields, token_limits=("max_tokens",))
    if fields.has("stop"):
        options["stop"] = _stop(fields)
    return GenerateRequest(
        model=fields.string("model"),
        suffix=fields.string("suffix"),
        raw=fields.boolean("raw", default=False),
        options=options,
        keep_alive_s=parse_keep_alive(fields.values.get("keep_alive")),
        stream=stream,
        think=False,
        top_logprobs=top_logprobs,
    )


def _prompts(fields: Fields, shared: GenerateRequest) -> tuple[GenerateRequest, ...]:
    """One request for each prompt."""
    value = fields.values.get("prompt")
    if not isinstance(value, list):
        return (replace(shared, prompt=fields.string("prompt")),)
    if not value:
        raise BadRequestError("prompt: expected at least one prompt, found none")
    if type_name(value[0]) == "number":
        return (_of_tokens(value, shared, at="prompt"),)
    return tuple(_prompt(one, shared, at=f"prompt[{i}]") for i, one in enumerate(value))


def _prompt(value: Any, shared: GenerateRequest, *, at: str) -> GenerateRequest:
    match value:
        case str():
            return replace(shared, prompt=value)
        case list():
            return _of_tokens(value, shared, at=at)
        case _:
            found = type_name(value)
            raise BadRequestError(f"{at}: expected string or array of token ids, found {found}")


def _of_tokens(value: list[Any], shared: GenerateRequest, *, at: str) -> GenerateRequest:
    if not value:
        raise BadRequestError(f"{at}: expected at least one token id, found none")
    if shared.suffix:
        raise BadRequestError("suffix: expected a text prompt, found token ids")
    return replace(shared, tokens=token_ids(value, at=at), raw=True)


def _logprobs(fields: Fields) -> int | None:
    if not fields.has("logprobs"):
        return None
    wanted = fields.integer("logprobs")
    if not 0 <= wanted <= MOST_TOP_LOGPROBS:
        raise BadRequestError(f"logprobs must be between 0 and {MOST_TOP_LOGPROBS}")
    return wanted


def _stop(fields: Fields) -> list[str]:
    """A text or some; the refusal is Ollama's, which names Go's types."""
    value = fields.values.get("stop")
    if isinstance(value, str):
        return [value]
    for item in fields.array("stop"):
        if not isinstance(item, str):
            raise BadRequestError(f"invalid type for 'stop' field: {_GO_TYPES[type_name(item)]}")
    return list(fields.array("stop"))
