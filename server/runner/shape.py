"""What a loaded engine can hold and do. A value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the loaded engine can hold and do.

    Attributes:
        context_tokens: context of one slot.
        cells: cells of the KV cache all slots share.
        batch_tokens: most tokens per decode.
        sequences: sequence ids, 0 to this minus one.
        output_rows: most rows of logits per decode.
        vocabulary_size: length of a row of logits.
        divisible: the end of a sequence can be removed; recurrent models keep one state only.
        can_shift: positions can be moved.
        window_tokens: sliding attention window; 0 without one.
        pooled: it turns whole texts into vectors and generates nothing.
        ranks: what it makes of a text is a score, not a vector.
        trained_tokens: context the model was trained on; encoders have no position beyond it.
        saved_bytes: memory for states that leave the cache.
        step_tokens: most rows of a picture in a step.
        whole_pictures: nothing is cut or shared inside a picture: its rows see each other, or
            take one position together.
        parted_pictures: all the same, its rows may be computed in several steps.
        tile_rows: attention works in tiles of so many rows; 0 if it does not.
    """

    context_tokens: int
    cells: int
    batch_tokens: int
    sequences: int
    output_rows: int
    vocabulary_size: int
    divisible: bool
    can_shift: bool
    window_tokens: int
    pooled: bool = False
    ranks: bool = False
    trained_tokens: int = 0
    saved_bytes: int = 0
    step_tokens: int = 0
    whole_pictures: bool = False
    parted_pictures: bool = False
    tile_rows: int = 0

    @property
    def text_tokens(self) -> int:
        """Tokens of the longest text that can be embedded."""
        if self.pooled:
            return min(self.context_tokens, self.batch_tokens, self.trained_tokens)
        return self.context_tokens - 1
