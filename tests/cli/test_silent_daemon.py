"""A daemon that does not answer: commands tell why within five seconds, and do not wait for ever."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from runed.cli import watching
from runed.cli.watching import watched
from runed.errors import LifecycleError
from runed.lifecycle.listener import Listener
from runed.locking import LockFile
from runed.paths import Paths
from tests.cli.support import Cli, finish
from tests.support import wait_until


@contextmanager
def stopped_daemon(cli: Cli) -> Iterator[int]:
    """Start the daemon, and stop it by SIGSTOP up to the end of the block."""
    assert cli.run("embed", "warm up").returncode == 0
    daemon = cli.daemon()
    assert daemon is not None
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        yield daemon.pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(daemon.pid, signal.SIGCONT)


def word_of(command: subprocess.Popen[bytes]) -> str:
    """Return the first line of a command on standard error, which comes within five seconds and a start."""
    began = time.monotonic()
    assert command.stderr is not None
    line: bytes = command.stderr.readline()
    assert time.monotonic() - began < 20  # of which the start on a busy machine may take most
    return line.decode()


@pytest.mark.slow
def test_a_stopped_daemon(cli: Cli) -> None:
    with stopped_daemon(cli) as pid:
        done = cli.run("status")
        assert (done.returncode, done.stdout) == (1, "")
        assert f"pid {pid}, is stopped, by SIGSTOP" in done.stderr
        assert f"`kill -CONT {pid}`" in done.stderr

        done = cli.run("status", "--json")
        assert done.returncode == 1
        document = json.loads(done.stdout)
        assert (document["running"], document["condition"], document["pid"]) == (True, "stopped", pid)

        done = cli.run("ensure", "--json")
        assert json.loads(done.stdout)["pid"] == pid
        assert f"pid {pid}, is stopped" in done.stderr

        embedding, batch = cli.start("embed", "hello"), cli.start("embed", "--batch", "-", stdin=subprocess.PIPE)
        assert batch.stdin is not None
        batch.stdin.write(b'"hello"\n')
        batch.stdin.close()
        batch.stdin = None
        for command in (embedding, batch):
            assert f"waiting: the daemon of {cli.home}, pid {pid}, is stopped" in word_of(command)
    for command in (embedding, batch):
        code, output, errors = finish(command)
        assert (code, errors) == (0, "")
        assert output


@pytest.mark.slow
def test_stop_ends_a_stopped_daemon_and_says_what_it_waits_for(cli: Cli) -> None:
    with stopped_daemon(cli) as pid:
        done = cli.run("stop")
    assert done.returncode == 0
    assert f"pid {pid}, is stopped" in done.stderr
    assert done.stdout.startswith(f"stopped the daemon of {cli.home}")


@pytest.mark.slow
def test_status_of_a_daemon_that_cuts_connections_is_not_that_it_does_not_run(cli: Cli) -> None:
    """As a daemon did that had too many of them. Status asks again for a while."""
    with Listener.bind(cli.paths.socket) as listener:

        def cut() -> None:
            with suppress(OSError):
                while True:
                    listener.sock.accept()[0].close()

        cutting = threading.Thread(target=cut)
        cutting.start()
        done = cli.run("status", "--json")
        listener.sock.shutdown(socket.SHUT_RDWR)
        cutting.join()
    assert done.returncode == 1
    assert json.loads(done.stdout)["condition"] == "overloaded"


def test_status_of_a_daemon_that_is_being_started(cli: Cli) -> None:
    with LockFile(cli.paths.spawn_lock) as lock:
        assert lock.try_acquire()
        done = cli.run("status")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"runed: the daemon of {cli.home} is starting\n"
        assert json.loads(cli.run("status", "--json").stdout)["condition"] == "starting"


@pytest.mark.slow
def test_ensure_says_what_it_waits_for(cli: Cli) -> None:
    with LockFile(cli.paths.spawn_lock) as lock:
        assert lock.try_acquire()
        ensuring = cli.start("ensure")
        assert word_of(ensuring) == f"runed: waiting: the daemon of {cli.home} is starting\n"
    assert finish(ensuring)[0] == 0


@pytest.mark.slow
def test_a_wait_for_a_daemon_that_answers_nothing_ends(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    paths, before = Paths(cli.home), signal.getsignal(signal.SIGALRM)
    with Listener.bind(paths.socket), socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(paths.socket))
        began = time.monotonic()
        with (
            pytest.raises(LifecycleError, match=r"gave up after 3 s without an answer: the daemon of .* busy.*end it with"),
            watched(paths, patience=3.0),
        ):
            waiting.recv(1)  # a system call that nothing but a signal ends
        assert time.monotonic() - began < 15
    told = capsys.readouterr().err
    assert told.count("waiting: the daemon") == 1
    assert "does not answer yet; it may be starting or busy" in told
    assert "runed stop" not in told, "a busy daemon has jobs that this would end"
    assert signal.getsignal(signal.SIGALRM) is before
    wait_until(lambda: "runed-watch" not in {thread.name for thread in threading.enumerate()})


@pytest.mark.slow
def test_a_wait_that_is_long_and_has_no_end_of_its_own_tells_the_way_out(
    cli: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PATIENCE", 3.0)
    with Listener.bind(Paths(cli.home).socket), watched(Paths(cli.home), patience=None):
        time.sleep(14)
    first, second = capsys.readouterr().err.splitlines()
    assert "does not answer yet" in first
    assert "it answered nothing for 3 s; if it never answers, end it with `runed stop`" in second


@pytest.mark.slow
def test_a_wait_for_an_engine_that_fails_tells_why(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """A call is tried again for a minute meanwhile. The reason is told once, although it comes and goes with the tries."""
    assert cli.with_environment(RUNED_LLAMA_SERVER="/bin/false").run("embed", "hello").returncode != 0
    with watched(Paths(cli.home)):
        time.sleep(5)
    told = capsys.readouterr().err
    assert told.startswith("runed: waiting: embeddings fail for now: llama-server exited with code 1")
    assert told.count("waiting: ") == 1


@pytest.mark.slow
def test_a_call_that_fails_tells_its_reason_once(
    cli: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look may fall between the failure and the error of the call."""
    assert cli.with_environment(RUNED_LLAMA_SERVER="/bin/false").run("embed", "hello").returncode != 0
    looks: list[str] = []

    def look(watch: watching._Watch, now: float) -> str:
        looks.append(original(watch, now))
        return looks[-1]

    original = watching._Watch._look
    monkeypatch.setattr(watching._Watch, "_look", look)
    with watched(Paths(cli.home)):
        wait_until(lambda: any(looks), timeout=30, what="a look that tells the reason")
    assert looks[0] == ""
    assert next(filter(None, looks)).startswith("embeddings fail for now: ")
    assert capsys.readouterr().err.count("fail for now") <= 1


@pytest.mark.slow
def test_the_start_of_another_model_is_told(cli: Cli, tmp_path: Path, reranker: Path) -> None:
    """The daemon opens such a model with the first call for it, which waits meanwhile."""
    patient = tmp_path / "llama-server"
    patient.write_text(f'#!/bin/sh\nsleep 3\nexec {cli.environment["RUNED_LLAMA_SERVER"]} "$@"\n')
    patient.chmod(0o700)
    models = {"other": {"path": cli.environment["RUNED_MODEL"]}, "ranker": {"path": str(reranker)}}
    cli.paths.config.write_text(json.dumps({"version": 1, "models": models}))
    own = cli.with_environment(RUNED_LLAMA_SERVER=str(patient), RUNED_ENGINE="cpu")
    assert own.run("ensure", "--wait").returncode == 0
    for command in (("embed", "--model", "other", "tea"), ("rerank", "what?", "-")):
        done = own.run(*command, stdin=b"tea\n")
        assert done.returncode == 0, done.stderr
        assert "runed: llama-server loads the model\n" in done.stderr, command
        assert "the model" not in own.run(*command, stdin=b"tea\n").stderr
