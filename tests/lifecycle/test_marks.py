"""A running daemon with other settings than those of its client is noticed, and told once."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import runed
from runed.errors import RunedWarning
from runed.lifecycle.marks import differences, marks_of
from runed.lifecycle.record import DaemonRecord
from runed.lifecycle.spawn import stop_daemon
from runed.paths import Paths
from runed.settings import load_settings
from tests.support import RunningDaemon, clean_environment, wait_until


def differing(home: Path, daemon: dict[str, str], client: dict[str, str]) -> tuple[str, ...]:
    return differences(load_settings(home=home, environ=client), marks_of(load_settings(home=home, environ=daemon)))


@pytest.mark.parametrize(
    ("daemon", "client", "told"),
    [
        ({}, {}, ()),
        ({"RUNED_PROFILE": "memory"}, {"RUNED_PROFILE": "memory"}, ()),
        ({}, {"RUNED_PROFILE": "memory"}, ("RUNED_PROFILE",)),
        ({"RUNED_PROFILE": "memory"}, {"RUNED_PROFILE": "throughput"}, ("RUNED_PROFILE",)),
        ({"RUNED_PROFILE": "memory", "RUNED_MODEL": "/a.gguf"}, {}, ()),
        ({}, {"RUNED_MODEL": "/a.gguf"}, ("RUNED_MODEL",)),
        ({"RUNED_MODEL": "/a.gguf"}, {"RUNED_MODEL": "/b.gguf", "RUNED_CTX_SIZE": "512"}, ("RUNED_CTX_SIZE", "RUNED_MODEL")),
        ({}, {"RUNED_MODEL_VARIANT": "x", "RUNED_CACHE": "disk"}, ("RUNED_MODEL_VARIANT", "RUNED_CACHE")),
        ({}, {"RUNED_TRUST_PARENTS": "yes", "RUNED_PROFILE": "balanced", "RUNED_IDLE_TIMEOUT": "600s"}, ()),
    ],
)
def test_settings_that_matter_to_the_client_are_told(
    daemon: dict[str, str], client: dict[str, str], told: tuple[str, ...], home: Path
) -> None:
    assert differing(home, daemon, client) == told


def test_marks_tell_no_value(home: Path) -> None:
    marks = marks_of(load_settings(home=home, environ={"RUNED_MODEL": "/secret/place.gguf"}))
    assert marks.keys() == {"model"}
    assert len(marks["model"]) == 8
    assert set(marks["model"]) <= set("0123456789abcdef")


def test_models_of_the_configuration_are_among_the_settings(home: Path) -> None:
    before = marks_of(load_settings(home=home, environ={}))
    (home / "config.json").write_text('{"version": 1, "models": {"mine": {"path": "/a.gguf"}}}')
    assert differences(load_settings(home=home, environ={}), before) == ("models in config.json",)


def test_a_setting_is_told_as_it_was_set(home: Path) -> None:
    (home / "config.json").write_text('{"model": "/a.gguf", "ctx_size": 512}')
    settings = load_settings(home=home, environ={"RUNED_CTX_SIZE": "256"})
    assert differences(settings, {}) == ("RUNED_CTX_SIZE", "model in config.json")


def test_a_mark_of_a_newer_daemon_is_ignored(home: Path) -> None:
    assert differences(load_settings(home=home, environ={}), {"a setting of tomorrow": "00000000"}) == ()


def test_a_daemon_that_failed_with_other_settings_is_replaced(home: Path) -> None:
    """Whoever corrected a setting after the first error got the same error again, until `runed stop`."""
    record = Paths(home).daemon_record

    def ensure(model: str) -> tuple[int, str]:
        environment = clean_environment(RUNED_HOME=str(home), RUNED_MODEL=model)
        done = subprocess.run(
            [sys.executable, "-m", "runed", "ensure"], env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        wait_until(lambda: (found := DaemonRecord.read(record)) is not None and found.failed, timeout=60)
        found = DaemonRecord.read(record)
        assert found is not None
        return found.pid, done.stderr

    try:
        first, _ = ensure("/missing/one.gguf")
        assert ensure("/missing/one.gguf") == (first, "")
        second, told = ensure("/missing/other.gguf")
        assert second != first
        assert "other settings" not in told
        assert ensure("/missing/other.gguf") == (second, "")
        # Two programs with wrong settings ended each other's daemon in turns.
        same, told = ensure("/missing/one.gguf")
        assert same == second
        assert "other settings than these: RUNED_MODEL" in told
        third, _ = ensure("/missing/third.gguf")
        assert third != second
        # A start anew forgets what failed.
        stop_daemon(Paths(home))
        fourth, _ = ensure("/missing/third.gguf")
        assert ensure("/missing/one.gguf")[0] != fourth
    finally:
        stop_daemon(Paths(home))


def test_a_client_with_another_model_is_warned_once_and_the_command_complains(
    home: Path, start_daemon: Callable[..., RunningDaemon], minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = start_daemon()
    daemon.wait_for("STATUS_OK", timeout=120)
    record = DaemonRecord.read(Paths(home).daemon_record)
    assert record is not None
    assert record.settings is not None
    assert record.settings.keys() == {"engine", "llama_server", "model"}
    monkeypatch.setenv("RUNED_MODEL", str(minilm))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with runed.connect(home=home) as client:
                client.embed("x")
    [warning] = [warning for warning in caught if issubclass(warning.category, RunedWarning)]
    assert "was started with other settings than these: RUNED_MODEL; with `runed stop`" in str(warning.message)
    assert warning.filename == __file__
    environment = clean_environment(RUNED_HOME=str(home), RUNED_MODEL=str(minilm), RUNED_PROFILE="memory")
    result = subprocess.run(
        [sys.executable, "-m", "runed", "ensure"], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert "these: RUNED_MODEL, RUNED_PROFILE; with" in result.stderr
    same = subprocess.run(
        [sys.executable, "-m", "runed", "ensure"],
        env=daemon.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert same.stderr == ""
