"""The child: read the request, do it, say how it went."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.config import Config
from appliance.creating import Workshop, create
from appliance.creation import CreateRequest
from appliance.errors import AppError, ModelMissingError
from appliance.idle import become_idle
from appliance.job import JobRequest, failure
from appliance.journal import timestamp
from appliance.layout import Paths
from appliance.measuring import this_site
from appliance.pulling import pull
from appliance.pushing import push
from appliance.store import Store
from bundler.format.errors import BundleError
from bundler.format.name import ModelName
from hwprobe.errors import ProbeError

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Carry out one request; returns the exit status."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    request = JobRequest(**json.load(sys.stdin))
    try:
        _run(request)
    except (AppError, BundleError, ProbeError) as error:
        _tell(failure(error))
        return 1
    return 0


def _run(request: JobRequest) -> None:
    config = Config.load(
        file=Path(request.config_file) if request.config_file else None,
        environ=os.environ,
        flags=request.flags,
    )
    match request.verb:
        case "create":
            _create(CreateRequest.from_json(request.body), config)
        case "pull":
            become_idle()  # answers come first
            pull(str(request.body["model"]), this_site(config), _tell)
        case "push":
            store = Store(Paths(config.store.path))
            push(str(request.body["model"]), store, config.exchange.export, _tell)


def _create(request: CreateRequest, config: Config) -> None:
    """Make a model; a base that is not here is looked for where ``pull`` looks."""
    shop = _workshop(config)
    if request.base and config.exchange.pull and not _is_here(request.base, shop.store):
        pull(request.base, this_site(config), _tell_but_success)
    create(request, shop, _tell)


def _is_here(text: str, store: Store) -> bool:
    try:
        store.resolve(ModelName.parse(text))
    except ModelMissingError:
        return False
    return True


def _tell_but_success(event: Mapping[str, Any]) -> None:
    if event != {"status": "success"}:
        _tell(event)


def _workshop(config: Config) -> Workshop:
    now_s = time.time()
    return Workshop(
        store=Store(Paths(config.store.path)),
        allowed=config.trust.create,
        reserve_bytes=config.store.reserve_bytes,
        grace_s=config.store.grace_s,
        threads=len(os.sched_getaffinity(0)),
        now_s=now_s,
        now=timestamp(now_s),
    )


def _tell(event: Mapping[str, Any]) -> None:
    """One line at once; without a reader there is nothing left to do."""
    try:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
