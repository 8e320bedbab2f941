"""The site as it is now: its store, its machine, the time."""

from __future__ import annotations

import importlib.metadata
import time
from dataclasses import replace
from pathlib import Path

from appliance.config import Config
from appliance.device import device_key
from appliance.journal import timestamp
from appliance.layout import Paths
from appliance.site import Site
from appliance.store import Store
from hwprobe.engine import engine_info
from hwprobe.errors import EngineCheckError
from hwprobe.machine import Machine
from hwprobe.probing import probe_machine
from hwprobe.variants import read_choice


def version() -> str:
    """Of this release."""
    return importlib.metadata.version("satchel")


def this_site(config: Config) -> Site:
    """Where an import would happen, measured now.

    Raises:
        StoreError: the device key is there, and cannot be used.
    """
    store = Store(Paths(config.store.path))
    return Site(
        store=store,
        device=device_key(store.paths),
        config=config,
        machine=this_machine(config.store.path),
        now=timestamp(time.time()),
        version=version(),
    )


def this_machine(store: Path) -> Machine:
    """This machine; the engine is asked about GPUs only where there are some."""
    existing = next(path for path in (store, *store.parents) if path.is_dir())
    choice = read_choice(Paths(store).engine)
    machine = replace(
        probe_machine(disk_path=existing), engine_variant=choice.name if choice else ""
    )
    if not machine.gpus:
        return machine
    try:
        return replace(machine, engine_offload=engine_info().gpu_offload)
    except EngineCheckError:
        return machine  # an engine that does not start plans with no GPU
