"""``satchel-server``: read the configuration, put the parts together, serve until told to stop.

Only this module prints, exits and reads the environment. Standard output has one line, the
address; everything else goes to standard error.
"""

from __future__ import annotations

import argparse
import functools
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from appliance.config import Config
from appliance.crashes import CrashFolder
from appliance.errors import AppError
from appliance.layout import Paths
from appliance.revoked import Revocations
from appliance.store import Store
from appliance.uploads import UploadLimits
from hwprobe.calibrate import machine_identity
from hwprobe.child import LIBRARY_VARIABLE
from hwprobe.engine import engine_build_id, engine_info
from hwprobe.errors import EngineCheckError, ProbeError, WorkerError, io_sentence
from hwprobe.estimate import gpu_pool
from hwprobe.inventory import take_inventory
from hwprobe.loads import Loads
from hwprobe.machine import Machine
from hwprobe.probing import probe_machine
from hwprobe.remote.devices import KEY_VARIABLE, PEERS_VARIABLE
from hwprobe.remote.fleet import Fleet
from hwprobe.remote.tls import Identity, Trust
from hwprobe.variants import choose_variant
from hwprobe.verdicts import EngineRecords
from server.access import KeyRing, Keys, load_keys
from server.answer import Answerer
from server.api.blobs import CreatePolicy
from server.api.guard import GuardPolicy
from server.app import create_admin_app, create_app
from server.arguments import PROGRAM, flags, read_arguments
from server.catalogue import Catalogue
from server.coroner import Coroner
from server.desk import Desk
from server.errors import ServerError
from server.experience import Experience, private_bytes_of
from server.jobs import Jobs
from server.listener import Listener, ListenerLimits, threads_needed
from server.manager import Manager, this_manager
from server.planner import Machines, Planner, SelfTest
from server.runner.process import Runner, RunnerLimits
from server.runner.tidying import sweep
from server.scheduler import Scheduler, SchedulerLimits
from server.shelving import Shelving
from server.sockets import is_loopback, listening

LOG = logging.getLogger("satchel.server")

MAX_IN_FLIGHT = 64
"""Requests that may generate at the same time, over all models, before others count as waiting.
Models decode a few at once and queue the rest themselves; more only cost threads."""

MAX_QUEUE = 1024
"""Waiting requests beyond this are refused, whatever ``server.max_queue`` says: each waits in a
thread, and more threads than this cost more than their clients' patience is worth."""


STOP_SPARE_S = 15.0
"""What the service manager is asked for beyond the drain: a runner gets 5 s for each signal."""


def main() -> None:
    """Entry point; exits with the codes of docs/exit-codes.md."""
    try:
        serve(read_arguments(sys.argv[1:]), os.environ)
    except (ServerError, AppError, ProbeError) as error:
        sys.stderr.write(f"{PROGRAM}: error: {error}\n")
        if error.hint:
            sys.stderr.write(f"{PROGRAM}: hint: {error.hint}\n")
        sys.exit(getattr(error, "exit_code", 1))
    except OSError as error:
        sys.stderr.write(f"{PROGRAM}: error: {io_sentence(error)}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def serve(arguments: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ServerError: an address, a key file or a model stands in the way.
        AppError: the configuration or the store does.
    """
    _log_to_stderr(arguments.log_level)
    config = Config.load(file=arguments.config, environ=environ, flags=flags(arguments))
    for line in config.warnings:
        LOG.warning("%s", line)
    keys = load_keys(config.server.api_keys_file)
    store = Store(Paths(config.store.path))
    for fault in store.survey().faults:
        LOG.warning("%s is not usable: %s", fault.path, fault.reason)
    fleet = _fleet(config)
    sockets, admin = listening(config, keys, environ)
    manager = this_manager()
    _run(
        config,
        keys=keys,
        store=store,
        fleet=fleet,
        sockets=sockets,
        admin=admin,
        arguments=arguments,
        manager=manager,
    )


def _run(
    config: Config,
    *,
    keys: Keys,
    store: Store,
    fleet: Fleet | None,
    sockets: Sequence[socket.socket],
    admin: Sequence[socket.socket],
    arguments: argparse.Namespace,
    manager: Manager,
) -> None:
    variant = _choose_variant(config)
    inventory = functools.partial(_inventory, variant, fleet)
    machine = inventory()
    max_queue = max(1, min(config.server.max_queue, MAX_QUEUE))
    engine_build = f"{engine_build_id()} {variant}".strip()
    records = EngineRecords(
        Paths(config.store.path).engine,
        build_id=engine_build,
        machine_id=" ".join((machine.cpu.model, *machine.cpu.features, *_gpu_names(machine))),
    )
    machines = Machines(
        inventory,
        held_bytes=lambda: sum(private_bytes_of(pid) or 0 for pid in scheduler.pids),
    )
    experience = Experience(
        loads=Loads(store.paths.engine, identity=engine_build),
        calibration_folder=store.paths.engine,
        identity=machine_identity(machine),
        repacked=machines.repacked,
    )
    sweep(store.paths.states, config.cache.disk_bytes)
    scheduler = Scheduler(
        budgets=machines.budgets({}),
        experience=experience,
        measure=machines.budgets,
        check=SelfTest(records),
        free_bytes=_free_gpu_bytes if _has_cards(machine) else dict,
        coroner=Coroner(
            folder=CrashFolder(store.paths.crashes),
            engine_build=engine_build,
        ),
        start_runner=functools.partial(
            Runner.spawn, limits=RunnerLimits(load_s=config.server.load_timeout_s or math.inf)
        ),
        shelving=Shelving(
            folder=store.paths.states,
            limit_bytes=config.cache.disk_bytes,
            engine_build=engine_build,
        )
        if config.cache.disk_bytes
        else None,
        limits=SchedulerLimits(
            max_queue=max_queue,
            max_loaded_models=config.server.max_loaded_models,
            keep_alive_s=config.server.keep_alive_s,
        ),
    )
    catalogue = Catalogue(
        store,
        go_templates=config.server.go_template,
        output_format=lambda name: config.model(name).output_format,
        draft=lambda name: config.model(name).draft,
        constrain_calls=lambda name: config.model(name).constrain_calls,
        refused=Revocations(store.paths).why
        if config.trust.revoked == "refuse"
        else lambda _model: "",
    )
    planner = Planner(config=config, machines=machines, experience=experience)
    answerer = Answerer(
        catalogue=catalogue,
        scheduler=scheduler,
        planner=planner,
        max_requests=MAX_IN_FLIGHT + max_queue,
        request_timeout_s=config.server.request_timeout_s,
        isolated=not config.cache.share_across_keys,
    )
    desk = Desk(
        catalogue=catalogue,
        scheduler=scheduler,
        planner=planner,
        admission=answerer.admission,
        request_timeout_s=config.server.request_timeout_s,
        isolated=not config.cache.share_across_keys,
    )
    loopback = all(is_loopback(sock) for sock in sockets)
    ring = KeyRing(keys)
    guard = GuardPolicy(
        loopback=loopback,
        hostname=socket.gethostname(),
        origins=config.server.origins,
        keys=ring,
    )

    was_there = store.paths.root.is_dir()

    def readiness() -> tuple[str, ...]:
        reasons = ["the server is stopping"] if listener.stopping else []
        if was_there and not store.paths.root.is_dir():
            reasons.append("the store is no longer there")
        try:
            store.names()
        except AppError:
            reasons.append("the store cannot be read")
        return tuple(reasons)

    listener = Listener(
        app=create_app(
            answerer=answerer,
            desk=desk,
            catalogue=catalogue,
            store=store,
            loaded=scheduler.loaded,
            readiness=readiness,
            guard=guard,
            version=config.server.reported_version,
            max_body_bytes=config.limits.max_body_bytes,
            creation=_create_policy(config),
            jobs=Jobs.of(
                arguments.config, {**flags(arguments), "store.path": str(config.store.path)}
            ),
        ),
        sockets=sockets,
        limits=ListenerLimits(
            max_body_bytes=config.limits.max_body_bytes,
            threads=threads_needed(max_in_flight=MAX_IN_FLIGHT, max_queue=max_queue),
            drain_s=config.limits.drain_s,
        ),
        admin_app=create_admin_app(
            readiness=readiness, guard=GuardPolicy(loopback=False, keys=Keys())
        ),
        admin_sockets=admin,
        log_requests=config.server.log_requests,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: listener.stop())
    reload_wanted = threading.Event()
    signal.signal(signal.SIGHUP, lambda *_: reload_wanted.set())
    _announce(listener.addresses, arguments.ready_file)
    status = f"serving on {', '.join(listener.addresses)}"
    manager.ready(status)
    draining = threading.Thread(target=scheduler.close, args=(config.limits.drain_s,))

    def turned() -> None:
        manager.alive()
        if reload_wanted.is_set():
            reload_wanted.clear()
            _reload_keys(manager, ring, config.server.api_keys_file, status=status)

    def stopping() -> None:
        manager.stopping("letting answers finish", takes_s=config.limits.drain_s + STOP_SPARE_S)
        draining.start()

    try:
        listener.run(on_turn=turned, on_stopping=stopping)
        draining.join()
    finally:
        listener.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # a second one must not make this end a failure


def _reload_keys(manager: Manager, ring: KeyRing, path: Path | None, *, status: str) -> None:
    """Take the key file as it is now; one that is not in order changes nothing."""
    manager.reloading()
    try:
        if path is None:
            LOG.info("reload: no API keys are configured, so there is nothing to read again")
        else:
            LOG.info("reload: %d API keys", ring.reload(path))
    except ServerError as error:
        LOG.warning("reload: the API keys stay as they were: %s", error)
    manager.ready(status)


def _create_policy(config: Config) -> CreatePolicy:
    return CreatePolicy(
        allowed=config.trust.create,
        pull=config.exchange.pull,
        upload=UploadLimits(
            max_bytes=config.limits.max_blob_bytes, reserve_bytes=config.store.reserve_bytes
        ),
    )


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainLine())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())
    # The library's own lines repeat what ours say, or alarm about clients that leave.
    logging.getLogger("waitress").setLevel(logging.ERROR)


class _PlainLine(logging.Formatter):
    """``satchel-server: warning: …``; a service manager adds the time."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return f"{PROGRAM}: {level}{super().format(record)}"


def _choose_variant(config: Config) -> str:
    """Have every child load the engine's best build for this processor; returns its name.

    A folder of libraries that the operator has set stays, and has no name.
    """
    if os.environ.get(LIBRARY_VARIABLE):
        return ""
    cpu = take_inventory(ask_driver=False).cpu
    choice = choose_variant(
        Paths(config.store.path).engine,
        features=cpu.features,
        machine_id=" ".join((cpu.architecture, cpu.model, *cpu.features)),
        wanted=config.server.engine_variant,
    )
    for line in choice.refused:
        LOG.warning("engine: not used: %s", line)
    LOG.info("engine: CPU backend %s", choice.name)
    if choice.libraries:
        os.environ[LIBRARY_VARIABLE] = choice.libraries
    return choice.name


def _inventory(variant: str, fleet: Fleet | None = None) -> Machine:
    """The machine, whether the engine can use its GPUs if there are any, and its workers."""
    machine = replace(probe_machine(), engine_variant=variant)
    if machine.gpus:
        machine = replace(machine, engine_offload=_gpu_offload())
    return machine if fleet is None else fleet.joined(machine)


def _has_cards(machine: Machine) -> bool:
    return any(not gpu.worker for gpu in machine.gpus)


def _fleet(config: Config) -> Fleet | None:
    """The workers that answer; every child process learns how to talk to them.

    Raises:
        ServerError: a worker is named, but the files that it takes are not usable.
    """
    engine = config.engine
    if not engine.workers:
        return None
    if engine.key is None or engine.peers is None:
        raise ServerError(
            "engine.workers: needs engine.key and engine.peers", hint="see docs/scaling.md"
        )
    try:
        trust = Trust(Identity(engine.key, engine.peers), server=False)
    except WorkerError as error:
        raise ServerError(str(error), hint=error.hint) from error
    os.environ[KEY_VARIABLE] = str(engine.key.absolute())
    os.environ[PEERS_VARIABLE] = str(engine.peers.absolute())
    fleet = Fleet(engine.workers, trust, tell=LOG.warning)
    for address in fleet.reached:
        LOG.info("worker %s: there", address)
    return fleet


@functools.cache
def _gpu_offload() -> bool:
    """Whether the engine has a GPU device here; asked once, it takes a second."""
    try:
        return engine_info().gpu_offload
    except EngineCheckError as error:
        LOG.warning("the engine cannot be asked about GPUs: %s", error)
        return False


def _free_gpu_bytes() -> dict[str, int]:
    """Free memory of every GPU, for the scheduler to see a runner's memory come back."""
    return {gpu_pool(gpu.index): gpu.free_bytes for gpu in probe_machine().gpus}


def _gpu_names(machine: Machine) -> tuple[str, ...]:
    return tuple(gpu.name for gpu in machine.gpus)


def _announce(addresses: Sequence[str], ready_file: Path | None) -> None:
    """Tell whoever started the server where it listens."""
    if ready_file is not None:
        temporary = ready_file.with_name(f".{ready_file.name}.{os.getpid()}")
        try:
            temporary.write_text("".join(f"{address}\n" for address in addresses))
            temporary.replace(ready_file)
        except OSError as error:
            raise ServerError(f"{ready_file}: cannot be written: {error.strerror}") from error
    for address in addresses:
        sys.stdout.write(f"listening on {address}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
