"""Try a model on texts, in a sandboxed child process: the parent's side.

What comes back are measurements, not judgements: `bundler.format.acceptance` says what they must
be. The child loads a model that nobody has tried on this machine yet, so it has no network, starts
no program and, unless a GPU needs it, opens no file for writing (`hwprobe.sandbox`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from hwprobe.child import Ended, asked_child
from hwprobe.errors import EngineCheckError
from hwprobe.settings import EngineSettings

TRIAL_TIMEOUT_S: Final = 1800.0
"""Why: a 40 GiB model read at 200 MB/s takes 200 s; some hundred tokens on a small board follow."""
MAX_TEXT_TOKENS: Final = 256
"""Of a text whose likelihood is measured. Why: each costs a row of logits, all held at once."""

Kind = Literal["likelihood", "greedy", "vector"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One text to try.

    Attributes:
        kind: ``likelihood`` of the text's own tokens; ``greedy`` for the likeliest tokens after
            it; ``vector`` for its embedding.
        text: as the tokenizer gets it; special tokens count as such.
        max_tokens: how many tokens ``greedy`` asks for; it ends earlier where the model does.
        schema: a JSON schema, as text, that what ``greedy`` gives is held against; or empty.
    """

    kind: Kind
    text: str
    max_tokens: int = 0
    schema: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one text.

    Attributes:
        tokens: for ``greedy`` those that followed, else how the text was cut.
        mean_nll: mean negative log-likelihood per token in nats; 0 for other kinds.
        margins: for ``greedy``, how far the best logit was above the second, per token.
        text: for ``greedy``, the tokens as text.
        fits_schema: why the text does not fit the schema; empty when it does, or none was given.
        vector: for ``vector``, of length one.
    """

    tokens: tuple[int, ...] = ()
    mean_nll: float = 0.0
    margins: tuple[float, ...] = ()
    text: str = ""
    fits_schema: str = ""
    vector: tuple[float, ...] = ()


def run_trials(
    model_path: Path,
    settings: EngineSettings,
    trials: Sequence[Trial],
    *,
    timeout_s: float = TRIAL_TIMEOUT_S,
) -> tuple[Outcome, ...]:
    """Load a model in a child process and try these texts, in order.

    Raises:
        EngineCheckError: the engine crashed, hung, or refused the model or a text.
    """
    request: dict[str, Any] = {
        "model_path": str(model_path),
        "settings": asdict(settings),
        "trials": [asdict(one) for one in trials],
    }
    ended = asked_child(request, timeout_s, module="hwprobe.trying")
    if isinstance(ended, Ended):
        raise EngineCheckError(f"{ended.message} ({ended.crashed_by})")
    if not ended["ok"]:
        raise EngineCheckError(str(ended["message"]))
    return tuple(
        Outcome(
            tokens=tuple(map(int, one["tokens"])),
            mean_nll=float(one["mean_nll"]),
            margins=tuple(map(float, one["margins"])),
            text=str(one["text"]),
            fits_schema=str(one["fits_schema"]),
            vector=tuple(map(float, one["vector"])),
        )
        for one in ended["outcomes"]
    )
