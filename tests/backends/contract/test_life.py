"""The life of each real engine: its socket, its starts, its deaths and its ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from runed.backends.base import BackendStatus
from runed.errors import BackendUnavailableError, InvalidTextError
from runed.paths import Paths
from tests.backends.contract.contenders import Contender, MakeEngine
from tests.backends.support import FAKES
from tests.support import wait_until


@pytest.mark.parametrize("text", ["", "a\x00b", "<|endoftext|> inside", "naïve 北京 🙂", "\ufffd\u200b", '{}"\\\n'])
async def test_odd_texts_are_counted_as_they_are_embedded(make_backend: MakeEngine, text: str) -> None:
    backend = make_backend()
    first, tokens, last = await backend.tokenize(["before", text, "after"])
    assert len(tokens) == (await backend.embed([text])).tokens
    assert [first, last] == [*await backend.tokenize(["before"]), *await backend.tokenize(["after"])]


async def test_lone_surrogate_is_refused_without_quoting_the_text(make_backend: MakeEngine) -> None:
    backend = make_backend()
    with pytest.raises(InvalidTextError) as caught:
        await backend.embed(["my secret \ud800"])
    assert "secret" not in caught.value.message


async def test_engine_listens_on_a_private_socket_and_no_port(make_backend: MakeEngine, paths: Paths) -> None:
    backend = make_backend()
    await backend.start()
    assert stat.S_IMODE(paths.engine_socket.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(paths.engine_socket.stat().st_mode) == 0o700
    assert [item for item in psutil.Process(backend.state.pid).net_connections("inet") if item.status == "LISTEN"] == []


async def test_stale_socket_of_a_killed_engine_does_not_stop_the_next(make_backend: MakeEngine, paths: Paths) -> None:
    paths.engine_socket.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(paths.engine_socket))
    backend = make_backend()
    await backend.start()
    assert backend.state.status is BackendStatus.READY


async def test_long_home_gets_a_socket_that_the_kernel_takes(home: Path, engine: Contender) -> None:
    paths = Paths(home / ("long" * 30))
    backend = engine.backend(paths=paths)
    try:
        assert len((await backend.embed(["hello"])).vectors) == 1
    finally:
        await backend.stop()
    assert len(os.fsencode(paths.engine_socket)) < 104
    assert not paths.engine_socket.exists()


async def test_concurrent_first_requests_start_one_engine(make_backend: MakeEngine, paths: Paths) -> None:
    backend = make_backend()
    batches = await asyncio.gather(
        *(backend.embed([f"text {number}"]) for number in range(16)), backend.start(), backend.start()
    )
    assert len(batches) == 18
    assert len([child for child in psutil.Process().children() if str(paths.engine_socket) in child.cmdline()]) == 1


async def test_stopped_engine_is_gone_and_comes_back_by_itself(make_backend: MakeEngine) -> None:
    backend = make_backend()
    before = await backend.embed(["hello"])
    pid = backend.state.pid
    await backend.stop()
    assert not psutil.pid_exists(pid)
    assert backend.state.status is BackendStatus.STOPPED
    assert await backend.embed(["hello"]) == before
    assert backend.state.pid not in {0, pid}
    assert backend.state.restarts == 0


async def test_wake_is_no_slower_than_the_bare_engine_by_150_ms(make_backend: MakeEngine, paths: Paths) -> None:
    backend = make_backend()
    await backend.start()
    command = backend._launcher.command
    await backend.stop()

    async def wake() -> float:
        started = time.perf_counter()
        await backend.start()
        taken = time.perf_counter() - started
        await backend.stop()
        return taken

    async def bare() -> float:
        paths.engine_socket.unlink(missing_ok=True)
        started = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            *command.argv(), env=command.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            await asyncio.to_thread(_wait_until_healthy, paths.engine_socket)
            return time.perf_counter() - started
        finally:
            process.kill()
            await process.wait()

    # The best of several tries counts, since other work on the machine only adds time.
    bare_best = min([await bare() for _ in range(3)])
    assert min([await wake() for _ in range(5)]) <= bare_best + 0.150


def _wait_until_healthy(path: Path) -> None:
    answer = b""
    while not answer.startswith(b"HTTP/1.1 200"):
        time.sleep(0.005)
        with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
            connection.settimeout(1)
            connection.connect(str(path))
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n")
            answer = connection.recv(64)


async def test_killed_engine_is_replaced_and_the_request_in_flight_succeeds(
    engine: Contender, make_backend: MakeEngine
) -> None:
    backend = make_backend(ctx_size=2048)
    long = engine.word * (backend.model.max_tokens - 2)
    expected = await backend.embed([long])
    running = asyncio.create_task(backend.embed([long]))
    await asyncio.sleep(0.005)  # so that the request is on its way; the kill may meet it at any point
    os.kill(backend.state.pid, signal.SIGKILL)
    assert await running == expected
    assert backend.state.restarts == 1


async def test_engine_killed_while_idle_comes_back_without_being_asked(make_backend: MakeEngine) -> None:
    backend = make_backend()
    await backend.start()
    pid = backend.state.pid
    os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(wait_until, lambda: backend.state.pid not in {0, pid})
    assert backend.state.reason == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
async def test_engine_that_a_signal_ends_while_a_connection_is_open_is_replaced(
    make_backend: MakeEngine, number: signal.Signals
) -> None:
    backend = make_backend()
    expected = await backend.embed(["hello"])
    os.kill(backend.state.pid, number)  # after SIGTERM and SIGINT, the real one closes its listener and waits for ever
    async with asyncio.timeout(5):
        assert await backend.embed(["hello"]) == expected
        await asyncio.to_thread(wait_until, lambda: backend.state.restarts == 1)


async def test_stop_meets_a_request_in_flight(engine: Contender, make_backend: MakeEngine) -> None:
    backend = make_backend(ctx_size=2048)

    async def ask_again_and_again() -> None:
        while True:
            await backend.embed([engine.word * 500] * 4)

    await backend.start()
    running = asyncio.create_task(ask_again_and_again())
    await asyncio.sleep(0.1)
    started = time.monotonic()
    await backend.stop()
    assert time.monotonic() - started < 4  # the engine waits for open connections, so the backend closes them before SIGTERM
    with pytest.raises(BackendUnavailableError, match="was stopped"):
        await running
    assert backend.state.status is BackendStatus.STOPPED


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's; elsewhere the next start reaps")
def test_engine_dies_with_a_daemon_that_is_killed(home: Path, engine: Contender) -> None:
    arguments = [FAKES / "daemon_with_engine.py", home, *engine.parts(Paths(home))]
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, cwd=FAKES.parent.parent) as daemon:
        assert daemon.stdout is not None
        pid = int(daemon.stdout.readline())
        record = json.loads(Paths(home).engine_record.read_text())
        assert record["pid"] == pid
        daemon.kill()
    wait_until(lambda: not psutil.pid_exists(pid), timeout=10, what="the engine's death")
