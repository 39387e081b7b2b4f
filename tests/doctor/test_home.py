"""The checks of the home, each with a home that passes and one that fails."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from runed.doctor import home
from runed.doctor.finding import Patient
from runed.lifecycle.asking import Health, Info, Setting
from runed.lifecycle.hold import write_hold
from runed.lifecycle.listener import Listener
from runed.lifecycle.record import DaemonRecord
from runed.paths import Paths
from runed.processes import identify
from runed.version import __version__
from tests.doctor.conftest import only

Make = Callable[..., Patient]


def test_the_home(patient: Make) -> None:
    subject = patient()
    assert only(home.home, subject).state.value == "ok"
    subject.paths.home.chmod(0o755)
    found = only(home.home, subject)
    assert (found.state.value, f"chmod 700 {subject.paths.home}" in found.remedy) == ("warning", True)
    subject.paths.home.chmod(0o777)
    assert only(home.home, subject).state.value == "failed"
    subject.paths.home.chmod(0o700)
    assert only(home.home, Patient(subject.settings, Paths(subject.paths.home / "new"))).state.value == "ok"


def test_the_socket(patient: Make) -> None:
    subject = patient()
    path = subject.paths.socket
    assert only(home.sockets, subject).state.value == "ok"
    path.write_text("")
    assert "is no socket" in only(home.sockets, subject).detail
    path.unlink()
    with Listener.bind(path):
        assert only(home.sockets, subject).state.value == "ok"
        path.chmod(0o666)
        found = only(home.sockets, subject)
        assert (found.state.value, "mode 0666" in found.detail) == ("failed", True)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(os.fspath(path))
        path.chmod(0o600)
    found = only(home.sockets, subject)
    assert (found.state.value, "left by a daemon that was killed" in found.detail) == ("warning", True)


def test_processes(patient: Make) -> None:
    subject = patient()
    assert only(home.pids, subject).state.value == "ok"
    own = DaemonRecord.of_this_process(subject.paths.socket)
    own.write(subject.paths.daemon_record)
    assert only(home.pids, subject).detail == f"the daemon is pid {os.getpid()}"
    msgspec.structs.replace(own, start_time=1.0).write(subject.paths.daemon_record)
    found = only(home.pids, subject)
    assert (found.state.value, f"pid {os.getpid()}" in found.detail) == ("warning", True)
    subject.paths.daemon_record.unlink()
    subject.paths.engine_record.parent.mkdir()
    with subprocess.Popen(["sleep", "60"]) as engine:
        subject.paths.engine_record.write_bytes(msgspec.json.encode(identify(engine.pid)))
        found = only(home.pids, subject)
        engine.kill()
    assert (found.state.value, f"kill {engine.pid}" in found.remedy) == ("failed", True)
    assert only(home.pids, subject).state.value == "ok"


def test_the_daemon(patient: Make) -> None:
    assert only(home.daemon, patient()).state.value == "ok"
    info = Info(daemon_version=__version__)
    assert only(home.daemon, patient(info=info, health=Health(status="OK"))).state.value == "ok"
    broken = only(home.daemon, patient(info=info, health=Health(status="DEGRADED", message="the disk is full")))
    assert (broken.state.value, broken.detail) == ("failed", "the disk is full")
    old = only(home.daemon, patient(info=Info(daemon_version="0.0.1"), health=Health(status="OK")))
    assert (old.state.value, "version 0.0.1" in old.detail) == ("warning", True)
    subject = patient()
    with Listener.bind(subject.paths.socket):
        assert only(home.daemon, subject).state.value == "failed"
    write_hold(subject.paths.hold, 600)
    kept = only(home.daemon, subject)
    assert (kept.state.value, "--anyway" in kept.remedy) == ("warning", True)


def program(folder: Path, version: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "runed"
    path.write_text(f"#!/bin/sh\necho 'runed {version}'\n")
    path.chmod(0o755)
    return path


def test_installations(patient: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "_VERSION_SECONDS", 60.0)
    same = program(tmp_path / "same", __version__)
    monkeypatch.setenv("PATH", f"{same.parent}:/usr/bin:/bin")
    assert only(home.installations, patient()).state.value == "ok"
    older = program(tmp_path / "older", "0.0.7")
    monkeypatch.setenv("PATH", f"{older.parent}:{same.parent}:/usr/bin:/bin")
    found = only(home.installations, patient())
    assert found.state.value == "warning"
    assert f"{older} (0.0.7)" in found.detail
    assert str(Path(sys.executable).with_name("runed")) in found.detail
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    found = only(home.installations, patient())
    assert (found.state.value, "no `runed` is on the PATH" in found.detail) == ("warning", True)


def test_the_port(patient: Make) -> None:
    assert only(home.port, patient()).state.value == "ok"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        number = other.getsockname()[1]
        subject = patient({"RUNED_HTTP": f"127.0.0.1:{number}"})
        found = only(home.port, subject)
        assert (found.state.value, f"127.0.0.1:{number} cannot be used" in found.detail) == ("failed", True)
        assert f"(pid {os.getpid()})" in found.remedy
    assert only(home.port, subject).state.value == "ok"
    DaemonRecord.of_this_process(subject.paths.socket).write(subject.paths.daemon_record)
    running = patient({"RUNED_HTTP": f"127.0.0.1:{number}"}, health=Health(status="OK"))
    assert only(home.port, running).state.value == "warning"
    DaemonRecord.of_this_process(subject.paths.socket, http="http://127.0.0.1:1").write(subject.paths.daemon_record)
    assert only(home.port, running).detail == "the daemon serves http://127.0.0.1:1"


def test_the_token(patient: Make) -> None:
    subject = patient()
    assert only(home.token, subject).state.value == "ok"
    subject.paths.http_token.write_text("a secret that is never told")
    subject.paths.http_token.chmod(0o600)
    assert only(home.token, subject).state.value == "ok"
    subject.paths.http_token.chmod(0o644)
    found = only(home.token, subject)
    assert (found.state.value, "mode 0644" in found.detail) == ("failed", True)
    assert "secret" not in f"{found.detail} {found.remedy}"
    subject.paths.http_token.write_text("")
    assert only(home.token, subject).state.value == "failed"
    subject.paths.http_token.write_text("x")
    subject.paths.http_token.chmod(0o600)
    off = patient({"RUNED_HTTP": "127.0.0.1:0", "RUNED_HTTP_TOKEN": "off"})
    assert only(home.token, off).state.value == "warning"


def test_port_and_token_are_those_of_the_daemon_that_runs(patient: Make) -> None:
    """It may have been started with other settings than those of this command."""
    told = Info(settings=(Setting("http_token", "RUNED_HTTP_TOKEN", "off", "environment"),))
    subject = patient(health=Health(status="OK"), info=told)
    DaemonRecord.of_this_process(subject.paths.socket, http="http://127.0.0.1:1").write(subject.paths.daemon_record)
    assert only(home.port, subject).detail == "the daemon serves http://127.0.0.1:1"
    assert only(home.token, subject).state.value == "warning"
    guarded = patient({"RUNED_HTTP": "127.0.0.1:0", "RUNED_HTTP_TOKEN": "off"}, health=Health(status="OK"), info=Info())
    assert only(home.token, guarded).state.value == "ok"
