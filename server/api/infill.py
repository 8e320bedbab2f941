"""llama-server's ``/infill``, as editors use it: what stands between two texts of a file.

Rules:
 * ``prompt`` continues ``input_prefix``: it is how the line begins that is being written;
 * the model may be left out where only one can fill gaps: editors know one server, one model;
 * fields that steer llama-server's own slots and caches are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import falcon

from server.answer import Answerer
from server.api.body import Fields, read_object
from server.api.delivery import WholeAnswer, client_gone, deliver
from server.api.framing import SSE_TYPE, json_bytes, sse_event
from server.api.guard import asked_by
from server.api.keep_alive import parse_keep_alive
from server.api.openai_write import error_body
from server.api.request_body import read_body
from server.chat import GenerateRequest, Infill, Snippet
from server.chunks import Chunk, FaultChunk, FinishChunk, FinishReason, TextChunk, Usage
from server.errors import BadRequestError
from server.wishes import Constraint

Json = dict[str, Any]

OPTIONS = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "repeat_last_n",
    "presence_penalty", "frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta",
    "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n",
    "dry_sequence_breakers", "xtc_probability", "xtc_threshold", "top_n_sigma", "seed", "stop",
    "lora",
)  # fmt: skip
"""Fields that are options of the same name."""

_RENAMED = {"n_predict": "num_predict", "max_tokens": "num_predict", "n_keep": "num_keep"}
_MS_PER_S = 1000.0


class InfillCall:
    """``/infill``."""

    def __init__(self, *, answerer: Answerer, max_body_bytes: int) -> None:
        self._answerer = answerer
        self._max_body_bytes = max_body_bytes

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Fill a gap."""
        fields = read_object(read_body(req, self._max_body_bytes))
        request = parse_infill(fields)
        shown = tuple(text for text in fields.array("response_fields") if isinstance(text, str))
        writer = InfillWriter(request.model, shown=shown if fields.has("response_fields") else None)
        chunks = self._answerer.generate(asked_by(req, request), client_gone(req))
        deliver(resp, chunks, writer, stream=request.stream)


def parse_infill(fields: Fields) -> GenerateRequest:
    """The body of ``/infill``.

    Raises:
        BadRequestError: a field is missing, has the wrong type or an impossible value.
    """
    for name in ("input_prefix", "input_suffix"):
        if not isinstance(fields.values.get(name), str):
            fields.refuse(name, "string")
    options = dict(fields.object("options").values)
    options |= {name: fields.values[name] for name in OPTIONS if fields.has(name)}
    for name, own in _RENAMED.items():
        if fields.has(name):
            options[own] = fields.integer(name)
    if fields.has("logit_bias"):
        options["logit_bias"] = _bias(fields)
    patience_ms = fields.integer("t_max_predict_ms")
    return GenerateRequest(
        model=fields.string("model"),
        infill=Infill(
            prefix=fields.string("input_prefix"),
            suffix=fields.string("input_suffix"),
            lead=fields.string("prompt"),
            others=tuple(map(_snippet, fields.objects("input_extra"))),
        ),
        lines_s=max(patience_ms, 0) / _MS_PER_S,
        options=options,
        think=False,
        think_if_able=True,
        constraint=_constraint(fields),
        stream=fields.boolean("stream", default=False),
        keep_alive_s=parse_keep_alive(fields.values.get("keep_alive")),
    )


def _snippet(fields: Fields) -> Snippet:
    if not isinstance(fields.values.get("text"), str):
        fields.refuse("text", "string")
    return Snippet(text=fields.string("text"), name=fields.string("filename"))


def _bias(fields: Fields) -> Json:
    """An object of ids and numbers, or llama-server's list of pairs."""
    value = fields.values["logit_bias"]
    if not isinstance(value, list):
        return dict(fields.object("logit_bias").values)
    bias: Json = {}
    for index, pair in enumerate(value):
        match pair:
            case [int(token), False]:
                bias[str(token)] = _NEVER
            case [int(token), int(number) | float(number)]:
                bias[str(token)] = number
            case _:
                at = f"{fields.path('logit_bias')}[{index}]"
                raise BadRequestError(f"{at}: expected a token id and a number")
    return bias


_NEVER = -1000.0
"""What ``false`` means as a bias: more than logits differ by."""


def _constraint(fields: Fields) -> Constraint | None:
    if fields.has("grammar"):
        return Constraint(kind="gbnf", source=fields.string("grammar"))
    if fields.has("json_schema"):
        schema = fields.object("json_schema").values
        return Constraint(kind="json_schema", source=json_bytes(schema).decode())
    return None


class InfillWriter:
    """Writes llama-server's objects of one completion.

    Attributes:
        content_type: of a stream.
    """

    content_type = SSE_TYPE

    def __init__(self, model: str, *, shown: Sequence[str] | None) -> None:
        """Begin; ``shown`` are the fields that the client wants, by their paths; all without."""
        self._model = model
        self._shown = shown

    def write(self, chunk: Chunk) -> Iterable[bytes]:
        """The events of one chunk."""
        match chunk:
            case TextChunk():
                yield sse_event({"index": 0, "content": chunk.text, "tokens": [], "stop": False})
            case FinishChunk():
                yield sse_event(self._told(self._last("", chunk)))
            case FaultChunk():
                yield sse_event(error_body(chunk.message, chunk.status))
            case _:
                return

    def whole(self, answer: WholeAnswer) -> Json:
        """The body of an answer that is not streamed."""
        return self._told(self._last(answer.text, answer.finish))

    def _last(self, text: str, finish: FinishChunk) -> Json:
        usage = finish.usage
        return {
            "index": 0,
            "content": text,
            "tokens": [],
            "stop": True,
            "model": self._model,
            "tokens_predicted": usage.completion_tokens,
            "tokens_evaluated": usage.prompt_tokens,
            "tokens_cached": usage.cached_tokens,
            "truncated": False,
            "stop_type": "limit" if finish.reason is not FinishReason.STOP else "eos",
            "stopping_word": "",
            "has_new_line": "\n" in text,
            "timings": timings(usage),
        }

    def _told(self, body: Json) -> Json:
        if self._shown is None:
            return body
        found = {path: _at(body, path) for path in self._shown}
        return {path: value for path, value in found.items() if value is not None}


def timings(usage: Usage) -> Json:
    """Times in milliseconds and rates, as llama-server names them."""
    computed = usage.prompt_tokens - usage.cached_tokens
    told: Json = {"cache_n": usage.cached_tokens}
    for name, count, seconds in (
        ("prompt", computed, usage.prompt_s),
        ("predicted", usage.completion_tokens, usage.eval_s),
    ):
        told[f"{name}_n"] = count
        told[f"{name}_ms"] = seconds * _MS_PER_S
        told[f"{name}_per_token_ms"] = seconds * _MS_PER_S / count if count else 0.0
        told[f"{name}_per_second"] = count / seconds if seconds else 0.0
    return told


def _at(body: Json, path: str) -> Any:
    """A value by its path; ``None`` if it is not there."""
    value: Any = body
    for name in path.split("/"):
        value = value.get(name) if isinstance(value, dict) else None
    return value
