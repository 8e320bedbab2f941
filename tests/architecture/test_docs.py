"""What the documents say to type exists, and what they point to is there."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
MODULES = {
    "satchel": "appliance.cli",
    "satchel-bundle": "bundler.cli",
    "satchel-probe": "hwprobe.cli",
    "satchel-server": "server",
}
FENCE = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def typed(text: str) -> Iterator[list[str]]:
    """Every command line of ours in fences and inline code, split into words."""
    lines: list[str] = []
    for block in FENCE.findall(text):
        lines += block.replace("\\\n", " ").splitlines()
    lines += INLINE.findall(FENCE.sub("", text))
    for line in lines:
        words = line.partition("  #")[0].removeprefix("$ ").strip()
        if words.partition(" ")[0] in MODULES and " " in words and "…" not in words:
            try:
                yield shlex.split(words.removesuffix("&"))
            except ValueError:
                yield words.split()


COMMANDS = sorted(
    {
        (document.name, " ".join(words))
        for document in DOCUMENTS
        for words in typed(document.read_text())
    }
)


@functools.cache
def help_of(program: str, *verbs: str) -> str:
    code = f"from {MODULES[program]} import main; main()"
    if program == "satchel-server":
        code = "from server.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *verbs, "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout if done.returncode == 0 else ""


def verbs_in(words: list[str]) -> list[str]:
    """The words that name a command: those before the first option or operand."""
    named: list[str] = []
    for word in words[1:]:
        if not re.fullmatch(r"[a-z][a-z-]*", word) or not help_of(words[0], *named, word):
            break
        if help_of(words[0], *named, word) == help_of(words[0], *named):
            break
        named.append(word)
    return named


def test_the_documents_show_commands() -> None:
    assert len(COMMANDS) > 20  # the extraction works


@pytest.mark.parametrize(("document", "line"), COMMANDS, ids=lambda text: text[:60])
def test_a_command_in_a_document_exists_with_its_options(document: str, line: str) -> None:
    del document
    words = line.split()
    verbs = verbs_in(words)
    if words[0] != "satchel-server":
        assert verbs or words[1].startswith("-"), f"{words[0]} has no command {words[1]}"
    shown = help_of(words[0], *verbs)
    options = [word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)]
    assert [option for option in options if option not in shown] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    targets = [target for target in LINK.findall(document.read_text()) if "//" not in target]

    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_every_document_is_reachable_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    missing = [
        path.name for path in (ROOT / "docs").glob("*.md") if f"docs/{path.name}" not in readme
    ]

    assert missing == []
