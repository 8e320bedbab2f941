from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from bundler import errors as pack_errors
from bundler.format import errors, limits
from bundler.format.errors import BundleError, FieldError

TREE = re.compile(r"^[│├└─ ]*(\w+Error)\s+(\d+)\s", re.MULTILINE)
ROOT = Path(__file__).parents[2]


def drawn(docstring: str | None) -> dict[str, int]:
    return {name: int(code) for name, code in TREE.findall(docstring or "")}


def defined(module: object) -> dict[str, type[BundleError]]:
    return {
        name: kind
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and issubclass(kind, BundleError)
    }


@pytest.mark.parametrize("module", [errors, pack_errors])
def test_the_tree_in_the_docstring_is_the_tree_in_the_code(module: object) -> None:
    codes = {name: kind.exit_code for name, kind in defined(module).items()}
    assert drawn(module.__doc__) == codes


def test_every_error_of_the_format_is_reached_by_a_test() -> None:
    """A refusal nobody tests is one nobody noticed going missing."""
    texts = "".join(
        path.read_text()
        for folder in ("bundler", "vectors", "appliance")
        for path in (ROOT / "tests" / folder).rglob("*")
        if path.suffix in (".py", ".json") and path != Path(__file__)
    )
    roots = {"BundleError", "FormatError", "TrustError", "FieldError"}
    missing = {
        name
        for name in {**defined(errors), **defined(pack_errors)}
        if name not in roots and name not in texts
    }
    assert missing == set()


def test_what_a_medium_says_cannot_write_to_the_terminal() -> None:
    error = FieldError(at="a\x1b[2J", expected="b\nc", found="d\u202e")
    assert str(error) == "malformed document: a?[2J: expected b?c, found d?"
    assert BundleError("x", hint="a\nb").hint == "a?b"


def test_the_limits_in_the_document_are_those_in_the_code() -> None:
    text = (ROOT / "docs" / "bundle-format.md").read_text()
    section = text.partition("## 7. Limits")[2].partition("## 8.")[0]
    rows = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", section, re.MULTILINE))
    mebibytes = {
        "envelope": limits.MAX_ENVELOPE_BYTES,
        "payload": limits.MAX_PAYLOAD_BYTES,
        "blob, one": limits.MAX_BLOB_BYTES,
        "chunk": limits.MAX_CHUNK_BYTES,
        "index": limits.MAX_INDEX_BYTES,
        "Zstandard window": limits.MAX_ZSTD_WINDOW_BYTES,
    }
    assert {name: rows[name] for name in mebibytes} == {
        name: f"{size >> 20} MiB" for name, size in mebibytes.items()
    }
    counts = {
        "signatures": limits.MAX_SIGNATURES,
        "artifacts": limits.MAX_ARTIFACTS,
        "blobs": limits.MAX_BLOBS,
        "segments, of one artifact": limits.MAX_SEGMENTS,
    }
    assert {name: int(rows[name].replace(" ", "")) for name in counts} == counts
    assert rows["artifact, one"] == f"{limits.MAX_ARTIFACT_BYTES >> 40} TiB"
    assert rows["segment, one"] == "4 GiB - 2"
    assert limits.MAX_SEGMENT_BYTES == (4 << 30) - 2
    strings = limits.MAX_STRING_BYTES >> 10
    assert rows["JSON nesting / string"] == f"{limits.MAX_JSON_DEPTH} / {strings} KiB"
    models = f"{limits.MAX_MODELS:,} / {limits.MAX_VARIANTS}".replace(",", " ")
    assert rows["models / variants of one model"] == models
