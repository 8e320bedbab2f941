"""What a request may ask of the making of its answer: tokens, shape, load. Pure values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How tokens are chosen. Defaults are Ollama's (server options, August 2026).

    Those of DRY, XTC and top-n-sigma are llama-server's.

    Attributes:
        seed: -1 draws one at random.
        num_predict: most tokens to generate; negative means ten times the context.
        num_keep: prompt tokens kept when the context is shifted.
        stop: texts that end the answer; they are not part of it.
        mirostat: 0 off, 1 or 2; tau and eta belong to it.
        dry_multiplier: of the penalty for repeating a sequence; 0 turns it off. It grows by
            ``dry_base`` with each token beyond ``dry_allowed_length``, and looks at the last
            ``dry_penalty_last_n`` tokens (-1: the context) since one of the breakers.
        xtc_probability: how often all but the last token over ``xtc_threshold`` are left out.
        top_n_sigma: tokens more standard deviations below the likeliest are left out; 0 and less
            keep all.
        speculate: tokens may be computed before it is known that they come.
        draft_num_predict: tokens that a draft model proposes in a step; negative for as many as
            pay, 0 for none.
        logit_bias: pairs of token id and bias added to its logit.
        lora: pairs of an adapter's number and its scale; adapters that are not named count 0.
            ``None`` applies them as the model was loaded.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    top_n_sigma: float = -1.0
    seed: int = -1
    num_predict: int = -1
    num_keep: int = 4
    stop: tuple[str, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    lora: tuple[tuple[int, float], ...] | None = None
    speculate: bool = True
    draft_num_predict: int = -1


ConstraintKind = Literal["json", "json_schema", "regex", "lark", "gbnf"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoning:
    """What stands around the reasoning that may come before an answer.

    Attributes:
        open: what it begins with.
        close: what it ends with.
        opened: the prompt already ended inside it.
    """

    open: str
    close: str
    opened: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """What an answer may look like, whoever asks for it.

    Attributes:
        kind: what ``source`` is; ``json`` is any JSON object and needs none.
        source: a JSON schema as JSON text, a regular expression, or a grammar.
        strict: refuse a schema that cannot be enforced in full, instead of enforcing the rest.
        begins: the answer is free until one of these texts has been said. If ``source`` allows
            it, it is bound from there on, with this text, and free again once what is bound is
            complete. Empty: bound from the beginning to the end.
        optional: the answer is free where this cannot be enforced.
        reasoning: reasoning is free; what is bound begins behind it.
        lead: a Lark expression for what must be said before ``source``, in the same breath.
    """

    kind: ConstraintKind
    source: str = ""
    strict: bool = False
    begins: tuple[str, ...] = ()
    optional: bool = False
    reasoning: Reasoning | None = None
    lead: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What a request may ask of the load; ``None`` leaves it to placement.

    Attributes:
        num_ctx: context per slot in tokens.
        num_batch: most tokens per decode call.
        num_gpu: layers on GPUs; -1 means automatic.
        num_thread: CPU threads; 0 means automatic.
        use_mmap: map the file.
    """

    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    num_thread: int | None = None
    use_mmap: bool | None = None
