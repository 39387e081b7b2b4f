"""The environment goes before config.json, and config.json before the default. A bad value is told in one clear line."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pwd
import re
from functools import partial
from pathlib import Path

import pytest

from runed.errors import ForeignPathError, RunedWarning, SettingsError, quoted
from runed.setting_values import boolean, flag, port
from runed.settings import (
    SETTINGS,
    Setting,
    Settings,
    _text,
    daemon_environment,
    engine_environment,
    full_path,
    load_settings,
)
from tests.bad_files import BAD_FILES, put_bad_file


def write_config(home: Path, **values: object) -> None:
    (home / "config.json").write_text(json.dumps({"version": 1} | values))


def test_defaults(home: Path) -> None:
    settings = load_settings(environ={"RUNED_HOME": str(home)})
    assert settings.home == home
    assert settings.ctx_size == 2048
    assert settings.idle_timeout == 600
    assert settings.manifest is None
    assert settings.model_variant is None
    assert not settings.keep_source


def test_home_defaults_to_a_directory_of_the_user() -> None:
    assert load_settings(environ={"HOME": os.environ["HOME"]}).home == Path.home() / ".runed"


def test_environment_beats_config_beats_default(home: Path) -> None:
    write_config(home, model="/from/config.gguf", model_variant="from-config", idle_timeout="1h30m", keep_source=True)
    settings = load_settings(home=home, environ={"RUNED_MODEL_VARIANT": "from-environment"})
    assert settings.model == Path("/from/config.gguf")
    assert settings.model_variant == "from-environment"
    assert settings.idle_timeout == 5400
    assert settings.keep_source
    assert not load_settings(home=home, environ={"RUNED_KEEP_SOURCE": "no"}).keep_source


def test_a_variable_set_to_nothing_counts_as_unset(home: Path) -> None:
    assert load_settings(home=home, environ={"RUNED_CTX_SIZE": "", "RUNED_MODEL": ""}).ctx_size == 2048


def test_a_key_that_is_there_twice_is_told_at_any_depth(home: Path) -> None:
    (home / "config.json").write_text('{"models": {"a": {"path": "/x"}, "a": {"path": "/y"}}, "log": "json"}')
    with pytest.warns(RunedWarning, match="config.json: 'a' is there twice, and the last one counts"):
        assert load_settings(home=home, environ={}).models["a"].path == Path("/y")


@pytest.mark.parametrize("table", ["models", "aliases"])
@pytest.mark.parametrize("name", ["", "a\nb", "a/b", "..", "../x", ".a", "a\0", "\x1b[2J", "\u202e", "x" * 200, "x" * 100_000])
def test_a_name_that_can_be_none_is_refused_with_the_place_and_what_is_accepted(table: str, name: str, home: Path) -> None:
    write_config(home, **{table: {name: {"keep_alive": "5m"} if table == "models" else "bge-m3"}})
    with pytest.raises(SettingsError, match=f"^{table} in .*: .* cannot be the name of a model; accepted are") as caught:
        load_settings(home=home, environ={})
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 600


def test_an_alias_in_an_entry_that_can_be_no_name_is_refused_with_its_place(home: Path) -> None:
    write_config(home, models={"mine": {"path": "/m.gguf", "aliases": ["a\nb"]}})
    with pytest.raises(SettingsError, match=r"^aliases of models\.mine in .*: 'a\\nb' cannot be the name of a model"):
        load_settings(home=home, environ={})


@pytest.mark.parametrize(("table", "value"), [("models", {"keep_alive": "5m"}), ("aliases", ""), ("aliases", "bge-m3")])
def test_names_that_differ_by_case_alone_are_refused(table: str, value: object, home: Path) -> None:
    write_config(home, **{table: {"Mine": value, "mine": value}})
    with pytest.raises(SettingsError, match="Mine and mine differ by upper and lower case alone; rename one of them"):
        load_settings(home=home, environ={})


def test_unknown_keys_are_ignored_and_misspelt_ones_with_a_warning(home: Path) -> None:
    write_config(home, of_a_newer_version={"x": 1})
    assert load_settings(home=home, environ={}).ctx_size == 2048
    write_config(home, idel_timeout="5m")
    with pytest.warns(
        RunedWarning, match=r"there is no setting 'idel_timeout', so it is ignored; did you mean idle_timeout\?$"
    ):
        assert load_settings(home=home, environ={}).idle_timeout == 600


def test_comments_in_the_configuration_are_no_mistakes(home: Path) -> None:
    write_config(home, **{"$schema": "x", "_comment": "y", "//": "z"})
    assert load_settings(home=home, environ={}).ctx_size == 2048


@pytest.mark.parametrize(
    ("value", "seconds"), [("0", 0), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5s", 1.5), ("250ms", 0.25), ("1us", 1e-6)]
)
def test_go_durations(value: str, seconds: float, home: Path) -> None:
    assert load_settings(home=home, environ={"RUNED_IDLE_TIMEOUT": value}).idle_timeout == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("value", "size"),
    [("0", 0), ("1000", 1000), ("64MiB", 64 << 20), ("64M", 64 << 20), ("2 kb", 2048), ("1GiB", 1 << 30), ("3T", 3 << 40)],
)
def test_sizes(value: str, size: int, home: Path) -> None:
    assert load_settings(home=home, environ={"RUNED_CACHE_SIZE": value}).cache_bytes == size


def test_settings_of_the_engine_come_from_the_file_too(home: Path) -> None:
    write_config(home, profile="memory", queue_texts=100, queue_bytes="2MiB", cache="disk", cache_size=5000, disk_cache_size=0)
    settings = load_settings(home=home, environ={"RUNED_PROFILE": "Throughput"})
    assert settings.profile == "throughput"
    assert (settings.queue_texts, settings.queue_bytes) == (100, 2 << 20)
    assert (settings.disk_cache, settings.cache_bytes, settings.disk_cache_bytes) == (True, 5000, 0)


@pytest.mark.parametrize(
    ("value", "address"),
    [("127.0.0.1:8321", ("127.0.0.1", 8321)), ("[::1]:65535", ("::1", 65535)), ("127.0.0.1:0", ("127.0.0.1", 0)), ("", None)],
)
def test_loopback_addresses(value: str, address: tuple[str, int] | None, home: Path) -> None:
    assert load_settings(home=home, environ={"RUNED_HTTP": value}).http == address
    write_config(home, http=value)
    assert load_settings(home=home, environ={}).http == address


@pytest.mark.parametrize(
    ("value", "address"),
    [("0.0.0.0:8321", ("0.0.0.0", 8321)), ("[::]:8321", ("::", 8321)), ("10.1.2.3:80", ("10.1.2.3", 80))],
)
def test_address_for_other_machines_needs_a_second_setting_and_the_token(
    value: str, address: tuple[str, int], home: Path
) -> None:
    asked = {"RUNED_HTTP": value}
    with pytest.raises(SettingsError, match=r"^RUNED_HTTP='.*': accepted is 127\.0\.0\.1.*set RUNED_HTTP_EXPOSE=yes") as caught:
        load_settings(home=home, environ=asked)
    assert f"'{value}'" in caught.value.message
    exposed = asked | {"RUNED_HTTP_EXPOSE": "yes"}
    assert load_settings(home=home, environ=exposed).http == address
    with pytest.raises(SettingsError, match=r"with RUNED_HTTP_TOKEN=off, accepted is 127\.0\.0\.1.*unset RUNED_HTTP_TOKEN"):
        load_settings(home=home, environ=exposed | {"RUNED_HTTP_TOKEN": "off"})
    assert load_settings(home=home, environ={"RUNED_HTTP": "127.0.0.1:1", "RUNED_HTTP_TOKEN": "off"}).http == ("127.0.0.1", 1)
    write_config(home, http=value, http_expose=True)
    assert load_settings(home=home, environ={}).http == address


@pytest.mark.parametrize(
    ("variable", "value", "accepted"),
    [
        ("RUNED_HTTP", "1.2.3:80", "127.0.0.1:PORT or [::1]:PORT"),
        ("RUNED_HTTP", "[::g]:80", "127.0.0.1:PORT or [::1]:PORT"),
        ("RUNED_IDLE_TIMEOUT", "10", '"10m"'),
        ("RUNED_IDLE_TIMEOUT", "soon", '"10m"'),
        ("RUNED_IDLE_TIMEOUT", "-5m", '"10m"'),
        ("RUNED_IDLE_TIMEOUT", "9" * 400 + "h", '"10m"'),
        ("RUNED_IDLE_TIMEOUT", "1ns", '"10m"'),
        ("RUNED_IDLE_TIMEOUT", "2600000h", "at most 290 years"),
        ("RUNED_CTX_SIZE", "many", "64 to 131072"),
        ("RUNED_CTX_SIZE", "00013107200", "64 to 131072"),
        ("RUNED_CTX_SIZE", "63", "64 to 131072"),
        ("RUNED_CTX_SIZE", "131073", "64 to 131072"),
        ("RUNED_CTX_SIZE", "9" * 5000, "64 to 131072"),
        ("RUNED_CTX_SIZE", "-1", "64 to 131072"),
        ("RUNED_CTX_SIZE", "٣٠٠", "64 to 131072"),
        ("RUNED_KEEP_SOURCE", "maybe", "yes"),
        ("RUNED_PROFILE", "fast", "memory, balanced, throughput"),
        ("RUNED_CACHE", "tape", "memory, disk"),
        ("RUNED_QUEUE_TEXTS", "63", "64 to 1000000"),
        ("RUNED_QUEUE_TEXTS", "1e6", "64 to 1000000"),
        ("RUNED_QUEUE_BYTES", "1000", "at least 1048576"),
        ("RUNED_CACHE_SIZE", "a lot", "64MiB"),
        ("RUNED_CACHE_SIZE", "-1", "64MiB"),
        ("RUNED_CACHE_SIZE", "1.5GiB", "64MiB"),
        ("RUNED_MEMORY", "1048577TiB", "at most 1 EiB"),
        ("RUNED_QUEUE_BYTES", "9" * 15 + "TiB", "at most 1 EiB"),
        ("RUNED_CACHE_SIZE", "٣MiB", "64MiB"),
        ("RUNED_DISK_CACHE_SIZE", "5 parsecs", "1GiB"),
        ("RUNED_DISK_CACHE_SIZE", "15MiB", "at least 16777216, or 0 for none"),
        ("RUNED_HTTP", "0.0.0.0:8321", "127.0.0.1:PORT or [::1]:PORT"),
        ("RUNED_HTTP", "[::]:8321", "127.0.0.1:PORT or [::1]:PORT"),
        ("RUNED_HTTP", "::1:8321", "127.0.0.1:PORT or [::1]:PORT"),
        ("RUNED_HTTP", "localhost:8321", "127.0.0.1:PORT or [::1]:PORT"),
        ("RUNED_HTTP", "8321", "127.0.0.1:PORT or [::1]:PORT"),
        ("RUNED_HTTP", "127.0.0.1", "127.0.0.1:PORT or [::1]:PORT"),
        ("RUNED_HTTP", "127.0.0.1:65536", "127.0.0.1:PORT or [::1]:PORT"),
        ("RUNED_HTTP", "127.0.0.1:8321\n", "127.0.0.1:PORT or [::1]:PORT"),
        ("RUNED_HTTP", "127.0.0.1:٣٣", "127.0.0.1:PORT or [::1]:PORT"),
    ],
)
def test_bad_value_is_one_line_with_name_value_and_what_is_accepted(
    variable: str, value: str, accepted: str, home: Path
) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(home=home, environ={variable: value})
    message = str(caught.value)
    assert message.startswith(f"{variable}={quoted(value)}")
    assert len(message) < 500
    assert accepted in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not json", "config.json: line 1, column 1: Expecting value; accepted is a JSON object"),
        (b'{\n  "profile": "memory"\n  "model": "m"\n}', "line 3, column 3: Expecting ',' delimiter"),
        (b'\xef\xbb\xbf{\n  "version": 1', "line 2, column 15: Expecting ',' delimiter"),
        (b"", "config.json: it is empty; write {} into it, or remove it"),
        (b" \n", "it is empty; write {} into it, or remove it"),
        (b'{"log": "json", // as always\n}', "JSON has no comments; remove this one"),
        (b'# as always\n{"log": "json"}', "line 1, column 1: JSON has no comments; remove this one"),
        (b'{"log": "json"}\n/* as always */', "line 2, column 1: JSON has no comments; remove this one"),
        (b'{"version": 2}', "version is 2; accepted is 1"),
        (b'{"version": 1, "model": 7}', "$.model"),
        (b"[]", "object"),
        (b'{"version": 1, "idle_timeout": "soon"}', "idle_timeout = 'soon' in /"),
        (b'{"version": 1, \n "model": "\xff"}', "line 2 is not UTF-8"),
        (b'{"version": 1, "more": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "config.json"),
        (b'{"version": 1, "model": "a\\u0000b"}', r"/a\x00b' in /"),
        (b'{"version": 1, "model": "https://me:pass-word@h/m.gguf"}', "model = 'https://h/m.gguf' in /"),
        (b'{"version": 1, "unknown": ' + b"[" * 10_000, "config.json"),
    ],
)
def test_broken_config_is_told_with_its_place(content: bytes, words: str, home: Path) -> None:
    (home / "config.json").write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load_settings(home=home, environ={})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [kind for kind in BAD_FILES if kind not in {"a link to nothing", "no UTF-8"}])
def test_anything_in_the_place_of_the_config_is_told_at_once(kind: str, home: Path) -> None:
    put_bad_file(kind, home / "config.json")
    with pytest.raises((SettingsError, ForeignPathError), match=r"config\.json"):
        load_settings(home=home, environ={})


def test_config_may_begin_with_a_byte_order_mark(home: Path) -> None:
    (home / "config.json").write_bytes(b'\xef\xbb\xbf{"profile": "memory"}')
    assert load_settings(home=home, environ={}).profile == "memory"


FILES = [
    ("{folder}/m 1.gguf", "{folder}/m 1.gguf"),
    ("m.gguf", "{cwd}/m.gguf"),
    ("file://{folder}/m%201%23.gguf", "{folder}/m 1#.gguf"),
    ("file:{folder}/m.gguf", "{folder}/m.gguf"),
    ("FILE://LocalHost{folder}/m.gguf", "{folder}/m.gguf"),
    ("file:///m/%ff", "/m/\udcff"),
]


@pytest.mark.parametrize(("value", "expected"), FILES)
@pytest.mark.parametrize("name", ["model", "llama_server", "manifest"])
def test_a_file_is_named_by_its_path_or_a_file_url(name: str, value: str, expected: str, home: Path) -> None:
    value, wanted = value.format(folder=home), expected.format(folder=home, cwd=Path.cwd())
    variable = SETTINGS[name].variable
    assert str(getattr(load_settings(home=home, environ={variable: value}), name)) == wanted
    assert daemon_environment({variable: value})[variable] == wanted
    if SETTINGS[name].type:
        wanted = expected.format(folder=home, cwd=home)  # the daemon has another working directory than its clients
        (home / "config.json").write_text(json.dumps({name: value}))
        assert str(getattr(load_settings(home=home, environ={}), name)) == wanted


@pytest.mark.parametrize(
    "value", ["https://me:pass-word@h/m.gguf?sig=s-ecret", "http://h/m", "hf://a/b", "S3://a/b", "ftp://h/m"]
)
@pytest.mark.parametrize("name", ["model", "llama_server"])
def test_a_url_in_the_place_of_a_file_is_answered_with_what_to_do(name: str, value: str, home: Path) -> None:
    (home / "config.json").write_text(json.dumps({name: value}))
    for environ, origin in (({SETTINGS[name].variable: value}, f"{SETTINGS[name].variable}='"), ({}, f"{name} = '")):
        with pytest.raises(SettingsError, match="download the file and name its path here, or name a manifest") as caught:
            load_settings(home=home, environ=environ)
        assert str(caught.value).startswith(origin)
        assert not re.search("pass-word|s-ecret", str(caught.value))


@pytest.mark.parametrize("value", ["file://other/m", "file:m", "file:", "file://", "file:///m%00"])
@pytest.mark.parametrize("name", ["model", "llama_server", "manifest"])
def test_a_file_url_that_names_no_file_of_this_machine_is_told(name: str, value: str, home: Path) -> None:
    with pytest.raises(SettingsError, match=r"such a URL is written file:///full/path|has a NUL"):
        load_settings(home=home, environ={SETTINGS[name].variable: value})


def test_named_config_must_exist(home: Path) -> None:
    with pytest.raises(SettingsError, match="RUNED_CONFIG"):
        load_settings(home=home, environ={"RUNED_CONFIG": str(home / "none.json")})


@pytest.mark.parametrize("way", ["named", "behind a link of the home"])
def test_trusted_parents_of_a_configuration_elsewhere(home: Path, way: str) -> None:
    wide = home / "wide"  # as a volume of Kubernetes
    wide.mkdir()
    wide.chmod(0o777)
    (wide / "config.json").write_text('{"queue_texts": 4711}')
    environment = {"RUNED_HOME": str(home)}
    if way == "named":
        environment["RUNED_CONFIG"] = str(wide / "config.json")
    else:
        (home / "config.json").symlink_to("wide/config.json")
    with pytest.raises(ForeignPathError, match="RUNED_TRUST_PARENTS"):
        load_settings(environ=environment)
    assert load_settings(environ=environment | {"RUNED_TRUST_PARENTS": "1"}).queue_texts == 4711


def test_environment_of_a_daemon_holds_only_what_it_reads() -> None:
    env = {
        "PATH": "/bin",
        "RUNED_CTX_SIZE": "99",
        "HTTPS_PROXY": "p",
        "SECRET_TOKEN": "s",
        "LLAMA_ARG_CTX": "1",
        "PYTHONPATH": "x",
    }
    assert daemon_environment(env) == {"PATH": "/bin", "RUNED_CTX_SIZE": "99", "HTTPS_PROXY": "p"}


def test_user_without_a_home_directory_is_told_to_name_one() -> None:
    with pytest.raises(SettingsError, match="no home directory is known for ~; set HOME, or RUNED_HOME to a full path"):
        load_settings(environ={"RUNED_HOME": "~no-such-user/runed"})


def test_relative_paths_of_the_file_begin_at_its_folder_for_clients_and_daemon(home: Path, tmp_path: Path) -> None:
    write_config(home, model="m.gguf", llama_server="sub/../s", manifest="m.json", models={"a": {"path": "sub/a.gguf"}})
    for folder in (Path("/"), tmp_path):
        with contextlib.chdir(folder):
            found = load_settings(home=home, environ={})
        assert (found.model, found.llama_server, found.manifest) == (home / "m.gguf", home / "s", str(home / "m.json"))
        assert found.models["a"].path == home / "sub" / "a.gguf"
    write_config(home, model="~/m.gguf", manifest="https://x/m", models={"a": {"path": "file:///a.gguf"}})
    found = load_settings(home=home, environ={})
    assert (found.model, found.manifest) == (Path("~/m.gguf").expanduser(), "https://x/m")
    assert found.models["a"].path == Path("/a.gguf")


def test_paths_for_a_daemon_are_absolute_since_it_works_elsewhere() -> None:
    env = {"RUNED_MODEL": "m.gguf", "RUNED_MANIFEST": "https://host/m.json", "RUNED_HOME": "~/r"}
    expected = {
        "RUNED_MODEL": str(Path.cwd() / "m.gguf"),
        "RUNED_MANIFEST": "https://host/m.json",
        "RUNED_HOME": str(Path("~/r").expanduser()),
    }
    assert daemon_environment(env) == expected


def test_environment_of_the_engine_cannot_change_what_it_computes() -> None:
    env = {
        "PATH": "/bin",
        "LLAMA_ARG_CTX_SIZE": "1",
        "LLAMA_API_KEY": "k",
        "XDG_CONFIG_HOME": "c",
        "AIP_MODE": "x",
        "RUNED_MODEL": "m",
    }
    fixed = {"GGML_NO_BACKTRACE": "1", "XDG_CONFIG_HOME": "/dev/null"}
    assert engine_environment(env) == {"PATH": "/bin", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"} | fixed
    assert engine_environment(env | {"OMP_WAIT_POLICY": "active"})["OMP_WAIT_POLICY"] == "active"


def test_engine_gets_the_variables_by_which_it_finds_its_device() -> None:
    found = {"VK_DRIVER_FILES": "/d", "XDG_DATA_DIRS": "/e", "GGML_VK_VISIBLE_DEVICES": "0", "ROCR_VISIBLE_DEVICES": "1"}
    assert engine_environment(found).items() >= found.items()
    assert daemon_environment(found) == found


def test_engine_is_one_of_the_known_ones(home: Path) -> None:
    assert load_settings(home=home, environ={}).engine == "auto"
    assert load_settings(home=home, environ={"RUNED_ENGINE": "Vulkan"}).engine == "vulkan"
    with pytest.raises(SettingsError, match=r"RUNED_ENGINE='metal': accepted is auto, cpu, vulkan, cuda, rocm, onnx$"):
        load_settings(home=home, environ={"RUNED_ENGINE": "metal"})


def test_models_of_the_file_are_read_and_checked(home: Path) -> None:
    entry = {"path": "~/m.gguf", "pooling": "mean", "query_prompt": "query: ", "min_dimensions": 64, "keep_alive": "30m"}
    write_config(home, models={"mine": entry | {"aliases": ["e5"], "of_a_newer_version": 1}, "bge-m3": {"keep_alive": "0"}})
    models = load_settings(home=home, environ={}).models
    assert (models["mine"].path, models["mine"].keep_alive) == (Path("~/m.gguf").expanduser(), 1800)
    assert (models["mine"].entry.query_prompt, models["mine"].entry.document_prompt) == ("query: ", None)
    assert models["mine"].entry.aliases == ["e5"]
    assert models["mine"].is_model
    assert models["bge-m3"].keep_alive == 0
    assert not models["bge-m3"].is_model


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"path": 1}, r"Expected `str.*models.*path"),
        ({"path": "https://x/m.gguf"}, r"^path of models\.mine = 'https://x/m\.gguf' in .*/config\.json: accepted is the path"),
        ({"path": "/m", "pooling": "rank"}, "Invalid enum value 'rank'"),
        ({"path": "/m", "kind": "chat"}, "Invalid enum value 'chat'"),
        ({"path": "/m", "kind": "rerank", "pooling": "mean"}, 'has the kind "rerank" and a pooling'),
        ({"path": "/m", "min_dimensions": -1}, "Expected `int` >= 0"),
        (
            {"path": "/m", "keep_alive": "soon"},
            r"^keep_alive of models\.mine = 'soon' in .*/config\.json: accepted is a duration",
        ),
        ({"path": "/m", "source": "hf:a/b/c", "sha256": "0" * 64}, "has both path and source"),
        ({"source": "hf:a/b/c"}, "has a source without its sha256; let `runed pull hf:a/b/c` write the entry"),
        ({"source": "hf:a/b/c", "sha256": "0" * 63}, "matching regex"),
        ([], "Expected `object`"),
    ],
)
def test_a_model_of_the_file_that_cannot_be_used_is_told(entry: object, words: str, home: Path) -> None:
    write_config(home, models={"mine": entry})
    with pytest.raises(SettingsError, match=words) as caught:
        load_settings(home=home, environ={})
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("environ", "config", "expected"),
    [
        ({}, {}, (None, "", None)),
        ({}, {"default_model": "d"}, (None, "d", None)),
        ({"RUNED_DEFAULT_MODEL": "e"}, {"default_model": "d"}, (None, "e", None)),
        ({"RUNED_MODEL": "/m"}, {"default_model": "d"}, ("/m", "", None)),
        ({"RUNED_MODEL_VARIANT": "v"}, {"default_model": "d"}, (None, "", "v")),
        ({"RUNED_MODEL": "/m", "RUNED_DEFAULT_MODEL": "e"}, {}, ("/m", "", None)),
        ({"RUNED_DEFAULT_MODEL": "e"}, {"model": "/m"}, (None, "e", None)),
        ({"RUNED_DEFAULT_MODEL": "e"}, {"model": "/m", "model_variant": "v"}, (None, "e", "v")),
        ({}, {"default_model": "d", "model": "/m"}, ("/m", "", None)),
        ({}, {"default_model": "d", "model_variant": "v"}, (None, "d", "v")),
        ({"RUNED_MODEL_VARIANT": "v"}, {"model": "/m"}, ("/m", "", "v")),
    ],
)
def test_one_setting_chooses_the_default_model(
    environ: dict[str, str], config: dict[str, str], expected: tuple[str | None, str, str | None], home: Path
) -> None:
    write_config(home, **config)
    settings = load_settings(home=home, environ=environ)
    model = None if settings.model is None else str(settings.model)
    assert (model, settings.default_model, settings.model_variant) == expected


def test_the_manifest_and_the_context_can_be_set_in_the_file(home: Path) -> None:
    write_config(home, manifest="https://example.org/m.json", ctx_size=512, debug=True)
    settings = load_settings(home=home, environ={})
    assert (settings.manifest, settings.ctx_size, settings.debug) == ("https://example.org/m.json", 512, True)


@pytest.mark.parametrize("value", ["mirror", "ftp://mirror", "https://"])
def test_the_hub_is_a_web_url(value: str, home: Path) -> None:
    assert load_settings(home=home, environ={"HF_ENDPOINT": "https://mirror/"}).hf_endpoint == "https://mirror"
    with pytest.raises(SettingsError, match=r"HF_ENDPOINT=.*accepted is an https or http URL"):
        load_settings(home=home, environ={"HF_ENDPOINT": value})


def test_a_daemon_gets_the_variables_of_the_hub_and_its_engine_does_not() -> None:
    env = {"HF_ENDPOINT": "https://mirror", "HF_TOKEN": "secret"}
    assert daemon_environment(env) == env
    assert not {*engine_environment(env)} & {*env}


def test_a_daemon_gets_the_variables_of_opentelemetry_but_not_the_name_of_the_application() -> None:
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector",
        "OTEL_EXPORTER_OTLP_HEADERS": "a=b",
        "OTEL_TRACES_SAMPLER": "always_on",
    }
    own = {"OTEL_SERVICE_NAME": "shop", "OTEL_RESOURCE_ATTRIBUTES": "service.version=1"}
    assert daemon_environment(env | own) == env
    assert not {*engine_environment(env | own)} & {*env, *own}


def test_the_collector_is_that_of_the_environment_or_of_the_file(home: Path) -> None:
    write_config(home, otel_endpoint="http://127.0.0.1:4318")
    assert load_settings(home=home, environ={}).otel_endpoint == "http://127.0.0.1:4318"
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"}  # whatever others mean by it
    assert load_settings(home=home, environ=env).otel_endpoint == "collector:4317"


def test_documentation_shows_the_table_of_settings() -> None:
    def code(word: str) -> str:
        return f" `{word}` " if word else " "

    rows = [
        f"|{code(setting.variable)}|{code(name if setting.type else '')}|{code(setting.default)}| {setting.meaning} |"
        for name, setting in SETTINGS.items()
    ]
    lines = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text().splitlines()
    start = lines.index("| variable | key | default | meaning |") + 2
    assert lines[start : start + len(rows) + 1] == [*rows, ""]


def test_each_field_of_the_settings_is_one_of_the_table_with_the_same_default(home: Path) -> None:
    assert load_settings(home=home, environ={}) == Settings(home)
    fields = {field.name for field in dataclasses.fields(Settings)} - {"home", "written"}
    assert sorted(setting.field for setting in SETTINGS.values() if setting.field) == sorted(fields)
    # The variables of the model hub and of OpenTelemetry have the names that other programs read.
    foreign = {"", "HF_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"}
    assert all(setting.variable in foreign | {f"RUNED_{name.upper()}"} for name, setting in SETTINGS.items())


def test_every_variable_has_a_key_but_those_that_decide_where_and_whether_the_file_is_read() -> None:
    keyless = {name for name, setting in SETTINGS.items() if setting.type is None}
    assert keyless == {"home", "config", "trust_parents"}


@pytest.mark.parametrize(("name", "setting"), SETTINGS.items())
def test_each_setting_can_be_set_where_the_table_says(name: str, setting: Setting, home: Path) -> None:
    text = {full_path: "/a/file", port: "127.0.0.1:80", _text: "a-name", boolean: "yes", flag: "yes"}.get(
        setting.parse, setting.default
    )
    if not setting.field or not text:
        return
    expected = setting.parse(text, "")
    if setting.variable:
        assert getattr(load_settings(home=home, environ={setting.variable: text}), setting.field) == expected
    if setting.type:
        write_config(home, **{name: setting.type(text) if setting.type is int else True if setting.type is bool else text})
        assert getattr(load_settings(home=home, environ={}), setting.field) == expected


# The home of the user


def test_an_empty_home_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    own = pwd.getpwuid(os.getuid()).pw_dir
    for change in (partial(monkeypatch.setenv, "HOME", ""), partial(monkeypatch.delenv, "HOME")):
        change()
        assert load_settings(environ={}).home == Path(own, ".runed")
        assert load_settings(environ={"RUNED_MODEL": "~"}).model == Path(own)
        assert daemon_environment({"RUNED_MODEL": "~/m.gguf"})["RUNED_MODEL"] == str(Path(own, "m.gguf"))


def test_home_beats_the_user_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere/else")
    assert load_settings(environ={}).home == Path("/somewhere/else/.runed")


def test_the_home_of_another_user_can_be_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere/else")
    user = next(entry for entry in pwd.getpwall() if entry.pw_uid != os.getuid() and entry.pw_dir.startswith("/"))
    write_config(home, model=f"~{user.pw_name}/model.gguf")
    settings = load_settings(home=home, environ={"RUNED_MANIFEST": f"~{user.pw_name}", "RUNED_LLAMA_SERVER": "x/~y"})
    assert settings.model == Path(os.path.normpath(user.pw_dir), "model.gguf")
    assert settings.manifest == os.path.normpath(user.pw_dir)
    assert settings.llama_server == Path.cwd() / "x" / "~y"
