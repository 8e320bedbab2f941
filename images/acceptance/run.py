"""The acceptance test of an image: `make image-test` boots it and uses it as a site does.

Runs inside the tools tree (images/enter.sh), with the standard library only. Each step prints one
line with the seconds since the machine's start; the first one that fails ends the run.

    images/enter.sh TREE python3 /src/images/acceptance/run.py amd64 VERSION [--power-cuts N]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from images.acceptance.packets import read_traffic
from images.acceptance.sticks import (
    Signer,
    copy_tree,
    damage,
    make_signer,
    make_stick,
    noise_model,
    pack,
)
from images.acceptance.vm import Hardware, Vm

BUILD = Path("/build")
SOURCE = Path("/src")
API_KEY = "sk-acceptance"
DISK_GB = 6
PATIENCE = 12
"""Emulation beside other work is slow: limits are so many times what was measured alone."""
BOOT_S = 60.0 * PATIENCE
STICK_S = 60.0 * PATIENCE
NOISE_MB = 384
AS_SATCHEL = "setpriv --reuid satchel --regid satchel --init-groups"

FIRMWARE = {
    "amd64": ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    "arm64": ("/usr/share/AAVMF/AAVMF_CODE.no-secboot.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),
}
SHELL = {"amd64": "ttyS1", "arm64": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where a run works, and what every step needs.

    Attributes:
        work: a directory of this run.
        arch: ``amd64`` or ``arm64``.
        disk: the machine's disk, which steps change.
        signer: whose bundles the machine trusts.
        port: of loopback, forwarded to the machine's 11434.
    """

    work: Path
    arch: str
    disk: Path
    signer: Signer
    port: int

    def hardware(self, **changes: Any) -> Hardware:
        """The machine with this disk."""
        code, variables = FIRMWARE[self.arch]
        own = self.work / "variables.fd"
        if not own.exists():
            shutil.copyfile(variables, own)
        digest = hashlib.sha256(API_KEY.encode()).hexdigest()
        settings: dict[str, Any] = {
            "arch": self.arch,
            "disk": self.disk,
            "firmware": Path(code),
            "variables": own,
            "port": self.port,
            "credentials": {
                "satchel.api_keys": f"sha256:{digest} acceptance",
                "satchel.trusted_keys": self.signer.public_text(),
                "satchel.site": "acceptance",
            },
            # The image has no shell for anybody; this one is the test's, on a port of its own.
            "kernel_arguments": f"systemd.debug_shell={SHELL[self.arch]}"
            if SHELL[self.arch]
            else "",
        }
        return Hardware(**{**settings, **changes})

    def ask(
        self, path: str, body: Mapping[str, Any] | None = None, *, key: str = API_KEY,
        timeout_s: float = 120.0,
    ) -> tuple[int, str]:  # fmt: skip
        """One request through the forwarded port; status 0 means that nobody answered."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(errors="replace")
        except (OSError, ValueError):
            return 0, ""

    def models(self) -> set[str]:
        """Names the machine lists."""
        status, text = self.ask("/api/tags", timeout_s=20.0)
        return {one["name"] for one in json.loads(text)["models"]} if status == 200 else set()

    def chat(self, model: str) -> str:
        """What a model says to a question of the demo's."""
        status, text = self.ask(
            "/api/chat",
            {"model": model, "stream": False, "think": False,
             "options": {"temperature": 0, "num_predict": 24},
             "messages": [{"role": "user", "content": "Why is the sky blue?"}]},
            timeout_s=60.0 * PATIENCE,
        )  # fmt: skip
        check(status == 200, f"chat: expected 200, found {status}: {text[:300]}")
        return str(json.loads(text)["message"]["content"])


class AcceptanceError(Exception):
    """A step did not end as it should."""


def check(holds: bool, sentence: str) -> None:  # noqa: FBT001 - reads as a sentence
    """Stop with this sentence unless it holds."""
    if not holds:
        raise AcceptanceError(sentence)


def say(vm: Vm | None, text: str) -> None:
    """One line of the report."""
    at = f"{vm.seconds():6.1f} s" if vm else "         "
    print(f"{at}  {text}", flush=True)


def start(bench: Bench, vm: Vm) -> None:
    """Wait until the server answers."""
    vm.wait_for(lambda: bench.ask("/api/version", timeout_s=5.0)[0] == 200, timeout_s=BOOT_S,
                what="the server")  # fmt: skip
    if SHELL[bench.arch]:
        vm.shell.open_shell(timeout_s=BOOT_S)
    say(vm, f"serves ({vm.processor_seconds():.0f} s of processor time)")


def first_boot(bench: Bench, vm: Vm) -> None:
    """Keys are asked for, nothing failed, nothing but the state can be written."""
    start(bench, vm)
    for key in ("", "sk-wrong"):
        status, _ = bench.ask("/api/tags", key=key)
        check(status == 401, f"without the right key: expected 401, found {status}")
    say(vm, "answers nobody without a key")
    if not SHELL[bench.arch]:
        return
    _, failed = vm.shell.run("systemctl --failed --no-legend --plain")
    check(not failed.strip(), f"failed units: {failed}")
    for path in ("/x", "/usr/x", "/etc/x"):
        status, text = vm.shell.run(f"touch {path}")
        check(status != 0, f"{path} could be written: {text}")
    # Port 68 is where the answer to the request for an address comes to.
    _, listening = vm.shell.run("ss -Hltnu | awk '{print $1, $5}' | grep -v ':68$' | tr '\\n' ' '")
    check(listening.split() == ["tcp", "0.0.0.0:11434"], f"listening: {listening}")
    say(vm, "no unit failed, the root cannot be written, one port listens")


def sticks(bench: Bench, vm: Vm) -> None:
    """A foreign stick is one line, damage is refused in words, a good stick answers a chat."""
    folder = bench.work / "sticks"
    for name, pattern in (
        ("foreign", r"medium sd[a-z]: not ours"),
        ("unknown", r"refused: .*signature|refused: .*trusted"),
        ("damaged", r"refused: .*(chunk|digest|bytes)"),
    ):
        since = vm.console.position()
        vm.plug(folder / f"{name}.img", name)
        vm.console.expect(pattern, timeout_s=STICK_S, since=since)
        vm.pull(name)
        check(bench.models() == set(), f"{name}: a model came in")
        say(vm, f"stick {name}: refused on the console")
    since = vm.console.position()
    vm.plug(folder / "demo.img", "demo")
    vm.console.expect("it can be pulled out", timeout_s=STICK_S, since=since)
    vm.pull("demo")
    check(bench.models() == {"demo:latest"}, f"models: {bench.models()}")
    say(vm, "stick demo: verified and installed")
    answer = bench.chat("demo")
    check(len(answer.split()) >= 3, f"answer: {answer!r}")
    say(vm, f"chat: {answer!r}")


def pulled_stick(bench: Bench, vm: Vm) -> None:
    """A stick pulled in the middle of an import, and plugged in again."""
    stick = bench.work / "sticks" / "noise.img"
    since = vm.console.position()
    vm.plug(stick, "half")
    vm.console.expect("importing", timeout_s=STICK_S, since=since)
    time.sleep(6)
    vm.pull("half")
    vm.wait_for(lambda: _idle(vm), timeout_s=STICK_S, what="the end of the import")
    check(bench.models() == {"demo:latest"}, f"half a model is visible: {bench.models()}")
    say(vm, "stick noise: pulled in the middle; nothing of it is visible")
    vm.plug(stick, "whole")
    vm.wait_for(lambda: "noise:latest" in bench.models(), timeout_s=2 * STICK_S, what="the import")
    vm.pull("whole")
    say(vm, "stick noise: plugged in again, installed")
    check(bench.chat("demo") != "", "the model that was there no longer answers")


def _idle(vm: Vm) -> bool:
    units = "systemctl list-units --no-legend --plain --state=activating,active"
    _, text = vm.shell.run(f"{units} 'satchel-media@*' | wc -l")
    return text.strip() == "0"


def power_cuts(bench: Bench, number: int) -> None:
    """Power cuts in the middle of an import: the store is whole each time."""
    stick = bench.work / "sticks" / "noise.img"
    for cut in range(1, number + 1):
        with Vm(bench.hardware(), bench.work / f"cut-{cut}") as vm:
            start(bench, vm)
            if cut == 1:
                status, text = vm.shell.run(f"{AS_SATCHEL} satchel rm noise")
                check(status == 0, f"rm: {text}")
            else:
                check(bench.models() == {"demo:latest"}, f"after a cut: {bench.models()}")
                _check_store(vm)
            since = vm.console.position()
            vm.plug(stick, "cut")
            vm.console.expect("importing", timeout_s=STICK_S, since=since)
            # Later each time: the cuts fall into copying, hashing and the journal's steps.
            time.sleep(1.0 + 2.0 * (cut - 1) % 9)
            vm.cut_power()
            say(vm, f"power cut {cut} of {number}")
    with Vm(bench.hardware(), bench.work / "after-cuts") as vm:
        start(bench, vm)
        _check_store(vm)
        check(bench.chat("demo") != "", "demo no longer answers")
        say(vm, "after the cuts: the store is whole, the model answers")


def _check_store(vm: Vm) -> None:
    status, text = vm.shell.run(f"{AS_SATCHEL} satchel scrub --restart", timeout_s=STICK_S)
    check(status == 0, f"scrub: {text}")


def tampered_root(bench: Bench) -> None:
    """One changed block of the root: the machine does not come up, and says why."""
    copy = bench.work / "tampered.raw"
    shutil.copyfile(bench.disk, copy)
    begin, _ = partition(copy, "root")
    with copy.open("r+b") as file:
        for offset in range(8 << 20, 96 << 20, 1 << 20):
            file.seek(begin + offset)
            file.write(b"\xa5" * 4096)
    hardware = bench.hardware(disk=copy, kernel_arguments="systemd.log_target=console")
    with Vm(hardware, bench.work / "tampered") as vm:
        vm.console.expect("verity|corrupt", timeout_s=BOOT_S)
        check(bench.ask("/api/version", timeout_s=5.0)[0] == 0, "it serves all the same")
        say(vm, "a tampered root does not start")
    copy.unlink()


def partition(disk: Path, kind: str) -> tuple[int, int]:
    """Offset and size in bytes of the first partition of a type, by sfdisk's JSON."""
    text = subprocess.run(
        ["sfdisk", "--json", str(disk)], check=True, capture_output=True, text=True
    ).stdout
    types = {"root": ("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",
                      "B921B045-1DF0-41C3-AF44-4C6F280D3FAE")}  # fmt: skip
    table = json.loads(text)["partitiontable"]
    found = next(one for one in table["partitions"] if one["type"].upper() in types[kind])
    sector = table.get("sectorsize", 512)
    return found["start"] * sector, found["size"] * sector


def make_sticks(bench: Bench, stranger: Signer) -> None:
    """Every stick of the run."""
    folder, model = bench.work / "sticks", SOURCE / "tests" / "demo-model" / "demo-f16.gguf"
    settings = ("--modelfile", str(model.with_name("Modelfile")))
    bundles = bench.work / "bundles"
    good = pack(model, "demo", bench.signer, bundles / "good", "--quantize", "Q8_0", *settings)
    strange = pack(model, "demo", stranger, bundles / "strange", *settings)
    noise = noise_model(bench.work / "noise.gguf", size_mb=NOISE_MB)
    big = pack(noise, "noise", bench.signer, bundles / "noise", "--seq", "2")
    noise.unlink()
    folder.mkdir()
    make_stick(folder / "foreign.img", None, label="HOLIDAY")
    for name, bundle in (("demo", good), ("unknown", strange), ("noise", big)):
        content = copy_tree([bundle.parent], bench.work / "content" / name)
        make_stick(folder / f"{name}.img", content, label=name.upper())
    content = copy_tree([good.parent], bench.work / "content" / "damaged")
    damage(content / "satchel" / good.name)
    make_stick(folder / "damaged.img", content, label="DAMAGED")
    shutil.rmtree(bench.work / "content")


def traffic(bench: Bench) -> None:
    """Nothing but requests for an address and answers may have left any of the machines."""
    unasked: dict[str, int] = {}
    expected: dict[str, int] = {}
    for capture in sorted(bench.work.glob("*/packets.pcap")):
        found = read_traffic(capture)
        for kind, count in found.unasked.items():
            unasked[kind] = unasked.get(kind, 0) + count
        for kind, count in found.expected.items():
            expected[kind] = expected.get(kind, 0) + count
    check(not unasked, f"packets nobody asked for: {unasked}")
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(expected.items()))
    say(None, f"packets that tried to leave: none (sent: {shown})")


def main() -> None:
    """Run the steps in order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("arch", choices=sorted(FIRMWARE))
    parser.add_argument("version")
    parser.add_argument("--power-cuts", type=int, default=10)
    parser.add_argument("--port", type=int, default=21434)
    arguments = parser.parse_args()
    work = BUILD / f"acceptance-{arguments.arch}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    disk = work / "disk.raw"
    image = BUILD / f"mkosi-{arguments.arch}" / "mkosi.output" / f"satchel_{arguments.version}.raw"
    shutil.copyfile(image, disk)
    with disk.open("r+b") as file:
        file.truncate(DISK_GB << 30)
    bench = Bench(
        work=work, arch=arguments.arch, disk=disk, signer=make_signer(work / "keys", "release"),
        port=arguments.port,
    )  # fmt: skip
    begin = time.monotonic()
    try:
        make_sticks(bench, make_signer(work / "keys", "stranger"))
        say(None, f"sticks made ({time.monotonic() - begin:.0f} s)")
        _steps(bench, arguments.power_cuts)
    except (AcceptanceError, TimeoutError) as error:
        sys.exit(f"acceptance: {error}\nacceptance: consoles and captures lie in {work}")
    say(None, f"accepted ({time.monotonic() - begin:.0f} s in all)")


def _steps(bench: Bench, cuts: int) -> None:
    steps: tuple[Callable[[Bench, Vm], None], ...] = (first_boot, sticks)
    if SHELL[bench.arch]:
        steps = (*steps, pulled_stick)
    with Vm(bench.hardware(), bench.work / "first") as vm:
        for step in steps:
            step(bench, vm)
        vm.screen(bench.work / "screen.png")
        vm.press_power_button(timeout_s=BOOT_S)
        say(vm, "shut down")
    if SHELL[bench.arch]:
        power_cuts(bench, cuts)
    tampered_root(bench)
    traffic(bench)


if __name__ == "__main__":
    main()
