"""How the engine is to be started for one model: the one value that placement decides.

Placement produces it, the self-test tries it, the runner starts with it, ``ps`` shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

KvType = Literal["f16", "q8_0", "q4_0"]
"""Element type of the KV cache, for keys and values alike."""

PROPOSED_ROWS = 8
"""Tokens of one step, of all requests, that are computed before it is known whether they come.
Why: more seldom come true together, and each costs a row of logits."""

MAX_SEQUENCES = 256
"""Sequence ids an engine knows. Source: llama-cparams.h, LLAMA_MAX_SEQ."""

MAX_CELLS = (1 << 31) - 1
"""Positions are 32-bit numbers with a sign. Source: llama.h, llama_pos."""

CONTEXT_PADDING_TOKENS = 256
"""llama.cpp rounds every sequence's context up to this. Source: llama-context.cpp, GGML_PAD."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Everything that is fixed when a model is loaded.

    Attributes:
        num_ctx: context of one slot, in tokens; a multiple of 256.
        slots: requests decoded at the same time. The KV cache is unified: it holds
            ``num_ctx * slots`` cells that all slots share.
        spare_sequences: sequence ids beyond the slots, for prompts that stay cached. Each costs
            one row of logits, and a whole state where a model has one per sequence.
        kv_type: element type of the KV cache.
        num_gpu: layers on GPUs, the output layer counted as one; 0 keeps all on the CPU.
        num_batch: most tokens handed to one decode call (n_batch).
        num_ubatch: most tokens computed at once (n_ubatch), at most ``num_batch``.
        threads: CPU threads for decode and prefill.
        flash_attention: fused attention; needed for a quantized KV cache.
        use_mmap: map the file instead of reading it.
        repack: let the CPU backend keep weights in its own layout (``use_extra_bufts``):
            faster prefill for 2 to 30 % more memory.
        tensor_split: share of the layers per GPU, in the engine's device order; empty means one
            GPU or none.
        pooled: the context turns whole texts into vectors and generates nothing. A text cannot
            be cut into micro-batches, so ``num_ubatch`` is ``num_batch``.
        workers: addresses of the workers that are the GPUs here, in the order of ``tensor_split``.
        saved_bytes: host memory for the states of prompts that had to leave the cache.
        cpu_experts: the experts of so many first blocks stay in host memory although their block
            is on a GPU; 0 keeps each block together.
        unified: the GPUs have no memory of their own; all of it is the host's.
    """

    num_ctx: int
    slots: int = 1
    spare_sequences: int = 0
    kv_type: KvType = "f16"
    num_gpu: int = 0
    num_batch: int = 512
    num_ubatch: int = 512
    threads: int = 1
    flash_attention: bool = True
    use_mmap: bool = True
    repack: bool = True
    tensor_split: tuple[float, ...] = ()
    pooled: bool = False
    saved_bytes: int = 0
    cpu_experts: int = 0
    unified: bool = False
    workers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values the engine would abort on."""
        at_least_one = {
            "num_ctx": self.num_ctx,
            "slots": self.slots,
            "num_batch": self.num_batch,
            "num_ubatch": self.num_ubatch,
            "threads": self.threads,
        }
        if self.cpu_experts < 0:
            msg = f"cpu_experts: expected at least 0, found {self.cpu_experts}"
            raise ValueError(msg)
        for name, value in at_least_one.items():
            if value < 1:
                msg = f"{name}: expected at least 1, found {value}"
                raise ValueError(msg)
        if self.num_ubatch > self.num_batch:
            msg = f"num_ubatch: expected at most {self.num_batch}, found {self.num_ubatch}"
            raise ValueError(msg)
        if self.kv_type != "f16" and not self.flash_attention:
            msg = f"flash_attention: needed for a KV cache of {self.kv_type}"
            raise ValueError(msg)
        if self.kv_cells > MAX_CELLS:
            msg = f"num_ctx: expected at most {MAX_CELLS} cells, found {self.kv_cells}"
            raise ValueError(msg)
        if self.pooled and self.num_ubatch != self.num_batch:
            msg = f"num_ubatch: expected {self.num_batch}, found {self.num_ubatch}"
            raise ValueError(msg)

    @property
    def expert_pattern(self) -> str:
        """What the names of tensors match that stay in host memory, as ECMAScript reads it.

        Empty when there are none. Source: tensor_buft_overrides in llama.h, matched with
        std::regex_search in llama-model-loader.cpp.
        """
        if not self.cpu_experts:
            return ""
        blocks = "|".join(map(str, range(self.cpu_experts)))
        return rf"^blk\.({blocks})\.ffn_.*_exps\."

    @property
    def sequences(self) -> int:
        """Sequence ids the engine is asked for."""
        return min(self.slots + self.spare_sequences, MAX_SEQUENCES)

    @property
    def output_rows(self) -> int:
        """Rows of logits the engine is asked for: one per sequence, and those computed ahead.

        Where texts are pooled, every token is an output.
        """
        return self.num_batch if self.pooled else self.sequences + PROPOSED_ROWS

    @property
    def kv_cells(self) -> int:
        """Cells of the unified KV cache: every slot padded to the engine's granularity."""
        padded = -(-self.num_ctx // CONTEXT_PADDING_TOKENS) * CONTEXT_PADDING_TOKENS
        return padded * self.slots
