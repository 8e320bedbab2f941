"""What an answer is made of, in the vocabulary every dialect is translated from. Pure values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from server.chat import ToolCall


class FinishReason(Enum):
    """Why an answer ended, in Ollama's words; ``timeout`` is ours: its time was over."""

    STOP = "stop"
    LENGTH = "length"
    TIMEOUT = "timeout"
    LOAD = "load"
    UNLOAD = "unload"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an answer cost.

    Attributes:
        prompt_tokens: tokens of the prompt.
        cached_tokens: of these, taken from the KV cache without computing.
        completion_tokens: tokens generated.
        reasoning_tokens: of these, those whose text was reasoning.
        drafted_tokens: tokens that a draft model proposed and that were computed.
        draft_tokens_accepted: of these, those that were said.
        load_s: seconds the request waited for the model to load.
        prompt_s: seconds from the first prompt token computed to the first token sampled.
        eval_s: seconds from there to the last token.
        total_s: seconds from the arrival of the request to its end.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    drafted_tokens: int = 0
    draft_tokens_accepted: int = 0
    load_s: float = 0.0
    prompt_s: float = 0.0
    eval_s: float = 0.0
    total_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """One token with its natural-log probability and the likeliest alternatives."""

    token: str
    token_bytes: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StartChunk:
    """The first words are there; only requests that want it `announced` are told.

    Attributes:
        prompt_tokens: tokens of the prompt.
    """

    kind: Literal["start"] = "start"
    prompt_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextChunk:
    """Some more visible text."""

    kind: Literal["text"] = "text"
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingChunk:
    """Some more reasoning text."""

    kind: Literal["thinking"] = "thinking"
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallStartChunk:
    """A tool call begins: its name is known, its arguments follow.

    Only dialects that stream arguments need this and `ToolCallDeltaChunk`: a call that comes to
    its end is told whole by a `ToolCallChunk`. One that breaks off has none, and what the model
    wrote of it follows as text. Calls do not overlap.

    Attributes:
        index: counts the calls of an answer that began, from 0.
        id: of the call.
    """

    kind: Literal["tool_call_start"] = "tool_call_start"
    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDeltaChunk:
    """Some more of a call's arguments; of a whole call they concatenate to one JSON object."""

    kind: Literal["tool_call_delta"] = "tool_call_delta"
    index: int
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallChunk:
    """One whole tool call.

    Attributes:
        call: the call.
        streamed: it was told before by a `ToolCallStartChunk` and its deltas.
    """

    kind: Literal["tool_call"] = "tool_call"
    call: ToolCall
    streamed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Conformity:
    """Whether an answer fits a schema that was enforced in part.

    Attributes:
        relaxed: keywords that were not enforced.
        valid: whether the answer fits all the same; ``None`` where that was not found out.
        error: where it does not, and which keyword says so; empty where it does.
    """

    relaxed: tuple[str, ...]
    valid: bool | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishChunk:
    """The end of an answer, exactly one per request that did not fault.

    Attributes:
        reason: why it ended.
        usage: what it cost.
        context: tokens of prompt and answer, for the deprecated ``context`` field.
        conformity: of an answer whose schema was enforced in part, else ``None``.
    """

    kind: Literal["finish"] = "finish"
    reason: FinishReason
    usage: Usage
    context: tuple[int, ...] = ()
    conformity: Conformity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultChunk:
    """The answer broke off; nothing follows. The dialect tells the client in its own words."""

    kind: Literal["fault"] = "fault"
    message: str
    status: int = 500


Piece = TextChunk | ThinkingChunk | ToolCallStartChunk | ToolCallDeltaChunk | ToolCallChunk
"""What an answer is made of, before its end."""

Chunk = StartChunk | Piece | FinishChunk | FaultChunk
