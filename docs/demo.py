"""The main job in front of you, with the demo model, in a folder you can look at afterwards.

    make demo

Every command is printed before it runs, so that you can repeat it by hand. A second run finds
what the first one left and ends in the same state.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = ROOT / ".venv" / "bin"
FOLDER = Path("build/demo")
MODEL = "tests/demo-model/demo-f16.gguf"
SETTINGS = "tests/demo-model/Modelfile"
QUESTION = "Why is the sky blue?"
KEEP_ALIVE_S = 4


def say(text: str) -> None:
    """A heading between the steps."""
    print(f"\n\033[1m# {text}\033[0m" if sys.stdout.isatty() else f"\n# {text}", flush=True)


def show(command: list[str]) -> None:
    """Print a command as a person would type it."""
    print(f"$ {shlex.join(command)}", flush=True)


def run(*command: str, environment: dict[str, str], check: bool = True) -> int:
    """Print one command, run it in the checkout, and stop the demo if it fails."""
    show(list(command))
    code = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, env=environment, check=False)
    if check and code.returncode:
        sys.exit(f"demo: error: {command[0]} ended with {code.returncode}")
    return code.returncode


def export(environment: dict[str, str], **values: str) -> None:
    """Set variables for the commands that follow, and say so."""
    for name, value in values.items():
        environment[name] = value
        print(f"$ export {name}={shlex.quote(value)}", flush=True)


def free_port() -> int:
    """A loopback port nobody listens on at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def pack(environment: dict[str, str]) -> None:
    """The connected side: a key, three quantizations, one signed bundle on the "stick"."""
    say("Connected side: a signing key, encrypted at rest")
    export(environment, SATCHEL_KEY_PASSPHRASE="correct horse battery staple")
    if (ROOT / FOLDER / "keys" / "demo.key").exists():
        print("(the key of an earlier run is kept)")
    else:
        run("satchel-bundle", "keygen", str(FOLDER / "keys" / "demo"), environment=environment)

    say("Connected side: quantize the model three ways and pack a signed bundle")
    print(f"$ mkdir -p {FOLDER / 'stick'}    # stands for a mounted stick", flush=True)
    (ROOT / FOLDER / "stick").mkdir(parents=True, exist_ok=True)
    run(
        *("satchel-bundle", "pack", MODEL, "--name", "demo"),
        *("--quantize", "Q8_0,Q5_K_M,Q4_K_M", "--modelfile", SETTINGS),
        *("--key", str(FOLDER / "keys" / "demo.key"), "--out", str(FOLDER / "stick")),
        environment=environment,
    )
    run("satchel-bundle", "contents", str(FOLDER / "stick"), environment=environment)


def receive(environment: dict[str, str]) -> None:
    """The target: trust the key once, check every byte, import what fits this machine."""
    say("Target: trust the packer's key, then check and import what the stick holds")
    export(environment, SATCHEL_STORE=str(ROOT / FOLDER / "store"))
    key = str(FOLDER / "keys" / "demo.pub")
    run("satchel", "trust", "add", key, "--yes", environment=environment)
    run("satchel", "verify", str(FOLDER / "stick"), environment=environment)
    run("satchel", "import", str(FOLDER / "stick"), environment=environment)
    run("satchel", "list", environment=environment)


def wait_until_ready(server: subprocess.Popen[bytes], address: str) -> None:
    """Poll the health check until the server answers or ends."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if server.poll() is not None:
            sys.exit(f"demo: error: the server ended with {server.returncode}")
        try:
            with urllib.request.urlopen(f"http://{address}/healthz", timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    sys.exit("demo: error: the server did not become ready in 30 s")


def serve(environment: dict[str, str]) -> None:
    """The target: start the server, ask, watch the model leave, stop."""
    say("Target: serve on a free loopback port")
    port = free_port()
    address = f"127.0.0.1:{port}"
    command = ["satchel-server", "--port", str(port)]
    print(f"$ {shlex.join(command)} &", flush=True)
    server = subprocess.Popen([BIN / command[0], *command[1:]], cwd=ROOT, env=environment)
    try:
        wait_until_ready(server, address)
        export(environment, SATCHEL_HOST=address)
        say("Ask; the answer streams as it is made")
        keep = f"{KEEP_ALIVE_S}s"
        run(
            *("satchel", "run", "demo", QUESTION, "--think=false", "--keepalive", keep),
            environment=environment,
        )
        say("What is loaded, how much memory it takes, and until when")
        run("satchel", "ps", environment=environment)
        run("satchel", "health", environment=environment)
        print(f"$ sleep {KEEP_ALIVE_S + 1}", flush=True)
        time.sleep(KEEP_ALIVE_S + 1)
        run("satchel", "ps", environment=environment)
        say("A clean stop")
        print(f"$ kill {server.pid}", flush=True)
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=20)
        if code:
            sys.exit(f"demo: error: the server ended with {code}")
        print("the server ended with 0")
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


def main() -> None:
    """Run the three acts."""
    begin = time.monotonic()
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
    for name in ("SATCHEL_HOST", "OLLAMA_HOST", "OLLAMA_MODELS", "SATCHEL_CONFIG"):
        environment.pop(name, None)
    print(f"$ export PATH=$PWD/.venv/bin:$PATH    # {ROOT}", flush=True)
    (ROOT / FOLDER).mkdir(parents=True, exist_ok=True)
    pack(environment)
    receive(environment)
    serve(environment)
    say(f"Done in {time.monotonic() - begin:.0f} s. Everything lies in {FOLDER}/.")


if __name__ == "__main__":
    main()
