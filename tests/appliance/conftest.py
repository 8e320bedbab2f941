from __future__ import annotations

from pathlib import Path

import pytest

from tests.appliance.sites import Desk, make_desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A site that trusts the forge's key, with an empty store and an empty medium."""
    return make_desk(tmp_path)
