"""Delete each verification in turn; a deletion that no test notices is a gap.

    .venv/bin/python -P tests/mutants.py [--only TEXT] [--names FILE] [--tests TEXT] [--list]

A verification is, in the modules of `TARGETS`: a ``raise``; a call whose result nobody uses and
whose name says that it checks; one side of an ``or`` before either of these; a bound of a field
reader (``at_least``, ``at_most``, ``pattern``, ``max_bytes``, ``size_bytes``).

A copy of the tree gets a switch around every one of them. One run of the tests records in which
tests each of them refuses something; then each is turned off alone, and those tests run until one
fails. Prints what survived, and ends with 1 if anything did that `tests/mutants-allowed.txt` does
not explain.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TREE = ("hwprobe", "bundler", "appliance", "server", "tests", "docs", "requirements")
FORMAT = (
    "carried", "chain", "chunks", "closure", "consent", "digest", "envelope", "index", "keys",
    "name", "paper", "root",
    "statement", "strict", "update", "volume",
)  # fmt: skip
APPLIANCE = (
    "admission", "approving", "copying", "gate", "importer", "intake", "local", "permits",
    "policyfile", "trust", "updating", "waiting",
)  # fmt: skip
TARGETS = (
    *(f"bundler/format/{name}.py" for name in FORMAT),
    *(f"appliance/{name}.py" for name in APPLIANCE),
)
TESTS = (
    "bundler/test_bounds.py", "bundler/test_chunks.py", "bundler/test_consent.py",
    "bundler/test_detached.py", "bundler/test_digest.py", "bundler/test_envelope.py",
    "bundler/test_index.py", "bundler/test_keys.py", "bundler/test_name.py",
    "bundler/test_paper.py", "bundler/test_root.py", "bundler/test_root_cli.py",
    "bundler/test_root_vectors.py", "bundler/test_statement.py", "bundler/test_storing.py",
    "bundler/test_strict.py", "bundler/test_vectors.py", "bundler/test_volume.py",
    "appliance/test_approvals.py", "appliance/test_delta.py", "appliance/test_errors.py",
    "appliance/test_import_refusals.py", "appliance/test_importer.py",
    "appliance/test_permits.py", "appliance/test_roots.py", "appliance/test_store.py",
    "appliance/test_trust.py", "appliance/test_trust_path.py", "appliance/test_updates.py",
    "security",
)  # fmt: skip
CHECKS = re.compile(r"_?(check|verify|refuse|require)\w*")
BOUNDS = {
    "at_least": "-(1 << 62)",
    "at_most": "1 << 62",
    "max_bytes": "1 << 62",
    "max_depth": "1 << 30",
    "max_string_bytes": "1 << 62",
    "max_payload_bytes": "1 << 62",
    "pattern": "'(?s:.*)'",
    "size_bytes": "None",
}
"""Keyword argument of a verifying call → what stands for no bound."""
READERS = frozenset({
    "integer", "text", "items", "objects", "_list", "_base64", "parse_json", "parse_envelope",
    "read_blob", "read_bounded", "open_segment", "open_regular",
})  # fmt: skip
ALLOWED = ROOT / "tests" / "mutants-allowed.txt"
SWITCH = '''"""Which verification is turned off, and which test it would have refused in."""

import os

_OFF = int(os.environ.get("SATCHEL_MUTANT", "0"))
seen = set()
test = ""


def turn(number):
    global _OFF
    _OFF = number


def off(number):
    seen.add((number, test))
    return number == _OFF


def bound(number):
    return number == _OFF


def side(number, operand):
    value = operand()
    if not value:
        return value
    return False if off(number) else value


def watch(numbers, call, *, dropped=False):
    if dropped and numbers[0] == _OFF:
        return None
    try:
        return call()
    except Exception:
        seen.update((number, test) for number in numbers)
        raise
'''
PLUGIN = '''"""Write down which verification refused something in which test."""
import json
import os

import satchel_switch


took = {}


def pytest_runtest_logstart(nodeid):
    satchel_switch.test = nodeid


def pytest_runtest_logreport(report):
    took[report.nodeid] = took.get(report.nodeid, 0) + report.duration


def pytest_sessionfinish():
    found = {}
    for number, test in sorted(satchel_switch.seen):
        if test:
            found.setdefault(number, []).append(test)
    for tests in found.values():
        tests.sort(key=took.get)  # the quick ones first
    with open(os.environ["SATCHEL_SEEN"], "w") as file:
        json.dump(found, file)
'''


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One verification that can be turned off.

    Attributes:
        number: from 1.
        path: module, relative to the tree.
        line: where it begins.
        function: the function around it.
        text: its first line, normalized.
    """

    number: int
    path: str
    line: int
    function: str
    text: str

    @property
    def name(self) -> str:
        """What stays the same when lines move."""
        return f"{self.path} {self.function}: {self.text}"


class _Switches(ast.NodeTransformer):
    """Puts a switch around every verification of one module."""

    def __init__(self, path: str, first: int) -> None:
        self.path = path
        self.found: list[Mutant] = []
        self._first = first
        self._functions: list[str] = []

    def _add(self, node: ast.AST, text: str) -> int:
        line: int = getattr(node, "lineno", 0)
        number = self._first + len(self.found)
        function = ".".join(self._functions) or "module"
        self.found.append(
            Mutant(number=number, path=self.path, line=line, function=function, text=text[:100])
        )
        return number

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self._functions.append(node.name)
        self.generic_visit(node)
        self._functions.pop()
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self._functions.append(node.name)
        self.generic_visit(node)
        self._functions.pop()
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        self.generic_visit(node)
        if node.exc is None:
            return node
        off = _switch(f"off({self._add(node, _text(node))})")
        return ast.If(test=ast.UnaryOp(op=ast.Not(), operand=off), body=[node], orelse=[])

    def visit_If(self, node: ast.If) -> ast.AST:
        if isinstance(node.test, ast.BoolOp) and isinstance(node.test.op, ast.Or):
            refuses = isinstance(node.body[0], ast.Raise) or _refuses(node.body[0])
            for place, operand in enumerate(node.test.values if refuses else ()):
                number = self._add(operand, f"if {_text(operand)}")
                node.test.values[place] = _switch(f"side({number}, lambda: 0)", operand)
        self.generic_visit(node)
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if not _refuses(node):
            self.generic_visit(node)
            return node
        number = self._add(node, _text(node))
        self.generic_visit(node)
        node.value = _switch(f"watch([{number}], lambda: 0, dropped=True)", node.value)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if _called(node) not in READERS:
            return node
        numbers = []
        for keyword in node.keywords:
            if keyword.arg in BOUNDS:
                text = f"{_called(node)} {_first_argument(node)}{keyword.arg}"
                numbers.append(self._add(node, text))
                keyword.value = ast.IfExp(
                    test=_switch(f"bound({numbers[-1]})"),
                    body=ast.parse(BOUNDS[keyword.arg], mode="eval").body,
                    orelse=keyword.value,
                )
        return _switch(f"watch({numbers}, lambda: 0)", node) if numbers else node


def _switch(call: str, body: ast.expr | None = None) -> ast.Call:
    """A call of the switch's module; ``body`` goes into its lambda."""
    made = ast.parse(f"__import__('satchel_switch').{call}", mode="eval").body
    assert isinstance(made, ast.Call)
    if body is not None:
        function = made.args[1]
        assert isinstance(function, ast.Lambda)
        function.body = body
    return made


def _text(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())


def _refuses(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and CHECKS.fullmatch(_called(node.value)) is not None
    )


def _called(node: ast.Call) -> str:
    match node.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _first_argument(node: ast.Call) -> str:
    return f"{ast.unparse(node.args[0])} " if node.args else ""


def mutants(root: Path) -> tuple[tuple[Mutant, ...], dict[str, str]]:
    """Every verification below a tree, and the modules with their switches."""
    found: list[Mutant] = []
    sources: dict[str, str] = {}
    for path in TARGETS:
        switches = _Switches(path, len(found) + 1)
        tree = switches.visit(ast.parse((root / path).read_text(), filename=path))
        sources[path] = ast.unparse(ast.fix_missing_locations(tree)) + "\n"
        found += switches.found
    return tuple(found), sources


def copied(folder: Path) -> tuple[Mutant, ...]:
    """A copy of the tree with switches, below a folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *TREE],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        source = ROOT / name
        if source.is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / name)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy2(ROOT / name, folder / name)
    found, sources = mutants(ROOT)
    for path, switched in sources.items():
        (folder / path).write_text(switched)
    (folder / "satchel_switch.py").write_text(SWITCH)
    (folder / "satchel_seen.py").write_text(PLUGIN)
    return found


def _tests(folder: Path, only: str) -> list[str]:
    names = [name for name in TESTS if only in name]
    return [f"tests/{name}" for name in names if (folder / "tests" / name).exists()]


def record(folder: Path, only: str) -> dict[int, list[str]]:
    """In which tests each verification refuses something, with none turned off."""
    seen = folder / "seen.json"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "satchel_seen", *_tests(folder, only)],
        cwd=folder, check=False, env=_environment(folder, seen), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"mutants: the tests fail with every verification in place:\n{done.stdout}")
    return {int(number): tests for number, tests in json.loads(seen.read_text()).items()}


def _environment(folder: Path, seen: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SATCHEL_SEEN": str(seen),
    }


def killed(number: int, tests: list[str], *, seconds: int) -> bool:
    """Whether a test fails while one verification is turned off; runs in a child of this process.

    A test that does not end is a test that fails.
    """
    child = os.fork()
    if child == 0:
        import pytest
        import satchel_switch  # type: ignore[import-not-found]

        signal.alarm(seconds)
        with Path(os.devnull).open("w") as null:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
        os.environ["SATCHEL_MUTANT"] = str(number)
        satchel_switch.turn(number)
        os._exit(int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests])))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


def allowed() -> dict[str, str]:
    """Verification → why deleting it changes nothing that a test could see."""
    lines = ALLOWED.read_text().splitlines() if ALLOWED.exists() else []
    pairs = [line.split("  # ", 1) for line in lines if line and not line.startswith("#")]
    return {name.strip(): why for name, why in pairs}


def survivors(
    folder: Path, chosen: tuple[Mutant, ...], tests: str, seconds: int
) -> Iterator[tuple[Mutant, str]]:
    """The deletions that nothing notices, each with why nothing did."""
    seen = record(folder, tests)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ.update(_environment(folder, folder / "unused.json"))
    import pytest  # noqa: F401 - so that children need not

    begun = time.monotonic()
    for place, one in enumerate(chosen, start=1):
        chosen_tests = seen.get(one.number, [])
        if not chosen_tests:
            yield one, "it refuses nothing in any test"
        elif not killed(one.number, chosen_tests, seconds=seconds):
            yield one, f"it refuses in {len(chosen_tests)} tests, and none of them fails"
        if place % 25 == 0:
            print(f"{place} of {len(chosen)}, {time.monotonic() - begun:.0f} s", file=sys.stderr)


def main() -> None:
    """Try every one, or those whose name holds a text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="verifications whose name holds this")
    parser.add_argument("--names", type=Path, help="only those named in this file, one a line")
    parser.add_argument("--tests", default="", help="only test files whose name holds this")
    parser.add_argument("--list", action="store_true", help="only list them")
    parser.add_argument("--seconds", type=int, default=300, help="longest run of one deletion")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="satchel-mutants-") as folder:
        found = copied(Path(folder))
        named = options.names.read_text().splitlines() if options.names else None
        chosen = tuple(
            one
            for one in found
            if options.only in one.name and (named is None or one.name in named)
        )
        if options.list:
            print("\n".join(f"{one.number:4} {one.path}:{one.line} {one.text}" for one in chosen))
            return
        reasons = allowed()
        explained = gaps = 0
        for one, how in survivors(Path(folder), chosen, options.tests, options.seconds):
            known = reasons.get(one.name)
            explained += known is not None
            gaps += known is None
            said = (
                f"explained  {one.name}  ({known})" if known else f"SURVIVED  {one.name}  ({how})"
            )
            print(said, flush=True)
        noticed = len(chosen) - explained - gaps
        print(
            f"{len(chosen)} deletions: {noticed} noticed, {explained} explained, {gaps} not noticed"
        )
    sys.exit(1 if gaps else 0)


if __name__ == "__main__":
    main()
