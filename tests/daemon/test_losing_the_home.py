"""A daemon that loses its home or its socket, or gets a signal, ends soon, and clients go on with its successor."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

import runed
from runed.lifecycle.record import DaemonRecord
from runed.lifecycle.spawn import stop_daemon
from runed.paths import Paths
from tests.support import RunningDaemon, process_gone, short_home, wait_until

END_SECONDS = 12.0
"""Seconds within which the older daemon must end. The grace of its call in flight would be longer."""


def remove_home(home: Path) -> None:
    shutil.rmtree(home)


def move_home(home: Path) -> None:
    home.rename(home.with_name("moved"))


def copy_home(home: Path) -> None:
    home.rename(home.with_name("moved"))
    home.mkdir(0o700)
    for name in ("daemon.json", "daemon.lock"):
        shutil.copy(home.with_name("moved") / name, home / name)


def remove_locks(home: Path) -> None:
    for lock in home.glob("*.lock"):
        lock.unlink()


def replace_lock(home: Path) -> None:
    (home / "new").touch()
    (home / "new").replace(home / "daemon.lock")


def lead_elsewhere(home: Path) -> None:
    """Move the home, and put a link to another directory in its place."""
    move_home(home)
    home.with_name("other").mkdir(0o700)
    home.symlink_to("other")


def remove_socket(home: Path) -> None:
    (home / "embedding.sock").unlink()


def send_sigterm(home: Path) -> None:
    record = DaemonRecord.read(home / "daemon.json")
    assert record is not None
    record.terminate()


LOSSES = [remove_home, move_home, copy_home, remove_locks, replace_lock, lead_elsewhere, remove_socket, send_sigterm]


@pytest.fixture
def daemon(llama_server: Path, tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningDaemon]:
    """A daemon whose home has a directory of its own around it. Its successor gets the same settings."""
    settings = {"RUNED_LLAMA_SERVER": str(llama_server), "RUNED_MODEL": str(tiny_qwen3)}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    folder = short_home()
    home = folder / "h"
    home.mkdir(0o700)
    daemon = RunningDaemon(home, settings)
    try:
        yield daemon
    finally:
        daemon.close()
        stop_daemon(Paths(home))
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("lose", LOSSES)
def test_client_goes_on_with_a_successor_although_a_call_is_in_flight(
    lose: Callable[[Path], None], daemon: RunningDaemon
) -> None:
    home = daemon.home
    engine = int(daemon.wait_for("STATUS_OK")["enginePid"])
    with ThreadPoolExecutor() as pool, runed.connect(home=home, timeout=30) as client:
        client.embed("before")
        os.kill(engine, signal.SIGSTOP)  # so that the call in flight cannot end
        call = pool.submit(daemon.call, "EmbedBatch", {"texts": ["in flight"]}, timeout=60)
        wait_until(lambda: daemon.health().get("inFlightRequests") == "1", what="the call in flight")
        lost = time.monotonic()
        lose(home)
        assert daemon.process.wait(END_SECONDS + 10) == 0
        assert time.monotonic() - lost < END_SECONDS
        with suppress(httpx.TransportError):
            call.result(10)
        assert process_gone(engine)
        assert client.embed("after").size
        record = DaemonRecord.read(Paths(home).daemon_record)
        assert record is not None
        assert record.pid != daemon.process.pid
        assert record.is_alive()
        assert Paths(home).socket.is_socket()


@pytest.mark.slow
def test_successor_and_its_engine_live_while_the_older_daemon_ends(daemon: RunningDaemon) -> None:
    home = daemon.home
    engine = int(daemon.wait_for("STATUS_OK")["enginePid"])
    os.kill(daemon.process.pid, signal.SIGSTOP)  # so that it notices the loss late
    move_home(home)
    with runed.connect(home=home, timeout=30) as client:
        assert client.embed("to the successor").size
        successor = client.health().engine_pid
        os.kill(engine, signal.SIGKILL)  # so that the older daemon would replace it
        os.kill(daemon.process.pid, signal.SIGCONT)
        assert daemon.process.wait(END_SECONDS + 10) == 0
        assert client.embed("to the successor again").size
        assert client.health().engine_pid == successor
        assert client.health().engine_restarts == 0
    assert Paths(home).engine_record.exists()
    assert Paths(home).engine_socket.is_socket()
