"""Settings: where they come from, which goes before which, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.addresses import HostText, listen_is_public, read_host
from appliance.config import Config, ServerConfig, default_store
from appliance.errors import ConfigError
from appliance.settings import MODEL_SETTINGS, SETTINGS
from bundler.format.name import ModelName

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def written(folder: Path, text: str) -> Path:
    path = folder / "satchel.toml"
    path.write_text(text)
    return path


def test_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load(file=written(tmp_path, "[server]\nkeep_alife = 3\n"))
    assert "server.keep_alife: unknown key" in str(caught.value)
    assert caught.value.hint == "did you mean server.keep_alive?"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("[sever]\nport = 1\n", "sever: unknown table"),
        ("server = 3\n", "server: expected a table"),
        ("[server]\nport = 70000\n", "server.port"),
        ("[server]\nport = true\n", "server.port"),
        ("[server]\nport = 1.5\n", "server.port"),
        ("[server]\nhost = 3\n", "server.host"),
        ("[server]\nhost = 'a b'\n", "server.host"),
        ("[server]\nkeep_alive = 'soon'\n", "server.keep_alive"),
        ("[server]\nkv_cache_type = 'f64'\n", "server.kv_cache_type"),
        ("[server]\nlog_requests = 1\n", "server.log_requests"),
        ("[server]\ngo_template = 'sometimes'\n", "server.go_template"),
        ("[server]\norigins = [1]\n", "server.origins"),
        ("[store]\npath = '~/relative'\n", "store.path"),
        ("[store]\nreserve = 'plenty'\n", "store.reserve"),
        ("[store]\nreserve = -1\n", "store.reserve"),
        ("[trust]\nexpired = 'ignore'\n", "trust.expired"),
        ("[trust]\nmin_threshold = 0\n", "trust.min_threshold"),
        ("[model.demo]\nnum_ctx = 1\n", "unknown key"),
        ("[model]\ndemo = 1\n", "expected a table"),
        ('[model."../x"]\nnum_gpu = 1\n', "model name"),
        ("[model.demo]\nnum_gpu = -1\n", "num_gpu"),
        ("[server\n", "not valid TOML"),
        ("\x00", "not valid TOML"),
    ],
)
def test_wrong_setting_is_refused_with_its_place(tmp_path: Path, text: str, at: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load(file=written(tmp_path, text))
    assert at in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", "on"), ("true", "on"), ("0", "off"), ("False", "off"), ("auto", "auto"), ("", "auto")],
)
def test_use_of_template_layers_is_read_as_ollama_does(text: str, value: str) -> None:
    assert Config.load(environ={"OLLAMA_GO_TEMPLATE": text}).server.go_template == value


def test_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        Config.load(file=tmp_path / "nothing.toml")


def test_default_goes_before_file_environment_and_flag(tmp_path: Path) -> None:
    file = written(tmp_path, "[server]\nport = 1\nmax_queue = 2\nhost = 'a'\n")
    drop_in = tmp_path / "satchel.toml.d"
    drop_in.mkdir()
    (drop_in / "10.toml").write_text("[server]\nmax_queue = 3\n")
    (drop_in / "20.toml").write_text("[limits]\ndrain = '10s'\n")
    (drop_in / "ignored.txt").write_text("[")
    config = Config.load(
        file=file,
        environ={"SATCHEL_PORT": "5", "OLLAMA_MAX_QUEUE": "7", "SATCHEL_MAX_QUEUE": "6"},
        flags={"server.port": 9},
    )
    assert (config.server.port, config.sources["server.port"]) == (9, "flag")
    assert (config.server.max_queue, config.sources["server.max_queue"]) == (6, "SATCHEL_MAX_QUEUE")
    assert (config.server.host, config.sources["server.host"]) == ("a", str(file))
    assert config.limits.drain_s == 10
    assert config.sources["limits.drain"] == str(drop_in / "20.toml")
    assert config.sources["server.keep_alive"] == "default"


def test_wrong_value_under_our_name_is_refused_and_under_ollama_s_is_ignored() -> None:
    with pytest.raises(ConfigError, match="SATCHEL_MAX_QUEUE"):
        Config.load(environ={"SATCHEL_MAX_QUEUE": "many"})
    config = Config.load(environ={"OLLAMA_MAX_QUEUE": "many"})
    assert config.server.max_queue == 512
    assert "OLLAMA_MAX_QUEUE" in config.warnings[0]


def test_ollama_s_variables_without_a_use_here_are_named() -> None:
    (warning,) = Config.load(environ={"OLLAMA_DEBUG": "1"}).warnings
    assert warning.startswith("OLLAMA_DEBUG is ignored: ")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300), ("300", 300), ("-1", -1), ("0", 0), ("1h30m", 5400), (' "90s" ', 90)],
)
def test_keep_alive_takes_durations_and_bare_seconds(text: str, seconds: float) -> None:
    assert Config.load(environ={"OLLAMA_KEEP_ALIVE": text}).server.keep_alive_s == seconds


def test_model_tables_apply_to_one_model_whatever_its_case(tmp_path: Path) -> None:
    text = '[model."Demo"]\ncontext_length = 4096\nkeep_alive = -1\n[model."a/b:c"]\nnum_gpu = 0\n'
    config = Config.load(file=written(tmp_path, text))
    assert config.model(ModelName.parse("demo:latest")).context_length == 4096
    assert config.model(ModelName.parse("demo:latest")).keep_alive_s == -1
    assert config.model(ModelName.parse("a/b:c")).num_gpu == 0
    assert config.model(ModelName.parse("other")).num_gpu is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1", HostText("http", "127.0.0.1", 11434, "")),
        ("0.0.0.0:8080", HostText("http", "0.0.0.0", 8080, "")),
        ("http://box", HostText("http", "box", 80, "")),
        ("https://box/api/", HostText("https", "box", 443, "/api")),
        (":9", HostText("http", "127.0.0.1", 9, "")),
        ("[::1]:9", HostText("http", "::1", 9, "")),
        ("::1", HostText("http", "::1", 11434, "")),
        ('"box:1"', HostText("http", "box", 1, "")),
    ],
)
def test_host_texts(text: str, expected: HostText) -> None:
    assert read_host(text) == expected


@pytest.mark.parametrize("text", ["box:port", "box:70000", "ftp://box", "box:-1"])
def test_host_text_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        read_host(text)
    with pytest.raises(ConfigError):
        Config.load(environ={"SATCHEL_HOST": text})


def test_host_and_port_come_from_one_variable() -> None:
    config = Config.load(environ={"OLLAMA_HOST": "http://box:81"})
    assert (config.server.host, config.server.port) == ("box", 81)
    config = Config.load(environ={"SATCHEL_HOST": "other", "SATCHEL_PORT": "5"})
    assert (config.server.host, config.server.port) == ("other", 5)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_loopback_is_not_public(host: str) -> None:
    assert not listen_is_public(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "box", "", "localhost.example"])
def test_everything_else_is_public(host: str) -> None:
    assert listen_is_public(host)


def test_store_of_an_ordinary_user_is_below_their_data_directory() -> None:
    home = {"HOME": "/home/a"}
    system = Path("/var/lib/satchel")
    assert default_store(home, for_system=True) == system
    assert default_store(home, for_system=False) == Path("/home/a/.local/share/satchel")
    both = {**home, "XDG_DATA_HOME": "/d"}
    assert default_store(both, for_system=False) == Path("/d/satchel")
    assert default_store({}, for_system=False) == system


def test_every_field_of_a_table_is_a_setting() -> None:
    rows = {row.field for row in SETTINGS if row.table == "server"}
    assert rows == set(ServerConfig.__dataclass_fields__)


@given(st.text(max_size=60))
@settings(deadline=None)
def test_any_text_as_file_is_read_or_refused(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "satchel.toml"
        path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
        try:
            Config.load(file=path)
        except ConfigError as error:
            assert str(path) in str(error)  # noqa: PT017 - being read is right as well


def documented(heading: str) -> dict[str, tuple[str, str]]:
    """Key to default and variables, from the table below a heading."""
    section = DOCUMENT.read_text().split(f"## `{heading}`\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]*) \| ([^|]*) \|", section, re.MULTILINE)
    return {key: (default.strip(), env.strip()) for key, default, env in rows}


def test_paths_in_a_file_begin_where_the_file_is(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    file = folder / "satchel.toml"
    file.write_text(
        '[store]\npath = "models"\n[server]\napi_keys_file = "keys"\nadmin_socket = ""\n'
        '[exchange]\nsources = ["../media", "/mnt"]\n'
    )
    drop_in = folder / "satchel.toml.d" / "a.toml"
    drop_in.parent.mkdir()
    drop_in.write_text('[exchange]\nexport = "out"\n')
    config = Config.load(file=file)
    assert config.store.path == folder / "models"
    assert config.server.api_keys_file == folder / "keys"
    assert config.server.admin_socket is None
    assert config.exchange.sources == (folder / "../media", Path("/mnt"))
    assert config.exchange.export == drop_in.parent / "out"


def test_paths_of_the_environment_begin_where_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {
        "SATCHEL_API_KEYS_FILE": "keys",
        "SATCHEL_SOURCES": "media, /mnt",
        "SATCHEL_EXPORT": "a,b",
        "OLLAMA_MODELS": "./models",
    }
    config = Config.load(environ=environ)
    assert config.server.api_keys_file == tmp_path / "keys"
    assert config.exchange.sources == (tmp_path / "media", Path("/mnt"))
    assert config.exchange.export == tmp_path / "a,b"
    assert config.store.path == tmp_path / "models"


@pytest.mark.parametrize("text", ["~/keys", "~root/keys"])
def test_the_shells_home_is_no_path(tmp_path: Path, text: str) -> None:
    file = written(tmp_path, f'[server]\napi_keys_file = "{text}"\n')
    with pytest.raises(ConfigError, match="api_keys_file: expected a path, found '~"):
        Config.load(file=file)


@pytest.mark.parametrize("table", ["store", "trust", "server", "exchange", "limits", "cache"])
def test_every_setting_is_documented_with_its_default_and_variables(table: str) -> None:
    expected = {
        row.key: ", ".join(f"`{name}`" for name in row.env)
        for row in SETTINGS
        if row.table == table
    }
    found = documented(f"[{table}]")
    assert {key: env for key, (_, env) in found.items()} == expected
    for row in SETTINGS:
        if row.table == table and row.name != "store.path":
            shown = found[row.key][0].strip("`")
            assert row.read(_typed(shown)) == row.default, row.name


def _typed(shown: str) -> object:
    """A default as the document writes it, as TOML would read it."""
    import tomllib

    return tomllib.loads(f"v = {shown}")["v"]


def test_every_model_setting_is_documented() -> None:
    assert set(documented('[model."name"]')) == {row.key for row in MODEL_SETTINGS}
