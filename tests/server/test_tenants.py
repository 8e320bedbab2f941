"""Whose request it is, from the key to the runner."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from server.access import Keys
from server.chat import RequestOptions
from server.errors import ModelNotFoundError
from tests.functional.live import LiveServer

KEYS = Keys(digests=tuple(hashlib.sha256(key).digest() for key in (b"one", b"two")))
HI = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/api/generate": {"prompt": "hi"},
    "/api/chat": {"messages": HI},
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "hi"},
    "/v1/messages": {"messages": HI, "max_tokens": 5},
}


class Recorder:
    """Knows no model, but remembers who asked."""

    def __init__(self) -> None:
        self.tenants: list[str] = []

    def chat(self, request: RequestOptions, _gone: object) -> Any:
        self.tenants.append(request.tenant)
        raise ModelNotFoundError("model not found")


def test_label_is_stable_and_tells_nothing_of_the_key() -> None:
    label = KEYS.tenant("Bearer one")

    assert label == KEYS.tenant("bearer  one ")
    assert label != KEYS.tenant("Bearer two")
    assert label is not None
    assert len(label) == 16
    assert label not in hashlib.sha256(b"one").hexdigest()


def test_stranger_has_no_label_and_everybody_without_keys_the_same() -> None:
    assert KEYS.tenant("Bearer three") is None
    assert KEYS.tenant(None) is None
    assert Keys().tenant("Bearer one") == Keys().tenant(None) == ""


def test_every_route_that_answers_tells_whose_request_it_is(tmp_path: Path) -> None:
    recorder = Recorder()
    with LiveServer(tmp_path, keys=KEYS) as live:
        answerer: Any = live.answerer
        answerer.chat = answerer.generate = recorder.chat
        for path, body in BODIES.items():
            for key in ("one", "two"):
                asked = {"model": "m", "stream": False, **body}
                headers = {"Authorization": f"Bearer {key}"}
                status, _answer = live.ask("POST", path, asked, headers)
                assert status == 404, path

    labels = [KEYS.tenant("Bearer one"), KEYS.tenant("Bearer two")]
    assert recorder.tenants == labels * len(BODIES)
