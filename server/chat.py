"""The vocabulary every dialect is translated into, and out of. Pure values.

Ollama's and OpenAI's bodies become a `ChatRequest` or `GenerateRequest`; what comes back from
the model is a stream of `Chunk`. Nothing here knows HTTP, the store, or the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

JsonObject = Mapping[str, Any]


class FinishReason(Enum):
    """Why an answer ended, in Ollama's words; ``timeout`` is ours: its time was over."""

    STOP = "stop"
    LENGTH = "length"
    TIMEOUT = "timeout"
    LOAD = "load"
    UNLOAD = "unload"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call the model asks for; ``arguments`` is an object, in the model's key order."""

    id: str
    name: str
    arguments: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: ``system``, ``user``, ``assistant`` or ``tool``; others pass as they are.
        content: the visible text.
        thinking: the reasoning text of an assistant turn.
        images: decoded image files.
        tool_calls: calls of an assistant turn.
        tool_name: in a tool turn, whose result this is.
        tool_call_id: in a tool turn, which call it answers.
    """

    role: str
    content: str = ""
    thinking: str = ""
    images: tuple[bytes, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_name: str = ""
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How tokens are chosen. Defaults are Ollama's (server options, August 2026).

    Those of DRY, XTC and top-n-sigma are llama-server's.

    Attributes:
        seed: -1 draws one at random.
        num_predict: most tokens to generate; negative means ten times the context.
        num_keep: prompt tokens kept when the context is shifted.
        stop: texts that end the answer; they are not part of it.
        mirostat: 0 off, 1 or 2; tau and eta belong to it.
        dry_multiplier: of the penalty for repeating a sequence; 0 turns it off. It grows by
            ``dry_base`` with each token beyond ``dry_allowed_length``, and looks at the last
            ``dry_penalty_last_n`` tokens (-1: the context) since one of the breakers.
        xtc_probability: how often all but the last token over ``xtc_threshold`` are left out.
        top_n_sigma: tokens more standard deviations below the likeliest are left out; 0 and less
            keep all.
        speculate: tokens may be computed before it is known that they come.
        logit_bias: pairs of token id and bias added to its logit.
        lora: pairs of an adapter's number and its scale; adapters that are not named count 0.
            ``None`` applies them as the model was loaded.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    top_n_sigma: float = -1.0
    seed: int = -1
    num_predict: int = -1
    num_keep: int = 4
    stop: tuple[str, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    lora: tuple[tuple[int, float], ...] | None = None
    speculate: bool = True


ConstraintKind = Literal["json", "json_schema", "regex", "lark", "gbnf"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoning:
    """What stands around the reasoning that may come before an answer.

    Attributes:
        open: what it begins with.
        close: what it ends with.
        opened: the prompt already ended inside it.
    """

    open: str
    close: str
    opened: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """What an answer may look like, whoever asks for it.

    Attributes:
        kind: what ``source`` is; ``json`` is any JSON object and needs none.
        source: a JSON schema as JSON text, a regular expression, or a grammar.
        strict: refuse a schema that cannot be enforced in full, instead of enforcing the rest.
        after: the answer is free until one of these texts has been said, bound behind it, and
            free again once what is bound is complete. Empty: bound from the beginning to the end.
        reasoning: reasoning is free; what is bound begins behind it.
        lead: a Lark expression for what must be said before ``source``, in the same breath.
    """

    kind: ConstraintKind
    source: str = ""
    strict: bool = False
    after: tuple[str, ...] = ()
    reasoning: Reasoning | None = None
    lead: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What a request may ask of the load; ``None`` leaves it to placement.

    Attributes:
        num_ctx: context per slot in tokens.
        num_batch: most tokens per decode call.
        num_gpu: layers on GPUs; -1 means automatic.
        num_thread: CPU threads; 0 means automatic.
        use_mmap: map the file.
    """

    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    num_thread: int | None = None
    use_mmap: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function the model may call; ``parameters`` is its JSON schema, as the client sent it."""

    name: str
    description: str
    parameters: JsonObject
    raw: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an answer cost.

    Attributes:
        prompt_tokens: tokens of the prompt.
        cached_tokens: of these, taken from the KV cache without computing.
        completion_tokens: tokens generated.
        reasoning_tokens: of these, those whose text was reasoning.
        load_s: seconds the request waited for the model to load.
        prompt_s: seconds from the first prompt token computed to the first token sampled.
        eval_s: seconds from there to the last token.
        total_s: seconds from the arrival of the request to its end.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """What generate and chat share.

    Attributes:
        model: the name as the client typed it; answers echo this spelling.
        options: native ``options`` as sent (already type-checked), to be laid over the model's.
        keep_alive_s: seconds the model stays after this request; negative means for ever,
            ``None`` the server's default.
        constraint: what the answer may look like; ``None`` for anything.
        think: ``None`` lets the model's template decide; a level is a non-empty string.
        think_if_able: ``think`` is a wish: a model that cannot think answers without.
        top_logprobs: ``None`` without log-probabilities, else how many alternatives.
        announced: the answer begins with a `StartChunk`.
        tenant: a label of the key it came with; empty without keys.
    """

    model: str
    options: JsonObject = field(default_factory=dict)
    keep_alive_s: float | None = None
    stream: bool = True
    constraint: Constraint | None = None
    think: bool | str | None = None
    think_if_able: bool = False
    truncate: bool = True
    shift: bool = True
    top_logprobs: int | None = None
    announced: bool = False
    debug_render_only: bool = False
    tenant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """Whether a tool must be called.

    Attributes:
        demanded: the answer is to be calls, with arguments by the tools' schemas.
        name: the only tool that may be called then; empty for any.
        parallel: several calls may be made, unless a tool is named; otherwise the answer ends with
            the first.
    """

    demanded: bool = False
    name: str = ""
    parallel: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest(RequestOptions):
    """A conversation to be continued.

    Attributes:
        tool_choice: ``tools`` are those it leaves.
    """

    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest(RequestOptions):
    """A single prompt to be completed.

    Attributes:
        prompt: a text; it goes through the template unless ``raw``.
        tokens: token ids to be continued as they are, in place of a prompt.
    """

    prompt: str = ""
    tokens: tuple[int, ...] = ()
    system: str | None = None
    template: str | None = None
    suffix: str = ""
    raw: bool = False
    context: tuple[int, ...] = ()
    images: tuple[bytes, ...] = ()
