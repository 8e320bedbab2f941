"""A whole server in this process: real store, real sockets, real runner processes without engine.

``LiveServer(tmp_path)`` gives a server on a free port whose models are tiny GGUF files; what their
runners say stands in a script, see `tests.fakes.fake_runner`.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from appliance.config import Config
from appliance.crashes import CrashFolder
from appliance.layout import Paths
from appliance.model import CONFIG_MEDIA, LAYER_MEDIA, encode_image
from appliance.store import Store
from appliance.uploads import UploadLimits
from bundler.format.digest import Descriptor, Digest
from bundler.format.name import ModelName
from hwprobe.machine import Cpu, Machine, Memory
from server.access import Keys
from server.answer import Answerer
from server.api.blobs import CreatePolicy
from server.api.guard import GuardPolicy
from server.app import create_admin_app, create_app
from server.catalogue import Catalogue
from server.coroner import Coroner
from server.desk import Desk
from server.jobs import Jobs
from server.listener import Listener, ListenerLimits, bind, bind_unix, threads_needed
from server.planner import Machines, Planner
from server.quarantine import BreakerPolicy
from server.runner import protocol
from server.runner.process import Runner
from server.scheduler import Scheduler, SchedulerLimits
from tests.fakes import fake_runner
from tests.fakes.gguf_writer import write_tiny_llama

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
THINKING_TEMPLATE = TEMPLATE + "{# <think></think> #}{% if enable_thinking %}T{% endif %}"
TOOLS_TEMPLATE = "{% for t in tools or [] %}<{{ t.function.name }}>{% endfor %}" + TEMPLATE
FIM = {
    "tokenizer.ggml.fim_pre_token_id": 5,
    "tokenizer.ggml.fim_suf_token_id": 6,
    "tokenizer.ggml.fim_mid_token_id": 7,
}
GIB = 1 << 30
MACHINE = Machine(
    cpu=Cpu(model="fake", online=2, allowed=2, allowed_cores=2, big_cores=2),
    memory=Memory(total_bytes=16 * GIB, available_bytes=16 * GIB),
)


def put_model(
    store: Store,
    name: str,
    folder: Path,
    *,
    template: str | None = TEMPLATE,
    header: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
    weights: bytes | None = None,
    adapter: bytes | None = None,
    projector: bytes | None = None,
) -> None:
    """Install a tiny model.

    Args:
        store: where.
        name: as a client would type it.
        folder: for the file before it is stored.
        template: its Jinja chat template.
        header: more header keys.
        texts: other layers by kind: ``system``, ``params``, ``template``, ``license`` and so on.
        adapter: a LoRA file, if any.
        projector: a file that shows it images, if any.
        weights: a whole GGUF file to install instead; ``template`` and ``header`` do not count.
    """
    keys = {"general.name": name, **(header or {})}
    if template is not None:
        keys["tokenizer.chat_template"] = template
    if weights is None:
        weights = write_tiny_llama(folder / "weights.gguf", **keys).read_bytes()
    parts = {"model": weights} | {kind: text.encode() for kind, text in (texts or {}).items()}
    if adapter is not None:
        parts["adapter"] = adapter
    if projector is not None:
        parts["projector"] = projector
    with store.writing() as writer:
        layers = [
            Descriptor(media_type=LAYER_MEDIA + kind, digest=writer.put(data), size_bytes=len(data))
            for kind, data in parts.items()
        ]
        config = b'{"model_format":"gguf","model_family":"llama"}'
        described = Descriptor(
            media_type=CONFIG_MEDIA, digest=Digest.of(config), size_bytes=len(config)
        )
        writer.put(config)
        writer.point(ModelName.parse(name), encode_image(config=described, layers=layers))


class LiveServer:
    """A running server; use it in a ``with`` block.

    Attributes:
        port: where it listens.
        scheduler: to look at what is in memory.
    """

    def __init__(
        self,
        tmp_path: Path,
        *,
        script: Mapping[str, Any] | None = None,
        keys: Keys | None = None,
        max_queue: int = 16,
        max_in_flight: int = 80,
        flags: Mapping[str, Any] | None = None,
        max_body_bytes: int = 1 << 20,
        admin: bool = False,
        drain_s: float = 5.0,
        create: Literal["any", "signed", "off"] = "any",
        upload: UploadLimits | None = None,
        pull: bool = True,
        sources: tuple[Path, ...] = (),
        export: Path | None = None,
        engine: bool = False,
        output_format: str = "",
        constrain_calls: Callable[[ModelName], bool] = lambda _name: True,
    ) -> None:
        """``engine`` runs the real engine instead of the script."""
        tmp_path.mkdir(parents=True, exist_ok=True)
        self._script = tmp_path / "script.json"
        self._engine = engine
        self.say(**(script or {"words": ["Hello ", "world"]}))
        self.store = Store(Paths(tmp_path / "store"))
        if not self.store.names():
            put_model(self.store, "tiny", tmp_path)
        config = Config.load(environ={}, flags={"store.path": str(tmp_path / "store")})
        server = replace(config.server, **(flags or {}))
        self.scheduler = Scheduler(
            budgets={"host": 8 * GIB},
            coroner=Coroner(
                folder=CrashFolder(self.store.paths.crashes), breaker=BreakerPolicy(first_s=0.3)
            ),
            start_runner=self._start_runner,
            limits=SchedulerLimits(max_queue=max_queue),
        )
        catalogue = Catalogue(
            self.store,
            go_templates=server.go_template,
            output_format=lambda _: output_format,
            constrain_calls=constrain_calls,
        )
        planner = Planner(config=replace(config, server=server), machines=Machines(lambda: MACHINE))
        self.answerer = Answerer(
            catalogue=catalogue,
            scheduler=self.scheduler,
            planner=planner,
            max_requests=max_in_flight + max_queue,
            request_timeout_s=server.request_timeout_s,
        )
        desk = Desk(
            catalogue=catalogue,
            scheduler=self.scheduler,
            planner=planner,
            admission=self.answerer.admission,
            request_timeout_s=server.request_timeout_s,
        )
        guard = GuardPolicy(loopback=True, hostname="edge-7", keys=keys or Keys())
        self.not_ready: list[str] = []
        self.app = create_app(
            answerer=self.answerer,
            desk=desk,
            catalogue=catalogue,
            store=self.store,
            loaded=self.scheduler.loaded,
            readiness=lambda: tuple(self.not_ready),
            guard=guard,
            version="0.33.0",
            max_body_bytes=max_body_bytes,
            creation=CreatePolicy(
                allowed=create,
                upload=upload or UploadLimits(max_bytes=0, reserve_bytes=0),
                pull=pull,
            ),
            jobs=Jobs.of(
                None,
                {
                    "store.path": str(self.store.paths.root),
                    "store.reserve": upload.reserve_bytes if upload else 0,
                    "trust.create": create,
                    "exchange.sources": [str(path) for path in sources],
                    "exchange.export": str(export) if export else "",
                },
            ),
        )
        self.admin_path = tmp_path / "admin.sock"
        sock = bind("127.0.0.1", 0)
        self.port = int(sock.getsockname()[1])
        self.listener = Listener(
            app=self.app,
            sockets=[sock],
            limits=ListenerLimits(
                max_body_bytes=max_body_bytes,
                threads=threads_needed(max_in_flight=max_in_flight, max_queue=max_queue),
                drain_s=drain_s,
            ),
            admin_app=create_admin_app(readiness=tuple, guard=replace(guard, loopback=False)),
            admin_sockets=(bind_unix(self.admin_path),) if admin else (),
            log_requests=True,
        )
        self._loop = threading.Thread(target=self.listener.run, daemon=True)

    def say(self, **script: Any) -> None:
        """What runners that start from now on do."""
        self._script.write_text(json.dumps(script))

    def _start_runner(self, load: protocol.Load) -> Runner:
        if self._engine:
            return Runner.spawn(load)
        return Runner.spawn(load, command=fake_runner.command(self._script))

    def __enter__(self) -> Self:
        self._loop.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End it in order: drain, runners, sockets."""
        self.listener.stop()
        self._loop.join()
        self.scheduler.close(0.0)
        self.listener.close()

    def connect(self) -> http.client.HTTPConnection:
        """A connection of its own; close it."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """One request; status and body."""
        connection = self.connect()
        try:
            data = body if isinstance(body, bytes) else None if body is None else json.dumps(body)
            connection.request(method, path, data, dict(headers or {}))
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def post(self, path: str, **body: Any) -> tuple[int, Any]:
        """One JSON request; status and decoded body."""
        status, data = self.ask("POST", path, body)
        return status, json.loads(data)

    def lines(self, path: str, **body: Any) -> list[Any]:
        """A streamed answer, decoded line by line."""
        status, data = self.ask("POST", path, body)
        assert status == 200, data
        return [json.loads(line) for line in data.splitlines()]

    def raw(self, data: bytes) -> socket.socket:
        """A socket to which this has been sent."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        sock.sendall(data)
        return sock
