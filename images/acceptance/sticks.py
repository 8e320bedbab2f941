"""Sticks for the acceptance test: FAT32 image files with bundles of the demo model on them.

The bundles are made by the real `satchel-bundle`, run by the environment the application was built
with; the file systems by mkfs.vfat and mtools, which need no kernel driver.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path("/src")
PYTHON = Path("/build/venv/bin/python")
_PASSPHRASE = "only for the acceptance test"  # noqa: S105 - it protects nothing
_MEGABYTE = 1 << 20
_ROOM_MB = 64
"""Free on a stick beside its content; also what FAT32 needs to be FAT32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A signing key made for this run."""

    key: Path
    public: Path

    def public_text(self) -> str:
        """The line that a site trusts."""
        lines = self.public.read_text().splitlines()
        return next(line for line in lines if line.startswith("ed25519:"))


def bundle_tool(*arguments: str) -> str:
    """Run ``satchel-bundle`` of the checkout.

    Returns:
        What it printed.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(SOURCE),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SATCHEL_KEY_PASSPHRASE": _PASSPHRASE,
    }
    start = "from bundler.cli import main; main()"
    done = subprocess.run(
        [PYTHON, "-P", "-c", start, *arguments],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"satchel-bundle {arguments[0]}: {done.stderr}")
    return done.stdout


def make_signer(folder: Path, name: str) -> Signer:
    """A key pair."""
    folder.mkdir(parents=True, exist_ok=True)
    bundle_tool("keygen", str(folder / name))
    return Signer(key=folder / f"{name}.key", public=folder / f"{name}.pub")


def pack(model: Path, name: str, signer: Signer, out: Path, *more: str) -> Path:
    """A signed bundle of one model below ``out``.

    Returns:
        Its directory.
    """
    out.mkdir(parents=True, exist_ok=True)
    before = set((out / "satchel").iterdir()) if (out / "satchel").exists() else set()
    bundle_tool("pack", str(model), "--name", name, "--key", str(signer.key), "--out", str(out),
                *more)  # fmt: skip
    (made,) = set((out / "satchel").iterdir()) - before
    return made


def make_stick(target: Path, content: Path | None, *, label: str, size_mb: int = 0) -> Path:
    """An image of a FAT32 stick without a partition table.

    Args:
        target: the file to make.
        content: a directory whose entries are copied; none makes an empty stick.
        label: of the file system, at most 11 characters.
        size_mb: at least so large, in MiB; 0 means as large as needed.
    """
    files = [one for one in content.rglob("*") if one.is_file()] if content else []
    needed_mb = sum(one.stat().st_size for one in files) // _MEGABYTE + _ROOM_MB
    target.unlink(missing_ok=True)
    with target.open("wb") as file:
        file.truncate(max(needed_mb, size_mb) * _MEGABYTE)
    _run("mkfs.vfat", "-F", "32", "-n", label, str(target))
    if content is not None and (entries := sorted(content.iterdir())):
        _run("mcopy", "-s", "-i", str(target), *map(str, entries), "::/")
    return target


def noise_model(target: Path, *, size_mb: int) -> Path:
    """A valid GGUF of about this size whose weights are noise: something to interrupt."""
    import sys  # noqa: PLC0415 - only here is the checkout's code imported

    sys.path.insert(0, str(SOURCE))
    from tests.fakes.gguf_writer import (  # noqa: PLC0415
        Tensor,
        llama_tensors,
        tiny_llama_metadata,
        write_gguf,
    )

    blocks = size_mb
    # 512 x 512 in F32 is 1 MiB; the seven matrices of a block are cut from that.
    shapes = llama_tensors(
        blocks=max(1, blocks // 7), embedding=512, heads=8, kv_heads=8, head=64, feed_forward=512,
        vocabulary=4, ggml_type="F32",
    )  # fmt: skip
    noise = random.Random(1)  # noqa: S311 - reproducible noise
    tensors = [
        Tensor(one.name, one.dimensions, one.ggml_type, noise.randbytes(one.size_bytes))
        for one in shapes
    ]
    metadata = tiny_llama_metadata(
        **{
            "llama.block_count": max(1, blocks // 7),
            "llama.embedding_length": 512,
            "llama.feed_forward_length": 512,
            "llama.attention.head_count": 8,
            "llama.attention.head_count_kv": 8,
            "llama.rope.dimension_count": 64,
        }
    )
    return write_gguf(target, metadata, tensors)


def damage(bundle: Path) -> None:
    """Change one byte in the middle of the bundle's largest file."""
    largest = max(
        (one for one in bundle.rglob("*") if one.is_file()), key=lambda one: one.stat().st_size
    )
    with largest.open("r+b") as file:
        file.seek(largest.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:2])}: {done.stderr}")


def copy_tree(sources: Sequence[Path], target: Path) -> Path:
    """Directories side by side in a new one."""
    target.mkdir(parents=True)
    for source in sources:
        _run("cp", "-R", str(source), str(target))
    return target
