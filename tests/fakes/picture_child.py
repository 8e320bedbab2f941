"""What the engine's own helpers make of pictures between tokens, in a child process.

``continued(model, projector, [(5, 6), PNG, (7,)], 8)`` are the likeliest next tokens. The helpers
place a picture's rows by themselves, so they tell whether ours stand where they should.
"""

from __future__ import annotations

import base64
import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Part = tuple[int, ...] | bytes


def continued(model: Path, projector: Path, parts: Sequence[Part], count: int) -> tuple[int, ...]:
    """The greedy answer to tokens and image files."""
    coded = [base64.b64encode(p).decode() if isinstance(p, bytes) else p for p in parts]
    request = {"model": str(model), "projector": str(projector), "parts": coded, "count": count}
    done = subprocess.run(
        [sys.executable, "-P", __file__],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return tuple(json.loads(done.stdout))


class Reference:
    """One sequence, continued part by part."""

    def __init__(self, model: str, projector: str) -> None:
        import llama_cpp
        from llama_cpp import mtmd_cpp

        self.api, self.eyes = llama_cpp, mtmd_cpp
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(model.encode(), params)
        assert self.model
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = 512
        settings.n_threads = 1
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        assert self.context
        self.sight = mtmd_cpp.mtmd_init_from_file(
            projector.encode(), self.model, mtmd_cpp.mtmd_context_params_default()
        )
        assert self.sight
        self.position = 0

    def read(self, tokens: Sequence[int]) -> None:
        batch = self.api.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place] = token, self.position + place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = place == len(tokens) - 1
        assert self.api.llama_decode(self.context, batch) == 0
        self.position += len(tokens)

    def look(self, data: bytes) -> None:
        eyes: Any = self.eyes
        buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        bitmap = eyes.mtmd_helper_bitmap_init_from_buf(self.sight, buffer, len(data), False)
        chunks = eyes.mtmd_input_chunks_init()
        part = eyes.mtmd_input_part(text=None, bitmap=bitmap)
        parts = (ctypes.POINTER(eyes.mtmd_input_part) * 1)(ctypes.pointer(part))
        assert eyes.mtmd_tokenize_from_parts(self.sight, chunks, parts, 1, False) == 0
        behind = ctypes.c_int32()
        done = eyes.mtmd_helper_eval_chunks(
            self.sight, self.context, chunks, self.position, 0, 512, True, ctypes.byref(behind)
        )
        assert done == 0
        self.position = behind.value

    def likeliest(self) -> int:
        size = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))
        row = self.api.llama_get_logits_ith(self.context, -1)[:size]
        return int(max(range(size), key=row.__getitem__))


def main() -> None:
    request = json.load(sys.stdin)
    reference = Reference(request["model"], request["projector"])
    for part in request["parts"]:
        if isinstance(part, str):
            reference.look(base64.b64decode(part))
        else:
            reference.read(part)
    said: list[int] = []
    for _ in range(request["count"]):
        said.append(reference.likeliest())
        reference.read(said[-1:])
    sys.stdout.write(json.dumps(said))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
