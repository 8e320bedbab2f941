"""What a load may take, checked in the runner before the engine is asked.

The plan was made for this machine by the server. It is checked again because the engine would not
refuse: memory for a cache of any size is promised at once, and when it is used, the kernel kills.
"""

from __future__ import annotations

from pathlib import Path

from hwprobe.errors import GgufError
from hwprobe.estimate import COMPUTE, HOST, KV_CACHE, STATE, estimate
from hwprobe.gguf import ModelProfile, model_profile, read_header
from hwprobe.inventory.cgroup import read_cgroup_memory
from hwprobe.inventory.memory import read_memory
from hwprobe.machine import Memory
from hwprobe.quantity import Bytes
from hwprobe.settings import EngineSettings
from server.errors import LoadFailedError


def check_room(model_path: Path, settings: EngineSettings) -> None:
    """Refuse settings whose cache and buffers are larger than the host's memory.

    A file whose header cannot be read is left to the engine, which refuses it in its own words.

    Raises:
        LoadFailedError: they are larger.
    """
    try:
        profile = model_profile(read_header(model_path))
    except (GgufError, OSError):
        return
    root = Path("/")
    memory = read_memory(root, cgroups=read_cgroup_memory(root))
    refuse_beyond(profile, settings, memory_bytes=largest_bytes(memory))


def largest_bytes(memory: Memory) -> int | None:
    """What a process can have at most, whatever else runs; ``None`` when unknown."""
    bounds = [memory.total_bytes, *(group.limit_bytes for group in memory.cgroups)]
    return min((bound for bound in bounds if bound), default=None)


def refuse_beyond(
    profile: ModelProfile, settings: EngineSettings, *, memory_bytes: int | None
) -> None:
    """Refuse settings whose cache and buffers on the host take more than ``memory_bytes``.

    Weights do not count: mapped ones can be larger than the memory.

    Raises:
        LoadFailedError: they do.
    """
    needs = estimate(profile, settings)
    wanted = sum(needs.term_bytes(name, HOST) for name in (KV_CACHE, STATE, COMPUTE))
    if memory_bytes is not None and wanted > memory_bytes:
        raise LoadFailedError(
            f"num_ctx: {settings.kv_cells} cells take {Bytes(wanted)}, and this machine has "
            f"{Bytes(memory_bytes)}"
        )
