r"""The guard mark inside prompts: text that must not become a control token. Pure.

A prompt is text in which control-token texts are parsed (`protocol.Generate.prompt`). Where a
client's own words contain such a text, a mark U+E000 stands inside it. The runner cuts the prompt
there, tokenizes the parts one by one, and so never sees the control token whole:

 * one mark is a cut and vanishes;
 * two marks in a row are one literal U+E000;
 * a longer run is read from the left, two by two.

`server.prompt.guard` writes the marks.
"""

from __future__ import annotations

import re

MARK = "\ue000"
"""U+E000, the first private-use character: no model's vocabulary gives it a meaning."""

_RUN = re.compile(f"{MARK}+")


def split_prompt(text: str) -> tuple[str, ...]:
    """The parts of a prompt between its cuts, literal marks restored; empty parts are left out."""
    if MARK not in text:
        return (text,) if text else ()
    parts = [""]
    position = 0
    for run in _RUN.finditer(text):
        literal, cut = divmod(len(run[0]), 2)
        parts[-1] += text[position : run.start()] + MARK * literal
        if cut:
            parts.append("")
        position = run.end()
    parts[-1] += text[position:]
    return tuple(part for part in parts if part)
