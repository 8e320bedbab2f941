"""Make files of any architecture the engine knows, at real size and for a few kilobytes.

    from bench.architectures import SHAPES, write_sparse

The engine itself says which tensors an architecture has: a child process builds the model from its
header alone, without memory for weights. The file then holds their names, sizes and quantized
types, and a hole where the weights would be. Sizes follow the published configurations of the
models that the names recall, with fewer blocks where more would only repeat.
"""

from __future__ import annotations

import ctypes
import json
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bench import vocabulary

NAMING_TIMEOUT_S = 60
_ALIGNMENT = 32
_F32, _Q8_0, _Q4_K, _Q6_K = 0, 8, 12, 14
_BLOCKS = {_F32: (1, 4), _Q8_0: (32, 34), _Q4_K: (256, 144), _Q6_K: (256, 210)}
"""Elements and bytes of one block. Source: ggml-common.h."""
_KEPT_WHOLE = ("norm", "ssm_", "conv", "inp_gate", "gate_inp", "time_mix", "decay", "lerp", "rope")
"""Parts of names of tensors that quantization leaves alone."""

Header = dict[str, Any]


def _sized(  # noqa: PLR0917 - the columns of a table
    blocks: int,
    embedding: int,
    inner: int | list[int],
    heads: int | list[int],
    kv_heads: int | list[int],
    vocabulary: int,
    **more: Any,
) -> Header:
    """A header's keys without the architecture in front; ``__`` stands for a dot."""
    return {
        "vocab_size": vocabulary,
        "context_length": 131072,
        "embedding_length": embedding,
        "block_count": blocks,
        "feed_forward_length": inner,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
        "rope.freq_base": 1e6,
        **{name.replace("__", "."): value for name, value in more.items()},
    }


def _heads(length: int, rotated: int | None = None) -> Header:
    return {
        "attention__key_length": length,
        "attention__value_length": length,
        "rope__dimension_count": length if rotated is None else rotated,
    }


def _experts(count: int, used: int, inner: int, **more: Any) -> Header:
    return {
        "expert_count": count,
        "expert_used_count": used,
        "expert_feed_forward_length": inner,
        **more,
    }


_MAMBA = {"ssm__conv_kernel": 4, "ssm__inner_size": 4096, "ssm__state_size": 16}
_MAMBA2 = {"ssm__conv_kernel": 4, "ssm__inner_size": 4096, "ssm__state_size": 128}
_GRANITE = {
    "attention__scale": 1.0,
    "residual_scale": 1.0,
    "embedding_scale": 1.0,
    "logit_scale": 1.0,
}
_MLA = {
    "attention__kv_lora_rank": 512,
    "attention__key_length": 576,
    "attention__value_length": 512,
    "attention__key_length_mla": 192,
    "attention__value_length_mla": 128,
    "rope__dimension_count": 64,
}

SHAPES: Final[Mapping[str, tuple[str, Header]]] = {
    "llama-8b": ("llama", _sized(32, 4096, 14336, 32, 8, 128256, **_heads(128))),
    "mixtral-8x7b": (
        "llama",
        _sized(32, 4096, 14336, 32, 8, 32000, **_heads(128), expert_count=8, expert_used_count=2),
    ),
    "qwen2-7b": ("qwen2", _sized(28, 3584, 18944, 28, 4, 152064)),
    "qwen2moe-14b": (
        "qwen2moe",
        _sized(
            24, 2048, 5632, 16, 16, 151936,
            **_experts(60, 4, 1408, expert_shared_feed_forward_length=5632),
        ),
    ),
    "qwen3-8b": ("qwen3", _sized(36, 4096, 12288, 32, 8, 151936, **_heads(128))),
    "qwen3moe-30b": (
        "qwen3moe",
        _sized(48, 2048, 6144, 32, 4, 151936, **_heads(128), **_experts(128, 8, 768)),
    ),
    "qwen3next-80b": (
        "qwen3next",
        _sized(
            12, 2048, 5120, 16, 2, 151936, **_heads(256, 64),
            **_experts(512, 10, 512, expert_shared_feed_forward_length=512),
            ssm__conv_kernel=4, ssm__inner_size=4096, ssm__state_size=128,
            ssm__time_step_rank=32, ssm__group_count=16, full_attention_interval=4,
        ),
    ),
    "gemma2-9b": (
        "gemma2",
        _sized(
            42, 3584, 14336, 16, 8, 256000, **_heads(256), attention__sliding_window=4096,
            attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
        ),
    ),
    "gemma3-12b": (
        "gemma3",
        _sized(48, 3840, 15360, 16, 8, 262144, **_heads(256), attention__sliding_window=1024),
    ),
    "gemma3n-e4b": (
        "gemma3n",
        _sized(
            35, 2048, 16384, 8, 2, 262144, **_heads(256), attention__sliding_window=512,
            attention__shared_kv_layers=15.0, embedding_length_per_layer_input=256,
            altup__num_inputs=4, altup__active_idx=0,
        ),
    ),
    "phi3-mini": (
        "phi3", _sized(32, 3072, 8192, 32, 32, 32064, rope__dimension_count=96)
    ),
    "phi2": ("phi2", _sized(32, 2560, 10240, 32, 32, 51200, rope__dimension_count=32)),
    "gpt-oss-20b": (
        "gpt-oss",
        _sized(
            24, 2880, 2880, 64, 8, 201088, **_heads(64), **_experts(32, 4, 2880),
            attention__sliding_window=128,
        ),
    ),
    "deepseek2-lite": (
        "deepseek2",
        _sized(
            27, 2048, 10944, 16, 1, 102400, **_MLA,
            **_experts(64, 6, 1408, expert_shared_count=2, expert_weights_scale=1.0),
            leading_dense_block_count=1,
        ),
    ),
    "minicpm3-4b": (
        "minicpm3",
        _sized(
            62, 2560, 6400, 40, 40, 73448, attention__q_lora_rank=768,
            attention__kv_lora_rank=256, attention__key_length=96, attention__value_length=64,
            rope__dimension_count=32,
        ),
    ),
    "command-r-35b": ("command-r", _sized(40, 8192, 22528, 64, 64, 256000, logit_scale=0.0625)),
    "cohere2-7b": (
        "cohere2",
        _sized(
            32, 4096, 14336, 32, 8, 256000, attention__sliding_window=4096, logit_scale=0.25,
            rope__dimension_count=128,
        ),
    ),
    "olmo2-7b": ("olmo2", _sized(32, 4096, 11008, 32, 32, 100352)),
    "olmoe-7b": (
        "olmoe", _sized(16, 2048, 1024, 16, 16, 50304, expert_count=64, expert_used_count=8)
    ),
    "granite-8b": ("granite", _sized(40, 4096, 12800, 32, 8, 49155, **_GRANITE)),
    "granitemoe-3b": (
        "granitemoe",
        _sized(32, 1536, 512, 24, 8, 49155, **_GRANITE, expert_count=40, expert_used_count=8),
    ),
    "granitehybrid-7b": (
        "granitehybrid",
        _sized(
            40, 2048, 8192, 16, [4 if index % 10 == 5 else 0 for index in range(40)], 100352,
            **_GRANITE, **_MAMBA2, ssm__time_step_rank=64, ssm__group_count=1,
        ),
    ),
    "starcoder2-7b": ("starcoder2", _sized(32, 4608, 18432, 36, 4, 49152)),
    "gpt2": ("gpt2", _sized(12, 768, 3072, 12, 12, 50257) | {"context_length": 1024}),
    "falcon-7b": ("falcon", _sized(32, 4544, 18176, 71, 1, 65024)),
    "stablelm-3b": ("stablelm", _sized(32, 2560, 6912, 32, 32, 50304, rope__dimension_count=20)),
    "internlm2-7b": ("internlm2", _sized(32, 4096, 14336, 32, 8, 92544)),
    "glm4-9b": ("glm4", _sized(40, 4096, 13696, 32, 2, 151552, rope__dimension_count=64)),
    "exaone4-32b": (
        "exaone4",
        _sized(64, 5120, 27392, 40, 8, 102400, **_heads(128), attention__sliding_window=4096),
    ),
    "smollm3-3b": ("smollm3", _sized(36, 2048, 11008, 16, 4, 128256)),
    "nemotron-4b": ("nemotron", _sized(32, 3072, 9216, 24, 8, 256000, rope__dimension_count=64)),
    "llama4-scout": (
        "llama4",
        _sized(
            12, 5120, 16384, 40, 8, 202048, **_heads(128),
            **_experts(16, 1, 8192), interleave_moe_layer_step=1,
        ),
    ),
    "mamba-1.4b": (
        "mamba", _sized(48, 2048, 0, 0, 0, 50280, **_MAMBA, ssm__time_step_rank=128)
    ),
    "mamba2-2.7b": (
        "mamba2",
        _sized(
            64, 2560, 0, 0, 0, 50288, ssm__conv_kernel=4, ssm__inner_size=5120,
            ssm__state_size=128, ssm__time_step_rank=80, ssm__group_count=1,
        ),
    ),
    "rwkv7-1.5b": (
        "rwkv7",
        _sized(
            24, 2048, 8192, 0, 0, 65536, wkv__head_size=64, token_shift_count=2,
            attention__decay_lora_rank=96, attention__iclr_lora_rank=96,
            attention__value_residual_mix_lora_rank=64, attention__gate_lora_rank=256,
        ),
    ),
    "jamba-small": (
        "jamba",
        _sized(
            16, 4096, 14336, 32, [8 if index % 8 == 4 else 0 for index in range(16)], 65536,
            ssm__conv_kernel=4, ssm__inner_size=8192, ssm__state_size=16,
            ssm__time_step_rank=256, expert_count=0,
        ),
    ),
    "falcon-h1-7b": (
        "falcon-h1",
        _sized(
            44, 3072, 12288, 12, 2, 130049, **_heads(128), ssm__conv_kernel=4,
            ssm__inner_size=3072, ssm__state_size=256, ssm__time_step_rank=24,
            ssm__group_count=1,
        ),
    ),
    "lfm2-1.2b": (
        "lfm2",
        _sized(
            16, 2048, 8192, 32, [8 if index in {2, 5, 8, 10, 12, 14} else 0 for index in range(16)],
            65536, shortconv__l_cache=3,
        ),
    ),
    "gemma4-31b": (
        "gemma4",
        _sized(
            30, 5376, 21504, 32, 4, 262144, **_heads(512, 128),
            attention__key_length_swa=256, attention__value_length_swa=256,
            rope__dimension_count_swa=256, attention__sliding_window=1024,
            attention__sliding_window_pattern=[int(index % 6 < 5) for index in range(30)],
            embedding_length_per_layer_input=0, final_logit_softcapping=30.0,
        ),
    ),
    "glm4moe-air": (
        "glm4moe",
        _sized(
            12, 4096, 10944, 96, 8, 151552, **_heads(128, 64),
            **_experts(128, 8, 1408, expert_shared_count=1, expert_weights_scale=1.0),
            leading_dense_block_count=1,
        ),
    ),
    "ernie-21b": (
        "ernie4_5-moe",
        _sized(
            28, 2560, 12288, 20, 4, 103424, **_heads(128),
            **_experts(64, 6, 1536, expert_shared_count=2, expert_shared_feed_forward_length=3072),
            leading_dense_block_count=1, interleave_moe_layer_step=1,
        ),
    ),
    "seed-oss-36b": ("seed_oss", _sized(64, 5120, 27648, 80, 8, 155136, **_heads(128))),
    "arcee-4b": ("arcee", _sized(36, 2560, 18432, 20, 4, 128256, **_heads(128))),
    "hunyuan-7b": ("hunyuan-dense", _sized(32, 4096, 14336, 32, 8, 128256, **_heads(128))),
    "gptneox-7b": (
        "gptneox",
        _sized(
            32, 4096, 16384, 32, 32, 50432, use_parallel_residual=True, rope__dimension_count=32
        ),
    ),
    "mpt-7b": ("mpt", _sized(32, 4096, 16384, 32, 32, 50432, attention__max_alibi_bias=8.0)),
    "baichuan-7b": ("baichuan", _sized(32, 4096, 11008, 32, 32, 64000)),
    "chatglm3-6b": ("chatglm", _sized(28, 4096, 13696, 32, 2, 65024, rope__dimension_count=64)),
    "smallthinker-21b": (
        "smallthinker",
        _sized(
            52, 2560, 768, 28, 4, 151936, **_heads(128),
            **_experts(64, 6, 768, expert_gating_func=2), attention__sliding_window=4096,
        ),
    ),
    "rwkv6-1.6b": (
        "rwkv6",
        _sized(
            24, 2048, 7168, 0, 0, 65536, wkv__head_size=64, time_mix_extra_dim=32,
            time_decay_extra_dim=64,
        ),
    ),
}  # fmt: skip
"""Name to the engine's architecture and the keys of the header."""
TIED: Final = frozenset(
    {"gemma3-12b", "gemma3n-e4b", "smollm3-3b", "lfm2-1.2b", "gpt2", "starcoder2-7b"}
)
"""Models whose embedding is their output matrix, where the engine would allow one of its own."""


def write_sparse(
    name: str, path: Path, *, blocks: int | None = None, tokenizer: bool = False
) -> Path:
    """Write the file called ``name``; its weights are a hole.

    Args:
        name: of `SHAPES`.
        path: where.
        blocks: keep only so many of them.
        tokenizer: give it a vocabulary, so that it can be served.

    Raises:
        ValueError: the engine does not make such a model; its words are the message.
    """
    architecture, keys = SHAPES[name]
    if blocks is not None:
        short = {
            key: value[:blocks] if isinstance(value, list) else value for key, value in keys.items()
        }
        keys = {**short, "block_count": blocks}
    metadata: Header = {
        "general.architecture": architecture,
        "general.name": name,
        **{f"{architecture}.{key}": value for key, value in keys.items()},
        "tokenizer.ggml.model": "no_vocab",
    }
    if tokenizer:
        metadata |= _tokenizer(int(keys["vocab_size"]))
    tensors = named_tensors(
        {key: value for key, value in metadata.items() if not key.startswith("tokenizer")}
        | {"tokenizer.ggml.model": "no_vocab"}
    )
    if name in TIED:
        tensors = [one for one in tensors if one[0] != "output.weight"]
    infos, end = [], 0
    for tensor, sizes in tensors:
        kind = _type(tensor, sizes)
        infos.append(
            _text(tensor)
            + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
            + struct.pack("<IQ", kind, end)
        )
        size = _size(sizes, kind)
        end += size + -size % _ALIGNMENT
    pairs = [_text(key) + _value(value) for key, value in metadata.items()]
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(infos), len(pairs)) + b"".join(pairs + infos)
    with path.open("wb") as file:
        file.write(header + b"\0" * (-len(header) % _ALIGNMENT))
        file.truncate(file.tell() + end)
    return path


def fewest_blocks(name: str) -> int:
    """Blocks of the model called ``name`` until each kind of them has come."""
    _, keys = SHAPES[name]
    heads = keys["attention.head_count_kv"]
    attends = (
        next(index for index, one in enumerate(heads) if one) if isinstance(heads, list) else 0
    )
    return max(2, attends + 1, int(keys.get("full_attention_interval", 0)))


def named_tensors(metadata: Header) -> list[tuple[str, tuple[int, ...]]]:
    """The tensors that the engine makes for a header, in its order: name, then sizes.

    Raises:
        ValueError: it makes no such model.
    """
    done = subprocess.run(
        [sys.executable, "-m", "bench.architectures"],
        cwd=Path(__file__).parents[1],
        input=json.dumps(metadata).encode(),
        capture_output=True,
        timeout=NAMING_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(f"{metadata['general.architecture']}: {' / '.join(lines[-3:])}")
    # A tensor that blocks share is told once for each of them.
    return list({name: tuple(sizes) for name, sizes in json.loads(done.stdout)}.items())


def _tokenizer(size: int) -> Header:
    made = vocabulary.make(size)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": list(made.tokens),
        "tokenizer.ggml.token_type": list(made.types),
        "tokenizer.ggml.merges": list(made.merges),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }


def _type(name: str, sizes: tuple[int, ...]) -> int:
    if len(sizes) == 1 or not name.endswith(".weight") or any(part in name for part in _KEPT_WHOLE):
        wide = name.startswith("blk.") and name.split(".")[2].startswith(("ssm_in", "ssm_out"))
        if not wide:
            return _F32
    if sizes[0] % 256 == 0:
        return _Q6_K if name in {"token_embd.weight", "output.weight"} else _Q4_K
    return _Q8_0 if sizes[0] % 32 == 0 else _F32


def _size(sizes: tuple[int, ...], kind: int) -> int:
    elements, block_bytes = _BLOCKS[kind]
    rows = 1
    for length in sizes[1:]:
        rows *= length
    return sizes[0] // elements * block_bytes * rows


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: object) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    assert isinstance(value, list)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))
    return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)


def _main() -> None:
    """The child: build the model named on stdin without memory, and tell its tensors."""
    import llama_cpp  # noqa: PLC0415 - only in the child
    from llama_cpp import llama_cpp as api  # noqa: PLC0415

    def native(name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(api._lib, name)  # noqa: SLF001 - not among the bindings
        function.restype, function.argtypes = result, list(arguments)
        return function

    metadata = json.load(sys.stdin)
    llama_cpp.llama_backend_init()
    made = native("gguf_init_empty", ctypes.c_void_p)()
    whole, key = ctypes.c_void_p, ctypes.c_char_p
    for name, value in metadata.items():
        kinds = {bool: ("bool", ctypes.c_bool), int: ("u32", ctypes.c_uint32)}
        kinds |= {float: ("f32", ctypes.c_float), str: ("str", ctypes.c_char_p)}
        if isinstance(value, list):
            array = (ctypes.c_uint32 * len(value))(*value)
            store = native(
                "gguf_set_arr_data", None, whole, key, ctypes.c_int, whole, ctypes.c_size_t
            )
            store(made, name.encode(), 4, array, len(value))
            continue
        suffix, kind = kinds[type(value)]
        one = value.encode() if isinstance(value, str) else value
        native(f"gguf_set_val_{suffix}", None, whole, key, kind)(made, name.encode(), one)
    params = api.llama_model_default_params()
    params.no_alloc = True
    nothing = api.llama_model_set_tensor_data_t(lambda _tensor, _data: None)
    model = api.llama_model_init_from_user(made, nothing, None, params)
    if not model:
        sys.exit("no such model")
    # A reference to std::vector<std::pair<std::string, ggml_tensor *>>: begin, end, capacity.
    of_model = native("_Z29llama_internal_get_tensor_mapB5cxx11PK11llama_model", whole, whole)
    begin, end = (ctypes.c_uint64 * 2).from_address(of_model(model))
    tensors = []
    pair_bytes = 40  # a string of libstdc++: text, length and 16 bytes; and a pointer
    for at in range(begin, end, pair_bytes):
        text, length, _, _, tensor = (ctypes.c_uint64 * 5).from_address(at)
        sizes = list((ctypes.c_int64 * 4).from_address(tensor + 16))  # behind type and buffer
        while len(sizes) > 1 and sizes[-1] == 1:
            sizes.pop()
        tensors.append((ctypes.string_at(text, length).decode(), sizes))
    json.dump(tensors, sys.stdout)
    sys.stdout.flush()


if __name__ == "__main__":
    _main()
