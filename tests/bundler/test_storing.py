from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundler.errors import PackError
from bundler.format.chunks import decode_chunk
from bundler.format.cutting import Cut
from bundler.format.digest import Digest
from bundler.format.errors import DamagedError, MediumError, MissingBlobError
from bundler.format.index import ChunkIndex, Filter, check_index, parse_index
from bundler.format.manifest import Artifact, Encoding, GgufFacts
from bundler.medium import Sink, read_back
from bundler.storing import choose_encoding, store_artifact

FACTS = GgufFacts(tensors=0, metadata_digest=Digest.of(b""), architecture="llama")


def cuts_of(size: int, lengths: Sequence[int]) -> tuple[Cut, ...]:
    kinds = [Filter.NONE, Filter.PLANES_2, Filter.PLANES_4]
    cuts: list[Cut] = []
    at = 0
    while at < size:
        length = min(lengths[len(cuts) % len(lengths)], size - at)
        chosen = kinds[len(cuts) % 3]
        cuts.append(Cut(start=at, end=at + length, kind=chosen.name, filter=chosen))
        at += length
    return tuple(cuts)


def store(
    source: Path, cuts: tuple[Cut, ...], sink: Sink, encoding: Encoding, segment_bytes: int
) -> tuple[Artifact, ChunkIndex]:
    done: list[int] = []
    artifact = store_artifact(
        source,
        cuts,
        sink,
        encoding=encoding,
        facts=FACTS,
        advance=done.append,
        segment_bytes=segment_bytes,
    )
    assert sum(done) == source.stat().st_size
    index = parse_index((sink.directory / artifact.index.digest.hex).read_bytes())
    check_index(index, artifact)
    return artifact, index


def plain_of(index: ChunkIndex, directory: Path) -> bytes:
    out = b""
    for record in index.records:
        data = (directory / index.segments[record.segment].digest.hex).read_bytes()
        out += decode_chunk(record, data[record.seg_off : record.seg_off + record.stored_len])
    return out


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.binary(min_size=1, max_size=4000),
    times=st.integers(1, 20),
    lengths=st.lists(st.integers(50, 5000), min_size=1, max_size=4),
    encoding=st.sampled_from(["identity", "zstd-frames"]),
    segment_bytes=st.integers(5000, 100_000),
)
def test_what_is_stored_is_read_back(
    tmp_path: Path,
    *,
    data: bytes,
    times: int,
    lengths: list[int],
    encoding: Encoding,
    segment_bytes: int,
) -> None:
    source = tmp_path / "source"
    source.write_bytes(data * times)
    directory = tmp_path / "sink"
    directory.mkdir(exist_ok=True)
    cuts = cuts_of(len(data) * times, lengths)
    artifact, index = store(source, cuts, Sink(directory), encoding, segment_bytes)
    assert artifact.digest == Digest.of(data * times)
    assert plain_of(index, directory) == data * times
    assert all(segment.size_bytes <= segment_bytes for segment in artifact.segments)
    for segment in artifact.segments:
        assert Digest.of((directory / segment.digest.hex).read_bytes()) == segment.digest
    if encoding == "identity" and segment_bytes >= len(data) * times:
        assert [segment.digest for segment in artifact.segments] == [artifact.digest]
    assert not list(directory.glob("part-*"))


def test_equal_segments_are_one_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(40_000))
    sink = Sink(tmp_path / "sink")
    sink.directory.mkdir()
    artifact, index = store(source, cuts_of(40_000, [10_000]), sink, "identity", 10_000)
    assert len(artifact.segments) == 1
    assert plain_of(index, sink.directory) == bytes(40_000)


def test_identity_segments_are_slices_of_the_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    data = os.urandom(50_000)
    source.write_bytes(data)
    sink = Sink(tmp_path / "sink")
    sink.directory.mkdir()
    artifact, _ = store(source, cuts_of(50_000, [7_000]), sink, "identity", 20_000)
    names = [segment.digest.hex for segment in artifact.segments]
    assert len(names) == 4
    assert b"".join((sink.directory / name).read_bytes() for name in names) == data


def test_a_source_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(1000))
    sink = Sink(tmp_path / "sink")
    sink.directory.mkdir()
    with pytest.raises(PackError, match="changed while it was read"):
        store_artifact(
            source,
            cuts_of(2000, [500]),
            sink,
            encoding="identity",
            facts=FACTS,
            advance=lambda _: None,
        )
    assert list(sink.directory.iterdir()) == []


def test_compression_is_chosen_only_where_it_pays(tmp_path: Path) -> None:
    random, weights = tmp_path / "random", tmp_path / "weights"
    random.write_bytes(os.urandom(1 << 20))
    weights.write_bytes(b"\x3f\x80\x12\x34" * (1 << 18))
    cuts = (Cut(start=0, end=1 << 20, kind="Q6_K"),)
    assert choose_encoding(random, cuts) == "identity"
    assert choose_encoding(weights, cuts) == "zstd-frames"


def test_a_chunk_that_does_not_shrink_is_stored_as_it_is(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(5000) + bytes(5000))
    sink = Sink(tmp_path / "sink")
    sink.directory.mkdir()
    _, index = store(source, cuts_of(10_000, [5000]), sink, "zstd-frames", 1 << 20)
    assert [record.codec.name for record in index.records] == ["RAW", "ZSTD"]


def test_a_medium_that_gives_back_other_bytes_is_found(tmp_path: Path) -> None:
    sink = Sink(tmp_path)
    ref = sink.put(b"what was written")
    path = tmp_path / ref.digest.hex
    path.write_bytes(b"what was writtem")
    with pytest.raises(DamagedError, match="does not give back") as caught:
        read_back(tmp_path, sink.written, lambda _: None)
    assert "counterfeit" in caught.value.hint
    path.unlink()
    with pytest.raises(MissingBlobError):
        read_back(tmp_path, sink.written, lambda _: None)


def test_a_link_planted_on_the_medium_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "part-1").symlink_to(victim)
    with pytest.raises(MediumError):
        Sink(tmp_path).put(b"data")
    assert victim.read_bytes() == b"precious"


def test_a_failed_file_is_taken_away(tmp_path: Path) -> None:
    sink = Sink(tmp_path)
    with sink.file() as file:
        file.write(b"half")
    assert list(tmp_path.iterdir()) == []
    assert sink.written == {}
