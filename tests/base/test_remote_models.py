"""The entries of `config.json` about engines on other machines, and `RUNED_BACKEND`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runed.bootstrap.catalog import own_default
from runed.errors import SettingsError
from runed.lifecycle.marks import marks_of
from runed.settings import Settings, daemon_environment, load_settings

URL = "https://gpu.example/v1"


def load(home: Path, entry: dict[str, Any] | None = None, env: dict[str, str] | None = None, **keys: Any) -> Settings:  # noqa: ANN401 # those of config.json
    models = {"models": {"big": entry}} if entry is not None else {}
    (home / "config.json").write_text(json.dumps({"version": 1, **models, **keys}))
    return load_settings(environ={"RUNED_HOME": str(home), **(env or {})})


def test_an_entry_has_all_that_there_is_to_know(home: Path) -> None:
    entry = {
        "url": f"{URL}/",
        "model": "Qwen/Qwen3-Embedding-8B",
        "api": "openai",
        "api_key_file": "keys/gpu",
        "ca_file": "/etc/ca.pem",
        "dimensions": 4096,
        "max_tokens": 8192,
        "batch": 64,
        "concurrency": 8,
        "timeout": "90s",
        "fallback": "small",
        "query_prompt": "q: ",
    }
    remote = load(home, entry).models["big"].remote
    assert remote is not None
    assert (remote.url, remote.model, remote.api) == (URL, "Qwen/Qwen3-Embedding-8B", "openai")
    assert (remote.key_file, remote.ca_file) == (home / "keys" / "gpu", Path("/etc/ca.pem"))
    assert (remote.dimensions, remote.max_tokens, remote.batch, remote.concurrency) == (4096, 8192, 64, 8)
    assert (remote.timeout, remote.fallback) == (90.0, "small")


def test_most_of_it_can_be_left_out(home: Path) -> None:
    remote = load(home, {"url": URL}).models["big"].remote
    assert remote is not None
    assert (remote.model, remote.api, remote.key_place, remote.batch, remote.concurrency) == ("", None, "", 32, 4)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"url": "gpu.example"}, "accepted is an https or http URL"),
        ({"url": "ftp://gpu.example"}, "accepted is an https or http URL"),
        ({"url": "https://user:geheim@gpu.example/v1"}, "has a user, a password"),
        ({"url": "https://gpu.example/v1?key=geheim"}, "has a user, a password"),
        ({"url": URL, "path": "x.gguf"}, "both url and path"),
        ({"url": URL, "source": "hf:a/b/c.gguf@main", "sha256": "0" * 64}, "both url and source"),
        ({"url": URL, "pooling": "mean"}, "both url and pooling"),
        ({"url": URL, "kind": "rerank"}, "engines on other machines embed only"),
        ({"url": URL, "api_key_file": "a", "api_key_env": "B"}, "both api_key_file and api_key_env"),
        ({"url": URL, "api_key_env": "sk-geheim"}, "never the key itself"),
        ({"url": URL, "fallback": "BIG"}, "is the model itself"),
        ({"url": URL, "timeout": "0"}, "duration of more than 0"),
        ({"url": URL, "timeout": "soon"}, "accepted is a duration"),
        ({"url": URL, "batch": 0}, ">= 1"),
        ({"url": URL, "api": "grpc"}, "grpc"),
        ({"dimensions": 4, "path": "x.gguf"}, "dimensions without a url"),
        ({"api_key_file": "x"}, "api_key_file without a url"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_a_bad_entry_is_told_without_its_secrets(entry: dict[str, Any], told: str, home: Path) -> None:
    with pytest.raises(SettingsError) as refusal:
        load(home, entry)
    assert told in str(refusal.value)
    assert "geheim" not in str(refusal.value)


def test_the_variable_of_a_url_serves_the_default_model(home: Path) -> None:
    settings = load(home, env={"RUNED_BACKEND": URL, "RUNED_BACKEND_KEY_FILE": "~/key", "RUNED_MODEL": "/x.gguf"})
    default = own_default(settings)
    assert default is not None
    assert default.name == "remote"
    assert default.remote is not None
    assert (default.remote.url, default.remote.key_file) == (URL, Path("~/key").expanduser())
    assert not default.is_listed


@pytest.mark.parametrize("variable", ["RUNED_MODEL", "RUNED_MODEL_VARIANT", "RUNED_DEFAULT_MODEL"])
def test_a_variable_goes_before_the_key_of_a_url(variable: str, home: Path) -> None:
    assert load(home, backend=URL).backend == URL
    assert not load(home, backend=URL, env={variable: "/other"}).backend
    assert load(home, backend="http://other.example", env={variable: "/other", "RUNED_BACKEND": URL}).backend == URL


def test_a_bad_url_of_the_variable_is_told(home: Path) -> None:
    with pytest.raises(SettingsError, match="RUNED_BACKEND='gpu': accepted is an https or http URL"):
        load(home, env={"RUNED_BACKEND": "gpu"})


def test_a_daemon_inherits_the_variables_of_keys_alone(home: Path) -> None:
    settings = load(home, {"url": URL, "api_key_env": "SOME_API_KEY"})
    environ = {"SOME_API_KEY": "geheim", "OTHER": "x", "PATH": "/bin"}
    assert daemon_environment(environ, settings) == {"SOME_API_KEY": "geheim", "PATH": "/bin"}
    assert daemon_environment(environ) == {"PATH": "/bin"}
    assert "geheim" not in repr(settings) + repr(marks_of(settings))
