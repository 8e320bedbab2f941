"""LoRA adapters with random low-rank changes, made for a model's own header."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

from hwprobe.gguf import read_header
from tests.fakes.gguf_writer import Tensor, write_gguf

RANK = 4


def write_adapter(
    path: Path,
    model: Path,
    *,
    seed: int = 1,
    strength: float = 0.2,
    metadata: dict[str, Any] | None = None,
    tensors: list[Tensor] | None = None,
) -> Path:
    """An adapter that changes every query and value matrix of ``model``.

    Args:
        path: the file.
        model: the GGUF file it is for.
        seed: of the changes.
        strength: their standard deviation.
        metadata: keys in place of, or beside, the usual ones.
        tensors: others instead of the usual ones.
    """
    header = read_header(model)
    dice = random.Random(seed)
    if tensors is None:
        tensors = []
        for matrix in header.tensors:
            if matrix.name.endswith(("attn_q.weight", "attn_v.weight")):
                rows, columns = matrix.dimensions
                tensors.append(_filled(f"{matrix.name}.lora_a", (rows, RANK), dice, strength))
                tensors.append(_filled(f"{matrix.name}.lora_b", (RANK, columns), dice, strength))
    keys: dict[str, Any] = {
        "general.type": "adapter",
        "general.architecture": header.string("general.architecture"),
        "adapter.type": "lora",
        "adapter.lora.alpha": float(RANK),
    }
    return write_gguf(path, {**keys, **(metadata or {})}, tensors)


def _filled(name: str, shape: tuple[int, int], dice: random.Random, strength: float) -> Tensor:
    numbers = [dice.gauss(0.0, strength) for _ in range(shape[0] * shape[1])]
    return Tensor(name, shape, "F32", data=struct.pack(f"<{len(numbers)}f", *numbers))
