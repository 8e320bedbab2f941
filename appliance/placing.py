"""How an installed model would run on this machine now, and what its last load came to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.choice import wish_for
from appliance.config import Config
from appliance.errors import ModelTooLargeError, UnusableModelError
from appliance.layout import Paths
from appliance.measuring import this_machine
from appliance.model import InstalledModel
from hwprobe.calibrate import machine_identity, read_calibration
from hwprobe.engine import engine_build_id
from hwprobe.errors import DoesNotFitError, ProbeError
from hwprobe.loads import Loads
from hwprobe.machine import Machine
from hwprobe.placement import Candidate, Placement, place
from hwprobe.profile import ModelProfile
from hwprobe.quantity import Bytes
from hwprobe.report import placement_lines, placement_to_json
from hwprobe.speed import Speed, predicted_speed
from hwprobe.together import can_see, profile_together


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """An answer to "how would it run here?".

    Attributes:
        machine: as it is now; what is in memory counts as taken.
        placement: how the model would be loaded.
        speed: tokens per second, predicted or measured; ``None`` when nothing is known.
        last_load: the server's record of its last load, see `hwprobe.loads`; ``None`` without.
    """

    machine: Machine
    placement: Placement
    speed: Speed | None
    last_load: dict[str, Any] | None


def placed(model: InstalledModel, config: Config) -> Placed:
    """Place a model as the server would, with nothing else of the server's in memory.

    Raises:
        ModelTooLargeError: it does not fit.
        UnusableModelError: a file of it is damaged, or does not go with it.
    """
    engine = Paths(config.store.path).engine
    machine = this_machine(config.store.path)
    profile = _profile(model)
    loads = Loads(engine, identity=f"{engine_build_id()} {machine.engine_variant}".strip())
    candidate = Candidate(
        variant=profile.quantization, profile=profile, margin=loads.margin(profile)
    )
    try:
        placement = place(machine, (candidate,), wish_for(config, model.name))
    except DoesNotFitError as error:
        raise ModelTooLargeError(f"{model.name.short()}: {error}", hint=error.hint) from error
    calibration = read_calibration(engine, machine_identity(machine))
    return Placed(
        machine=machine,
        placement=placement,
        speed=predicted_speed(profile, placement.settings, calibration) if calibration else None,
        last_load=loads.last(model.name.short()),
    )


def placed_lines(answer: Placed) -> Iterator[str]:
    """One screen: machine, choice, sums that add up, reasons, speed, what was measured."""
    yield from placement_lines(answer.placement, answer.machine)
    if answer.speed is not None:
        yield f"Speed     {answer.speed}"
    else:
        yield "Speed     not known here; satchel-probe calibrate measures it"
    record = answer.last_load
    if record is not None:
        found = record.get("private_measured_bytes")
        expected = record.get("private_predicted_bytes")
        if isinstance(found, int) and isinstance(expected, int):
            yield (
                f"Last load {record.get('time', '')}: held {Bytes(found)} for itself, "
                f"{Bytes(expected)} were predicted"
            )
        steps = record.get("steps")
        if isinstance(steps, list) and steps:
            yield f"          memory was short: {'; '.join(map(str, steps))}"


def placed_json(answer: Placed) -> dict[str, Any]:
    """The same for machines."""
    speed = answer.speed
    return {
        **placement_to_json(answer.placement),
        "speed": None
        if speed is None
        else {
            "decode": round(speed.decode, 3),
            "prompt": round(speed.prompt, 3),
            "error_share": speed.error_share,
            "measured": speed.measured,
        },
        "last_load": answer.last_load,
    }


def _profile(model: InstalledModel) -> ModelProfile:
    try:
        projector = _projector(model)
        draft = model.drafts[0] if model.drafts else None
        return profile_together(model.model_path, model.adapters, projector, draft)
    except ProbeError as error:
        raise UnusableModelError(f"{model.name.short()}: {error}", hint=error.hint) from error


def _projector(model: InstalledModel) -> Path | None:
    first = model.projectors[0] if model.projectors else None
    return first if first is not None and can_see(first) else None
