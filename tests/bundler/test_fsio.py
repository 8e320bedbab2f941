from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bundler.format import fsio
from bundler.format.errors import (
    BundleError,
    LayoutError,
    MediumError,
    MissingBlobError,
    NoSpaceError,
)


def test_a_link_planted_where_the_temporary_file_goes_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path = tmp_path / "file"
    (tmp_path / f".file.{os.getpid()}.part").symlink_to(victim)
    fsio.atomic_write(path, b"new")
    assert victim.read_bytes() == b"precious"
    assert path.read_bytes() == b"new"
    assert not path.is_symlink()


def test_a_write_that_fails_in_any_way_is_not_hidden_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        fsio.atomic_write(tmp_path / "file", "no bytes")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_whole_and_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    fsio.atomic_write(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_directory_that_is_missing_is_an_error_of_the_medium(tmp_path: Path) -> None:
    with pytest.raises(MediumError):
        fsio.atomic_write(tmp_path / "none" / "file", b"x")


def test_a_directory_in_the_way_is_left_and_nothing_else_remains(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(MediumError):
        fsio.atomic_write(tmp_path / "file", b"x")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_new_file_never_replaces_one(tmp_path: Path) -> None:
    path = tmp_path / "key"
    fsio.create_new(path, b"first")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        fsio.create_new(path, b"second")
    assert path.read_bytes() == b"first"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_has_its_own_error_and_exit_code(code: int) -> None:
    with pytest.raises(NoSpaceError) as caught:
        fsio.raise_io(OSError(code, os.strerror(code)), Path("x"))
    assert caught.value.exit_code == 13
    assert caught.value.hint


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.EACCES])
def test_any_other_fault_is_one_of_the_medium(code: int) -> None:
    with pytest.raises(MediumError):
        fsio.raise_io(OSError(code, os.strerror(code)), Path("x"))


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert fsio.read_bounded(path, max_bytes=5) == b"12345"
    with pytest.raises(LayoutError, match="at most 4 bytes"):
        fsio.read_bounded(path, max_bytes=4)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/proc/self", "/dev/stdin"])
def test_devices_directories_and_links_are_refused(path: str) -> None:
    with pytest.raises(BundleError):
        fsio.read_bounded(Path(path), max_bytes=10)


def test_an_endless_file_that_says_it_is_empty_is_bounded() -> None:
    # Files of /proc have size 0 and content all the same, like a stick that lies.
    with pytest.raises(LayoutError, match="at most 3 bytes"):
        fsio.read_bounded(Path("/proc/self/status"), max_bytes=3)


def test_a_missing_file_and_directory_are_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingBlobError):
        fsio.open_regular(tmp_path / "none")
    with pytest.raises(MissingBlobError):
        fsio.open_directory(tmp_path / "none")


def test_a_file_limit_reached_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    """A write that the system cuts short, as FAT32 does at 4 GiB, is told and cleaned up."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    program = (
        "import signal, sys; from pathlib import Path; from bundler.format import fsio\n"
        "from bundler.format.errors import NoSpaceError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try: fsio.atomic_write(Path(sys.argv[1]), b'x' * 100_000)\n"
        "except NoSpaceError: sys.exit(13)\n"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    ended = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        check=False,
        preexec_fn=limit,
    )
    assert ended.returncode == 13
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
