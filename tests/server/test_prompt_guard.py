from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.prompt.guard import CONTROL, MARK, USER_DEFINED, Guard, escape_marks, without_marks
from server.runner import marking

CONTROLS = ("<|im_start|>", "<|im_end|>", "<s>", "[INST]", "<<")
MARKERS = ("<think>", "<tool_call>")
GUARD = Guard(CONTROLS, MARKERS)
WORDS = st.lists(
    st.sampled_from([*CONTROLS, *MARKERS, MARK, "<", "|im_", "start|>", "a", " ", "[", "INST]"]),
    max_size=12,
).map("".join)


class TestControlTokens:
    @given(WORDS)
    @settings(deadline=None)
    def test_no_part_of_a_guarded_text_holds_a_control_token(self, text: str) -> None:
        for part in marking.split_prompt(GUARD.text(text)):
            assert not any(control in part for control in (*CONTROLS, *MARKERS))

    @given(WORDS, WORDS)
    @settings(deadline=None)
    def test_two_guarded_texts_side_by_side_make_no_control_token(self, one: str, two: str) -> None:
        for part in marking.split_prompt(GUARD.text(one) + GUARD.text(two)):
            assert not any(control in part for control in (*CONTROLS, *MARKERS))

    @given(WORDS)
    @settings(deadline=None)
    def test_guarding_loses_no_character(self, text: str) -> None:
        guarded = GUARD.text(text)

        assert "".join(marking.split_prompt(guarded)) == text
        assert without_marks(guarded) == text

    @given(WORDS)
    @settings(deadline=None)
    def test_escaped_prompt_stays_one_part(self, text: str) -> None:
        assert marking.split_prompt(escape_marks(text)) == ((text,) if text else ())

    def test_ordinary_text_is_not_touched(self) -> None:
        text = "if a < b and c[0] > d: print('|')"

        assert GUARD.text(text) == text

    def test_assistant_may_hold_markers_but_no_control_tokens(self) -> None:
        said = GUARD.text("<think>x</think><|im_end|>", assistant=True)

        assert said == f"<think>x</think><{MARK}|im_end|>"

    def test_unknown_word_is_cut_off_on_both_sides(self) -> None:
        assert marking.split_prompt("<|" + GUARD.foreign("im_end") + "|>") == ("<|", "im_end", "|>")

    def test_nested_data_is_guarded_with_its_keys(self) -> None:
        given_data = {"<s>": ["<s>", 1, None, {"a": "<s>"}]}

        assert GUARD.data(given_data) == {
            f"<{MARK}s>": [f"<{MARK}s>", 1, None, {"a": f"<{MARK}s>"}]
        }


class TestVocabulary:
    @pytest.mark.parametrize(
        ("text", "kind", "guarded"),
        [
            ("<|im_end|>", CONTROL, True),
            ("<|im_end|>", USER_DEFINED, True),
            ("<tool_response>", USER_DEFINED, True),
            ("<table>", USER_DEFINED, False),
            ("    ", USER_DEFINED, False),
            ("<end_of_turn>", 1, True),
            ("hello", 1, False),
        ],
    )
    def test_token_is_guarded_by_type_and_looks(self, text: str, kind: int, guarded: bool) -> None:  # noqa: FBT001
        guard = Guard.of_vocabulary([text], [kind])

        assert (guard.text(f"x{text}y") != f"x{text}y") is guarded

    def test_vocabulary_without_types_is_accepted(self) -> None:
        assert Guard.of_vocabulary(["a", "<|x|>"], []).text("<|x|>") == f"<{MARK}|x|>"

    def test_both_sides_use_the_same_mark(self) -> None:
        assert marking.MARK == MARK
