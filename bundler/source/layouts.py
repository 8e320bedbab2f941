"""GGUF files that Ollama's engine reads and llama.cpp does not, told by their headers. Pure.

Ollama's converter wrote some families with other names of architectures, keys and tensors, or
with the vision part inside. Ollama rearranges them in memory when it loads them; llama.cpp, and
so Satchel, cannot. Each rule below is a mark that llama.cpp's own converter never leaves.

Source: the table of Ollama's llama/compat/README.md and the marks its handlers look for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bundler.errors import ForeignLayoutError
from hwprobe.gguf import GgufArray, GgufHeader

_NO_SPLITTING: Final = (
    "the file does not say how text is split before BPE (tokenizer.ggml.pre); llama.cpp guesses, "
    "and answers may be worse than the model's own"
)
_RENAMED: Final = {
    "gptoss": "gpt-oss",
    "qwen25vl": "qwen2vl",
    "glm4moelite": "deepseek2",
    "olmo3": "olmo2",
    "deepseekocr": "deepseek2-ocr",
    "glmocr": "glm4",
    "nemotron_h_omni": "nemotron_h_moe",
}
"""Ollama's name of an architecture → llama.cpp's."""

_INSIDE: Final = {
    "v.": "vision",
    "mm.": "projector",
    "a.": "audio",
    "s.": "vision",
    "mtp.": "multi-token prediction",
}
"""Prefixes of tensors that llama.cpp keeps in another file, or drops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mark:
    """Any of these keys or tensors gives a family away."""

    keys: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    endings: tuple[str, ...] = ()


_MARKS: Final[dict[str, _Mark]] = {
    "gemma3": _Mark(
        keys=(
            "gemma3.mm.tokens_per_image",
            "gemma3.rope.global.freq_base",
            "gemma3.rope.local.freq_base",
            "tokenizer.ggml.add_padding_token",
            "tokenizer.ggml.add_unknown_token",
        ),
        tensors=("dense.0.weight",),
    ),
    "mistral3": _Mark(
        keys=(
            "mistral3.rope.scaling.beta_fast",
            "mistral3.rope.scaling.mscale_all_dim",
            "mistral3.rope.scaling_beta",
        )
    ),
    "laguna": _Mark(
        keys=("laguna.rope.swa.dimension_count", "laguna.rope.swa.freq_base"),
        endings=(".attn_g.weight",),
    ),
    **{
        name: _Mark(
            keys=(
                f"{name}.vision.block_count",
                f"{name}.image_token_id",
                f"{name}.ssm.v_head_reordered",
                f"{name}.rope.mrope_interleaved",
            ),
            endings=(".ssm_dt",),
        )
        for name in ("qwen35", "qwen35moe", "qwen3next", "qwen3vl", "qwen3vlmoe")
    },
}


def check_layout(header: GgufHeader, called: str) -> None:
    """Refuse a model file in a layout that llama.cpp does not load.

    Args:
        header: of the weights.
        called: the file in the refusal.

    Raises:
        ForeignLayoutError: it has such a layout; the message names the mark.
    """
    if mark := foreign_layout(header):
        architecture = header.string("general.architecture", "unknown")
        raise ForeignLayoutError(
            f"{called}: {architecture} in Ollama's own layout, which llama.cpp does not load: "
            f"{mark}",
            hint="pack the GGUF that llama.cpp's converter made of this model, with its mmproj "
            "file if it sees images: --from hf:ORG/REPO-GGUF",
        )


def foreign_layout(header: GgufHeader) -> str | None:
    """The mark of a foreign layout, in words; ``None`` for a file llama.cpp's converter made."""
    architecture = header.string("general.architecture", "")
    if architecture == "clip":
        return None
    names = [tensor.name for tensor in header.tensors]
    if architecture in _RENAMED:
        return f"llama.cpp calls the architecture {_RENAMED[architecture]}"
    for prefix, part in _INSIDE.items():
        if found := next((name for name in names if name.startswith(prefix)), None):
            return f"{part} tensors such as {found} inside"
    return _marked(architecture, header, names) or _special(architecture, header)


def _marked(architecture: str, header: GgufHeader, names: list[str]) -> str | None:
    mark = _MARKS.get(architecture, _Mark())
    for key in mark.keys:
        if key in header.metadata:
            return f"key {key}"
    for name in names:
        if name in mark.tensors or name.endswith(mark.endings or ("\0",)):
            return f"tensor {name}"
    return None


def _special(architecture: str, header: GgufHeader) -> str | None:
    """Marks that are something missing, or two things that disagree."""
    tensors = {tensor.name: tensor for tensor in header.tensors}
    match architecture:
        case "gemma3" if "gemma3.attention.layer_norm_rms_epsilon" not in header.metadata:
            return "no key gemma3.attention.layer_norm_rms_epsilon"
        case "lfm2" if "output_norm.weight" in tensors and "token_embd_norm.weight" not in tensors:
            return "tensor output_norm.weight where token_embd_norm.weight is expected"
        case "gemma3n":
            whole = tensors.get("token_embd.weight")
            per_layer = tensors.get("per_layer_token_embd.weight")
            if whole and per_layer and whole.dimensions[1:] != per_layer.dimensions[1:]:
                return "token_embd.weight and per_layer_token_embd.weight of unequal vocabularies"
        case "bert":
            chars = header.metadata.get("tokenizer.ggml.precompiled_charsmap")
            kind = chars.element_type if isinstance(chars, GgufArray) else None
            if kind == "string" or (isinstance(chars, tuple) and isinstance(chars[0], str)):
                return "tokenizer.ggml.precompiled_charsmap as a list of texts"
        case _:
            pass
    return None


def layout_warnings(header: GgufHeader) -> tuple[str, ...]:
    """What loads, but not as it was meant."""
    pre = header.metadata.get("tokenizer.ggml.pre", "")
    if header.metadata.get("tokenizer.ggml.model") == "gpt2" and pre in ("", "default"):
        return (_NO_SPLITTING,)
    return ()
