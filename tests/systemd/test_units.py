"""The units: what they start, what they may reach, and what systemd itself says of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "systemd").glob("satchel*"))
SERVICES = [unit for unit in UNITS if unit.suffix == ".service"]
COMMANDS = {"satchel", "satchel-bundle", "satchel-probe", "satchel-server"}
EXPOSURE = {
    "satchel-server.service": 5,
    "satchel-health.service": 10,
    "satchel-media@.service": 20,
}
"""Highest exposure, times ten, that `systemd-analyze security` may find; README.md tells why."""
_STARTED = (
    "bin/kill",
    "usr/lib/satchel/libexec/medium",
    *(f"usr/lib/satchel/bin/{name}" for name in sorted(COMMANDS)),
)
SHUT = {
    "CapabilityBoundingSet": "",
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateDevices": "yes",
    "PrivateUsers": "yes",
    "MemoryDenyWriteExecute": "yes",
    "RestrictNamespaces": "yes",
    "SystemCallArchitectures": "native",
}


def settings(unit: Path) -> list[tuple[str, str, str]]:
    """Section, key and value of every line that is neither empty nor a comment."""
    found, section = [], ""
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, (unit.name, line)
            found.append((section, key, value))
    return found


def values(unit: Path, key: str) -> Sequence[str]:
    return [value for _, name, value in settings(unit) if name == key]


def last(unit: Path) -> Mapping[str, str]:
    return {key: value for _, key, value in settings(unit)}


def test_there_are_units() -> None:
    assert {unit.name for unit in SERVICES} == set(EXPOSURE)


MOUNTING = ROOT / "systemd" / "satchel-media@.service"


@pytest.mark.parametrize(
    "unit", [unit for unit in SERVICES if unit != MOUNTING], ids=lambda unit: unit.name
)
def test_a_service_starts_our_command_as_our_user_with_everything_shut(unit: Path) -> None:
    (start,) = values(unit, "ExecStart")
    assert re.fullmatch(r"/usr/lib/satchel/bin/([a-z-]+)( [a-z-]+)*", start)
    assert Path(start.split()[0]).name in COMMANDS
    found = last(unit)
    assert found["User"] == found["Group"] == "satchel"
    assert {key: found.get(key) for key in SHUT} == SHUT


def test_who_mounts_a_medium_has_no_network_and_gives_up_its_rights() -> None:
    found, script = last(MOUNTING), (ROOT / "systemd" / "medium.sh").read_text()
    assert found["ExecStart"] == "/usr/lib/satchel/libexec/medium %I"
    shut = {key: value for key, value in SHUT.items()
            if key not in {"CapabilityBoundingSet", "PrivateDevices",
                           "PrivateUsers"}}  # fmt: skip
    assert {key: found.get(key) for key in shut} == shut
    assert (found["PrivateNetwork"], found["PrivateMounts"]) == ("yes", "yes")
    (options,) = re.findall(r"mount -o (\S+)", script)
    assert set(options.split(",")) == {"ro", "nosuid", "nodev", "noexec", "nosymfollow"}
    assert "exec setpriv --reuid satchel" in script
    assert "--bounding-set=-all --no-new-privs" in script


def test_the_server_has_no_network_and_is_reachable_on_loopback_only() -> None:
    server = last(ROOT / "systemd" / "satchel-server.service")
    assert (server["PrivateNetwork"], server["IPAddressDeny"]) == ("yes", "any")
    assert server["RestrictAddressFamilies"] == "AF_UNIX"
    listens = values(ROOT / "systemd" / "satchel-server.socket", "ListenStream")
    assert listens == ["127.0.0.1:11434", "/run/satchel/admin.sock"]


def test_what_the_server_speaks_is_what_the_unit_expects() -> None:
    server = last(ROOT / "systemd" / "satchel-server.service")
    assert (server["Type"], server["NotifyAccess"]) == ("notify", "main")
    assert server["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert int(server["WatchdogSec"]) >= 10


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_name_units_that_exist(unit: Path) -> None:
    ours = {one.name for one in UNITS}
    named = {
        word
        for key in ("Requires", "After", "Also", "Slice", "Unit")
        for value in values(unit, key)
        for word in value.split()
        if word.startswith("satchel")
    }
    assert named <= ours
    if unit.suffix == ".timer":
        assert unit.with_suffix(".service") in UNITS


@pytest.mark.parametrize("name", ["gpu-nvidia.conf", "gpu-dri.conf"])
def test_drop_ins_open_devices_and_nothing_else(name: str) -> None:
    opened = {key for _, key, _ in settings(ROOT / "systemd" / name)}
    assert opened <= {
        "PrivateDevices",
        "DeviceAllow",
        "MemoryDenyWriteExecute",
        "SupplementaryGroups",
    }


def test_the_drop_in_for_workers_opens_the_network_to_named_addresses_only() -> None:
    found = settings(ROOT / "systemd" / "workers.conf")
    assert {key for _, key, _ in found} == {
        "PrivateNetwork",
        "RestrictAddressFamilies",
        "IPAddressAllow",
    }
    assert [value for _, key, value in found if key == "IPAddressAllow"] == ["localhost"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root with our units, the commands they start, and systemd's own targets."""
    units = tmp_path / "usr/lib/systemd/system"
    units.mkdir(parents=True)
    system = Path("/usr/lib/systemd/system")
    for own in (*system.glob("*.target"), *system.glob("*.mount"), system / "-.slice"):
        if own.is_file():
            shutil.copy(own, units)
    for unit in UNITS:
        shutil.copy(unit, units)
    for command in _STARTED:
        path = tmp_path / command
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    return tmp_path


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, check=False
    )


if shutil.which("systemd-analyze"):  # containers may be without; the tests above are not

    def test_systemd_understands_every_unit(tree: Path) -> None:
        done = analyze("verify", f"--root={tree}", *(unit.name for unit in UNITS))
        assert (done.returncode, done.stderr) == (0, "")

    def test_systemd_notices_a_key_that_does_not_exist(tree: Path) -> None:
        unit = tree / "usr/lib/systemd/system/satchel-health.service"
        unit.write_text(unit.read_text() + "NoSuchKey=yes\n")
        assert "NoSuchKey" in analyze("verify", f"--root={tree}", unit.name).stderr

    @pytest.mark.parametrize("name", sorted(EXPOSURE))
    def test_exposure_stays_low(tree: Path, name: str) -> None:
        limit = f"--threshold={EXPOSURE[name]}"
        done = analyze("security", "--offline=true", f"--root={tree}", limit, name)
        assert done.returncode == 0, done.stdout
