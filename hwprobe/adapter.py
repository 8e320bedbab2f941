"""LoRA adapters: whether one goes with a model, and what it adds to the model's memory. Pure.

An adapter holds, for each matrix it changes, two thin ones, ``NAME.lora_a`` and ``NAME.lora_b``.
The engine keeps them beside the matrix they belong to, block by block.
Source: llama_adapter_lora_init_impl in llama-adapter.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from hwprobe.errors import AdapterError
from hwprobe.gguf import GgufHeader, ModelProfile, TensorInfo
from hwprobe.profile import TENSOR_ALIGNMENT_BYTES

_SUFFIXES = (".lora_a", ".lora_b")
_BLOCK = re.compile(r"blk\.([0-9]{1,4})\.")
_TRANSPOSED = "token_embd.weight"
"""Its adapter changes rows that are looked up, so its shapes stand the other way round."""


def check_adapter(adapter: GgufHeader, model: GgufHeader) -> None:
    """Refuse an adapter that is none, or one for another model.

    Raises:
        AdapterError: it is; the message names what differs.
    """
    kind = (adapter.string("general.type", ""), adapter.string("adapter.type", ""))
    if kind != ("adapter", "lora"):
        found = "/".join(part for part in kind if part) or "neither type"
        raise AdapterError(f"adapter: expected a LoRA adapter, found {found}")
    wanted = model.string("general.architecture", "")
    architecture = adapter.string("general.architecture", "")
    if architecture != wanted:
        raise AdapterError(f"adapter: expected one for {wanted}, found one for {architecture}")
    matrices = {tensor.name: tensor for tensor in model.tensors}
    parts = {tensor.name: tensor for tensor in adapter.tensors}
    for name in parts:
        if not name.endswith(_SUFFIXES):
            raise AdapterError(f"adapter: expected pairs of matrices, found {name}")
        base = name.rpartition(".")[0]
        if any(base + suffix not in parts for suffix in _SUFFIXES):
            raise AdapterError(f"adapter: expected two matrices for {base}, found one")
        if base not in matrices:
            raise AdapterError(f"adapter: changes {base}, which the model has not")
        _check_shapes(matrices[base], *(parts[base + suffix] for suffix in _SUFFIXES))
    if not parts:
        raise AdapterError("adapter: expected pairs of matrices, found none")


def adapted(profile: ModelProfile, adapters: Sequence[GgufHeader]) -> ModelProfile:
    """The profile with the memory of adapters added to the blocks they belong to."""
    blocks = list(profile.block_bytes)
    elsewhere = 0
    for tensor in (tensor for adapter in adapters for tensor in adapter.tensors):
        size = -(-tensor.size_bytes // TENSOR_ALIGNMENT_BYTES) * TENSOR_ALIGNMENT_BYTES
        match = _BLOCK.match(tensor.name)
        if match and int(match[1]) < len(blocks):
            blocks[int(match[1])] += size
        else:
            elsewhere += size
    added = elsewhere + sum(blocks) - sum(profile.block_bytes)
    return replace(
        profile,
        block_bytes=tuple(blocks),
        output_bytes=profile.output_bytes + elsewhere,
        weights_bytes=profile.weights_bytes + added,
    )


def _check_shapes(matrix: TensorInfo, down: TensorInfo, up: TensorInfo) -> None:
    shapes = (matrix.dimensions, down.dimensions, up.dimensions)
    if any(len(shape) < 2 for shape in shapes):  # noqa: PLR2004 - rows and columns
        fits = False
    elif matrix.name == _TRANSPOSED:
        fits = matrix.dimensions[:2] == (up.dimensions[1], down.dimensions[1])
        fits = fits and down.dimensions[0] == up.dimensions[0]
    else:
        fits = matrix.dimensions[:2] == (down.dimensions[0], up.dimensions[1])
        fits = fits and down.dimensions[1] == up.dimensions[0]
    if not fits:
        raise AdapterError(
            f"adapter: its matrices for {matrix.name} have shapes {down.dimensions} and "
            f"{up.dimensions}, which do not go with {matrix.dimensions}"
        )
