from __future__ import annotations

import os
from pathlib import Path

import pytest

from bundler.format.digest import Digest
from bundler.format.errors import (
    BundleError,
    DamagedError,
    LayoutError,
    MediumError,
    MissingBlobError,
)
from bundler.format.volume import BundleDirectory, find_bundles
from tests.fakes.forge import TRUSTED, forge, trusting, unpack

HONEST = forge(layers=(("system", b"be brief"),))
INDEX = HONEST.manifest.artifacts[0].index
SEGMENT = HONEST.manifest.artifacts[0].segments[0]


def written(medium: Path) -> BundleDirectory:
    return BundleDirectory(HONEST.write(medium))


def test_an_empty_medium_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="expected a bundle, found none"):
        find_bundles(tmp_path)


def test_a_missing_medium_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediumError, match="expected a medium, found nothing"):
        find_bundles(tmp_path / "none")


def test_a_file_instead_of_a_medium_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LayoutError):
        find_bundles(tmp_path / "file")


def test_an_unfinished_bundle_is_refused_as_such(tmp_path: Path) -> None:
    directory = HONEST.write(tmp_path)
    (directory / "bundle.dsse.json").unlink()
    with pytest.raises(LayoutError, match="finished bundle"):
        find_bundles(tmp_path)


def test_a_bundle_is_found_from_medium_directory_and_bundle(tmp_path: Path) -> None:
    directory = HONEST.write(tmp_path)
    for root in (tmp_path, tmp_path / "satchel", directory):
        assert find_bundles(root) == (BundleDirectory(directory),)


def test_the_mount_point_may_be_a_link(tmp_path: Path) -> None:
    directory = HONEST.write(tmp_path / "real")
    (tmp_path / "usb").symlink_to(tmp_path / "real")
    assert find_bundles(tmp_path / "usb") == (BundleDirectory(directory),)


def test_several_bundles_are_found_in_order(tmp_path: Path) -> None:
    for seq in (3, 1, 2):
        forge(seq=seq).write(tmp_path)
    names = [bundle.path.name for bundle in find_bundles(tmp_path)]
    assert names == ["prod-000001", "prod-000002", "prod-000003"]


def test_junk_on_the_medium_is_ignored(tmp_path: Path) -> None:
    directory = HONEST.write(tmp_path)
    for name in ("._prod-000001", ".Trash-1000", "System Volume Information", "Prod-000002", "x"):
        junk = tmp_path / "satchel" / name
        junk.mkdir()
        (junk / "bundle.dsse.json").write_text("{}")
    (tmp_path / "desktop.ini").write_text("junk")
    (directory / "blobs" / "sha256" / "._junk").write_text("junk")
    assert find_bundles(tmp_path) == (BundleDirectory(directory),)
    assert unpack(tmp_path, trusting(TRUSTED))


def test_a_link_to_a_bundle_elsewhere_is_not_followed(tmp_path: Path) -> None:
    HONEST.write(tmp_path / "elsewhere")
    (tmp_path / "medium" / "satchel").mkdir(parents=True)
    link = tmp_path / "medium" / "satchel" / "prod-000001"
    link.symlink_to(tmp_path / "elsewhere" / "satchel" / "prod-000001")
    with pytest.raises(LayoutError):
        find_bundles(tmp_path / "medium")


@pytest.mark.parametrize("place", ["bundle.dsse.json", "index", "segment"])
@pytest.mark.parametrize("kind", ["link", "pipe", "directory", "gone"])
def test_what_is_no_regular_file_is_refused_without_waiting(
    tmp_path: Path, place: str, kind: str
) -> None:
    directory = HONEST.write(tmp_path)
    path = {
        "bundle.dsse.json": directory / "bundle.dsse.json",
        "index": HONEST.index_path(tmp_path),
        "segment": HONEST.segment_path(tmp_path),
    }[place]
    moved = tmp_path / "moved"
    path.rename(moved)
    match kind:
        case "link":
            path.symlink_to(moved)
        case "pipe":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case _:
            pass
    with pytest.raises((LayoutError, MissingBlobError)):
        unpack(tmp_path, trusting(TRUSTED))


@pytest.mark.parametrize("part", ["blobs", "blobs/sha256"])
def test_a_link_in_place_of_a_directory_is_not_followed(tmp_path: Path, part: str) -> None:
    directory = HONEST.write(tmp_path)
    (directory / part).rename(tmp_path / "moved")
    (directory / part).symlink_to(tmp_path / "moved")
    with pytest.raises(LayoutError, match="another kind"):
        unpack(tmp_path, trusting(TRUSTED))


def test_an_envelope_over_eight_mebibytes_is_not_read(tmp_path: Path) -> None:
    bundle = written(tmp_path)
    with (bundle.path / "bundle.dsse.json").open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(LayoutError, match="at most"):
        bundle.read_envelope()


@pytest.mark.parametrize("change", [-1, 1, 1 << 40])
def test_a_segment_of_another_size_is_refused_before_it_is_read(
    tmp_path: Path, change: int
) -> None:
    bundle = written(tmp_path)
    path = HONEST.segment_path(tmp_path)
    os.truncate(path, SEGMENT.size_bytes + change)
    with pytest.raises(LayoutError, match=f"expected {SEGMENT.size_bytes} bytes"):
        bundle.open_segment(SEGMENT.digest, size_bytes=SEGMENT.size_bytes)


def test_a_blob_of_another_size_or_content_is_refused(tmp_path: Path) -> None:
    bundle = written(tmp_path)
    with pytest.raises(LayoutError, match="expected 1 bytes"):
        bundle.read_blob(INDEX.digest, size_bytes=1)
    with pytest.raises(LayoutError, match="at most 10 bytes"):
        bundle.read_blob(INDEX.digest, max_bytes=10)
    path = HONEST.index_path(tmp_path)
    path.write_bytes(bytes(INDEX.size_bytes))
    with pytest.raises(DamagedError):
        bundle.read_blob(INDEX.digest, size_bytes=INDEX.size_bytes)


def test_a_missing_blob_is_known_to_be_missing(tmp_path: Path) -> None:
    bundle = written(tmp_path)
    assert bundle.has_blob(SEGMENT.digest)
    assert not bundle.has_blob(Digest.of(b"other"))
    with pytest.raises(MissingBlobError):
        bundle.read_blob(Digest.of(b"other"))


def test_a_segment_is_opened_for_reading_only(tmp_path: Path) -> None:
    with written(tmp_path).open_segment(SEGMENT.digest, size_bytes=SEGMENT.size_bytes) as file:
        assert not file.writable()
        assert len(file.readall()) == SEGMENT.size_bytes


def test_reading_changes_nothing_on_a_write_protected_medium(tmp_path: Path) -> None:
    HONEST.write(tmp_path)
    paths = sorted(tmp_path.rglob("*"))
    before = [(path, path.stat().st_mtime_ns, path.stat().st_size) for path in paths]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert unpack(tmp_path, trusting(TRUSTED))
    for path in paths:
        path.chmod(0o755)
    paths = sorted(tmp_path.rglob("*"))
    assert [(path, path.stat().st_mtime_ns, path.stat().st_size) for path in paths] == before


def test_every_name_of_the_medium_is_escaped_in_messages(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        find_bundles(tmp_path / "no\x1b[2Jne")
    assert "\x1b" not in str(caught.value)


def test_a_medium_with_too_many_directories_is_refused(tmp_path: Path) -> None:
    for number in range(10_001):
        (tmp_path / f"d{number}").mkdir()
    with pytest.raises(LayoutError, match="at most"):
        find_bundles(tmp_path)
