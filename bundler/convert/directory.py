"""A directory of Hugging Face's layout, made into one GGUF file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bundler.convert.families import (
    Change,
    Family,
    Shape,
    Value,
    family_of,
    gguf_name,
    shape_of,
)
from bundler.convert.rope import rope_of
from bundler.convert.settings import Settings
from bundler.convert.tensors import StoredTensor, checkpoint_files, read_tensors
from bundler.convert.tokenizers import Vocabulary, read_vocabulary
from bundler.convert.writing import GgufType, OutTensor, write_model
from bundler.errors import PackError
from bundler.format.errors import NoSpaceError
from bundler.progress import Progress
from hwprobe.quantity import Bytes

CONFIG: Final = "config.json"
_MAX_JSON_BYTES: Final = 256 << 20
_EXACT: Final = ("position_embd.weight", "token_types.weight")
"""Matrices that are added to vectors, and so stay in 32 bits."""
_POOLING: Final = {"pooling_mode_mean_tokens": 1, "pooling_mode_cls_token": 2}
"""Source: ``enum llama_pooling_type`` in llama.h."""
_HEADER_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What was made.

    Attributes:
        warnings: what the packer should know.
    """

    warnings: tuple[str, ...]


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a directory with a model's configuration."""
    return path.is_dir() and (path / CONFIG).is_file()


def convert_directory(directory: Path, target: Path, progress: Progress) -> Converted:
    """Write the model of a directory as a GGUF file; no more than a tensor is in memory.

    Args:
        directory: with ``config.json``, safetensors files and tokenizer files.
        target: the file to be made.
        progress: shows the bytes written.

    Raises:
        PackError: the model is of another family, or a part of it is not understood.
        SourceDamagedError: a weight file is missing or cut off.
        NoSpaceError: there is no room for the file.
    """
    config = Settings(_required(directory / CONFIG))
    family = family_of(config)
    shape = shape_of(config, family)
    stored = read_tensors(checkpoint_files(directory))
    tensors = list(_tensors(stored, family, shape))
    rows = next((one.shape[0] for one in tensors if one.name == "token_embd.weight"), 0)
    _check_complete(tensors, shape, config, rows)
    vocabulary = _vocabulary(directory, config, rows)
    keys: dict[str, Value] = {"general.name": _name(config, directory)}
    keys |= {f"{family.architecture}.{key}": value for key, value in shape.keys.items()}
    keys[f"{family.architecture}.vocab_size"] = rows
    warnings = [*shape.warnings, *vocabulary.warnings]
    if family.encoder:
        pooling = _pooling(directory, warnings)
        keys[f"{family.architecture}.pooling_type"] = pooling
    else:
        rope = rope_of(config, shape, float(shape.keys["rope.freq_base"]))
        keys |= {f"{family.architecture}.{key}": value for key, value in rope.keys.items()}
        tensors += [_computed(name, data) for name, data in rope.tensors.items()]
    if template := _chat_template(directory):
        keys["tokenizer.chat_template"] = template
    size = sum(one.size_bytes for one in tensors) + _HEADER_BYTES
    if size > (free := shutil.disk_usage(target.parent).free):
        raise NoSpaceError(
            f"{target.parent}: expected {Bytes(size)} free to convert, found {Bytes(free)}",
            hint="give another place with --work",
        )
    write_model(
        target,
        architecture=family.architecture,
        keys=keys,
        vocabulary=vocabulary,
        tensors=tensors,
        progress=progress,
    )
    return Converted(warnings=tuple(warnings))


def _tensors(
    stored: Mapping[str, StoredTensor], family: Family, shape: Shape
) -> Iterator[OutTensor]:
    """Every tensor of the model under its name in GGUF, blocks in order."""
    named = [(gguf_name(one.name, family), one) for one in stored.values()]
    used = sorted(
        ((name, one) for name, one in named if name is not None),
        key=lambda pair: _order(pair[0].name),
    )
    seen: set[str] = set()
    for name, one in used:
        if name.name == "output.weight" and shape.tied:
            continue
        if name.name in seen:
            raise PackError(f"tensor {one.name}: another one is {name.name} already")
        seen.add(name.name)
        if one.dtype not in ("F32", "F16", "BF16"):
            one.raw()  # refuses it with its reason
        yield _out(name.name, name.change, one, shape)


def _order(name: str) -> tuple[int, str]:
    """Embeddings first, then blocks by number, then the rest."""
    if name.startswith("blk."):
        _, number, rest = name.split(".", 2)
        return int(number), rest
    return (-1 if name.startswith(("token", "position")) else 1 << 20), name


def _out(name: str, change: Change, one: StoredTensor, shape: Shape) -> OutTensor:
    is_vector = len(one.shape) < 2  # noqa: PLR2004 - matrices have two dimensions
    exact = is_vector or name in _EXACT or name.endswith("norm.weight")
    kind: GgufType = "F32" if exact else one.dtype  # type: ignore[assignment]

    def make() -> npt.NDArray[Any]:
        data: npt.NDArray[Any] = one.floats() if kind == "F32" else one.raw()
        return _changed(data, change, shape)

    return OutTensor(name=name, shape=one.shape, kind=kind, make=make)


def _changed(data: npt.NDArray[Any], change: Change, shape: Shape) -> npt.NDArray[Any]:
    match change:
        case "":
            return data
        case "shift":
            return data + np.float32(1)
        case "query" | "key":
            heads = shape.heads if change == "query" else shape.kv_heads
            return pair_rows(data, heads)


def pair_rows(data: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Rows of each head from halves to pairs: row i and i + half become neighbours.

    The checkpoint turns element i with element i + half of a head, llama.cpp's llama turns
    neighbours; with the rows regrouped both compute the same.
    """
    half = data.shape[0] // heads // 2
    halves = data.reshape(heads, 2, half, *data.shape[1:])
    return halves.swapaxes(1, 2).reshape(data.shape)


def _computed(name: str, data: npt.NDArray[np.float32]) -> OutTensor:
    return OutTensor(name=name, shape=data.shape, kind="F32", make=lambda: data)


def _check_complete(tensors: list[OutTensor], shape: Shape, config: Settings, rows: int) -> None:
    """Refuse a checkpoint without embedding, or with another number of blocks than it says."""
    if not rows:
        raise PackError("weights: expected an embedding matrix, found none")
    if rows < config.integer("vocab_size", default=rows):
        raise PackError(
            f"weights: expected {config.integer('vocab_size')} rows of the embedding, found {rows}"
        )
    found = {int(one.name.split(".")[1]) for one in tensors if one.name.startswith("blk.")}
    if found != set(range(shape.blocks)):
        raise PackError(
            f"weights: expected {shape.blocks} blocks as config.json says, found {len(found)}",
            hint="a weight file is missing; download it again",
        )
    for one in tensors:
        if one.name.endswith(("attn_q.weight", "attn_k.weight")):
            heads = shape.heads if "attn_q" in one.name else shape.kv_heads
            if one.shape[0] != heads * shape.head_length:
                raise PackError(
                    f"weights: {one.name}: expected {heads * shape.head_length} rows, "
                    f"found {one.shape[0]}"
                )


def _vocabulary(directory: Path, config: Settings, rows: int) -> Vocabulary:
    tokenizer = _optional(directory / "tokenizer.json")
    described = _optional(directory / "tokenizer_config.json") or {}
    model = directory / "tokenizer.model"
    pieces = model.read_bytes() if model.is_file() else None
    found = read_vocabulary(tokenizer, pieces, described, rows)
    generation = _optional(directory / "generation_config.json") or {}
    flags = {**_special_ids(found, described, config, generation), **found.flags}
    for name in ("add_bos_token", "add_eos_token"):
        if isinstance(described.get(name), bool) and found.model == "llama":
            flags[name] = described[name]
    return replace(found, flags=flags)


def _special_ids(
    vocabulary: Vocabulary,
    described: Mapping[str, Any],
    config: Settings,
    generation: Mapping[str, Any],
) -> dict[str, bool | int]:
    """Ids of the tokens that begin, end and pad a text."""
    ids = {text: number for number, text in enumerate(vocabulary.tokens)}
    found: dict[str, bool | int] = {}
    for name, key in (
        ("bos", "bos_token_id"),
        ("eos", "eos_token_id"),
        ("unk", "unknown_token_id"),
        ("pad", "padding_token_id"),
    ):
        text = described.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        number = ids.get(text) if isinstance(text, str) else None
        if number is None:
            listed = _listed(config.values.get(f"{name}_token_id"))
            number = listed[0] if listed else None
        if number is not None and 0 <= number < len(vocabulary.tokens):
            found[key] = number
    ends = [one for one in _listed(generation.get("eos_token_id")) if one in range(len(ids))]
    if others := [one for one in ends if one != found.get("eos_token_id")]:
        found["eot_token_id"] = others[0]
    return found


def _listed(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, int) and not isinstance(one, bool)]


def _chat_template(directory: Path) -> str:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    described = _optional(directory / "tokenizer_config.json") or {}
    template = described.get("chat_template", "")
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default", "")
    return template if isinstance(template, str) else ""


def _pooling(directory: Path, warnings: list[str]) -> int:
    """How an embedding is made of the tokens', as sentence-transformers says."""
    settings = _optional(directory / "1_Pooling" / "config.json") or {}
    for name, number in _POOLING.items():
        if settings.get(name) is True:
            return number
    warnings.append("the checkpoint does not say how embeddings are pooled; the mean is taken")
    return 1


def _name(config: Settings, directory: Path) -> str:
    named = config.text("_name_or_path", "name_or_path").rpartition("/")[2]
    return (named or directory.resolve().name)[:200]


def _required(path: Path) -> dict[str, Any]:
    found = _optional(path)
    if found is None:
        raise PackError(f"{path}: expected a file, found none")
    return found


def _optional(path: Path) -> dict[str, Any] | None:
    """A JSON object, if the file is there.

    Raises:
        PackError: it is there, and no JSON object.
    """
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise PackError(f"{path}: expected at most {_MAX_JSON_BYTES} bytes")
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise PackError(f"{path}: expected JSON, found something else") from error
    if not isinstance(value, dict):
        raise PackError(f"{path}: expected a JSON object, found something else")
    return value
