"""Our vocabulary to OpenAI's legacy completion objects and events. Pure.

Rules:
 * all chunks of a response share ``id`` and ``created``; each names the answer it belongs to;
 * an answer's last chunk has an empty text and its finish reason;
 * usage counts a prompt once, however many answers it has; in a stream, where asked for, it
   follows in a chunk without choices;
 * a fault is an event with an ``error`` object;
 * whatever happened, ``data: [DONE]`` is the last event.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from server.api.completions_parse import Completion
from server.api.delivery import WholeAnswer
from server.api.framing import SSE_DONE, SSE_TYPE, sse_event
from server.api.ollama_write import LEAST_LOGPROB
from server.api.openai_write import FINGERPRINT, error_body, usage_body
from server.chunks import (
    Chunk,
    FaultChunk,
    FinishChunk,
    FinishReason,
    TextChunk,
    TokenLogprob,
    Usage,
)

Json = dict[str, Any]


class CompletionWriter:
    """Writes the objects of one response."""

    content_type = SSE_TYPE

    def __init__(self, completion: Completion, *, id: str, created_s: int) -> None:  # noqa: A002 - the field's name
        self._completion = completion
        self._head = {
            "id": id,
            "object": "text_completion",
            "created": created_s,
            "model": completion.requests[0].model,
            "system_fingerprint": FINGERPRINT,
        }
        self._said = [""] * len(completion.requests)
        self._begun: set[int] = set()
        self._usages: dict[int, Usage] = {}

    def write(self, index: int, chunk: Chunk) -> Iterable[bytes]:
        """The events of one chunk of one answer; reasoning has no place here."""
        if self._completion.echo and index not in self._begun:
            yield self._event(index, self._completion.requests[index].prompt)
        self._begun.add(index)
        if isinstance(chunk, TextChunk):
            yield self._event(index, chunk.text, logprobs=chunk.logprobs)
        elif isinstance(chunk, FinishChunk):
            self._usages[index] = chunk.usage
            yield self._event(index, "", finish=_finish(chunk.reason))

    def end(self) -> Iterable[bytes]:
        """Usage, if it is wanted, and the end."""
        if self._completion.include_usage:
            yield sse_event(self._head | {"choices": [], "usage": self._usage()})
        yield SSE_DONE

    def fault(self, fault: FaultChunk) -> Iterable[bytes]:
        """The error, and the end."""
        yield sse_event(error_body(fault.message, fault.status))
        yield SSE_DONE

    def whole(self, answers: Sequence[WholeAnswer]) -> Json:
        """The one object of a response that is not streamed."""
        self._usages = {index: answer.finish.usage for index, answer in enumerate(answers)}
        told = [answers[index] for index in self._told(answers)]
        asked = [self._completion.requests[index] for index in self._told(answers)]
        choices = []
        for index, (request, answer) in enumerate(zip(asked, told, strict=True)):
            echoed = request.prompt if self._completion.echo else ""
            choices.append(
                self._choice(
                    index,
                    echoed + answer.text,
                    logprobs=answer.logprobs,
                    offset=len(echoed),
                    finish=_finish(answer.finish.reason),
                )
            )
        return self._head | {"choices": choices, "usage": self._usage()}

    def _told(self, answers: Sequence[WholeAnswer]) -> Iterator[int]:
        """Which answers are told: of each prompt the likeliest, in the order of their making."""
        made, n = self._completion.best_of, self._completion.n
        for first in range(0, len(answers), made):
            group = range(first, first + made)
            best = sorted(group, key=lambda index: -_likelihood(answers[index]))[:n]
            yield from (best if made > n else group)

    def _event(
        self,
        index: int,
        text: str,
        *,
        logprobs: Sequence[TokenLogprob] = (),
        finish: str | None = None,
    ) -> bytes:
        offset = len(self._said[index])
        self._said[index] += text
        choice = self._choice(index, text, logprobs=logprobs, offset=offset, finish=finish)
        return sse_event(self._head | {"choices": [choice]})

    def _choice(
        self,
        index: int,
        text: str,
        *,
        logprobs: Sequence[TokenLogprob],
        offset: int,
        finish: str | None,
    ) -> Json:
        wanted = self._completion.logprobs and logprobs
        return {
            "text": text,
            "index": index,
            "logprobs": _logprobs(logprobs, offset=offset) if wanted else None,
            "finish_reason": finish,
        }

    def _usage(self) -> Json:
        made = self._completion.best_of
        prompts = [usage for index, usage in self._usages.items() if index % made == 0]
        return usage_body(
            Usage(
                prompt_tokens=sum(usage.prompt_tokens for usage in prompts),
                cached_tokens=sum(usage.cached_tokens for usage in prompts),
                completion_tokens=sum(usage.completion_tokens for usage in self._usages.values()),
            )
        )


def _logprobs(entries: Sequence[TokenLogprob], *, offset: int) -> Json:
    """The legacy form: four lists, one entry per token; offsets count characters."""
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry.token)
    return {
        "tokens": [entry.token for entry in entries],
        "token_logprobs": [max(entry.logprob, LEAST_LOGPROB) for entry in entries],
        "top_logprobs": [
            {token: max(logprob, LEAST_LOGPROB) for token, _, logprob in entry.top} or None
            for entry in entries
        ],
        "text_offset": offsets,
    }


def _likelihood(answer: WholeAnswer) -> float:
    """The mean log-probability of the answer's tokens; what has none is least likely."""
    entries = answer.logprobs
    if not entries:
        return LEAST_LOGPROB
    return sum(max(entry.logprob, LEAST_LOGPROB) for entry in entries) / len(entries)


def _finish(reason: FinishReason) -> str:
    return "length" if reason in {FinishReason.LENGTH, FinishReason.TIMEOUT} else "stop"
