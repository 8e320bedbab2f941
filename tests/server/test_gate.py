"""When an answer is bound; over a matcher of one text and tokens that are bytes."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import EngineRefusedError
from server.runner.gate import MOST_BLANK_TOKENS, Gate, Ids
from server.wishes import Constraint, Reasoning

END = 256
THINK = Reasoning(open="<t>", close="</t>")


class Bytes:
    """A vocabulary of all bytes, some longer tokens, and an end token."""

    longer = (b"<t>", b"</t>", b"\n\n", b">a", b"/t>ab", b"ab", b"[C]")
    size = END + 1 + len(longer)
    control = END + len(longer)

    def whole_piece(self, token: int) -> bytes:
        if token == END:
            return b"<end>"
        return bytes([token]) if token < END else self.longer[token - END - 1]

    def is_end(self, token: int) -> bool:
        return token == END

    def is_framing(self, token: int) -> bool:
        return token == self.control

    def tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        parts = text.encode().split(b"[C]") if special else [text.encode()]
        found = tuple(parts[0])
        return found + tuple(token for part in parts[1:] for token in (self.control, *part))


TOKENS = Bytes()


class Word:
    """Allows one word and then, unless it is sealed, the end."""

    def __init__(self, word: bytes, at: int = 0, *, sealed: bool = True) -> None:
        self.word, self.at, self.sealed = word, at, sealed

    def allows(self, token: int) -> bool:
        if token == END:
            return self.at == len(self.word)
        return self.word.startswith(TOKENS.whole_piece(token), self.at)

    def allowed(self) -> Ids:
        return np.array([i for i in range(TOKENS.size) if self.allows(i)], np.int64)

    def accept(self, token: int) -> None:
        if not self.allows(token):
            raise EngineRefusedError("no")
        self.at += 0 if token == END else len(TOKENS.whole_piece(token))

    def takes(self, text: bytes) -> bool:
        fits = self.word.startswith(text, self.at)
        self.at += len(text) if fits else 0
        return fits

    def forced(self) -> tuple[int, ...]:
        return tuple(self.word[self.at :])

    @property
    def complete(self) -> bool:
        return self.sealed and self.at == len(self.word)

    def fork(self) -> Word:
        return Word(self.word, self.at, sealed=self.sealed)

    def close(self) -> None:
        pass


def gate(word: bytes = b"abab", *, sealed: bool = True, **fields: object) -> Gate:
    constraint = Constraint(kind="regex", source="x", **fields)  # type: ignore[arg-type]
    return Gate(constraint, Word(word, sealed=sealed), TOKENS)


def say(subject: Gate, *texts: bytes) -> None:
    """Each text is one token if there is one, else its bytes."""
    for text in texts:
        longer = text in TOKENS.longer
        for token in [END + 1 + TOKENS.longer.index(text)] if longer else list(text):
            assert subject.allows(token), (subject.phase, text)
            subject.accept(token)


def token(text: bytes) -> int:
    return text[0] if len(text) == 1 else END + 1 + TOKENS.longer.index(text)


class TestBoundFromTheBeginning:
    def test_only_what_the_grammar_allows(self) -> None:
        subject = gate()

        assert not subject.allows(token(b"b"))
        assert set(subject.allowed({token(b"b")})) == {token(b"a"), token(b"ab")}
        assert not subject.allows(END)
        with pytest.raises(EngineRefusedError):
            subject.accept(token(b"b"))

    def test_it_ends_with_the_grammar(self) -> None:
        subject = gate()
        say(subject, b"ab", b"ab")

        assert subject.done
        assert not subject.allows(token(b"a"))

    def test_it_may_end_where_more_could_follow(self) -> None:
        subject = gate(sealed=False)
        say(subject, b"ab", b"ab")

        assert not subject.done
        assert subject.allows(END)

    def test_forced_tokens_are_those_of_the_grammar(self) -> None:
        assert gate(b"xy").forced() == tuple(b"xy")


class TestReasoning:
    @pytest.mark.parametrize(
        "texts",
        [
            (b"<t>", b"why", b"</t>", b"\n\n", b"ab"),
            (b"<", b"t", b">", b"x", b"<", b"/t>ab"),
            (b"\n\n", b"<t>", b"</t>", b"ab"),
            (b"<t>", b"a</", b"t", b">a", b"b"),
            (b"ab",),
            (b" ", b"ab"),
        ],
    )
    def test_it_is_free_and_the_answer_behind_it_bound(self, texts: tuple[bytes, ...]) -> None:
        subject = gate(reasoning=THINK)
        say(subject, *texts)

        assert subject.phase == "bound"
        assert subject.forced() == tuple(b"ab")

    def test_opened_in_the_prompt_it_begins_inside(self) -> None:
        subject = gate(reasoning=Reasoning(open="<t>", close="</t>", opened=True))
        say(subject, b"ab is free", b"</t>", b"ab")

        assert subject.phase == "bound"

    def test_answer_does_not_end_inside_it(self) -> None:
        subject = gate(reasoning=THINK)
        say(subject, b"<t>", b"x")

        assert not subject.allows(END)
        assert END not in subject.allowed({END})

    def test_token_that_closes_and_goes_on_wrongly_is_refused(self) -> None:
        subject = gate(b"xx", reasoning=THINK)
        say(subject, b"<t>", b"<")

        assert not subject.allows(token(b"/t>ab"))
        assert token(b"/t>ab") not in subject.allowed({token(b"/t>ab")})

    def test_spelled_tags_of_control_tokens_do_not_count(self) -> None:
        subject = gate(reasoning=Reasoning(open="<t>", close="[C]", opened=True))
        for byte in b"[C]":
            subject.accept(byte)
        assert subject.forced() == ()
        say(subject, b"[C]", b"ab")

        assert subject.forced() == tuple(b"ab")

    def test_half_an_opening_text_is_completed(self) -> None:
        subject = gate(reasoning=THINK)
        say(subject, b"<")

        assert not subject.allows(token(b"a"))
        assert not subject.allows(END)
        assert list(subject.allowed({token(b"a")})) == [token(b"t")]

    def test_half_an_opening_text_may_be_the_answer(self) -> None:
        subject = gate(b"<x", reasoning=THINK)
        say(subject, b"<", b"x")

        assert subject.done

    def test_blanks_behind_it_come_to_an_end(self) -> None:
        subject = gate(reasoning=THINK)
        say(subject, b"<t>", b"</t>", *[b"\n\n"] * MOST_BLANK_TOKENS)

        assert not subject.allows(token(b"\n\n"))
        assert subject.allows(token(b"a"))

    def test_refused_at_the_start_only_the_grammar_remains(self) -> None:
        subject = gate(reasoning=THINK)

        assert not subject.allows(token(b"x"))
        assert set(subject.allowed({token(b"x")})) == {token(b"a"), token(b"ab")}


class TestBegunByAText:
    def test_all_is_free_until_it_is_said(self) -> None:
        subject = gate(b"call:abab", begins=("<t>", "call:"))
        say(subject, b"any words, ")
        assert subject.allows(END)
        say(subject, b"call:")

        assert subject.phase == "bound"
        assert not subject.allows(END)

    def test_it_is_bound_with_what_its_last_token_says_beyond_it(self) -> None:
        subject = gate(b"<t>abab", begins=("<t>",))
        say(subject, b"<", b"t", b">a", b"b")

        assert subject.forced() == tuple(b"ab")

    def test_a_text_that_goes_on_otherwise_stays_free(self) -> None:
        subject = gate(b"<t>x", begins=("<t>",))
        say(subject, b"<", b"t", b">a")

        assert subject.phase == "free"
        say(subject, b"<t>")
        assert subject.forced() == tuple(b"x")

    def test_complete_it_is_free_again_and_may_begin_again(self) -> None:
        subject = gate(b"<t>abab", begins=("<t>",))
        for _ in range(3):
            say(subject, b"<t>", b"ab", b"ab", b" and ")
        assert subject.phase == "free"
        assert subject.allows(END)

    def test_token_may_complete_it_and_go_on(self) -> None:
        subject = gate(b"<t>ab>", begins=("<t>",))
        say(subject, b"<t>", b"ab", b">a")
        assert subject.phase == "free"
        say(subject, b"b<t>")
        assert subject.forced() == tuple(b"ab>")
        assert not gate(b"ab>").allows(token(b">a"))

    def test_inside_reasoning_it_does_not_count_and_nothing_is_refused(self) -> None:
        subject = gate(b"call:abab", begins=("call:",), reasoning=THINK)
        say(subject, b"<t>", b"call:x")
        assert subject.allows(END)
        say(subject, b"</t>")
        assert subject.forced() == ()
        say(subject, *[b"\n\n"] * 9, b"well, call:", b"ab")

        assert subject.phase == "bound"

    def test_half_an_opening_text_goes_on_as_it_likes(self) -> None:
        subject = gate(b"call:abab", begins=("call:",), reasoning=THINK)
        say(subject, b"\n\n", b"<", b"b> call:", b"ab")

        assert subject.phase == "bound"

    def test_answer_without_it_may_end(self) -> None:
        subject = gate(begins=("call:",), reasoning=THINK)
        say(subject, b"no")

        assert subject.allows(END)

    def test_text_of_a_control_token_is_said_by_that_token_only(self) -> None:
        subject = gate(b"[C]abab", begins=("[C]ab",))
        for byte in b"[C]ab":
            assert subject.allows(byte)
            subject.accept(byte)
        assert subject.phase == "free"
        say(subject, b"[C]", b"ab")

        assert subject.forced() == tuple(b"ab")

    def test_it_may_be_given_up_where_an_answer_that_is_to_be_bound_may_not(self) -> None:
        subject = gate(b"<t>abab", begins=("<t>",))
        say(subject, b"<t>")
        assert not subject.allows(token(b"b"))
        assert subject.yields()
        say(subject, b"b", b"<t>", b"b")

        assert subject.phase == "free"
        assert not gate().yields()


@given(st.lists(st.sampled_from([*range(97, 100), 91, 67, 93, *range(END, TOKENS.size)])))
def test_before_its_text_nothing_is_refused(tokens: list[int]) -> None:
    subject = gate(b"[C]abab", begins=("[C]", "b[C]"), reasoning=THINK)
    for each in tokens:
        if subject.phase == "bound" and not subject.allows(each):
            assert subject.yields()
        assert subject.allows(each)
        subject.accept(each)


@given(
    st.text("<t/>ab ", max_size=30),
    st.sampled_from([b"ab", b"<t", b"a<t>"]),
    st.booleans(),
    st.lists(st.integers(0, 5), max_size=20),
)
def test_however_it_is_cut_the_answer_is_reasoning_and_then_the_word(
    text: str,
    word: bytes,
    opened: bool,  # noqa: FBT001
    cuts: list[int],
) -> None:
    """Say the text as far as the gate lets it; then what it leaves, to the end."""
    subject = gate(word, reasoning=Reasoning(open="<t>", close="</t>", opened=opened))
    said = b""
    queue = [*text.encode()]
    for cut in cuts:
        queue.insert(min(cut, len(queue)), END + 1 + cut)
    while queue and not subject.done:
        wanted = queue.pop(0)
        if subject.allows(wanted):
            said += TOKENS.whole_piece(wanted)
            subject.accept(wanted)
    closing = [*b"</t>"] if subject.phase == "reasoning" else []
    for _ in range(60):
        if subject.done:
            break
        wanted = closing.pop(0) if closing else int(subject.allowed(())[0])
        if not subject.allows(wanted):
            break
        said += TOKENS.whole_piece(wanted)
        subject.accept(wanted)
        if subject.phase == "reasoning" and not closing:
            closing = [*b"</t>"]

    assert subject.done
    head = rb"(?:.*?)</t>\s*" if opened else rb"\s*(?:<t>.*?</t>\s*)?"
    assert re.fullmatch(head + re.escape(word), said, re.DOTALL), said
