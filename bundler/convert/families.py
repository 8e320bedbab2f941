"""What differs between model families: keys, tensor names, order of rows. Pure.

Sources: the modelling code's own parameter names; the keys and tensor names that llama.cpp's
loader asks for (``load_arch_hparams`` and ``load_arch_tensors`` of each architecture).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from bundler.convert.settings import Settings
from bundler.errors import PackError

Value = int | float | bool | str
Change = Literal["", "query", "key", "shift"]
"""What is done to a tensor's values: rows of rotary heads regrouped, or one added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family of checkpoints.

    Attributes:
        architecture: llama.cpp's name.
        rope_pairs: its rotary embedding turns neighbouring elements, the checkpoint's halves.
        shift_norms: the checkpoint stores norm weights less one.
        four_norms: norms before and after attention and feed-forward.
        tied: output and embedding are one matrix unless the configuration says otherwise.
        encoder: an encoder of the BERT kind.
    """

    architecture: str
    rope_pairs: bool = False
    shift_norms: bool = False
    four_norms: bool = False
    tied: bool = False
    encoder: bool = False


FAMILIES: Final[dict[str, Family]] = {
    "LlamaForCausalLM": Family(architecture="llama", rope_pairs=True),
    "MistralForCausalLM": Family(architecture="llama", rope_pairs=True),
    "Qwen2ForCausalLM": Family(architecture="qwen2"),
    "Qwen3ForCausalLM": Family(architecture="qwen3"),
    "GemmaForCausalLM": Family(architecture="gemma", shift_norms=True, tied=True),
    "Gemma2ForCausalLM": Family(
        architecture="gemma2", shift_norms=True, four_norms=True, tied=True
    ),
    "Gemma3ForCausalLM": Family(
        architecture="gemma3", shift_norms=True, four_norms=True, tied=True
    ),
    "Phi3ForCausalLM": Family(architecture="phi3"),
    "BertModel": Family(architecture="bert", encoder=True),
    "BertForMaskedLM": Family(architecture="bert", encoder=True),
}

_TOP: Final = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_BLOCK: Final = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_FOUR_NORMS: Final = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_ENCODER_TOP: Final = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.weight": "token_embd_norm.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
}
_ENCODER_BLOCK: Final = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_LAYER: Final = re.compile(
    r"(?:model\.layers|encoder\.layer)\.(\d{1,4})\.(.+)\.(weight|bias)", re.ASCII
)
_UNUSED: Final = re.compile(
    r".*(?:rotary_emb\.inv_freq|attn\.(?:masked_)?bias|embeddings\.position_ids)|(?:pooler|cls)\..*"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A tensor's name in GGUF, and what is done to its values."""

    name: str
    change: Change = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model's sizes and keys, drawn from its configuration.

    Attributes:
        heads: query heads, and ``kv_heads`` those of keys and values.
        head_length: elements of one head.
        rotary_length: of those, how many the rotary embedding turns.
        keys: what stands in GGUF behind the architecture's name.
        tied: output and embedding are one matrix.
        warnings: what the packer should know.
    """

    blocks: int
    heads: int
    kv_heads: int
    head_length: int
    rotary_length: int
    context: int
    tied: bool
    keys: Mapping[str, Value]
    warnings: tuple[str, ...] = field(default=())


def family_of(config: Settings) -> Family:
    """The family a configuration names.

    Raises:
        PackError: one that is not converted, or weights that are quantized already.
    """
    if "quantization_config" in config.values:
        raise PackError(
            "config.json: quantization_config: expected plain weights, found quantized ones",
            hint="start from the checkpoint before it was quantized",
        )
    named = config.values.get("architectures")
    first = str(named[0]) if isinstance(named, list) and named else "none"
    if first not in FAMILIES:
        raise PackError(
            f"config.json: architectures: expected one of {', '.join(FAMILIES)}, found {first:.80}",
            hint="pack a GGUF file of this model instead",
        )
    return FAMILIES[first]


def gguf_name(name: str, family: Family) -> Named | None:
    """What a tensor of the checkpoint is called in GGUF; ``None`` for one that is not needed.

    Raises:
        PackError: a tensor of that name is not understood.
    """
    plain = name.removeprefix("bert.") if family.encoder else name
    if _UNUSED.fullmatch(plain):
        return None
    top = _ENCODER_TOP if family.encoder else _TOP
    if plain in top:
        found = top[plain]
        shifted = family.shift_norms and found == "output_norm.weight"
        return Named(name=found, change="shift" if shifted else "")
    match = _LAYER.fullmatch(plain)
    names = _ENCODER_BLOCK if family.encoder else _BLOCK
    if family.four_norms:
        names = {**names, **_FOUR_NORMS}
    if match is None or match[2] not in names:
        raise PackError(
            f"tensor {name:.120}: expected one of the {family.architecture} family, found another",
            hint="the model has parts this release does not convert; pack a GGUF file of it",
        )
    part = names[match[2]]
    change: Change = ""
    if family.rope_pairs and part in ("attn_q", "attn_k"):
        change = "query" if part == "attn_q" else "key"
    elif family.shift_norms and part.endswith("norm"):
        change = "shift"
    return Named(name=f"blk.{int(match[1])}.{part}.{match[3]}", change=change)


def shape_of(config: Settings, family: Family) -> Shape:
    """Sizes and keys of a model.

    Raises:
        PackError: a value is missing, of another type, or asks for what llama.cpp does not do.
    """
    hidden = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", default=heads)
    head_length = config.integer("head_dim", default=max(hidden // heads, 1))
    partial = config.number("partial_rotary_factor", default=1.0)
    rotary = int(head_length * partial)
    keys: dict[str, Value] = {
        "block_count": config.integer("num_hidden_layers"),
        "context_length": config.integer("max_position_embeddings"),
        "embedding_length": hidden,
        "feed_forward_length": config.integer("intermediate_size"),
        "attention.head_count": heads,
    }
    shape = Shape(
        blocks=config.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_length=head_length,
        rotary_length=rotary,
        context=config.integer("max_position_embeddings"),
        tied=config.flag("tie_word_embeddings", default=family.tied),
        keys=keys,
    )
    if family.encoder:
        return _encoder(config, shape, keys)
    warnings: list[str] = []
    keys["attention.head_count_kv"] = kv_heads
    keys["attention.layer_norm_rms_epsilon"] = config.number("rms_norm_eps")
    keys["rope.dimension_count"] = rotary
    keys["rope.freq_base"] = _theta(config, family)
    if head_length * heads != hidden or family.architecture.startswith(("gemma", "qwen3")):
        keys["attention.key_length"] = head_length
        keys["attention.value_length"] = head_length
    _activation(config, family)
    if family.architecture in ("gemma2", "gemma3"):
        _gemma(config, family, shape, keys)
    elif window := config.values.get("sliding_window"):
        used = config.flag("use_sliding_window", default=family.architecture != "qwen2")
        if used and isinstance(window, int) and window < shape.context:
            warnings.append(
                f"llama.cpp attends to the whole context where the model looks back {window} tokens"
            )
    return Shape(
        **{
            name: getattr(shape, name)
            for name in shape.__slots__
            if name not in ("keys", "warnings")
        },
        keys=keys,
        warnings=tuple(warnings),
    )


def _encoder(config: Settings, shape: Shape, keys: dict[str, Value]) -> Shape:
    if config.text("position_embedding_type", default="absolute") != "absolute":
        config.refuse("position_embedding_type", "absolute", config.text("position_embedding_type"))
    if config.text("hidden_act", default="gelu") not in ("gelu", "gelu_new", "gelu_pytorch_tanh"):
        config.refuse("hidden_act", "gelu", config.text("hidden_act"))
    keys["attention.layer_norm_epsilon"] = config.number("layer_norm_eps")
    keys["attention.causal"] = False
    return shape


def _activation(config: Settings, family: Family) -> None:
    """The engine fixes the activation of an architecture, so another one cannot be had."""
    gelu = ("gelu_pytorch_tanh", "gelu_new", "gelu")
    allowed = gelu if family.architecture.startswith("gemma") else ("silu", "swish")
    found = config.text("hidden_activation", "hidden_act", default=allowed[0])
    if found not in allowed:
        config.refuse("hidden_act", f"one of {', '.join(allowed)}", found)


def rope_settings(config: Settings) -> Settings:
    """The part about rotary embeddings, in older and newer configurations."""
    found = config.inner("rope_scaling", "rope_parameters")
    nested = found.inner("full_attention")
    return nested if nested.values else found


def _theta(config: Settings, family: Family) -> float:
    usual = 1_000_000.0 if family.architecture == "gemma3" else 10_000.0
    default = config.number("rope_theta", default=usual)
    return rope_settings(config).number("rope_theta", default=default)


def _gemma(config: Settings, family: Family, shape: Shape, keys: dict[str, Value]) -> None:
    scalar = config.number("query_pre_attn_scalar", default=float(shape.head_length))
    # The engine takes hidden size over heads for the largest model of each family, else this.
    largest = {"gemma2": 46, "gemma3": 62}[family.architecture]
    own = config.integer("hidden_size") // shape.heads
    expected = own if shape.blocks == largest else shape.head_length
    if scalar != expected:
        config.refuse("query_pre_attn_scalar", str(expected), scalar)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.values.get(name) is not None:
            keys[name] = config.number(name)
    keys["attention.sliding_window"] = config.integer("sliding_window", default=4096)
    if family.architecture == "gemma3":
        local = config.number("rope_local_base_freq", default=10_000.0)
        sliding = config.inner("rope_parameters").inner("sliding_attention")
        keys["rope.freq_base_swa"] = sliding.number("rope_theta", default=local)
    period = _period(config, default=2 if family.architecture == "gemma2" else 6)
    keys["attention.sliding_window_pattern"] = period


def _period(config: Settings, *, default: int) -> int:
    """Every how many blocks one attends to everything."""
    kinds = config.values.get("layer_types")
    if not isinstance(kinds, list):
        return config.integer("sliding_window_pattern", "_sliding_window_pattern", default=default)
    full = [place for place, kind in enumerate(kinds) if kind == "full_attention"]
    period = full[0] + 1 if full else len(kinds) + 1
    regular = [place for place in range(len(kinds)) if place % period == period - 1]
    if full != regular:
        config.refuse("layer_types", "full attention in every n-th layer", kinds)
    return period
