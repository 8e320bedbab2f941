"""Prompts that were computed before: found again in memory, and after a restart."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.functional.test_program import ask, put_demo, serving

pytestmark = pytest.mark.engine

FIRST = " ".join(f"first {number}" for number in range(100))
OTHER = " ".join(f"other {number}" for number in range(100))
KEYS = ("one key", "another key")


def complete(port: int, prompt: str, *, key: str = "") -> tuple[int, str]:
    """How many prompt tokens were not computed, and the answer."""
    body = {"model": "demo", "prompt": prompt, "max_tokens": 8, "temperature": 0}
    status, answer = ask(port, "POST", "/v1/completions", body, key=key)
    assert status == 200, answer
    found: dict[str, Any] = json.loads(answer)
    details = found["usage"].get("prompt_tokens_details") or {}
    return details.get("cached_tokens", 0), found["choices"][0]["text"]


def store(tmp_path: Path) -> dict[str, str]:
    root = tmp_path / "store"
    if not root.exists():
        put_demo(root)
    return {
        "SATCHEL_STORE": str(root),
        "SATCHEL_CONTEXT_LENGTH": "512",
        "SATCHEL_NUM_PARALLEL": "1",
        "SATCHEL_HOST": "127.0.0.1:0",
    }


def test_evicted_prompt_comes_back_from_memory(tmp_path: Path) -> None:
    texts, cached = [], []
    for ram in ("0", "64 MiB"):
        with serving(env={**store(tmp_path), "SATCHEL_CACHE_RAM": ram}) as (_child, port):
            told = [complete(port, prompt) for prompt in (FIRST, OTHER, FIRST)]
        cached.append([count for count, _text in told])
        texts.append([text for _count, text in told])

    assert max(cached[0]) < 10
    assert max(cached[1][:2]) < 10
    assert cached[1][2] > 300
    assert texts[0] == texts[1]


def test_prompt_is_warm_after_a_restart_for_its_key_only(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("".join(f"sha256:{hashlib.sha256(k.encode()).hexdigest()}\n" for k in KEYS))
    env = {
        **store(tmp_path),
        "SATCHEL_CACHE_DISK": "64 MiB",
        "SATCHEL_API_KEYS_FILE": str(file),
    }
    with serving(env=env) as (child, port):
        cold = complete(port, FIRST, key=KEYS[0])
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=60) == 0
    folder = tmp_path / "store" / "satchel" / "states"
    assert len(list(folder.glob("*.state"))) == 1
    with serving(env=env) as (child, port):
        stranger = complete(port, FIRST, key=KEYS[1])
        warm = complete(port, FIRST, key=KEYS[0])
        child.kill()
    with serving(env={**env, "SATCHEL_CACHE_DISK": "0"}) as (_child, port):
        off = complete(port, FIRST, key=KEYS[0])

    assert cold[0] == stranger[0] == off[0] == 0
    assert warm[0] > 100
    assert cold[1] == stranger[1] == warm[1] == off[1]
    assert not list(folder.glob("*.state"))


def test_prompt_is_warm_when_its_model_comes_back(tmp_path: Path) -> None:
    env = {**store(tmp_path), "SATCHEL_CACHE_DISK": "64 MiB"}
    with serving(env=env) as (_child, port):
        cold = complete(port, FIRST)
        ask(port, "POST", "/api/generate", {"model": "demo", "keep_alive": 0})
        while json.loads(ask(port, "GET", "/api/ps")[1])["models"]:
            time.sleep(0.05)
        warm = complete(port, FIRST)

    assert cold[0] == 0
    assert warm[0] > 100
    assert cold[1] == warm[1]
