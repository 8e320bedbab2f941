"""Start a server and run the JavaScript clients' tests against it: ``make test-js``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.functional.live import TOOLS_TEMPLATE, LiveServer, put_model

HERE = Path(__file__).parent
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Lima"}}</tool_call>'


def main() -> int:
    """Serve a model that greets, and one that calls a tool; return node's exit code."""
    with tempfile.TemporaryDirectory() as folder, LiveServer(Path(folder)) as server:
        put_model(server.store, "caller", Path(folder), template=TOOLS_TEMPLATE)
        server.say(words=["Hello ", "world"])
        server.post("/api/generate", model="tiny", keep_alive=-1)
        server.say(words=[CALL])
        done = subprocess.run(
            ["node", "--test", "clients.test.mjs"],
            cwd=HERE,
            env={**os.environ, "SATCHEL_URL": f"http://127.0.0.1:{server.port}"},
            timeout=120,
            check=False,
        )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
