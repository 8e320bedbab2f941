"""Whose turn it is where requests use adapters at different scales. Pure.

The engine applies one setting of the adapters to a whole step.

Rules:
 * a step holds requests of one setting only;
 * a setting has up to `TURN_STEPS` steps in a row while others wait, then the one that waited
   longest has its turn;
 * a setting without anything to compute loses its turn.
"""

from __future__ import annotations

from collections.abc import Iterable

from server.errors import EngineRefusedError

Scales = tuple[float, ...]
"""The scale of each adapter, in the order in which the model names them."""

TURN_STEPS = 8
"""Why: after a change the engine plans its graph anew, measured at 2 ms of CPU time with the demo
model, where a step takes 0.6 ms; over eight steps that is a quarter of a millisecond each."""


def scales_of(asked: tuple[tuple[int, float], ...] | None, usual: Scales) -> Scales:
    """What a request's wish comes to: without one the usual, else 0 for what it does not name.

    Raises:
        EngineRefusedError: it names an adapter that is not there.
    """
    if asked is None:
        return usual
    scales = [0.0] * len(usual)
    for adapter, scale in asked:
        if not 0 <= adapter < len(usual):
            raise EngineRefusedError(f"lora: expected an id below {len(usual)}, found {adapter}")
        scales[adapter] = scale
    return tuple(scales)


class Turns:
    """The setting of the last steps, and when each had its last turn."""

    def __init__(self) -> None:
        self._current: Scales | None = None
        self._left = 0
        self._clock = 0
        self._served: dict[Scales, int] = {}

    def next(self, settings: Iterable[Scales]) -> Scales:
        """The setting of the next step, among those that have something to compute.

        Raises:
            ValueError: there is none.
        """
        present = list(dict.fromkeys(settings))
        if self._current not in present or (not self._left and len(present) > 1):
            others = [one for one in present if one != self._current]
            self._current = min(others, key=lambda one: self._served.get(one, -1))
            self._left = TURN_STEPS
        self._left = max(0, self._left - 1)
        self._clock += 1
        assert self._current is not None
        self._served = {one: at for one, at in self._served.items() if one in present}
        self._served[self._current] = self._clock
        return self._current
