"""Record what an inventory looks at in a tar file, and unpack one as a root to look at.

The archive holds the files below ``root/`` and ``recorded.json``: what no file tells, which is the
disk, the driver's answers, and which paths were refused. It is a plain tar; nothing in it is
trusted.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Final

from hwprobe.decoding import decoded, parsed
from hwprobe.errors import ProbeError
from hwprobe.inventory import take_inventory
from hwprobe.inventory.files import Looks, watched
from hwprobe.machine import Disk, Gpu, Machine, Nvidia
from hwprobe.probing import probe_machine
from hwprobe.report import machine_to_json

RECORDING_FORMAT: Final = "satchel-machine/1"
"""Marks a recording; raised when a field changes its meaning."""
FACTS_FILE: Final = "recorded.json"
MAX_FILES: Final = 50_000
MAX_TREE_BYTES: Final = 64 << 20
"""Why: a machine of a thousand processors has about 20 000 files with 6 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What no file tells; the defaults stand for a tree without a record."""

    disk: Disk = field(default_factory=Disk)
    nvidia: Nvidia | None = None
    gpus: tuple[Gpu, ...] = ()
    engine_offload: bool | None = None


def look_at_this_machine(*, disk_path: Path, engine_offload: bool | None) -> tuple[Looks, Machine]:
    """Everything the inventory looked at, and what it found."""
    with watched() as looks:
        take_inventory(disk_path=disk_path, ask_driver=False)
    return looks, probe_machine(disk_path=disk_path, engine_offload=engine_offload)


def write_recording(out: Path, looks: Looks, machine: Machine) -> None:
    """Write a new tar file of what was looked at and of what no file tells.

    Raises:
        OSError: it cannot be written, or exists.
    """
    facts = {
        name: value
        for name, value in machine_to_json(machine).items()
        if name in {"disk", "nvidia", "gpus", "engine_offload"}
    }
    record = {**facts, "format": RECORDING_FORMAT, "refused": looks.refused}
    with out.open("xb") as file, tarfile.open(fileobj=file, mode="w") as archive:
        _add(archive, FACTS_FILE, json.dumps(record, indent=1, sort_keys=True).encode())
        for path in sorted(looks.directories):
            entry = tarfile.TarInfo(f"root{path}")
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for path, content in sorted(looks.files.items()):
            _add(archive, f"root{path}", content)


@contextmanager
def recorded_machine(path: Path) -> Iterator[Machine]:
    """The machine of a recording, or of a directory that is one unpacked.

    Raises:
        ProbeError: it is none, or too large.
        OSError: it cannot be read.
    """
    if path.is_dir():
        yield _machine(path)
        return
    with TemporaryDirectory(prefix="satchel-machine-") as directory:
        _unpack(path, Path(directory))
        yield _machine(Path(directory))


def _machine(directory: Path) -> Machine:
    """A directory with ``root`` and facts, or a bare root without facts."""
    root = directory / "root" if (directory / "root").is_dir() else directory
    machine = take_inventory(root, ask_driver=False)
    facts = _facts(directory)
    machine = replace(machine, disk=facts.disk, engine_offload=facts.engine_offload)
    if facts.nvidia is None:
        return machine
    return replace(machine, nvidia=facts.nvidia, gpus=facts.gpus)


def _facts(directory: Path) -> _Facts:
    try:
        with (directory / FACTS_FILE).open("rb") as file:
            record = parsed(file.read(MAX_TREE_BYTES), FACTS_FILE)
    except FileNotFoundError:
        return _Facts()
    if not isinstance(record, dict) or record.get("format") != RECORDING_FORMAT:
        raise ProbeError(f"{FACTS_FILE}: expected format {RECORDING_FORMAT!r}")
    facts = decoded(_Facts, record, FACTS_FILE)
    assert isinstance(facts, _Facts)
    return facts


def _unpack(path: Path, target: Path) -> None:
    """Plain files and directories only, within bounds, each below ``target``."""
    files = size = 0
    try:
        with tarfile.open(path, mode="r:") as archive:
            for entry in archive:
                files, size = files + 1, size + max(0, entry.size)
                if files > MAX_FILES or size > MAX_TREE_BYTES:
                    raise ProbeError(
                        f"{path}: a recording has at most {MAX_FILES} files and 64 MiB"
                    )
                place = PurePosixPath(entry.name)
                if place.is_absolute() or ".." in place.parts or not place.parts:
                    raise ProbeError(f"{path}: {entry.name!r:.80} leads out of the recording")
                _put(archive, entry, target / place)
    except (tarfile.TarError, EOFError) as error:
        raise ProbeError(f"{path}: no recording: {error}") from error


def _put(archive: tarfile.TarFile, entry: tarfile.TarInfo, place: Path) -> None:
    if not (entry.isdir() or entry.isreg()):
        raise ProbeError(f"{entry.name!r:.80}: a recording holds plain files and directories")
    try:
        if entry.isdir():
            place.mkdir(parents=True, exist_ok=True)
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        content = archive.extractfile(entry)
        place.write_bytes(content.read() if content is not None else b"")
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise ProbeError(f"{entry.name!r:.80}: is both a file and a directory") from error


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    archive.addfile(entry, io.BytesIO(content))
