"""The effective configuration, and where each value came from.

Precedence: default < file < environment < flag; within the environment ``SATCHEL_*`` goes before
``OLLAMA_*``. A wrong value under our own names is an error; under Ollama's it is a warning, as
it is there. Files are ``satchel.toml`` and then ``satchel.toml.d/*.toml`` in name order; a later
file overrides single keys of an earlier one.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from appliance.addresses import read_host
from appliance.errors import ConfigError
from appliance.settings import (
    MODEL_SETTINGS,
    SETTINGS,
    UNSUPPORTED_ENV,
    Setting,
)
from appliance.values import anchored, paths
from bundler.format.errors import FormatError
from bundler.format.name import ModelName
from hwprobe.remote.terms import WorkerAddress

DEFAULT_FILE = Path("/etc/satchel/satchel.toml")
_MAX_FILE_BYTES = 1 << 20
_SYSTEM_STORE: Path = next(row.default for row in SETTINGS if row.name == "store.path")
_COMPOSITE_ENV = ("SATCHEL_HOST", "OLLAMA_HOST")
"""Variables that hold host and port in one text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Table ``[store]``."""

    path: Path
    reserve_bytes: int
    grace_s: float
    staging_limit_bytes: int
    previous: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustConfig:
    """Table ``[trust]``."""

    site: str
    min_threshold: int
    expired: str
    revoked: Literal["warn", "refuse"]
    create: Literal["any", "signed", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Table ``[server]``; zeros, empty texts and ``None`` leave the choice to placement."""

    host: str
    port: int
    keep_alive_s: float
    num_parallel: int
    max_queue: int
    max_loaded_models: int
    context_length: int
    kv_cache_type: str
    load_timeout_s: float
    request_timeout_s: float
    engine_variant: str
    go_template: Literal["auto", "on", "off"]
    origins: tuple[str, ...]
    admin_socket: Path | None
    api_keys_file: Path | None
    log_requests: bool
    reported_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeConfig:
    """Table ``[exchange]``."""

    pull: bool
    sources: tuple[Path, ...]
    registry: str
    registry_ca: Path | None
    media: str
    export: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    """Table ``[limits]``."""

    max_body_bytes: int
    max_blob_bytes: int
    drain_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """Table ``[cache]``."""

    share_across_keys: bool
    ram_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Table ``[engine]``."""

    workers: tuple[WorkerAddress, ...]
    key: Path | None
    peers: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One table ``[model."name"]``; zeros, empty texts and ``None`` mean "as elsewhere"."""

    context_length: int = 0
    num_parallel: int = 0
    kv_cache_type: str = ""
    keep_alive_s: float | None = None
    num_gpu: int | None = None
    num_thread: int = 0
    output_format: str = ""
    draft: str = ""
    constrain_calls: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All tables, validated.

    Attributes:
        models: per-model tables by full lower-case name.
        sources: where each ``table.key`` came from: ``default``, a file, a variable, or ``flag``.
        warnings: lines the operator should see once: variables that were ignored, and why.
    """

    store: StoreConfig
    trust: TrustConfig
    server: ServerConfig
    exchange: ExchangeConfig
    limits: LimitsConfig
    cache: CacheConfig
    engine: EngineConfig
    models: Mapping[str, ModelConfig] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def model(self, name: ModelName) -> ModelConfig:
        """The table of one model, or one that asks for nothing."""
        return self.models.get(name.full().lower(), ModelConfig())

    @classmethod
    def load(
        cls,
        *,
        file: Path | None = None,
        environ: Mapping[str, str] | None = None,
        flags: Mapping[str, Any] | None = None,
    ) -> Config:
        """Read files, environment and flags.

        Args:
            file: the TOML file; ``None`` means the default place, which may be absent. A named
                file must exist.
            environ: the environment variables.
            flags: ``table.key`` to raw value, for flags the user gave.

        Raises:
            ConfigError: a key is unknown, or a value of the wrong type or out of range.
        """
        raw: dict[str, tuple[Any, str]] = {}
        models: dict[str, ModelConfig] = {}
        for path in _files(file):
            _take_file(path, raw, models)
        values, sources, warnings = _default_values(environ or {})
        for setting in SETTINGS:
            if setting.name in raw:
                value, source = raw[setting.name]
                values[setting.name] = _read(setting, value, source)
                sources[setting.name] = source
            _take_environment(setting, environ or {}, values, sources, warnings)
            flag = (flags or {}).get(setting.name)
            if flag is not None:
                values[setting.name] = _read(setting, flag, "flag")
                sources[setting.name] = "flag"
        warnings.extend(
            f"{name} is ignored: {UNSUPPORTED_ENV[name]}"
            for name in sorted(environ or {})
            if name in UNSUPPORTED_ENV
        )
        return cls(
            store=StoreConfig(**_table("store", values)),
            trust=TrustConfig(**_table("trust", values)),
            server=ServerConfig(**_table("server", values)),
            exchange=ExchangeConfig(**_table("exchange", values)),
            limits=LimitsConfig(**_table("limits", values)),
            cache=CacheConfig(**_table("cache", values)),
            engine=EngineConfig(**_table("engine", values)),
            models=MappingProxyType(models),
            sources=MappingProxyType(sources),
            warnings=tuple(warnings),
        )


def default_store(environ: Mapping[str, str], *, for_system: bool) -> Path:
    """Where the store is when nobody says.

    Args:
        environ: ``XDG_DATA_HOME`` and ``HOME`` are looked at.
        for_system: this user may write to ``/var/lib/satchel``.

    Returns:
        That directory, or one below the user's data directory.
    """
    data, home = environ.get("XDG_DATA_HOME", ""), environ.get("HOME", "")
    if not for_system and data.startswith("/"):
        return Path(data) / "satchel"
    if not for_system and home.startswith("/"):
        return Path(home) / ".local/share/satchel"
    return _SYSTEM_STORE


def _default_values(
    environ: Mapping[str, str],
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    values = {setting.name: setting.default for setting in SETTINGS}
    for_system = os.geteuid() == 0 or os.access(_SYSTEM_STORE, os.W_OK) or _owned(_SYSTEM_STORE)
    values["store.path"] = default_store(environ, for_system=for_system)
    return values, dict.fromkeys(values, "default"), []


def _owned(directory: Path) -> bool:
    """Whether it is this user's: a unit that only reads it sees a read-only file system."""
    try:
        return directory.stat().st_uid == os.geteuid()
    except OSError:
        return False


def _table(table: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of one table's dataclass."""
    return {row.field: values[row.name] for row in SETTINGS if row.table == table}


def _files(file: Path | None) -> tuple[Path, ...]:
    """The files to read, in order; the drop-in directory stands beside the main file."""
    main = file or DEFAULT_FILE
    if file is not None and not file.is_file():
        raise ConfigError(f"configuration file {file} does not exist")
    drop_ins = sorted(main.with_name(main.name + ".d").glob("*.toml"))
    return (*((main,) if main.is_file() else ()), *drop_ins)


def _take_file(path: Path, raw: dict[str, tuple[Any, str]], models: dict[str, ModelConfig]) -> None:
    known = {setting.name for setting in SETTINGS}
    tables = ("model", *dict.fromkeys(setting.table for setting in SETTINGS))
    for table, content in _parse(path).items():
        if table not in tables:
            raise _unknown(path, table, tables, kind="table")
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: {table}: expected a table, found {content!r}")
        if table == "model":
            for name, keys in content.items():
                _take_model(path, name, keys, models)
            continue
        for key, value in content.items():
            if f"{table}.{key}" not in known:
                raise _unknown(path, f"{table}.{key}", known, kind="key")
            raw[f"{table}.{key}"] = (value, str(path.absolute()))


def _parse(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise ConfigError(f"{path}: expected at most {_MAX_FILE_BYTES} bytes")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def _take_model(path: Path, name: str, keys: Any, models: dict[str, ModelConfig]) -> None:
    at = f'model."{name}"'
    try:
        full = ModelName.parse(name).full().lower()
    except FormatError as error:
        raise ConfigError(f"{path}: {at}: {error}") from error
    if not isinstance(keys, dict):
        raise ConfigError(f"{path}: {at}: expected a table, found {keys!r}")
    rows = {setting.key: setting for setting in MODEL_SETTINGS}
    earlier = models.get(full, ModelConfig())
    fields = {row.field: getattr(earlier, row.field) for row in MODEL_SETTINGS}
    for key, value in keys.items():
        if key not in rows and isinstance(value, dict):
            raise ConfigError(
                f"{path}: {at}.{key}: expected a setting, found a table",
                hint=f"a name with a dot stands in quotes: {_quoted(name, key, value)}",
            )
        if key not in rows:
            raise _unknown(path, f"{at}.{key}", [f"{at}.{row}" for row in rows], kind="key")
        fields[rows[key].field] = _read(rows[key], value, f"{path}: {at}")
    models[full] = ModelConfig(**fields)


def _quoted(name: str, key: str, value: Mapping[str, Any]) -> str:
    """The table that was meant by ``[model.llama3.1]``, which TOML reads as two levels."""
    parts, rows = [name, key], {setting.key for setting in MODEL_SETTINGS}
    while (deeper := next(iter(value.items()), None)) and isinstance(deeper[1], dict):
        if deeper[0] in rows:
            break
        parts.append(deeper[0])
        value = deeper[1]
    return f'[model."{".".join(parts)}"]'


def _take_environment(
    setting: Setting,
    environ: Mapping[str, str],
    values: dict[str, Any],
    sources: dict[str, str],
    warnings: list[str],
) -> None:
    """Take the first variable of the setting that is set and usable."""
    for name in setting.env:
        text = environ.get(name, "").strip().strip("\"'")
        if not text:
            continue
        try:
            value = _from_text(setting, name, text)
        except ConfigError as error:
            if not name.startswith("OLLAMA_"):
                raise
            warnings.append(f"{error}; ignored")
            continue
        if value is not None:
            values[setting.name], sources[setting.name] = value, name
            return


def _from_text(setting: Setting, name: str, text: str) -> Any:
    """The value one variable gives; `read_host` splits the two-in-one variables.

    Raises:
        ConfigError: the text cannot be read.
    """
    if name not in _COMPOSITE_ENV:
        return _read(setting, text, name)
    try:
        address = read_host(text)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error
    return _read(setting, address.host if setting.key == "host" else address.port, name)


def _read(setting: Setting, value: Any, source: str) -> Any:
    """The value, or an error that names the source.

    A relative path in a file is relative to the file; typed or in the environment it is relative
    to where the command runs.
    """
    if setting.is_path:
        below = Path(source).parent if source.startswith("/") else Path()
        several = setting.read is paths and isinstance(value, str)
        value = anchored(value.split(",") if several else value, below.absolute())
    try:
        return setting.read(value)
    except ValueError as error:
        raise ConfigError(f"{source}: {setting.name}: {error}") from error


def _unknown(path: Path, name: str, known: Iterable[str], *, kind: str) -> ConfigError:
    close = difflib.get_close_matches(name, list(known), n=1)
    return ConfigError(
        f"{path}: {name}: unknown {kind}",
        hint=f"did you mean {close[0]}?" if close else "see docs/configuration.md",
    )
