"""An agent of launchd starts the daemon. A small program stands in for `launchctl`."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runed.errors import DaemonStartError
from runed.lifecycle.installing import install_service, remove_service
from runed.lifecycle.service import Launchd, is_dormant, service_of
from runed.lifecycle.spawn import ensure_daemon, find_process, stop_daemon
from runed.paths import Paths
from runed.settings import load_settings
from tests.support import process_gone, short_home, wait_until

FAKES = Path(__file__).resolve().parent.parent / "fakes"

pytestmark = pytest.mark.slow


@pytest.fixture
def paths(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paths]:
    """A home of a user of macOS whose daemon finds no model."""
    user = short_home()
    (user / "launchctl").write_text(f'#!/bin/sh\nexec {sys.executable} {FAKES / "fake_launchctl.py"} "$@"\n')
    (user / "launchctl").chmod(0o700)
    for name, value in {
        "HOME": str(user),
        "PATH": f"{user}:/usr/bin:/bin",
        "LAUNCHCTL_STATE": str(user / "state"),
        "RUNED_HOME": str(home),
        "RUNED_MODEL": str(home / "missing.gguf"),
        "RUNED_LLAMA_SERVER": "/bin/false",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("runed.lifecycle.service.Systemd", Launchd)
    yield Paths(home)
    remove_service(load_settings())
    stop_daemon(Paths(home))


def pid_of(paths: Paths) -> int:
    process = find_process(paths)
    assert process is not None
    return process.pid


def test_agent_is_installed_started_and_removed(paths: Paths) -> None:
    settings = load_settings()
    ensure_daemon(settings)
    spawned = pid_of(paths)
    service = install_service(settings)
    assert isinstance(service, Launchd)
    assert process_gone(spawned)
    assert stat.S_IMODE(service.files[0].stat().st_mode) == 0o600, "its environment may hold keys"
    first = pid_of(paths)
    assert (service.state().listens, service.state().runs) == (True, True)
    assert ensure_daemon(settings).pid == first
    stop_daemon(paths)
    assert not is_dormant(paths), "launchd does not listen itself"
    assert "does not run" in service.state().words
    handle = ensure_daemon(settings)
    assert handle.started
    assert handle.pid not in {first, None}
    assert service.state().runs
    assert remove_service(settings) is not None
    wait_until(lambda: process_gone(handle.pid or 0), what="the end of the daemon")
    assert service_of(paths.home) is None
    assert not service.files[0].exists()


def test_agent_that_does_not_start_is_told_and_not_installed(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    paths.config.write_text('{"version": 1, "runed_binary": "/bin/false"}')
    monkeypatch.setattr("runed.lifecycle.installing._START_TIMEOUT", 1.0)
    with pytest.raises(DaemonStartError, match="launchd could not start the daemon, as `launchctl print gui/"):
        install_service(load_settings())
    assert service_of(paths.home) is None
