"""Every setting of the appliance: its table and key, default, environment names, and reader.

One row per setting; `appliance.config` is built from these rows, and ``docs/configuration.md`` is
compared with them. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from appliance import values
from appliance.addresses import DEFAULT_PORT, PORT_MAX

KV_TYPES = ("f16", "q8_0", "q4_0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting.

    Attributes:
        table: the TOML table it stands in.
        key: its TOML key.
        field: the attribute of the table's dataclass, which carries the unit in its name.
        default: the value when nobody says otherwise; already read.
        read: raw TOML value or environment text to value; raises `ValueError`.
        env: environment names, ours before Ollama's.
        meaning: one line for the documentation.
    """

    table: str
    key: str
    field: str
    default: Any
    read: Callable[[Any], Any]
    env: tuple[str, ...] = ()
    meaning: str

    @property
    def name(self) -> str:
        """``table.key``."""
        return f"{self.table}.{self.key}"

    @property
    def is_path(self) -> bool:
        """Whether the value is a path or several, which may be relative."""
        return self.read in {values.path, values.optional_path, values.paths}


OUTPUT_FORMATS = (
    "plain",
    "hermes",
    "qwen-coder",
    "seed-oss",
    "llama3",
    "functionary",
    "mistral",
    "gemma3",
    "gemma4",
    "functiongemma",
    "deepseek",
    "deepseek-dsml",
    "phi4",
    "granite3",
    "command-r7b",
    "command-r",
    "glm4",
    "harmony",
    "kimi-k2",
    "minimax-m1",
    "minimax-m2",
    "minicpm5",
    "lfm2",
    "apertus",
)
"""What the server can read; the same as in `server.output.families`, which may not be imported."""


def _row(table: str, key: str, default: Any, read: Callable[[Any], Any], **more: Any) -> Setting:
    return Setting(
        table=table,
        key=key,
        field=more.get("field", key),
        default=default,
        read=read,
        env=more.get("env", ()),
        meaning=more["meaning"],
    )


_MANY = 2**31 - 1
_OPTIONAL_KV = values.one_of("", *KV_TYPES)

SETTINGS: tuple[Setting, ...] = (
    _row(
        "store", "path", Path("/var/lib/satchel"), values.path,
        env=("SATCHEL_STORE", "OLLAMA_MODELS"),
        meaning="directory that holds blobs, manifests and the appliance's own records",
    ),
    _row(
        "store", "reserve", 2**30, values.size, field="reserve_bytes",
        env=("SATCHEL_STORE_RESERVE",),
        meaning="free space that imports and uploads must leave on the file system of the store",
    ),
    _row(
        "store", "grace", 86400.0, values.positive_seconds, field="grace_s", env=("SATCHEL_GRACE",),
        meaning="how long a blob that no model uses is kept after it was last sent or asked for",
    ),
    _row(
        "store", "staging_limit", 0, values.size, field="staging_limit_bytes",
        env=("SATCHEL_STAGING_LIMIT",),
        meaning="most that unfinished imports may take together; 0 for no limit but the reserve",
    ),
    _row(
        "store", "previous", 1, values.integer(low=0, high=64), env=("SATCHEL_STORE_PREVIOUS",),
        meaning="how many versions that an import replaced stay for `satchel rollback`",
    ),
    _row(
        "trust", "site", "", values.text, env=("SATCHEL_SITE",),
        meaning="this site's id; a bundle made for named sites is accepted only if it names it",
    ),
    _row(
        "trust", "min_threshold", 1, values.integer(low=1, high=64),
        meaning="fewest trusted keys that must have signed, whatever `satchel trust` says",
    ),
    _row(
        "trust", "expired", "warn", values.one_of("warn", "refuse"),
        meaning="what happens to a bundle past its `expires` date",
    ),
    _row(
        "trust", "revoked", "warn", values.one_of("warn", "refuse"),
        meaning="what happens to an installed model whose bundle or keys were revoked since: it "
        "is marked and answers, or requests for it are refused",
    ),
    _row(
        "trust", "create", "any", values.one_of("any", "signed", "off"),
        env=("SATCHEL_TRUST_CREATE",),
        meaning="models that may be made here: `any`, also from blobs that clients send; `signed`, "
        "only from models that came in a signed bundle; `off`, none",
    ),
    _row(
        "server", "host", "127.0.0.1", values.host, env=("SATCHEL_HOST", "OLLAMA_HOST"),
        meaning="address to listen on, and where the commands look for the server",
    ),
    _row(
        "server", "port", DEFAULT_PORT, values.integer(low=0, high=PORT_MAX),
        env=("SATCHEL_PORT", "SATCHEL_HOST", "OLLAMA_HOST"),
        meaning="TCP port; 0 takes a free one",
    ),
    _row(
        "server", "keep_alive", 300.0, values.seconds, field="keep_alive_s",
        env=("SATCHEL_KEEP_ALIVE", "OLLAMA_KEEP_ALIVE"),
        meaning="how long an idle model stays in memory; negative means for ever",
    ),
    _row(
        "server", "num_parallel", 0, values.integer(low=0, high=1024),
        env=("SATCHEL_NUM_PARALLEL", "OLLAMA_NUM_PARALLEL"),
        meaning="requests one model answers at the same time; 0 lets placement decide",
    ),
    _row(
        "server", "max_queue", 512, values.integer(low=0, high=_MANY),
        env=("SATCHEL_MAX_QUEUE", "OLLAMA_MAX_QUEUE"),
        meaning="requests that may wait; more are answered with 503",
    ),
    _row(
        "server", "max_loaded_models", 0, values.integer(low=0, high=1024),
        env=("SATCHEL_MAX_LOADED_MODELS", "OLLAMA_MAX_LOADED_MODELS"),
        meaning="models in memory at the same time; 0 lets memory decide",
    ),
    _row(
        "server", "context_length", 0, values.integer(low=0, high=_MANY),
        env=("SATCHEL_CONTEXT_LENGTH", "OLLAMA_CONTEXT_LENGTH"),
        meaning="context in tokens when a request names none; 0 lets placement decide",
    ),
    _row(
        "server", "kv_cache_type", "", _OPTIONAL_KV,
        env=("SATCHEL_KV_CACHE_TYPE", "OLLAMA_KV_CACHE_TYPE"),
        meaning="element type of the KV cache: `f16`, `q8_0`, `q4_0`; empty lets placement decide",
    ),
    _row(
        "server", "load_timeout", 300.0, values.positive_seconds, field="load_timeout_s",
        env=("SATCHEL_LOAD_TIMEOUT", "OLLAMA_LOAD_TIMEOUT"),
        meaning="longest time a model may take to load; 0 means no limit",
    ),
    _row(
        "server", "request_timeout", 0.0, values.positive_seconds, field="request_timeout_s",
        env=("SATCHEL_REQUEST_TIMEOUT",),
        meaning="longest time a request may take, queue and load included; 0 means no limit",
    ),
    _row(
        "server", "engine_variant", "auto",
        values.one_of("auto", "amx", "avx512", "avx2", "baseline"),
        env=("SATCHEL_ENGINE_VARIANT",),
        meaning="build of the engine's CPU backend; `auto` takes the fastest that passes its test",
    ),
    _row(
        "server", "go_template", "auto", values.switch,
        env=("SATCHEL_GO_TEMPLATE", "OLLAMA_GO_TEMPLATE"),
        meaning="TEMPLATE layers make prompts: `on` always, `off` only where a model's file has no "
        "template, `auto` unless that one can more",
    ),
    _row(
        "server", "origins", (), values.texts, env=("SATCHEL_ORIGINS", "OLLAMA_ORIGINS"),
        meaning="browser origins allowed besides those of this machine",
    ),
    _row(
        "server", "admin_socket", None, values.optional_path, env=("SATCHEL_ADMIN_SOCKET",),
        meaning="Unix socket for health and administration; empty means none",
    ),
    _row(
        "server", "api_keys_file", None, values.optional_path, env=("SATCHEL_API_KEYS_FILE",),
        meaning="file with API keys; without one the server listens on loopback only",
    ),
    _row(
        "server", "log_requests", False, values.boolean, env=("SATCHEL_LOG_REQUESTS",),
        meaning="one log line per request, without prompts or answers",
    ),
    _row(
        "server", "reported_version", "0.33.0", values.text, env=("SATCHEL_REPORTED_VERSION",),
        meaning="what `/api/version` answers; clients compare it with Ollama's releases",
    ),
    _row(
        "exchange", "pull", True, values.boolean, env=("SATCHEL_PULL",),
        meaning="clients may pull: have a model installed that lies in a trusted bundle in one of "
        "the sources",
    ),
    _row(
        "exchange", "sources", (Path("/media"), Path("/run/media"), Path("/mnt")), values.paths,
        env=("SATCHEL_SOURCES",),
        meaning="directories with bundles, and where media are mounted, for `pull`",
    ),
    _row(
        "exchange", "media", "install", values.one_of("install", "verify", "off"),
        env=("SATCHEL_MEDIA",),
        meaning="what `satchel media` does with a bundle on a medium that was plugged in: "
        "`install` what fits and is trusted, only `verify` it, or nothing",
    ),
    _row(
        "exchange", "registry", "", values.registry, env=("SATCHEL_REGISTRY",),
        meaning="registry of the site's own with bundles, such as `https://HOST[:PORT][/PREFIX]`, "
        "for `satchel pull`; the server never asks it",
    ),
    _row(
        "exchange", "registry_ca", None, values.optional_path, env=("SATCHEL_REGISTRY_CA",),
        meaning="certificates in PEM that alone may vouch for the registry; empty means those of "
        "this machine",
    ),
    _row(
        "exchange", "export", None, values.optional_path, env=("SATCHEL_EXPORT",),
        meaning="directory that `push` copies models to; empty means that nothing is pushed",
    ),
    _row(
        "limits", "max_body", 64 * 2**20, values.size, field="max_body_bytes",
        env=("SATCHEL_MAX_BODY",),
        meaning="largest request body; more is answered with 413",
    ),
    _row(
        "limits", "max_blob", 0, values.size, field="max_blob_bytes", env=("SATCHEL_MAX_BLOB",),
        meaning="largest blob a client may send; 0 means that only free space decides",
    ),
    _row(
        "limits", "drain", 30.0, values.positive_seconds, field="drain_s", env=("SATCHEL_DRAIN",),
        meaning="how long a stopping server lets running answers finish",
    ),
    _row(
        "cache", "share_across_keys", False, values.boolean, env=("SATCHEL_SHARE_ACROSS_KEYS",),
        meaning="requests of different API keys share what was computed of equal prompts; by the "
        "time an answer takes, one client can then tell what another has asked",
    ),
    _row(
        "cache", "ram", 0, values.size, field="ram_bytes", env=("SATCHEL_CACHE_RAM",),
        meaning="host memory per loaded model for computed prompts that had to leave its KV cache; "
        "taken only where the plan has it left over; 0 keeps none",
    ),
    _row(
        "cache", "disk", 0, values.size, field="disk_bytes", env=("SATCHEL_CACHE_DISK",),
        meaning="room in the store, for all models together, for computed prompts that outlive a "
        "model's process; they hold what clients asked; 0 keeps none, and removes those there are",
    ),
    _row(
        "engine", "workers", (), values.workers, env=("SATCHEL_WORKERS",),
        meaning="machines that lend memory for models too large for this one, as `HOST:PORT`; "
        "see docs/scaling.md",
    ),
    _row(
        "engine", "key", None, values.optional_path, env=("SATCHEL_ENGINE_KEY",),
        meaning="this machine's key for its workers, made with `satchel worker key`",
    ),
    _row(
        "engine", "peers", None, values.optional_path, env=("SATCHEL_ENGINE_PEERS",),
        meaning="certificates of the workers",
    ),
)  # fmt: skip
"""All settings outside ``[model."name"]``, in the order they are documented."""

MODEL_SETTINGS: tuple[Setting, ...] = (
    _row(
        "model", "context_length", 0, values.integer(low=0, high=_MANY),
        meaning="as `server.context_length`, for this model",
    ),
    _row(
        "model", "num_parallel", 0, values.integer(low=0, high=1024),
        meaning="as `server.num_parallel`, for this model",
    ),
    _row(
        "model", "kv_cache_type", "", _OPTIONAL_KV,
        meaning="as `server.kv_cache_type`, for this model",
    ),
    _row(
        "model", "keep_alive", None, values.seconds, field="keep_alive_s",
        meaning="as `server.keep_alive`, for this model; absent means the server's",
    ),
    _row(
        "model", "num_gpu", None, values.integer(low=0, high=_MANY),
        meaning="layers on GPUs, the output layer counted as one; absent lets placement decide",
    ),
    _row(
        "model", "num_thread", 0, values.integer(low=0, high=4096),
        meaning="CPU threads; 0 lets placement decide",
    ),
    _row(
        "model", "output_format", "", values.one_of("", *OUTPUT_FORMATS),
        meaning="how the model writes reasoning and tool calls, see docs/http-api.md; empty lets "
        "its template decide",
    ),
    _row(
        "model", "draft", "", values.text,
        meaning="an installed model of the same vocabulary that proposes tokens, or off; empty "
        "takes the draft model that the model brings, if any",
    ),
    _row(
        "model", "constrain_calls", True, values.boolean,
        meaning="a tool call that the model begins of itself is bound to the schema of its tool; "
        "`false` leaves it free",
    ),
)  # fmt: skip
"""The settings of each ``[model."name"]`` table."""

UNSUPPORTED_ENV: Mapping[str, str] = MappingProxyType(
    {
        "OLLAMA_DEBUG": "satchel-server has its own --log-level",
        "OLLAMA_DEBUG_LOG_REQUESTS": "prompts are never written to disk",
        "OLLAMA_FLASH_ATTENTION": "placement decides, per model and KV cache type",
        "OLLAMA_GPU_OVERHEAD": "placement measures free memory and keeps its own margin",
        "OLLAMA_LLM_LIBRARY": "there is one engine build per installation",
        "OLLAMA_NOPRUNE": "nothing is ever pruned at start",
        "OLLAMA_NO_CLOUD": "there is no cloud to turn off",
        "OLLAMA_REMOTES": "there are no remote models",
        "OLLAMA_SCHED_SPREAD": "placement decides",
    }
)
"""Ollama's variables that are known, unused here, and why."""
