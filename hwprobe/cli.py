"""``satchel-probe``: what this machine is, and what fits on it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from hwprobe.calibrate import calibrate as run_calibration
from hwprobe.calibrate import keep_calibration, learn_from, machine_identity, read_calibration
from hwprobe.completion import ASK, SHELLS, answer, script
from hwprobe.decision import MAX_RECORD_BYTES, Question, decide, record_of, replayed
from hwprobe.decoding import parsed
from hwprobe.engine import dry_run_both, engine_info
from hwprobe.errors import DoesNotFitError, EngineCheckError, GgufError, ProbeError, io_sentence
from hwprobe.fit import candidates_at, drafted_candidate
from hwprobe.inventory.disk import read_speed
from hwprobe.machine import Machine
from hwprobe.probing import probe_machine
from hwprobe.quantity import Bytes
from hwprobe.recording import look_at_this_machine, recorded_machine, write_recording
from hwprobe.report import (
    machine_from_json,
    machine_lines,
    machine_to_json,
    placement_lines,
    placement_to_json,
    rejection_to_json,
)
from hwprobe.settings import KvType
from hwprobe.speed import predicted_speed
from hwprobe.variants import read_choice
from hwprobe.verdict import Placement, Wish

PROGRAM = "satchel-probe"
EXIT_FAILED, EXIT_USAGE, EXIT_MALFORMED, EXIT_DOES_NOT_FIT, EXIT_INTERRUPTED = 1, 2, 10, 14, 130
MAX_SITE_REPORT_BYTES = 1 << 20
_MODELS = Path("/var/lib/satchel")
_ENGINE_FOLDER = Path("satchel") / "engine"
"""Where the server keeps what it tried of the engine; the store's layout is docs/adr/0004."""

app = typer.Typer(
    help="Measure this machine and a model, and decide what fits.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool | None) -> None:
    if wanted:
        print(f"{PROGRAM} {version('satchel')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    _: Annotated[
        bool | None,
        typer.Option("--version", "-v", callback=_version, is_eager=True, help="Print it."),
    ] = None,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def report(
    as_json: Annotated[bool, typer.Option("--json", help="Print a site report.")] = False,
    models: Annotated[
        Path, typer.Option(help="Where models are kept, for the free room of its disk.")
    ] = _MODELS,
    root: Annotated[
        Path | None, typer.Option(help="A recording of another machine, or its root directory.")
    ] = None,
    disk_speed: Annotated[
        Path | None, typer.Option(help="Read this large file to measure the disk.")
    ] = None,
) -> None:
    """Show what this machine is.

    With --json the output is a site report, which satchel-bundle pack --for and satchel-probe
    fit --for read on another machine.
    """
    machine, engine = (_recorded(root), "") if root else _asked_machine(models, models)
    if disk_speed is not None:
        disk = replace(machine.disk, read_bytes_per_s=round(read_speed(disk_speed)))
        machine = replace(machine, disk=disk)
    if as_json:
        print(json.dumps(machine_to_json(machine), indent=1))
        return
    print("\n".join(machine_lines(machine, engine=engine)))


@app.command()
def fit(
    path: Annotated[Path, typer.Argument(help="A GGUF file, a directory of them, or a bundle.")],
    *,
    ctx: Annotated[int | None, typer.Option(min=1, help="Context in tokens.")] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Requests at the same time.")] = None,
    kv: Annotated[str | None, typer.Option(help="Cache type: f16, q8_0 or q4_0.")] = None,
    num_gpu: Annotated[int | None, typer.Option(help="Layers on GPUs; -1: all that fit.")] = None,
    draft: Annotated[
        Path | None, typer.Option(help="A draft model to load beside it (GGUF file only).")
    ] = None,
    site: Annotated[
        Path | None, typer.Option("--for", help="Site report of the machine to decide for.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Recording of the machine to decide for.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Let the engine compute the memory (GGUF file only).")
    ] = False,
    record_file: Annotated[
        Path | None, typer.Option("--record", help="Write question and answer here, for replay.")
    ] = None,
    models: Annotated[
        Path, typer.Option(help="Where models are kept, for what calibrate measured.")
    ] = _MODELS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show which variant fits, with which settings, and why.

    Exits with 14 when nothing fits.
    """
    if kv is not None and kv not in get_args(KvType):
        raise typer.BadParameter(f"expected one of {', '.join(get_args(KvType))}, found {kv!r}")
    wish = Wish(num_ctx=ctx, slots=slots, kv_type=kv, num_gpu=num_gpu)  # type: ignore[arg-type]
    machine = _deciding_for(path, models, site=site, root=root)
    candidates = (drafted_candidate(path, draft),) if draft else candidates_at(path)
    question = Question(machine=machine, candidates=candidates, wish=wish)
    if record_file is not None:
        record_file.write_bytes(record_of(question))
    try:
        placement = decide(question)
    except DoesNotFitError as error:
        if as_json:
            rejected = [rejection_to_json(one) for one in error.rejected]
            print(json.dumps({"fits": False, "rejected": rejected}, indent=1))
        raise
    if measure and path.is_file():
        (candidate,) = candidates
        need = dry_run_both(path, draft or path, candidate.profile, placement.settings)
        placement = replace(placement, estimate=need)
    if as_json:
        print(json.dumps({"fits": True, **placement_to_json(placement)}, indent=1))
        return
    print("\n".join(placement_lines(placement, machine)))
    if site is None and root is None:
        for line in _speed_lines(machine, question, placement, models):
            print(line)


@app.command()
def calibrate(
    models: Annotated[
        Path, typer.Option(help="Where models are kept; the result lies beside the engine's.")
    ] = _MODELS,
    model: Annotated[
        Path | None, typer.Option(help="Time this GGUF file instead, and keep what it did.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time the engine with two made-up models, so that fit can predict tokens per second.

    Writes up to 1 GiB below --models and removes it again. Other work on this machine spoils
    the result.
    """
    if model is not None:
        print(_timed_model(model, models))
        return
    models.mkdir(parents=True, exist_ok=True)
    found = run_calibration(
        probe_machine(), models, tell=lambda line: print(line, file=sys.stderr, flush=True)
    )
    path = keep_calibration(models / _ENGINE_FOLDER, found)
    if as_json:
        print(json.dumps(asdict(found), indent=1))
        return
    print(
        f"weights are read at {Bytes(int(found.bandwidth_bytes_per_s))} per second, a block takes "
        f"{found.block_s * 1e6:.3g} µs, prompts get {found.operations_per_s / 1e9:.3g} billion "
        f"operations per second, with {found.threads} thread(s)\n{path}"
    )


@app.command()
def replay(
    path: Annotated[Path, typer.Argument(help="A record that fit --record wrote.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Decide a recorded question again, and compare the answer byte for byte.

    Exits with 1 when this release answers differently, with 14 when nothing fits.
    """
    result = replayed(_read(path, MAX_RECORD_BYTES, "a record"))
    if not result.same:
        raise ProbeError(
            f"{path}: this release answers otherwise than the record",
            hint="the record was made by another release, or was changed",
        )
    if as_json:
        print(json.dumps(result.answer, indent=1))
        return
    print("\n".join(placement_lines(decide(result.question), result.question.machine)))


@app.command()
def record(
    out: Annotated[Path, typer.Argument(help="The tar file to write.")],
    models: Annotated[
        Path, typer.Option(help="Where models are kept, for the free room of its disk.")
    ] = _MODELS,
) -> None:
    """Record what report looks at, so that report and fit --root see this machine elsewhere.

    The file holds parts of /proc and /sys as they are: names of processors, disks, mounts and
    control groups. No serial numbers are read.
    """
    offload = _asked_machine(models, models)[0].engine_offload
    looks, machine = look_at_this_machine(disk_path=models.absolute(), engine_offload=offload)
    write_recording(out, looks, machine)
    refused = f", {len(looks.refused)} could not be read" if looks.refused else ""
    print(f"{out}: {len(looks.files)} files{refused}")


@app.command()
def completion(
    shell: Annotated[str, typer.Argument(metavar="SHELL", autocompletion=lambda: SHELLS)],
) -> None:
    """Print the completion script for bash, zsh or fish."""
    if shell not in SHELLS:
        raise typer.BadParameter(f"expected {', '.join(SHELLS)}, found {shell!r}")
    print(script(PROGRAM, shell), end="")


def _timed_model(path: Path, models: Path) -> str:
    """Predict, time and keep one model's speed; a line about it."""
    machine = _asked_machine(path, models, only_for_gpus=True)[0]
    known = read_calibration(models / _ENGINE_FOLDER, machine_identity(machine))
    if known is None:
        raise ProbeError(
            "nothing is known about this machine's speed", hint="run satchel-probe calibrate first"
        )
    (candidate,) = candidates_at(path)
    settings = decide(Question(machine=machine, candidates=(candidate,), wish=Wish())).settings
    learned = learn_from(path, settings, known)
    keep_calibration(models / _ENGINE_FOLDER, learned)
    speed = predicted_speed(candidate.profile, settings, learned)
    return str(speed) if speed is not None else "timed; its layers on a GPU are not predicted"


def _speed_lines(
    machine: Machine, question: Question, placement: Placement, models: Path
) -> Iterator[str]:
    """The predicted speed, or how to get one."""
    found = read_calibration(models / _ENGINE_FOLDER, machine_identity(machine))
    if found is None:
        yield "Speed     not known here; satchel-probe calibrate measures it"
        return
    chosen = next(one for one in question.candidates if one.variant == placement.variant)
    speed = predicted_speed(chosen.profile, placement.settings, found)
    if speed is not None:
        yield f"Speed     {speed}"


def _deciding_for(path: Path, models: Path, *, site: Path | None, root: Path | None) -> Machine:
    """The machine that fit decides for: the one named, or this one."""
    if site is not None and root is not None:
        raise typer.BadParameter("--for and --root both name a machine")
    if root is not None:
        return _recorded(root)
    return _site(site) if site else _asked_machine(path, models, only_for_gpus=True)[0]


def _recorded(path: Path) -> Machine:
    with recorded_machine(path) as machine:
        return machine


def _asked_machine(
    disk_path: Path, models: Path, *, only_for_gpus: bool = False
) -> tuple[Machine, str]:
    """This machine, with what the engine says about GPUs, and a line about the engine.

    The build of the CPU backend is the one that the server beside ``models`` has chosen.
    """
    choice = read_choice(models / _ENGINE_FOLDER)
    machine = replace(
        probe_machine(disk_path=disk_path.absolute()), engine_variant=choice.name if choice else ""
    )
    if only_for_gpus and not machine.gpus:
        return machine, ""
    try:
        info = engine_info()
    except EngineCheckError as error:
        return machine, f"cannot be asked: {error}"
    devices = ", ".join(f"{name} ({text})" for name, text in info.devices)
    line = f"llama-cpp-python {info.version}; devices: {devices}"
    return replace(machine, engine_offload=info.gpu_offload), line


def _site(path: Path) -> Machine:
    return machine_from_json(parsed(_read(path, MAX_SITE_REPORT_BYTES, "a site report"), str(path)))


def _read(path: Path, most_bytes: int, what: str) -> bytes:
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ProbeError(f"{path}: {what} has at most {most_bytes} bytes")
    return data


def _exit_code(error: ProbeError) -> int:
    match error:
        case DoesNotFitError():
            return EXIT_DOES_NOT_FIT
        case GgufError():
            return EXIT_MALFORMED
        case _:
            return EXIT_FAILED


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors go to stderr in one form."""
    try:
        code = _typed(arguments)
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted", "", EXIT_INTERRUPTED)
    except typer.TyperException as error:
        text = getattr(error, "format_message", error.__str__)()
        return _complain(
            text[:1].lower() + text[1:].rstrip("."), f"see: {PROGRAM} --help", EXIT_USAGE
        )
    except ProbeError as error:
        return _complain(str(error), error.hint, _exit_code(error))
    except OSError as error:
        return _complain(io_sentence(error), "", EXIT_FAILED)
    if code == EXIT_INTERRUPTED:
        # typer turns an interrupt of a running command into this code, without a word.
        return _complain("interrupted", "", EXIT_INTERRUPTED)
    return code if isinstance(code, int) else 0


def _typed(arguments: Sequence[str]) -> Any:
    """Run a verb, or answer a completion script."""
    if list(arguments[:1]) == [ASK]:
        print(answer(arguments[1:], program=PROGRAM, app_for=lambda _: app), end="")
        return 0
    return app(args=list(arguments), prog_name=PROGRAM, standalone_mode=False)


def _complain(message: str, hint: str, code: int) -> int:
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)
    if hint:
        print(f"{PROGRAM}: hint: {hint}", file=sys.stderr)
    return code


def main() -> None:
    """Entry point."""
    sys.exit(run(sys.argv[1:]))
