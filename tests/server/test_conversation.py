from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from server.chat import Message
from server.conversation import assemble, fit


def message(role: str, content: str) -> Message:
    return Message(role=role, content=content)


USER = message("user", "q")


def test_models_system_text_goes_in_front() -> None:
    assert assemble([USER], system="be kind", opening=[("user", "a"), ("assistant", "b")]) == (
        message("system", "be kind"),
        message("user", "a"),
        message("assistant", "b"),
        USER,
    )


def test_requests_own_system_text_replaces_the_models() -> None:
    own = message("system", "be brief")
    assert assemble([own, USER], system="be kind", opening=[]) == (own, USER)


MESSAGES = st.lists(
    st.builds(
        message, st.sampled_from(["system", "user", "assistant", "tool"]), st.text("x", max_size=9)
    ),
    min_size=1,
    max_size=9,
)


@settings(deadline=None, max_examples=300)
@given(messages=MESSAGES, room=st.integers(0, 60))
def test_as_few_of_the_oldest_as_needed_are_dropped(messages: list[Message], room: int) -> None:
    def size(kept: tuple[Message, ...]) -> int:
        return sum(len(one.content) + 1 for one in kept)

    seen: list[tuple[Message, ...]] = []

    def measure(kept: tuple[Message, ...]) -> tuple[Message, ...]:
        seen.append(kept)
        return kept

    kept, dropped = fit(messages, measure=measure, fits=lambda kept: size(kept) <= room)
    droppable = [i for i, one in enumerate(messages[:-1]) if one.role != "system"]
    expected = tuple(m for i, m in enumerate(messages) if i not in droppable[:dropped])
    assert kept == expected
    assert kept[-1] is messages[-1]
    if size(tuple(messages)) <= room:
        assert dropped == 0
    elif dropped:
        one_less = tuple(m for i, m in enumerate(messages) if i not in droppable[: dropped - 1])
        assert size(one_less) > room
        assert size(kept) <= room or dropped == len(droppable)
    assert len(seen) <= 2 + len(messages).bit_length()
