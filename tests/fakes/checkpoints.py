"""Tiny checkpoints in Hugging Face's layout with random weights, and what they compute.

`forward` is the models' definition in numpy, written from their papers and configurations,
independent of the converter and of the engine.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers import processors as post
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

Array = Any
"""An array of numpy; its operators would each need a cast."""
CORPUS = [
    "The quick brown fox jumps over the lazy dog, isn't it? We'LL see 1234567 times!",
    "Größe naïve café — 中文字符 and русский текст;  two  spaces\n\nnew\tlines\r\n",
    "def f(x):\n    return x**2 + 1  # code isn't prose HelloWorld iPhone XMLHttp",
] * 4
HARD = [
    "Hello world",
    " leading and trailing  ",
    "It's WE'LL they'Re 12345 6789,000.5",
    "tabs\tand\n\nnewlines \r\n  \n x",
    "Größe naïve café 中文字符 русский текст 😀🎉",
    "camelCaseXMLHttpRequest iPhone ABCdef ÀÉÎõü",
    "a/b//c\n/d !!! ??? ... ((()))",
    "<|user|>hi<|end|>",
    "x" * 40,
]
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TITLE = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
SHOUT = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
LETTERS = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+"
SPLITS = {
    "llama-bpe": rf"{LETTERS}|\p{{N}}{{1,3}}|{REST}",
    "dbrx": rf"{LETTERS}|\p{{N}}{{1,3}}|{REST}",
    "qwen2": rf"{LETTERS}|\p{{N}}|{REST}",
    "tekken": rf"{TITLE}|{SHOUT}|\p{{N}}|{CASED_REST}",
    "gpt-4o": rf"{TITLE}{CONTRACTIONS}?|{SHOUT}{CONTRACTIONS}?|\p{{N}}{{1,3}}|{CASED_REST}",
}


def byte_tokenizer(pre: str, *, size: int = 420) -> Tokenizer:
    """A byte-level BPE whose text is split as llama.cpp's ``pre`` of that name says."""
    tokenizer = Tokenizer(BPE(ignore_merges=pre in ("llama-bpe", "tekken")))
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    steps: list[Any] = [plain]
    if pre == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True), plain]
    elif pre != "gpt-2":
        steps = [
            pre_tokenizers.Split(Regex(SPLITS[pre]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=["<|bos|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<|user|>", special=False, normalized=False)])
    if pre == "llama-bpe":
        tokenizer.post_processor = post.TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", 0)]
        )
    return tokenizer


def piece_tokenizer(*, size: int = 500) -> Tokenizer:
    """A SentencePiece BPE with byte fallback as ``tokenizer.json`` tells it."""
    trained = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    trainer = BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>", *bytes_],
        limit_alphabet=60,
    )
    trained.train_from_iterator(CORPUS, trainer)
    # Byte tokens are no specials of a real one: only the vocabulary knows them.
    data = json.loads(trained.to_str())
    data["added_tokens"] = data["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.post_processor = post.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def sentencepiece_model(tokenizer: Tokenizer, *, kind: int = 2) -> bytes:
    """The same tokenizer as the protocol buffer ``tokenizer.model``."""
    data = json.loads(tokenizer.to_str())["model"]
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(data["merges"]):
        ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
    out = b""
    for text, number in sorted(data["vocab"].items(), key=lambda item: item[1]):
        kinds = {0: 2, 1: 3, 2: 3}
        what = kinds.get(number, 6 if text.startswith("<0x") else 1)
        score = struct.pack("<f", -float(ranks.get(text, 5000)))
        name = text.encode()
        piece = b"\x0a" + _varint(len(name)) + name + b"\x15" + score + b"\x18" + _varint(what)
        out += b"\x0a" + _varint(len(piece)) + piece
    trainer = b"\x18" + _varint(kind)
    return out + b"\x12" + _varint(len(trainer)) + trainer


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GEMMA = {"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True, "head_dim": 32}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"]},
    "llama-biased": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": True,
        "mlp_bias": False,
        "head_dim": 32,
    },
    "llama3": {
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": True,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "llama-linear": {
        "architectures": ["LlamaForCausalLM"],
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": None},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "attention_bias": True},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 32, "head_norms": True},
    "gemma": {"architectures": ["GemmaForCausalLM"], **GEMMA},
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        **GEMMA,
        "query_pre_attn_scalar": 32,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "sliding_window": 4,
    },
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        **GEMMA,
        "query_pre_attn_scalar": 32,
        "sliding_window": 4,
        "rope_local_base_freq": 500.0,
        "rope_theta": 20000.0,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "head_norms": True,
    },
    "phi3": {"architectures": ["Phi3ForCausalLM"], "num_key_value_heads": 4, "fused": True},
}
"""Settings beside `SMALL`; ``head_norms`` and ``fused`` are for `weights_of` alone."""


def config_of(family: str, rows: int) -> dict[str, Any]:
    """``config.json`` of a family."""
    return {**SMALL, **FAMILIES[family], "vocab_size": rows}


def weights_of(config: Mapping[str, Any], seed: int = 0) -> dict[str, Array]:
    """Random weights under the names of the checkpoint."""
    random = np.random.default_rng(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim", hidden // heads)
    gemma = config["architectures"][0].startswith("Gemma")

    def matrix(*shape: int) -> Array:
        return (random.standard_normal(shape) / math.sqrt(shape[-1])).astype(np.float32)

    def norm(length: int) -> Array:
        around = 0.0 if gemma else 1.0
        return (around + 0.3 * random.standard_normal(length)).astype(np.float32)

    found = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden)}
    found["model.norm.weight"] = norm(hidden)
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = matrix(config["vocab_size"], hidden)
    rows = {"q": heads * head, "k": kv_heads * head, "v": kv_heads * head}
    for block in range(config["num_hidden_layers"]):
        at = f"model.layers.{block}."
        if config.get("fused"):
            found[at + "self_attn.qkv_proj.weight"] = matrix(sum(rows.values()), hidden)
            found[at + "mlp.gate_up_proj.weight"] = matrix(2 * inner, hidden)
        else:
            for name, length in rows.items():
                found[at + f"self_attn.{name}_proj.weight"] = matrix(length, hidden)
                if config.get("attention_bias"):
                    found[at + f"self_attn.{name}_proj.bias"] = matrix(1, length)[0]
            found[at + "mlp.gate_proj.weight"] = matrix(inner, hidden)
            found[at + "mlp.up_proj.weight"] = matrix(inner, hidden)
        found[at + "self_attn.o_proj.weight"] = matrix(hidden, heads * head)
        found[at + "mlp.down_proj.weight"] = matrix(hidden, inner)
        if config.get("head_norms"):
            found[at + "self_attn.q_norm.weight"] = norm(head)
            found[at + "self_attn.k_norm.weight"] = norm(head)
        found[at + "input_layernorm.weight"] = norm(hidden)
        found[at + "post_attention_layernorm.weight"] = norm(hidden)
        if config["architectures"][0].startswith(("Gemma2", "Gemma3")):
            found[at + "pre_feedforward_layernorm.weight"] = norm(hidden)
            found[at + "post_feedforward_layernorm.weight"] = norm(hidden)
    return found


def forward(config: Mapping[str, Any], weights: Mapping[str, Array], tokens: list[int]) -> Array:
    """Logits of every position: (tokens, rows), in 64 bits."""
    w = {name: data.astype(np.float64) for name, data in weights.items()}
    name = config["architectures"][0]
    gemma, four = name.startswith("Gemma"), name.startswith(("Gemma2", "Gemma3"))
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads, head = config["num_key_value_heads"], config.get("head_dim", hidden // heads)
    count = len(tokens)

    def rms(x: Array, weight: Array) -> Array:
        scaled: Array = x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"])
        return scaled * (weight + 1 if gemma else weight)

    x: Array = w["model.embed_tokens.weight"][tokens]
    if gemma:
        x = x * math.sqrt(hidden)
    places = np.arange(count)
    for block in range(config["num_hidden_layers"]):
        at = f"model.layers.{block}."
        h = rms(x, w[at + "input_layernorm.weight"])
        q, k, v = _projections(w, at, h, (heads, kv_heads, head))
        if config.get("head_norms"):
            q = rms(q, w[at + "self_attn.q_norm.weight"])
            k = rms(k, w[at + "self_attn.k_norm.weight"])
        sliding = _slides(config, block)
        angles = places[:, None] * _frequencies(config, head, local=sliding)[None]
        q, k = _turned(q, angles), _turned(k, angles)
        k, v = (np.repeat(one, heads // kv_heads, axis=1) for one in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(head)
        if cap := config.get("attn_logit_softcapping"):
            scores = cap * np.tanh(scores / cap)
        distance = places[:, None] - places[None]
        seen = distance >= 0
        if sliding:
            seen &= distance < config["sliding_window"]
        scores = np.where(seen, scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", shares, v).reshape(count, heads * head)
        mixed = mixed @ w[at + "self_attn.o_proj.weight"].T
        after = w[at + "post_attention_layernorm.weight"]
        x = x + (rms(mixed, after) if four else mixed)
        h = rms(x, w[at + "pre_feedforward_layernorm.weight"] if four else after)
        fed = _feed_forward(w, at, h, gelu=gemma)
        x = x + (rms(fed, w[at + "post_feedforward_layernorm.weight"]) if four else fed)
    x = rms(x, w["model.norm.weight"])
    tied = config["tie_word_embeddings"]
    logits: Array = x @ w["model.embed_tokens.weight" if tied else "lm_head.weight"].T
    if cap := config.get("final_logit_softcapping"):
        logits = cap * np.tanh(logits / cap)
    return logits


def _projections(
    w: Mapping[str, Array], at: str, h: Array, sizes: tuple[int, int, int]
) -> tuple[Array, Array, Array]:
    heads, kv_heads, head = sizes
    if (fused := at + "self_attn.qkv_proj.weight") in w:
        every = h @ w[fused].T
        parts = np.split(every, [heads * head, (heads + kv_heads) * head], axis=-1)
    else:
        parts = [
            h @ w[at + f"self_attn.{name}_proj.weight"].T
            + w.get(at + f"self_attn.{name}_proj.bias", np.zeros(1))
            for name in "qkv"
        ]
    q, k, v = (part.reshape(len(h), -1, head) for part in parts)
    return q, k, v


def _feed_forward(w: Mapping[str, Array], at: str, h: Array, *, gelu: bool) -> Array:
    if (fused := at + "mlp.gate_up_proj.weight") in w:
        gate, up = np.split(h @ w[fused].T, 2, axis=-1)
    else:
        gate, up = h @ w[at + "mlp.gate_proj.weight"].T, h @ w[at + "mlp.up_proj.weight"].T
    if gelu:
        gate = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    else:
        gate = gate / (1 + np.exp(-gate))
    fed: Array = (gate * up) @ w[at + "mlp.down_proj.weight"].T
    return fed


def _slides(config: Mapping[str, Any], block: int) -> bool:
    if config["architectures"][0].startswith("Gemma2"):
        return block % 2 == 0
    kinds = config.get("layer_types")
    return bool(kinds and kinds[block] == "sliding_attention")


def _frequencies(config: Mapping[str, Any], head: int, *, local: bool) -> Array:
    base = config["rope_theta"]
    if local and "rope_local_base_freq" in config:
        base = config["rope_local_base_freq"]
    found = base ** -(np.arange(0, head, 2) / head)
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "linear":
        return found / scaling["factor"]
    if kind == "llama3":
        old, factor = scaling["original_max_position_embeddings"], scaling["factor"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        out = []
        for frequency in found:
            length = 2 * math.pi / frequency
            if length < old / high:
                out.append(frequency)
            elif length > old / low:
                out.append(frequency / factor)
            else:
                smooth = (old / length - low) / (high - low)
                out.append((1 - smooth) * frequency / factor + smooth * frequency)
        return np.array(out)
    return found


def _turned(x: Array, angles: Array) -> Array:
    """Rotary embedding: element i turns with element i + half."""
    half = x.shape[-1] // 2
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def write_safetensors(path: Path, tensors: Mapping[str, Array], dtype: str = "F32") -> None:
    """Write tensors by the format's definition; bfloat16 is rounded to nearest even."""
    header: dict[str, Any] = {}
    blobs: list[bytes] = []
    at = 0
    for name, data in tensors.items():
        blob = _encoded(data, dtype)
        header[name] = {
            "dtype": dtype,
            "shape": list(data.shape),
            "data_offsets": [at, at + len(blob)],
        }
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def _encoded(data: Array, dtype: str) -> bytes:
    if dtype == "BF16":
        bits = data.astype(np.float32).view(np.uint32)
        return bytes(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes())
    return bytes(data.astype({"F32": "<f4", "F16": "<f2", "I64": "<i8"}[dtype]).tobytes())


def rounded(weights: Mapping[str, Array], dtype: str) -> dict[str, Array]:
    """The weights as a file of that type gives them back."""
    found = {}
    for name, data in weights.items():
        blob = _encoded(data, dtype)
        if dtype == "BF16":
            bits = np.frombuffer(blob, "<u2").astype(np.uint32) << 16
            found[name] = bits.view(np.float32).reshape(data.shape)
        else:
            kind = {"F32": "<f4", "F16": "<f2"}[dtype]
            found[name] = np.frombuffer(blob, kind).reshape(data.shape).astype(np.float32)
    return found


def write_checkpoint(
    folder: Path,
    family: str,
    *,
    dtype: str = "F32",
    shards: int = 1,
    tokenizer: Tokenizer | None = None,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Write a whole directory; returns its configuration and the weights as stored."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer or byte_tokenizer("qwen2")
    config = config_of(family, tokenizer.get_vocab_size() + 4)
    weights = weights_of(config, seed)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    described = {"eos_token": "<|end|>", "chat_template": "{{ messages[0]['content'] }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    names = list(weights)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", weights, dtype)
    else:
        index: dict[str, str] = {}
        for number in range(shards):
            file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
            mine = {name: weights[name] for name in names[number::shards]}
            write_safetensors(folder / file, mine, dtype)
            index |= dict.fromkeys(mine, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return config, rounded(weights, dtype)
