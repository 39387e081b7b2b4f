"""What is seen from outside of a daemon that does not answer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from runed.lifecycle.listener import Listener
from runed.lifecycle.presence import Condition, observe
from runed.lifecycle.record import DaemonRecord
from runed.locking import LockFile
from runed.paths import Paths
from runed.processes import identify, is_stopped
from tests.support import wait_until


@pytest.fixture
def paths(home: Path) -> Paths:
    return Paths(home)


@contextmanager
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        yield sleeper
        sleeper.kill()


def record_of(pid: int, paths: Paths, *, draining: bool = False) -> None:
    identity = identify(pid)
    assert identity is not None
    record = DaemonRecord.of_this_process(paths.socket)
    msgspec.structs.replace(record, pid=pid, start_time=identity.start_time, draining=draining).write(paths.daemon_record)


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(pid))


def test_nothing_is_absent(paths: Paths) -> None:
    assert observe(paths).condition is Condition.ABSENT


def test_the_record_and_the_socket_of_a_killed_daemon_are_nothing(paths: Paths) -> None:
    with process() as sleeper:
        record_of(sleeper.pid, paths)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(paths.socket))
    assert observe(paths).condition is Condition.ABSENT


def test_a_daemon_that_another_process_is_starting(paths: Paths) -> None:
    with LockFile(paths.spawn_lock) as lock:
        assert lock.try_acquire()
        presence = observe(paths)
    assert (presence.condition, presence.pid) == (Condition.STARTING, None)
    assert str(presence) == f"the daemon of {paths.home} is starting"
    assert observe(paths).condition is Condition.ABSENT, "a free lock is no start"


@pytest.mark.parametrize(("draining", "condition"), [(False, Condition.STARTING), (True, Condition.SHUTTING_DOWN)])
def test_a_daemon_that_does_not_listen(paths: Paths, condition: Condition, *, draining: bool) -> None:
    with process() as sleeper:
        record_of(sleeper.pid, paths, draining=draining)
        presence = observe(paths)
        assert (presence.condition, presence.pid) == (condition, sleeper.pid)
        stop(sleeper.pid)
        assert observe(paths).condition is Condition.STOPPED


def test_a_daemon_that_listens_is_overloaded_and_its_pid_is_told_once_it_is_proved(paths: Paths) -> None:
    with Listener.bind(paths.socket):
        unproved = observe(paths)
        record_of(os.getpid(), paths)
        proved = observe(paths)
    assert (unproved.condition, unproved.pid) == (Condition.OVERLOADED, None)
    assert (proved.condition, proved.pid) == (Condition.OVERLOADED, os.getpid())


def test_a_daemon_with_a_full_backlog_is_overloaded(paths: Paths) -> None:
    with process() as sleeper, ExitStack() as stack:
        record_of(sleeper.pid, paths)
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(paths.socket))
        listener.listen(0)
        with suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(paths.socket))
        presence = observe(paths)
        assert (presence.condition, presence.pid) == (Condition.OVERLOADED, sleeper.pid)
        stop(sleeper.pid)
        assert observe(paths).condition is Condition.STOPPED


LISTENER = """
import socket, sys, time
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print(1, flush=True)
time.sleep(60)
"""


def test_a_stopped_daemon_says_how_to_go_on(paths: Paths) -> None:
    with subprocess.Popen([sys.executable, "-c", LISTENER, paths.socket], stdout=subprocess.PIPE) as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == b"1\n"
        record_of(listener.pid, paths)
        stop(listener.pid)
        presence = observe(paths)
        listener.kill()
    assert (presence.condition, presence.pid) == (Condition.STOPPED, listener.pid)
    assert f"`kill -CONT {listener.pid}`" in str(presence)
