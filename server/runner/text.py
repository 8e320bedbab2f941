"""From token bytes to text a client may see: whole characters, no stop texts. Pure.

Rules:
 * a character whose bytes are not all there yet is held back;
 * the longest end of the text that may still become a stop text is held back;
 * of several stop texts the one that is complete first wins, the longest of those;
 * texts of control tokens that other tokens spell come out marked, see `server.runner.spelling`;
 * what comes out does not depend on how the bytes were cut into pieces.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence

from server.runner.spelling import SPELLED, Spellings

_NONE = Spellings()


class TextStream:
    """One answer's text as it grows.

    Attributes:
        stopped: a stop text was found; nothing more comes out.
        decoded: characters decoded so far, held back ones included, the stop text excluded.
        released: characters given out so far, marks not counted.
    """

    def __init__(self, stops: Sequence[str] = (), spellings: Spellings = _NONE) -> None:
        self.stopped = False
        self.decoded = 0
        self.released = 0
        self._stops = tuple(stop for stop in stops if stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._spellings = spellings
        self._spelled = ""
        self._marks: deque[int] = deque()

    def feed(self, piece: bytes, *, framing: bool = False) -> str:
        """Add the bytes of one token; returns the text that may go out now.

        Args:
            piece: the bytes.
            framing: it is a control token, which spells nothing.
        """
        if self.stopped:
            return ""
        begin = len(self._held)
        added = self._decoder.decode(piece).replace(SPELLED, "\ufffd")
        self._held += added
        self._note(added, framing=framing)
        self.decoded += len(added)
        if (cut := self._find_stop(begin)) is not None:
            self.stopped = True
            self.decoded -= len(self._held) - cut
            return self._release(cut, keep=False)
        return self._release(len(self._held) - self._pending())

    def finish(self) -> str:
        """The held-back text; the bytes of an incomplete character are dropped."""
        return self._release(len(self._held))

    def _find_stop(self, begin: int) -> int | None:
        """Where the stop text that is complete first begins; None without one."""
        found: tuple[int, int] | None = None
        for stop in self._stops:
            at = self._held.find(stop, max(0, begin - len(stop) + 1))
            if at >= 0 and (found is None or (at + len(stop), at) < found):
                found = (at + len(stop), at)
        return found[1] if found else None

    def _pending(self) -> int:
        """Length of the longest end of the held text that begins a stop text."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0

    def _note(self, added: str, *, framing: bool) -> None:
        """Find what was spelled by the text that is added."""
        if framing and added:
            self._spelled = ""
            return
        known = len(self._spelled)
        text = self._spelled + added
        self._marks += (self.decoded + at - known for at in self._spellings.ends(text, known))
        self._spelled = text[max(0, len(text) - self._spellings.reach) :]

    def _release(self, length: int, *, keep: bool = True) -> str:
        out, rest = self._held[:length], self._held[length:]
        self._held = rest if keep else ""
        begin, self.released = self.released, self.released + len(out)
        if not self._marks:
            return out
        parts, done = [], 0
        while self._marks and self._marks[0] < self.released:
            at = self._marks.popleft() - begin
            parts += [out[done:at], SPELLED]
            done = at
        return "".join([*parts, out[done:]])
