"""Ask the engine about a GGUF file, in a child process: it may abort.

answer = ask(path, [{"tokenize": "text"}, {"logits": [1, 2, 3]}, {"embed": [101, 7592, 102]}])

``{"hidden": [1, 2]}`` are the vectors of all tokens, before they are pooled.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def ask(path: Path, questions: Sequence[dict[str, Any]], adapter: Path | None = None) -> list[Any]:
    """Each question's answer: token ids, logits of every position, or one embedding."""
    request = {"path": str(path), "ask": list(questions), "adapter": str(adapter or "")}
    done = subprocess.run(
        [sys.executable, "-P", __file__],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answers: list[Any] = json.loads(done.stdout)
    return answers


def main() -> None:
    import llama_cpp

    request = json.load(sys.stdin)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        os.fsencode(request["path"]), llama_cpp.llama_model_default_params()
    )
    assert model
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    adapter = None
    if request["adapter"]:
        adapter = llama_cpp.llama_adapter_lora_init(model, os.fsencode(request["adapter"]))
        assert adapter
    answers = [answer(llama_cpp, model, vocabulary, adapter, one) for one in request["ask"]]
    sys.stdout.write(json.dumps(answers))
    sys.stdout.flush()


def answer(api: Any, model: Any, vocabulary: Any, adapter: Any, question: dict[str, Any]) -> Any:
    if "tokenize" in question:
        data = question["tokenize"].encode()
        room = (ctypes.c_int32 * (len(data) + 8))()
        special = question.get("special", True)
        count = api.llama_tokenize(vocabulary, data, len(data), room, len(room), special, True)
        assert count >= 0
        return list(room[:count])
    tokens = question.get("logits") or question.get("embed") or question["hidden"]
    settings = api.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = max(64, len(tokens))
    settings.embeddings = "logits" not in question
    if "hidden" in question:
        settings.pooling_type = api.LLAMA_POOLING_TYPE_NONE
    settings.type_k = settings.type_v = 0  # 32 bits: the reference has no rounding either
    settings.flash_attn_type = 0
    settings.n_threads = 1
    context = api.llama_init_from_model(model, settings)
    assert context
    if adapter is not None:
        adapters = (api.llama_adapter_lora_p_ctypes * 1)(adapter)
        scales = (ctypes.c_float * 1)(1.0)
        assert api.llama_set_adapters_lora(context, adapters, 1, scales) == 0
    batch = api.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for place, token in enumerate(tokens):
        batch.token[place], batch.pos[place] = token, place
        batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
    assert api.llama_decode(context, batch) == 0
    if "hidden" in question:
        width = api.llama_model_n_embd(model)
        return [api.llama_get_embeddings_ith(context, at)[:width] for at in range(len(tokens))]
    if "embed" in question:
        width = api.llama_model_n_embd(model)
        found: list[float] = api.llama_get_embeddings_seq(context, 0)[:width]
        return found
    width = api.llama_vocab_n_tokens(vocabulary)
    return [api.llama_get_logits_ith(context, place)[:width] for place in range(len(tokens))]


if __name__ == "__main__":
    main()
