"""The four packages are ours alone, and the rules about who imports what hold."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("hwprobe", "bundler", "appliance", "server")

OWNERS = {
    "psutil": {"hwprobe.inventory.cpu"},
    "pynvml": {"hwprobe.inventory.nvidia"},
    "cryptography": {
        *(f"bundler.format.{name}" for name in ("certificates", "keys", "pkcs8")),
        "bundler.omskey",
    },
    "zstandard": {"bundler.format.chunks", "server.api.request_body"},
    "jinja2": {f"server.prompt.{name}" for name in ("filters", "jinja", "meter", "sandbox")},
    "llguidance": {"server.runner.grammar"},
    "jsonschema": {"hwprobe.trying", "server.conformance.__main__"},
    "jsonschema_specifications": {"hwprobe.trying", "server.conformance.__main__"},
    "PIL": {"server.runner.webp"},
    "pkcs11": {"bundler.tokens"},
    "segno": {"bundler.rooting.printing"},
    "gguf": {"bundler.convert.writing"},
    "safetensors": {"bundler.convert.tensors"},
    "huggingface_hub": {"bundler.source.hub"},
    "prompt_toolkit": {"appliance.cli.terminal"},
    "waitress": {"server.arriving", "server.connection", "server.listener"},
}
"""Third-party package → the only modules that import it (docs/architecture.md)."""

ENGINE_CHILDREN = re.compile(
    r"hwprobe\.(dryrun|trying|remote\.child|remote\.devices)|bundler\.quantize_child"
    r"|server\.runner\.\w+"
)


def modules() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), ast.parse(path.read_text(), filename=str(path))


def imported(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_each_import_name_is_provided_by_satchel_alone(package: str) -> None:
    assert set(importlib.metadata.packages_distributions()[package]) == {"satchel"}


def test_the_deprecated_pynvml_distribution_is_not_installed() -> None:
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("pynvml")


def test_the_repository_root_is_not_importable_from_elsewhere(tmp_path: Path) -> None:
    names = ("tests", "systemd", "images", "bench")
    code = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
    result = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )

    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("library", sorted(OWNERS))
def test_a_third_party_package_has_one_owner(library: str) -> None:
    importers = {name for name, tree in modules() if library in imported(tree)}

    assert importers == OWNERS[library]


def test_the_engine_is_imported_only_where_a_child_process_runs() -> None:
    importers = {name for name, tree in modules() if "llama_cpp" in imported(tree)}

    assert importers
    assert [name for name in importers if not ENGINE_CHILDREN.fullmatch(name)] == []


def test_no_parent_process_loads_the_engine() -> None:
    """Importing everything a command starts with brings no native engine into the process."""
    code = (
        "import sys, server.__main__, appliance.cli, bundler.cli, hwprobe.cli;"
        "sys.exit('llama_cpp' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_children_are_started_with_a_safe_path() -> None:
    """Every use of our interpreter passes -P, so that a local folder never shadows a package."""
    careless = []
    for name, tree in modules():
        for node in ast.walk(tree):
            if not isinstance(node, ast.List | ast.Tuple) or not node.elts:
                continue
            first = node.elts[0]
            if isinstance(first, ast.Attribute) and first.attr == "executable":
                second = node.elts[1] if len(node.elts) > 1 else None
                if not (isinstance(second, ast.Constant) and second.value == "-P"):
                    careless.append((name, node.lineno))

    assert careless == []


def test_only_the_edges_print_or_exit() -> None:
    """Only ``cli``, ``__main__`` and the engine's child processes talk to a terminal."""
    offenders = []
    for name, tree in modules():
        if re.search(r"(^|\.)cli(\.|$)|__main__$", name) or ENGINE_CHILDREN.fullmatch(name):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in {"print", "sys.exit", "exit", "os._exit"}:
                    offenders.append(f"{name}:{node.lineno} {called}")

    assert offenders == []


def test_no_download_address_is_committed() -> None:
    pinned = (ROOT / "requirements").glob("*.txt")

    assert [
        path.name
        for path in pinned
        if re.search(
            r"https?://|--(extra-)?index-url|--find-links|--trusted-host", path.read_text()
        )
    ] == []
