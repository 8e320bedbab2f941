"""Try a model on texts: the engine's child process. Run as ``python -P -m hwprobe.trying``.

One JSON request on stdin, ``{"model_path", "settings", "trials"}``; one JSON answer,
``{"ok": true, "outcomes": […]}`` or ``{"ok": false, "message": …}``. The sandbox closes before the
model is opened. It dies with its parent, and the kernel takes it first when memory runs out.
"""

from __future__ import annotations

import ctypes
import json
import math
from typing import Any

import numpy as np
from jsonschema.validators import Draft202012Validator
from jsonschema_specifications import REGISTRY
from llama_cpp import llama_cpp as api
from numpy.typing import NDArray

from hwprobe import sandbox
from hwprobe.dryrun import (
    EngineRefusedError,
    answer_once,
    decode,
    keep_log,
    last_words,
    open_context,
    open_model,
    read_settings,
)
from hwprobe.settings import EngineSettings
from hwprobe.trial import MAX_TEXT_TOKENS

_MAX_TOKENS = 4096
_PIECE_BYTES = 256


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    settings = read_settings(request["settings"])
    api.llama_log_set(keep_log, ctypes.c_void_p(0))
    api.llama_backend_init()
    sandbox.enter(read_only=settings.num_gpu == 0)
    try:
        with open_model(request["model_path"], settings, no_alloc=False) as model:
            outcomes = [_try(model, settings, trial) for trial in request["trials"]]
    except EngineRefusedError as error:
        return {"ok": False, "message": str(error)}
    return {"ok": True, "outcomes": outcomes}


def _try(model: Any, settings: EngineSettings, trial: dict[str, Any]) -> dict[str, Any]:
    tokens = _tokens(model, trial["text"])
    if len(tokens) + trial["max_tokens"] > settings.num_ctx or len(tokens) > settings.num_batch:
        raise EngineRefusedError(f"a text of {len(tokens)} tokens is more than the trial's context")
    blank = {"mean_nll": 0.0, "margins": [], "text": "", "fits_schema": "", "vector": []}
    rows = MAX_TEXT_TOKENS if trial["kind"] == "likelihood" else None
    with open_context(model, settings, outputs=rows) as context:
        match trial["kind"]:
            case "likelihood":
                found: dict[str, Any] = {"tokens": tokens, "mean_nll": _nll(context, model, tokens)}
            case "greedy":
                found = _greedy(context, model, tokens, trial)
            case _:
                found = {"tokens": tokens, "vector": _vector(context, model, tokens)}
    return {**blank, **found}


def _tokens(model: Any, text: str) -> list[int]:
    data = text.encode()
    array = (api.llama_token * _MAX_TOKENS)()
    vocabulary = api.llama_model_get_vocab(model)
    count = api.llama_tokenize(vocabulary, data, len(data), array, _MAX_TOKENS, True, True)
    if count < 1:
        raise EngineRefusedError("a text has no token, or too many")
    return list(array[:count])


def _nll(context: Any, model: Any, tokens: list[int]) -> float:
    """Mean negative log-likelihood of each token after the first, in nats."""
    if not 2 <= len(tokens) <= MAX_TEXT_TOKENS:  # noqa: PLR2004 - one is predicted from none
        raise EngineRefusedError(
            f"a text of {len(tokens)} tokens: expected 2 to {MAX_TEXT_TOKENS} for a likelihood"
        )
    batch = api.llama_batch_init(len(tokens), 0, 1)
    try:
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place] = token
            batch.pos[place] = place
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = 0
            batch.logits[place] = 1
        status = api.llama_decode(context, batch)
    finally:
        api.llama_batch_free(batch)
    if status != 0:
        raise EngineRefusedError(last_words(f"decoding {len(tokens)} tokens gave {status}"))
    losses = []
    for place, token in enumerate(tokens[1:]):
        row = _row(context, model, place)
        top = float(row.max())
        losses.append(top + math.log(float(np.exp(row - top).sum())) - float(row[token]))
    return sum(losses) / len(losses)


def _row(context: Any, model: Any, place: int) -> NDArray[np.float64]:
    size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    pointer = api.llama_get_logits_ith(context, place)
    if not pointer:
        raise EngineRefusedError("decoding gave no logits")
    row: NDArray[np.float64] = np.ctypeslib.as_array(pointer, shape=(size,)).astype(np.float64)
    if not np.isfinite(row).all():
        raise EngineRefusedError("decoding gave logits that are no usable numbers")
    return row


def _greedy(context: Any, model: Any, tokens: list[int], trial: dict[str, Any]) -> dict[str, Any]:
    vocabulary = api.llama_model_get_vocab(model)
    found: list[int] = []
    margins: list[float] = []
    decode(context, tokens)
    while len(found) < trial["max_tokens"]:
        row = _row(context, model, -1)
        best = int(row.argmax())
        second = float(np.partition(row, -2)[-2]) if len(row) > 1 else -math.inf
        if api.llama_vocab_is_eog(vocabulary, best):
            break
        found.append(best)
        margins.append(min(float(row[best]) - second, 1e6))
        if len(found) < trial["max_tokens"]:
            decode(context, [best])
    text = b"".join(_piece(vocabulary, token) for token in found).decode(errors="replace")
    fits = _misfit(trial["schema"], text) if trial["schema"] else ""
    return {"tokens": found, "margins": margins, "text": text, "fits_schema": fits}


def _piece(vocabulary: Any, token: int) -> bytes:
    buffer = ctypes.create_string_buffer(_PIECE_BYTES)
    size = api.llama_token_to_piece(vocabulary, token, buffer, _PIECE_BYTES, 0, False)
    return buffer.raw[: max(size, 0)]


def _misfit(schema: str, text: str) -> str:
    """Why a text is not JSON of that schema; empty when it is. References lead nowhere else."""
    try:
        value = json.loads(text)
    except ValueError:
        return "the answer is not JSON"
    validator = Draft202012Validator(json.loads(schema), registry=REGISTRY)
    error = next(validator.iter_errors(value), None)
    return "" if error is None else f"{error.json_path}: {error.validator}"


def _vector(context: Any, model: Any, tokens: list[int]) -> list[float]:
    decode(context, tokens)
    pooling = api.llama_pooling_type(context)
    if pooling == api.LLAMA_POOLING_TYPE_NONE:
        pointer = api.llama_get_embeddings_ith(context, -1)
    else:
        pointer = api.llama_get_embeddings_seq(context, 0)
    if not pointer:
        raise EngineRefusedError("the model gave no vector")
    values = np.ctypeslib.as_array(pointer, shape=(api.llama_model_n_embd_out(model),))
    length = float(np.linalg.norm(values.astype(np.float64)))
    if not math.isfinite(length) or length == 0:
        raise EngineRefusedError("the model gave a vector that is no usable number")
    return [float(value) / length for value in values]


if __name__ == "__main__":
    answer_once(_answer)
