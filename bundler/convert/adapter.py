"""A LoRA adapter of PEFT's layout, made into a GGUF adapter for the model it is packed with.

Sources: PEFT's ``adapter_config.json`` and parameter names; the keys and tensor names that
``llama_adapter_lora_init`` of llama.cpp asks for.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bundler.convert.directory import pair_rows
from bundler.convert.families import FAMILIES, gguf_name
from bundler.convert.settings import Settings
from bundler.convert.tensors import StoredTensor, read_tensors
from bundler.convert.writing import OutTensor, write_model
from bundler.errors import PackError
from bundler.progress import Progress
from hwprobe.gguf import GgufHeader

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
_MAX_CONFIG_BYTES: Final = 1 << 20
_NAME: Final = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")


def is_adapter(path: Path) -> bool:
    """Whether a path is a directory as PEFT writes one."""
    return path.is_dir() and (path / CONFIG).is_file()


def convert_adapter(directory: Path, base: GgufHeader, target: Path, progress: Progress) -> None:
    """Write the adapter of a directory as a GGUF file.

    Args:
        directory: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        base: header of the model it is for.
        target: must not exist.
        progress: shows the bytes written.

    Raises:
        PackError: another kind of adapter, of another model, or with parts not understood.
        SourceDamagedError: its weights are cut off.
    """
    config = _config(directory / CONFIG)
    architecture = base.string("general.architecture")
    family = next((one for one in FAMILIES.values() if one.architecture == architecture), None)
    if family is None or family.encoder:
        raise PackError(
            f"{directory}: adapters of the {architecture} family are not converted",
            hint="give the adapter as a GGUF file",
        )
    heads = base.integer(f"{architecture}.attention.head_count")
    kv_heads = base.integer(f"{architecture}.attention.head_count_kv", heads)
    shapes = {one.name: one.dimensions for one in base.tensors}
    if not (directory / WEIGHTS).is_file():
        raise PackError(f"{directory}: expected {WEIGHTS}, found none")
    tensors: list[OutTensor] = []
    for one in sorted(read_tensors((directory / WEIGHTS,)).values(), key=lambda part: part.name):
        match = _NAME.fullmatch(one.name)
        named = gguf_name(f"{match[1]}.weight", family) if match else None
        if match is None or named is None:
            raise PackError(f"{WEIGHTS}: {one.name:.120}: expected LoRA weights, found others")
        _check_shape(one, named.name, match[2], shapes)
        regroup = {"query": heads, "key": kv_heads}.get(named.change) if match[2] == "B" else None
        tensors.append(_out(one, f"{named.name}.lora_{match[2].lower()}", regroup))
    pairs = [name.rpartition(".")[0] for name in sorted(part.name for part in tensors)]
    if not tensors or pairs[::2] != pairs[1::2]:
        raise PackError(f"{WEIGHTS}: expected pairs of lora_A and lora_B")
    write_model(
        target,
        architecture=architecture,
        keys={
            "general.type": "adapter",
            "adapter.type": "lora",
            "adapter.lora.alpha": _alpha(config),
        },
        vocabulary=None,
        tensors=tensors,
        progress=progress,
    )


def _out(one: StoredTensor, name: str, heads: int | None) -> OutTensor:
    """In 32 bits: adapters are small, and their product is added to weights of any type."""

    def make() -> Any:
        data = one.floats()
        return data if heads is None else pair_rows(data, heads)

    return OutTensor(name=name, shape=one.shape, kind="F32", make=make)


def _check_shape(
    one: StoredTensor, name: str, side: str, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """A is rank by columns, B rows by rank, of the matrix they are added to."""
    columns, rows = shapes.get(name, (0, 0))[:2]
    found, expected = (one.shape[-1], columns) if side == "A" else (one.shape[0], rows)
    if len(one.shape) != 2 or found != expected:  # noqa: PLR2004 - matrices
        raise PackError(
            f"{WEIGHTS}: {one.name:.120}: expected weights for a matrix of {rows} by {columns}, "
            f"found {' by '.join(map(str, one.shape))}",
            hint="the adapter was made for another model",
        )


def _alpha(config: Settings) -> float:
    """The engine scales by alpha over rank; rank-stabilized LoRA by alpha over its root."""
    alpha = config.number("lora_alpha")
    return (
        alpha * math.sqrt(config.integer("r"))
        if config.flag("use_rslora", default=False)
        else (alpha)
    )


def _config(path: Path) -> Settings:
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise PackError(f"{path}: expected at most {_MAX_CONFIG_BYTES} bytes")
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise PackError(f"{path}: expected JSON, found something else") from error
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        raise PackError(f"{path}: peft_type: expected LORA, found something else")
    config = Settings(values, CONFIG)
    for name in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save"):
        if values.get(name):
            config.refuse(name, "none: it is not converted", values[name])
    if values.get("bias", "none") != "none":
        config.refuse("bias", "none", values["bias"])
    return config
