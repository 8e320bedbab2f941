"""What a client asks for, in the vocabulary every dialect is translated into. Pure values.

Ollama's and OpenAI's bodies become a `ChatRequest` or `GenerateRequest`; what comes back from
the model is a stream of `server.chunks.Chunk`. Nothing here knows HTTP, the store, or the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.wishes import Constraint

JsonObject = Mapping[str, Any]


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
class Tool:
    """A function the model may call.

    Attributes:
        parameters: the JSON schema of its arguments, as the client sent it.
        strict: refuse a schema that cannot be enforced in full.
        raw: all that the client said of it.
    """

    name: str
    description: str
    parameters: JsonObject
    strict: bool = False
    raw: JsonObject = field(default_factory=dict)


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
        refusal: what is wrong with the body, and is told only of a model that was found.
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
    refusal: str = ""


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
        continued: the last message is how the answer begins; what is told goes on behind it.
    """

    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    continued: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Snippet:
    """A text beside a gap; ``name`` is a file's, or empty."""

    text: str
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Infill:
    """A gap to be filled.

    Attributes:
        prefix: what stands before it.
        suffix: what stands behind it.
        lead: how what fills it begins.
        others: texts that may help, the most important last.
    """

    prefix: str
    suffix: str
    lead: str = ""
    others: tuple[Snippet, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest(RequestOptions):
    """A single prompt to be completed.

    Attributes:
        prompt: a text; it goes through the template unless ``raw``.
        tokens: token ids to be continued as they are, in place of a prompt.
        infill: a gap to be filled, in place of a prompt.
        lines_s: once this many seconds have gone since the first token, the answer ends with the
            line it is in; 0 for never.
    """

    prompt: str = ""
    tokens: tuple[int, ...] = ()
    infill: Infill | None = None
    lines_s: float = 0.0
    system: str | None = None
    template: str | None = None
    suffix: str = ""
    raw: bool = False
    context: tuple[int, ...] = ()
    images: tuple[bytes, ...] = ()
