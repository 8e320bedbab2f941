"""The radix tree, the count of cells and the shares of tenants, each against a plain model."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from server.runner.cells import Cells
from server.runner.fairness import DeficitRing, Line
from server.runner.prefixes import PrefixTree, common_prefix
from server.runner.work import Work

TOKENS = st.lists(st.integers(0, 2), max_size=12)


@given(st.lists(st.integers(0, 2), max_size=30), st.lists(st.integers(0, 2), max_size=30))
def test_common_prefix_is_the_longest(left: list[int], right: list[int]) -> None:
    length = common_prefix(left, right)

    assert left[:length] == right[:length]
    assert left[length : length + 1] != right[length : length + 1] or not left[length:]


@given(st.lists(st.tuples(st.integers(0, 5), TOKENS), max_size=30), TOKENS)
@settings(deadline=None, max_examples=300)
def test_tree_finds_what_a_walk_over_all_entries_finds(
    changes: list[tuple[int, list[int]]], prompt: list[int]
) -> None:
    tree: PrefixTree[int] = PrefixTree()
    plain: dict[int, list[int]] = {}
    for owner, tokens in changes:
        tree.put(owner, tokens)
        plain[owner] = tokens
    wanted = {owner: common_prefix(tokens, prompt) for owner, tokens in plain.items()}

    found = list(tree.matches(prompt))

    assert [length for length, _owners in found] == sorted(
        {length for length in wanted.values() if length}, reverse=True
    )
    assert {owner: length for length, owners in found for owner in owners} == {
        owner: length for owner, length in wanted.items() if length
    }
    assert len(tree) == sum(bool(tokens) for tokens in plain.values())
    for owner in plain:
        tree.remove(owner)
    assert not tree._root.children


def test_tree_has_a_node_per_branching_and_not_per_token() -> None:
    tree: PrefixTree[str] = PrefixTree()
    tree.put("a", range(10_000))
    tree.put("b", [*range(5_000), -1])
    tree.remove("b")

    (only,) = tree._root.children.values()
    assert len(only.edge) == 10_000
    assert not only.children


SEQUENCES = st.integers(0, 3)


@given(
    st.lists(
        st.tuples(st.sampled_from(["length", "share", "cut"]), SEQUENCES, SEQUENCES, TOKENS),
        max_size=40,
    )
)
@settings(deadline=None, max_examples=300)
def test_cells_are_counted_as_a_cache_of_objects_would(
    changes: list[tuple[str, int, int, list[int]]],
) -> None:
    cells = Cells()
    plain: dict[int, list[object]] = {n: [] for n in range(4)}
    for what, one, other, numbers in changes:
        first, second = (*numbers, 0, 0)[:2]
        row = plain[one]
        if what == "length":
            length = len(numbers)
            plain[one] = [*row[:length], *(object() for _ in range(length - len(row)))]
            cells.set_length(one, length)
        elif what == "share" and not plain[other] and row:
            end = min(len(row), first + 1)
            plain[other] = row[:end]
            cells.share(one, other, end)
        elif what == "cut" and row:
            start = min(first, len(row) - 1)
            end = min(len(row), start + 1 + second)
            del row[start:end]
            cells.cut_out(one, start, end)
    assert cells.used == len({id(cell) for row in plain.values() for cell in row})
    for one, row in plain.items():
        assert cells.length(one) == len(row)
        others = {id(cell) for n, held in plain.items() if n != one for cell in held}
        shared = [n for n, cell in enumerate(row, start=1) if id(cell) in others]
        assert cells.shared(one) == max(shared, default=0)
        assert cells.beyond(one, 5, {*plain} - {one}) == sum(
            id(cell) not in others for cell in row[:5]
        )
    assert cells.union([0, 1]) == len({id(cell) for n in (0, 1) for cell in plain[n]})


WANTS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 500), max_size=4)


@given(st.lists(st.tuples(WANTS, st.integers(0, 700)), max_size=10))
@settings(deadline=None)
def test_all_room_is_dealt_and_nobody_gets_more_than_wanted(
    steps: list[tuple[dict[str, int], int]],
) -> None:
    ring = DeficitRing()
    for wants, room in steps:
        dealt = ring.deal(wants, room)

        assert sum(dealt.values()) == min(room, sum(wants.values()))
        assert all(dealt.get(tenant, 0) <= want for tenant, want in wants.items())


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(2, 5))
@settings(deadline=None)
def test_tenants_who_always_want_get_the_same_within_a_quantum(
    rooms: list[int], tenants: int
) -> None:
    ring = DeficitRing()
    got: Counter[str] = Counter()
    for room in rooms:
        got.update(ring.deal({str(n): 10_000 for n in range(tenants)}, room))

    assert max(got.values()) - min(got[str(n)] for n in range(tenants)) <= 64


def test_first_in_line_stays_first_while_others_grow_as_old() -> None:
    line = Line()
    line.put(Work(id=1, prompt=(1,) * 500, most_tokens=1))
    for number in range(2, 60):
        line.put(Work(id=number, prompt=(1,), most_tokens=1))
        line.pass_step()
        first = line.first({})
        assert first is not None
        if first.id == 1:
            break
        line.take(first)

    assert number < 20
    assert [work.id for work in line][:1] == [1]


def test_line_forgets_who_left() -> None:
    line = Line()
    line.put(Work(id=1, prompt=(1,), most_tokens=1))
    line.remove(1)
    line.remove(2)

    assert not len(line)
    assert line.first({}) is None
