"""Whose request it is, from the key to the runner."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from server.access import Keys
from server.answer import Answerer
from server.api.operations import OPERATIONS
from server.embedder import Embedder
from server.errors import ModelNotFoundError
from tests.functional.live import LiveServer

KEYS = Keys(digests=tuple(hashlib.sha256(key).digest() for key in (b"one", b"two")))
HI = [{"role": "user", "content": "hi"}]
RANK = {"query": "hi", "documents": ["a", "b"]}
BODIES: dict[str, dict[str, Any]] = {
    "/api/generate": {"prompt": "hi"},
    "/api/chat": {"messages": HI},
    "/api/embed": {"input": "hi"},
    "/api/embeddings": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "hi"},
    "/infill": {"input_prefix": "a", "input_suffix": "b"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": HI, "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": HI},
    "/v1/embeddings": {"input": "hi"},
    "/v1/rerank": RANK,
    "/rerank": RANK,
    "/apply-template": {"messages": HI},
}
"""Every route that computes with what a client sends."""

LEXING = {"/tokenize", "/detokenize", "/api/tokenize", "/api/detokenize"}
"""They leave nothing in the cache and take no part in the batch."""

OTHERS = {
    *(f"/api/{verb}" for verb in ("show", "copy", "pull", "push", "create", "me")),
    *("/api/blobs/{digest}", "/api/signout"),
    *("/api/experimental/web_search", "/api/experimental/web_fetch"),
}
"""They compute nothing with a model."""


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


def test_every_route_is_looked_at() -> None:
    posts = {one.path for one in OPERATIONS if one.method == "POST"}

    assert posts == {*BODIES, *LEXING, *OTHERS}


def test_every_route_that_computes_tells_whose_request_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants: list[str] = []

    def ask(_owner: object, request: Any, _gone: object) -> Any:
        """Knows no model, but remembers who asked."""
        tenants.append(request.tenant)
        raise ModelNotFoundError("model not found")

    for name in ("chat", "generate", "render_chat", "count_chat"):
        monkeypatch.setattr(Answerer, name, ask)
    for name in ("embed", "rerank"):
        monkeypatch.setattr(Embedder, name, ask)
    with LiveServer(tmp_path, keys=KEYS) as live:
        for path, body in BODIES.items():
            for key in ("one", "two"):
                asked = {"model": "m", "stream": False, **body}
                headers = {"Authorization": f"Bearer {key}"}
                status, _answer = live.ask("POST", path, asked, headers)
                assert status == 404, path

    labels = [KEYS.tenant("Bearer one"), KEYS.tenant("Bearer two")]
    assert tenants == labels * len(BODIES)
