"""A running server notices a rollback: the next answer is by the version before."""

from __future__ import annotations

import json
from pathlib import Path

from appliance.rolling import roll_back
from bundler.format.digest import Digest
from bundler.format.name import ModelName
from tests.functional.live import LiveServer, put_model

TINY = ModelName.parse("tiny")


def answering(server: LiveServer) -> list[str]:
    """Digests of the models in memory after one more answer."""
    status, _ = server.post("/api/generate", model="tiny", prompt="hi", stream=False)
    assert status == 200
    _, data = server.ask("GET", "/api/ps")
    return [one["digest"] for one in json.loads(data)["models"]]


def test_the_next_answer_is_by_the_version_before(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as server:
        store = server.store
        first = Digest.of(store.manifest(TINY)).hex
        put_model(store, "newer", tmp_path)
        newer = store.manifest(ModelName.parse("newer"))
        with store.writing() as writer:
            writer.point(TINY, newer, keep=1)
        assert answering(server) == [Digest.of(newer).hex]
        roll_back(TINY, store)
        assert first in answering(server)
        assert store.resolve(TINY).digest.hex == first
