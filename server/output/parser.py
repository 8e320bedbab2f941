"""Split what a model writes into reasoning, visible text and calls, as it comes. Pure.

Rules:
 * reasoning stands between two tags; the first counts only as the first thing that is not blank,
   and where the prompt already ended with it, the text begins inside;
 * calls stand where their `Layout` says; text before, between and behind them is kept;
 * blanks beside tags and calls belong to neither side;
 * what looks like a call and is none stays text, its tags included. Where its arguments had begun
   to go out, it is told as broken, and all of it follows as text;
 * what could still become a tag is held back until it is decided, or the text ends;
 * nothing is lost: the ``raw`` of all events is what the model wrote;
 * no text a model writes raises an error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from server.chat import Tool
from server.output.events import (
    CallArguments,
    CallBroken,
    CallEnd,
    CallStart,
    Content,
    Event,
    Mark,
    Thinking,
)
from server.output.jsontext import MalformedCallError
from server.output.layout import Family, Layout, Tags
from server.output.source import Source, Wait

_BRACKETS = ("{", "[")
_BETWEEN = frozenset(",;")
_STRAY = ("}", "}\n", "]", "]\n")
"""What small models write once too often before the end of calls."""


class OutputParser(Protocol):
    """What splits an answer, whatever the family."""

    def feed(self, text: str) -> tuple[Event, ...]:
        """Take some text and give out what is decided."""

    def finish(self) -> tuple[Event, ...]:
        """Give out what was held back; the text has ended."""


class Reader(ABC):
    """Runs a coroutine over text that arrives, and gathers what it tells.

    Attributes:
        source: what it reads.
        tools: the functions that may be called.
    """

    def __init__(self, tools: Sequence[Tool] = ()) -> None:
        self.source = Source()
        self.tools = tools
        self._events: list[Event] = []
        self._open = False
        self._running = self.run()

    @abstractmethod
    def run(self) -> Wait[None]:
        """Read the whole text."""

    def feed(self, text: str) -> tuple[Event, ...]:
        """Take some text and give out what is decided."""
        self.source.put(text)
        return self._advance()

    def finish(self) -> tuple[Event, ...]:
        """Give out what was held back; the text has ended."""
        self.source.ended = True
        events = self._advance()
        rest = self.source.claim()
        return (*events, Mark(raw=rest)) if rest else events

    def content(self, text: str) -> None:
        """Tell visible text."""
        if text:
            self._events.append(Content(text=text, raw=self.source.claim()))

    def thinking(self, text: str) -> None:
        """Tell reasoning."""
        if text:
            self._events.append(Thinking(text=text, raw=self.source.claim()))

    def start(self, name: str, id: str = "") -> None:  # noqa: A002 - the field's name
        """Tell that a call begins."""
        self._open = True
        self._events.append(CallStart(name=name, id=id, raw=self.source.claim()))

    def arguments(self, text: str) -> None:
        """Tell some more of its arguments."""
        self._events.append(CallArguments(text=text, raw=self.source.claim()))

    def end(self) -> None:
        """Tell that it is whole; what comes next is another one."""
        self._open = False
        self._events.append(CallEnd(raw=self.source.claim()))
        self.source.record()

    def broken(self, before: str = "") -> None:
        """Tell that what was read since the last `Source.record` is no call.

        Args:
            before: blanks that stand before it.
        """
        text = before + self.source.recorded()
        if self._open:
            self._open = False
            self._events.append(CallBroken(text=text, raw=self.source.claim()))
        else:
            self.content(text)
        self.source.record()

    def _advance(self) -> tuple[Event, ...]:
        next(self._running, None)
        events, self._events = tuple(self._events), []
        return events


class TagParser(Reader):
    """The parser of every family but harmony."""

    def __init__(
        self,
        family: Family,
        *,
        tags: Tags | None,
        opened: bool = False,
        tools: Sequence[Tool] = (),
    ) -> None:
        """Start an answer.

        Args:
            family: who wrote it.
            tags: what stands around reasoning; ``None`` if none is looked for.
            opened: the prompt ended inside the reasoning.
            tools: what may be called; without any, calls stay text.
        """
        self._tags = tags
        self._opened = opened
        self._frames = family.frames
        self._layouts = tuple(each for each in family.layouts if each.openers and tools)
        self._bare = tuple(each for each in family.layouts if not each.openers and tools)
        openers = (text for each in self._layouts for text in (*each.openers, *each.implied))
        self._openers = tuple(dict.fromkeys(openers))
        self._gap = ""
        self._trims = bool(tools)
        super().__init__(tools)

    def run(self) -> Wait[None]:
        """Reasoning first, then text and calls to the end."""
        if self._tags is not None:
            yield from self._reasoning(self._tags)
        self._gap += yield from self.source.blanks()
        if self._bare and (yield from self.source.peek()) in _BRACKETS:
            yield from self._calls(self._bare[0])
        while (yield from self.source.peek()):
            yield from self._text()
        self.content(self._gap)

    def _reasoning(self, tags: Tags) -> Wait[None]:
        source = self.source
        if not self._opened:
            yield from source.accept(self._frames)
            blanks = yield from source.blanks()
            if not (yield from source.accept((tags.open,))):
                self._gap = blanks
                return
        yield from source.blanks()
        found = yield from source.until((tags.close,), self._thought)
        source.take(len(found))
        gap, self._gap = self._gap, ""
        if not found:
            self.thinking(gap)
        yield from source.blanks()

    def _thought(self, text: str) -> None:
        shown = self._gap + text
        kept = shown.rstrip()
        self._gap = shown[len(kept) :]
        self.thinking(kept)

    def _text(self) -> Wait[None]:
        """Visible text up to calls, and then these."""
        source = self.source
        found = yield from source.until((*self._openers, *self._frames), self._shown)
        if found in self._frames:
            source.take(len(found))
            return
        for layout in self._layouts:
            if found and found in (*layout.openers, *layout.implied):
                yield from self._calls(layout)
                return

    def _shown(self, text: str) -> None:
        """Visible text; blanks that may stand before a call wait."""
        shown = self._gap + text
        kept = shown.rstrip() if self._trims else shown
        self._gap = shown[len(kept) :]
        self.content(kept)

    def _calls(self, layout: Layout) -> Wait[None]:
        """Calls, of which the opener has not been taken."""
        source = self.source
        source.record()
        gap, self._gap = self._gap, ""
        calls = 0
        yield from source.accept(layout.openers)
        try:
            while (yield from self._another(layout, calls)):
                yield from layout.body.read(self)
                calls += 1
                gap = ""
                yield from self._close(layout.call_close)
                source.record()
        except MalformedCallError:
            self._no_call(gap)
            return
        if not calls:
            self._no_call(gap)
            return
        between = source.recorded()
        if between.strip():
            self.content(between)
        stray = (mark + closer for closer in layout.closers for mark in _STRAY)
        yield from self._close((*layout.closers, *stray))
        yield from source.blanks()

    def _no_call(self, gap: str) -> None:
        if not self.source.recorded():
            self.source.take(1)  # never stand still
        self.broken(gap)

    def _another(self, layout: Layout, calls: int) -> Wait[bool]:
        """Whether a call begins here; what stands before it is taken."""
        source = self.source
        yield from self._between()
        if layout.call_open:
            return bool((yield from source.accept(layout.call_open)))
        if not calls:
            return True
        if (yield from source.begins((*layout.closers, *layout.openers))):
            return False
        return (yield from source.peek()) in _BRACKETS

    def _between(self) -> Wait[None]:
        yield from self.source.blanks()
        while (yield from self.source.peek()) in _BETWEEN:
            self.source.take(1)
            yield from self.source.blanks()

    def _close(self, texts: Sequence[str]) -> Wait[None]:
        if texts:
            yield from self.source.blanks()
            yield from self.source.accept(texts)
