"""Computed prompts in files: what is never restored, what gives way, and what comes back."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprobe.settings import EngineSettings
from server.runner import statefile
from server.runner.batching import Batching
from server.runner.keeping import LEAST_TOKENS, keep
from server.runner.shelf import Bytes, Shelf
from server.runner.statefile import HEAD_BYTES, BadStateError
from server.runner.states import States
from server.runner.tidying import sweep
from server.runner.work import Chunk, Limits, Work
from server.shelving import Shelving

BINDING = bytes(range(32))
OTHER = bytes(range(1, 33))
TOKENS = tuple(range(100))
STATE = b"state " * 50
BIG = 1 << 20


def shelf(folder: Path, *, binding: bytes = BINDING, limit: int = BIG) -> Shelf:
    return Shelf(folder, binding=binding, limit_bytes=limit)


def filled(state: bytes) -> Callable[[Bytes], bool]:
    def fill(target: Bytes) -> bool:
        target[:] = np.frombuffer(state, np.uint8)
        return True

    return fill


def put(
    folder: Path,
    tokens: tuple[int, ...] = TOKENS,
    *,
    scope: str = "",
    state: bytes = STATE,
    used_s: float = 1000.0,
    binding: bytes = BINDING,
    limit: int = BIG,
) -> bool:
    one = shelf(folder, binding=binding, limit=limit)
    return one.write(scope, tokens, len(state), filled(state), used_s=used_s)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"lock"}


def restored(one: Shelf) -> list[bytes | None]:
    states = [one.read(entry) for entry in one.entries()]
    return [None if state is None else state.tobytes() for state in states]


class TestRefusals:
    @pytest.mark.parametrize("length", [0, 1, HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + 10, -1])
    def test_file_that_was_cut_short_is_removed(self, tmp_path: Path, length: int) -> None:
        put(tmp_path)
        (path,) = (tmp_path / name for name in names(tmp_path))
        path.write_bytes(path.read_bytes()[:length])

        assert shelf(tmp_path).entries() == ()
        assert names(tmp_path) == set()

    @pytest.mark.parametrize("at", [0, 20, 50, 60, 70, HEAD_BYTES + 3, -1])
    def test_file_that_was_changed_is_never_restored(self, tmp_path: Path, at: int) -> None:
        put(tmp_path, scope="mine")
        (path,) = (tmp_path / name for name in names(tmp_path))
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)

        assert [state for state in restored(shelf(tmp_path)) if state is not None] == []
        assert names(tmp_path) == set()

    def test_file_that_shrinks_after_it_was_seen_is_not_restored(self, tmp_path: Path) -> None:
        put(tmp_path)
        one = shelf(tmp_path)
        (entry,) = one.entries()
        os.truncate(tmp_path / entry.name, HEAD_BYTES + 1)

        assert one.read(entry) is None
        assert names(tmp_path) == set()

    def test_file_of_another_binding_is_left_alone(self, tmp_path: Path) -> None:
        put(tmp_path, binding=OTHER)

        assert shelf(tmp_path).entries() == ()
        assert restored(shelf(tmp_path, binding=OTHER)) == [STATE]

    def test_file_under_the_name_of_another_is_removed(self, tmp_path: Path) -> None:
        put(tmp_path, binding=OTHER)
        put(tmp_path, scope="a")
        foreign, own = sorted(names(tmp_path), key=lambda name: name.startswith("00"))
        (tmp_path / own).write_bytes((tmp_path / foreign).read_bytes())

        assert shelf(tmp_path).entries() == ()
        assert names(tmp_path) == {foreign}

    def test_prompt_of_another_scope_under_my_name_is_removed(self, tmp_path: Path) -> None:
        put(tmp_path, scope="theirs")
        (theirs,) = names(tmp_path)
        (tmp_path / theirs).rename(tmp_path / statefile.name_of(BINDING, "mine", TOKENS))

        assert shelf(tmp_path).entries() == ()
        assert names(tmp_path) == set()

    @pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
    def test_what_is_no_file_is_not_opened(self, tmp_path: Path, kind: str) -> None:
        folder = tmp_path / "states"
        put(folder)
        (path,) = (folder / name for name in names(folder))
        path.rename(tmp_path / "outside")
        match kind:
            case "link":
                path.symlink_to(tmp_path / "outside")
            case "pipe":
                os.mkfifo(path)
            case _:
                path.mkdir()

        assert shelf(folder).entries() == ()
        assert (tmp_path / "outside").exists()

    def test_scope_that_is_no_text_is_refused(self) -> None:
        head, label = statefile.begin(BINDING, "a", (1,), 1)
        with pytest.raises(BadStateError, match="no text"):
            statefile.parse_label(head, b"\xff" + label[1:])

    def test_overlong_scope_is_not_kept(self, tmp_path: Path) -> None:
        assert not put(tmp_path, scope="x" * 5000)
        assert names(tmp_path) == set()

    @given(st.binary(max_size=300))
    @settings(deadline=None)
    def test_no_bytes_are_believed(self, data: bytes) -> None:
        with pytest.raises(BadStateError):
            statefile.parse_head(data[:HEAD_BYTES], binding=BINDING, size_bytes=len(data))


class TestDisk:
    def test_folder_that_cannot_be_made_is_no_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")

        assert not put(tmp_path / "file" / "states")
        assert shelf(tmp_path / "file" / "states").entries() == ()
        sweep(tmp_path / "file" / "states", 0)

    def test_full_disk_is_no_error_and_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_descriptor: int, _at: int, _size: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)

        assert not put(tmp_path)
        assert names(tmp_path) == set()

    def test_engine_that_writes_nothing_leaves_nothing(self, tmp_path: Path) -> None:
        assert not shelf(tmp_path).write("", TOKENS, 10, lambda _target: False, used_s=1.0)
        assert names(tmp_path) == set()

    def test_what_a_killed_runner_left_is_swept(self, tmp_path: Path) -> None:
        put(tmp_path)
        (name,) = names(tmp_path)
        (tmp_path / statefile.partial_of(name)).write_bytes(b"half")
        (tmp_path / "notes.txt").write_bytes(b"mine")
        sweep(tmp_path, BIG)

        assert names(tmp_path) == {name, "notes.txt"}

    def test_limit_of_zero_removes_all_that_is_ours(self, tmp_path: Path) -> None:
        put(tmp_path)
        put(tmp_path, binding=OTHER)
        (tmp_path / "notes.txt").write_bytes(b"mine")
        sweep(tmp_path, 0)

        assert names(tmp_path) == {"notes.txt"}

    def test_files_are_for_nobody_else(self, tmp_path: Path) -> None:
        put(tmp_path / "states")

        modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "states").iterdir()]
        assert (tmp_path / "states").stat().st_mode & 0o777 == 0o700
        assert set(modes) == {0o600}

    def test_longest_unused_gives_way_of_whatever_binding(self, tmp_path: Path) -> None:
        limit = 3 * (HEAD_BYTES + 4 * len(TOKENS) + len(STATE))
        for number, binding in enumerate((OTHER, BINDING, OTHER, BINDING)):
            tokens = (*TOKENS[:-1], number)
            assert put(tmp_path, tokens, used_s=10.0 + number, binding=binding, limit=limit)

        kept = {statefile.name_of(OTHER, "", (*TOKENS[:-1], 0))}
        assert len(names(tmp_path)) == 3
        assert not kept & names(tmp_path)

    def test_what_was_used_later_does_not_give_way(self, tmp_path: Path) -> None:
        limit = HEAD_BYTES + 4 * len(TOKENS) + len(STATE)
        assert put(tmp_path, used_s=20.0, limit=limit)
        assert not put(tmp_path, (*TOKENS[:-1], 7), used_s=10.0, limit=limit)
        assert not put(tmp_path, state=STATE * 2, used_s=30.0, limit=limit)
        assert restored(shelf(tmp_path)) == [STATE]


@given(
    scope=st.text(max_size=40),
    tokens=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=50),
    state=st.binary(min_size=1, max_size=200),
)
@settings(deadline=None, max_examples=50)
def test_what_was_written_comes_back(
    tmp_path_factory: pytest.TempPathFactory, scope: str, tokens: list[int], state: bytes
) -> None:
    folder = tmp_path_factory.mktemp("states")
    assert put(folder, tuple(tokens), scope=scope, state=state)

    one = shelf(folder)
    (entry,) = one.entries()

    assert (entry.scope, entry.tokens) == (scope, tuple(tokens))
    assert restored(one) == [state]


class Engine:
    """A cache whose states are the names of their sequences."""

    def __init__(self) -> None:
        self.loaded: list[bytes] = []
        self.takes = True

    def state_bytes(self, sequence: int) -> int:
        return 100 + sequence

    def save_state(self, sequence: int, target: Bytes) -> bool:
        target[:] = sequence + 1
        return True

    def load_state(self, _sequence: int, source: Bytes) -> bool:
        self.loaded.append(source.tobytes())
        return self.takes


class TestKeeping:
    def ended(self, *prompts: tuple[str, tuple[int, ...]], whole: bool = False) -> Batching:
        """A batching in which these have been computed, one after another."""
        limits = Limits(
            slots=1,
            cells=4000,
            context_tokens=1000,
            sequences=8,
            batch_tokens=1000,
            checkpoints=whole,
        )
        batching = Batching(limits)
        for number, (scope, prompt) in enumerate(prompts):
            batching.submit(Work(id=number, prompt=prompt, most_tokens=1, scope=scope))
            while number not in batching.running or batching.running[number].pending:
                batching.admit(lambda _sequence, _position: True)
                chunks: tuple[Chunk, ...] = batching.plan(1000)
                for chunk in chunks:
                    batching.advance(chunk)
            batching.finish(number)
        return batching

    def kept(self, folder: Path, batching: Batching, **changes: float) -> list[tuple[str, int]]:
        one = shelf(folder)
        clock = changes.get("clock", 0.0)
        keep(one, batching, States(Engine(), one), until_s=1.0, clock=lambda: clock)
        return sorted((entry.scope, len(entry.tokens)) for entry in one.entries())

    def test_short_prompts_and_beginnings_of_others_are_left_out(self, tmp_path: Path) -> None:
        long = tuple(range(200))
        batching = self.ended(
            ("a", tuple(range(500, 500 + LEAST_TOKENS - 1))), ("a", long), ("b", long[:100])
        )

        assert self.kept(tmp_path, batching) == [("a", 200), ("b", 100)]

    @pytest.mark.parametrize("whole", [True, False])
    def test_beginning_is_kept_where_states_are_of_use_whole_only(
        self,
        tmp_path: Path,
        whole: bool,  # noqa: FBT001
    ) -> None:
        long = tuple(range(200))
        batching = self.ended(("a", long), ("a", long[:100]), ("a", (*long, 7)), whole=whole)

        assert (("a", 100) in self.kept(tmp_path, batching)) == whole

    def test_pictures_are_not_kept(self, tmp_path: Path) -> None:
        batching = self.ended(("a", tuple(-number - 10 for number in range(100))))

        assert self.kept(tmp_path, batching) == []

    def test_no_file_is_begun_when_the_time_is_up(self, tmp_path: Path) -> None:
        assert self.kept(tmp_path, self.ended(("a", TOKENS)), clock=2.0) == []

    def test_what_is_there_is_not_written_again(self, tmp_path: Path) -> None:
        batching, one = self.ended(("a", TOKENS)), shelf(tmp_path)
        counts = [keep(one, batching, States(Engine(), one), until_s=1e18) for _ in range(2)]

        assert counts == [1, 0]

    def test_state_that_the_engine_does_not_take_is_removed(self, tmp_path: Path) -> None:
        put(tmp_path)
        engine, one = Engine(), shelf(tmp_path)
        states = States(engine, one)
        (entry,) = one.entries()
        states.recall(1, entry)
        assert states.restore(1, 0)
        engine.takes = False

        assert not states.restore(1, 0)
        assert engine.loaded == [STATE, STATE]
        assert names(tmp_path) == set()


class TestBinding:
    SHELVING = Shelving(folder=Path("/states"), limit_bytes=1, engine_build="b1 avx2")

    ENGINE = EngineSettings(num_ctx=512)

    def bound(
        self,
        engine: EngineSettings = ENGINE,
        *,
        key: str = "k",
        scale: float = 1.0,
        build: str = "b1 avx2",
    ) -> str:
        shelving = replace(self.SHELVING, engine_build=build)
        found = shelving.keepsakes(key, engine, (("path", scale),))
        assert found is not None
        return found.binding

    def test_everything_that_changes_a_state_changes_the_binding(self) -> None:
        bindings = [
            self.bound(),
            self.bound(key="other"),
            self.bound(scale=0.5),
            self.bound(build="b2 avx2"),
            self.bound(replace(self.ENGINE, kv_type="q8_0")),
            self.bound(replace(self.ENGINE, flash_attention=False)),
            self.bound(replace(self.ENGINE, num_gpu=3)),
            self.bound(replace(self.ENGINE, repack=False)),
        ]

        assert len(set(bindings)) == len(bindings)

    def test_room_and_threads_do_not(self) -> None:
        more = replace(self.ENGINE, num_ctx=1024, slots=4, threads=2)

        assert self.bound(more) == self.bound()

    def test_nothing_is_kept_of_models_that_only_pool_or_without_a_limit(self) -> None:
        pooled = replace(self.ENGINE, pooled=True)

        assert self.SHELVING.keepsakes("k", pooled, ()) is None
        assert replace(self.SHELVING, limit_bytes=0).keepsakes("k", self.ENGINE, ()) is None
