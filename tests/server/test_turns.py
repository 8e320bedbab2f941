"""Whose turn it is, and what a wish for adapters comes to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import BadRequestError, EngineRefusedError
from server.options import check_adapters, resolve_options
from server.runner.turns import TURN_STEPS, Turns, scales_of


@pytest.mark.parametrize(
    "wrong",
    [
        3,
        {},
        ["a"],
        [{}],
        [{"id": "0", "scale": 1}],
        [{"id": True, "scale": 1}],
        [{"id": 0}],
        [{"id": 0, "scale": "1"}],
        [{"id": 0, "scale": 1e9}],
    ],
)
def test_anything_but_ids_and_scales_is_refused(wrong: object) -> None:
    with pytest.raises(BadRequestError, match='option "lora" must be an array'):
        resolve_options({}, {"lora": wrong})


def test_adapter_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(BadRequestError, match="expected an adapter id of a model with adapters"):
        check_adapters(((0, 1.0),), 0)
    with pytest.raises(BadRequestError, match="expected an adapter id below 2, found 2"):
        check_adapters(((0, 1.0), (2, 1.0)), 2)
    with pytest.raises(EngineRefusedError, match="expected an id below 1, found 3"):
        scales_of(((3, 1.0),), (1.0,))
    check_adapters(None, 0)


def test_wish_names_all_scales_and_no_wish_none() -> None:
    assert scales_of(None, (1.0, 0.5)) == (1.0, 0.5)
    assert scales_of((), (1.0, 0.5)) == (0.0, 0.0)
    assert scales_of(((1, 2.0),), (1.0, 0.5)) == (0.0, 2.0)
    options, _ = resolve_options({}, {"lora": [{"id": 1, "scale": 2}]})
    assert options.lora == ((1, 2.0),)


def test_setting_alone_keeps_its_turn() -> None:
    turns = Turns()
    assert {turns.next([(1.0,)]) for _ in range(100)} == {(1.0,)}


def test_settings_alternate_after_some_steps() -> None:
    turns = Turns()
    both = [(1.0,), (0.0,)]
    got = [turns.next(both) for _ in range(3 * TURN_STEPS)]
    assert got == [both[0]] * TURN_STEPS + [both[1]] * TURN_STEPS + [both[0]] * TURN_STEPS


@given(
    steps=st.lists(
        st.lists(st.integers(0, 4).map(lambda n: (float(n),)), min_size=1, max_size=5),
        min_size=1,
        max_size=200,
    )
)
def test_nobody_waits_longer_than_a_turn_of_every_other(
    steps: list[list[tuple[float, ...]]],
) -> None:
    turns = Turns()
    waited: dict[tuple[float, ...], int] = {}
    for present in steps:
        chosen = turns.next(present)
        assert chosen in present
        waited = {one: waited.get(one, 0) + 1 for one in present if one != chosen}
        assert max(waited.values(), default=0) <= 5 * TURN_STEPS
