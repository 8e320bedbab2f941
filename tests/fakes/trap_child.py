"""Misuse of the engine, one case after another in one process: ``python -P trap_child.py``.

Each case is a call that ends the process if the engine gets it. Prints what each one raised as
JSON, and at the end whether the engine still answers.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hwprobe.settings import EngineSettings

if TYPE_CHECKING or __name__ == "__main__":  # whoever wants the names alone loads no engine
    os.environ["GGML_NO_BACKTRACE"] = "1"
    from server.runner.chain import Candidates, Chain, Grammar
    from server.runner.library import OK, Engine

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
SETTINGS = EngineSettings(num_ctx=256, slots=2, num_batch=64, num_ubatch=32, threads=1)
ROW = np.zeros(8, np.float32)


def decode(engine: Engine, tokens: int, *, output: int = 1, sequence: int = 0) -> int:
    engine.forget()
    engine.batch.clear()
    engine.batch.add([65] * tokens, position=0, sequence=sequence, output=output)
    return engine.decode()


def empty(engine: Engine) -> None:
    engine.batch.clear()
    engine.decode()


def every_output(engine: Engine) -> None:
    engine.forget()
    engine.batch.clear()
    engine.batch.add([65] * (SETTINGS.output_rows + 1), position=0, sequence=0, output=True)
    engine.batch.ask_for_all()
    engine.decode()


def after_failure(engine: Engine) -> None:
    """Positions with a gap are refused by the engine; the rows of the decode before are gone."""
    decode(engine, 1)
    engine.batch.clear()
    engine.batch.add([65], position=9, sequence=0, output=True)
    if engine.decode() != OK:
        engine.logits(0)


def non_causal(engine: Engine) -> None:
    from server.runner.native import LIB

    LIB.llama_set_causal_attn(engine._context, False)
    try:
        decode(engine, 40)
    finally:
        LIB.llama_set_causal_attn(engine._context, True)


def logits_not_asked(engine: Engine) -> None:
    decode(engine, 3, output=0)
    engine.logits(0)


def logits_beyond(engine: Engine) -> None:
    decode(engine, 3)
    engine.logits(1)


def hidden_not_asked(engine: Engine) -> None:
    decode(engine, 3)
    engine.hidden(2)


def wrong_token(engine: Engine) -> None:
    grammar = Grammar(engine.vocabulary, 'root ::= "a"')
    (token,) = engine.vocabulary.tokenize("b", special=False)
    assert not grammar.allows(token)
    grammar.accept(token)


def unasked_token(engine: Engine) -> None:
    grammar = Grammar(engine.vocabulary, 'root ::= "aa"')
    (token,) = engine.vocabulary.tokenize("a", special=False)
    assert grammar.allows(token)
    grammar.accept(token)
    grammar.accept(token)


def closed_grammar(engine: Engine) -> None:
    grammar = Grammar(engine.vocabulary, 'root ::= "a"')
    grammar.close()
    grammar.allows(65)


def unknown_token(engine: Engine) -> None:
    grammar = Grammar(engine.vocabulary, 'root ::= "a"')
    assert not grammar.allows(engine.vocabulary.size)
    assert not grammar.allows(-1)
    grammar.accept(engine.vocabulary.size)


def no_candidates(_engine: Engine) -> None:
    Candidates(8).fill(ROW[:0])


def unfilled_candidates(_engine: Engine) -> None:
    Chain([("greedy",)]).choose(Candidates(8))


def too_many_candidates(_engine: Engine) -> None:
    Candidates(4).fill(ROW)


def closed_chain(_engine: Engine) -> None:
    chain = Chain([("greedy",)])
    chain.close()
    candidates = Candidates(8)
    candidates.fill(ROW)
    chain.choose(candidates)


CASES: dict[str, Callable[[Engine], object]] = {
    "more tokens than a batch": lambda engine: decode(engine, 65),
    "empty batch": empty,
    "more outputs than tokens": lambda engine: decode(engine, 2, output=3),
    "more outputs than rows": every_output,
    "tokens that see each other, over a micro-batch": non_causal,
    "row that was not asked for": logits_not_asked,
    "row beyond those asked for": logits_beyond,
    "row of a failed decode": after_failure,
    "negative row": lambda engine: (decode(engine, 1), engine.logits(-1)),
    "hidden state that was not asked for": hidden_not_asked,
    "remove from a sequence there is not": lambda engine: engine.remove(2, 0),
    "remove from a negative sequence": lambda engine: engine.remove(-2, 0),
    "share with a sequence there is not": lambda engine: engine.share(0, 2, 1),
    "share from a sequence there is not": lambda engine: engine.share(7, 0, 1),
    "slide a sequence there is not": lambda engine: engine.slide(2, 0, 1),
    "position of a sequence there is not": lambda engine: engine.last_position(300),
    "resume a sequence there is not": lambda engine: engine.can_resume(2, 0),
    "vector of a sequence there is not": lambda engine: engine.pooled(2),
    "scales without adapters": lambda engine: engine.use_adapters((1.0,)),
    "chain without a drawing step": lambda _engine: Chain([("temp", 0.5)]),
    "chain of nothing": lambda _engine: Chain([]),
    "chain that draws twice": lambda _engine: Chain([("greedy",), ("dist", 1)]),
    "closed chain": closed_chain,
    "no candidates": no_candidates,
    "candidates never filled": unfilled_candidates,
    "more candidates than memory": too_many_candidates,
    "token the grammar refused": wrong_token,
    "token the grammar was not asked about": unasked_token,
    "token that is not in the vocabulary": unknown_token,
    "closed grammar": closed_grammar,
    "grammar of nothing": lambda engine: Grammar(engine.vocabulary, ""),
    "grammar with a zero byte": lambda engine: Grammar(engine.vocabulary, 'root ::= "a"\0'),
    "grammar the engine does not take": lambda engine: Grammar(engine.vocabulary, 'root ::= "a'),
    "grammar without its root": lambda engine: Grammar(engine.vocabulary, 'other ::= "a"'),
}


def main() -> None:
    engine = Engine(model_path=DEMO, settings=SETTINGS)
    before = first_logits(engine)
    # A cache of streams would end the process at this; ours is one for all sequences.
    engine.share(0, 1, 3)
    assert engine.last_position(1) == 2
    raised = {}
    for name, case in CASES.items():
        try:
            case(engine)
        except Exception as error:  # noqa: BLE001 - what was raised is the answer
            raised[name] = [type(error).__name__, str(error)]
        else:
            raised[name] = ["", ""]
    same = first_logits(engine) == before
    engine.close()
    try:
        engine.decode()
    except Exception as error:  # noqa: BLE001 - likewise
        raised["closed engine"] = [type(error).__name__, str(error)]
    sys.stdout.write(json.dumps({"raised": raised, "same": same}))
    sys.stdout.flush()


def first_logits(engine: Engine) -> list[float]:
    assert decode(engine, 5) == OK
    values: list[float] = engine.logits(0).tolist()
    return values


if __name__ == "__main__":
    main()
