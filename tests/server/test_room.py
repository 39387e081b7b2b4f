"""Too many connections: idle ones and half-sent requests make room, and what is being worked on is left alone."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from runed_proto.runed.v1 import runed_pb2 as pb

from runed.server import connection_limits
from runed.server.http2 import PREFACE
from tests.server.app import WAIT, Servicer
from tests.server.clients import SERVICE, RawClient, envelope, stop_reading
from tests.server.conftest import ROOT, Serve, accepts
from tests.server.test_http1 import head
from tests.support import eventually, wait_until

ROOM = 8
"""Connections that the servers of these tests have room for."""


def http2(*, body: bytes, end: bool) -> bytes:
    """Return the first bytes of an HTTP/2 client, with a request."""
    client = RawClient(None, None, takes_bodies=False)  # type: ignore[arg-type] # it writes the bytes to nobody
    client.h2.initiate_connection()
    client.open(f"{SERVICE}/Embed".encode(), body, end=end)
    return client.h2.data_to_send()


HALF_SENT = {
    "nothing": b"",
    "an empty line": b"\r\n",
    "half a head": head(b"")[:40],
    "half a body": head(bytes(100))[:-1],
    "the head of a chunked body": head(b"").replace(b"content-length: 0", b"transfer-encoding: chunked"),
    "a request that expects 100": head(bytes(100), "expect: 100-continue")[:-100],
    "half a preface": PREFACE[:10],
    "a preface without frames": PREFACE,
    "an HTTP/2 request without its end": http2(body=envelope(pb.EmbedRequest(text="x")), end=False),
    "a pipelined half": head(b'{"text": "a"}') + head(bytes(100))[:-1],
}


@asynccontextmanager
async def connected(path: Path, count: int, data: bytes) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Connect many times, and send the same bytes each time."""
    readers = []
    writers = []
    for _ in range(count):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(data)
        readers.append(reader)
        writers.append(writer)
    yield readers
    for writer in writers:
        writer.transport.abort()


async def embed(path: Path) -> float:
    """Make a call over a new connection, and return its seconds."""
    began = time.monotonic()
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(head(b'{"text": "a"}', "connection: close"))
    assert b" 200 " in (await reader.read()).split(b"\r\n")[0]
    writer.close()
    return time.monotonic() - began


@pytest.mark.parametrize("data", HALF_SENT.values(), ids=HALF_SENT)
async def test_half_sent_requests_lock_nobody_out(path: Path, serve: Serve, servicer: Servicer, data: bytes) -> None:
    async with serve(servicer, max_connections=ROOM) as server, connected(path, 3 * ROOM, data) as readers:
        assert await embed(path) < 15
        assert len(server._connections) <= ROOM + 1
        answers = await asyncio.wait_for(asyncio.gather(*(ended(reader) for reader in readers[:ROOM])), 15)
        assert all(answers)  # the oldest went first
        assert not readers[-1].at_eof()


async def ended(reader: asyncio.StreamReader) -> bool:
    """Read to the end of a connection."""
    with suppress(ConnectionError):
        await reader.read()
    return True


async def test_slow_bodies_lock_nobody_out(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer, max_connections=ROOM):
        writers = [(await asyncio.open_unix_connection(path))[1] for _ in range(ROOM)]
        for writer in writers:
            writer.write(head(bytes(1000))[:-990])

        async def drip() -> None:
            while True:
                for writer in writers:
                    if not writer.is_closing():
                        writer.write(b"x")
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        await asyncio.sleep(0.1)
        for _ in range(3):
            assert await embed(path) < 15
        dripping.cancel()
        for writer in writers:
            writer.transport.abort()


async def test_unread_answers_lock_nobody_out(path: Path, serve: Serve) -> None:
    async def app(scope: dict[str, Any], receive: Callable[..., Awaitable[Any]], send: Callable[..., Awaitable[Any]]) -> None:
        size = 5_000_000 if scope["path"] == "/large" else 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(size)})

    async with serve(app, max_connections=ROOM):
        writers = []
        for _ in range(ROOM):
            _, writer = await asyncio.open_unix_connection(path)
            stop_reading(writer)
            writer.write(b"GET /large HTTP/1.1\r\nhost: runed\r\n\r\n")
            writers.append(writer)
        assert await embed(path) < 15
        for writer in writers:
            writer.transport.abort()


async def test_what_is_being_worked_on_is_left_alone_and_others_wait(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer, max_connections=ROOM) as server, connected(path, ROOM, head(b'{"text": "%s"}' % WAIT.encode())):
        await eventually(lambda: servicer.waiting == ROOM)
        late = asyncio.create_task(embed(path))
        await asyncio.sleep(0.3)
        assert not late.done()
        assert len(server._connections) == ROOM
        servicer.let_go()
        assert await late > 0.2
        assert servicer.cancelled == 0


async def test_hundreds_of_calls_at_once_are_all_answered(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer, max_connections=ROOM):
        assert max(await asyncio.gather(*(embed(path) for _ in range(200)))) < 30


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
sys.argv[1:] = ["ours", sys.argv[1]]
runpy.run_module("tests.server.program", run_name="__main__")
"""


def test_server_without_descriptors_makes_room_and_stays_calm(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", LIMITED, str(path)], cwd=ROOT, stdout=subprocess.PIPE) as server:
        try:
            wait_until(lambda: accepts(path), what="the server")
            process = psutil.Process(server.pid)
            idle = []
            for _ in range(100):
                idle.append(socket.socket(socket.AF_UNIX))
                idle[-1].connect(str(path))
            before = sum(process.cpu_times()[:2])
            time.sleep(1.5)
            assert sum(process.cpu_times()[:2]) - before < 0.3
            for _ in range(3):
                assert asyncio.run(embed(path)) < 15
            server.send_signal(signal.SIGTERM)
            assert server.stdout is not None
            assert len(server.stdout.read()) < 20_000  # the log of a daemon leaves most of these lines out
        finally:
            server.kill()
            for sock in idle:
                sock.close()


@pytest.mark.parametrize(("files", "clients", "strangers"), [(256, 144, 48), (100_000, 512, 64), (64, 12, 4)])
def test_connections_follow_the_limit_of_open_files(
    files: int, clients: int, strangers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert connection_limits() == (clients, strangers)


async def test_clients_that_left_before_their_turn_are_not_served(
    sock: socket.socket, serve: Serve, path: Path, servicer: Servicer
) -> None:
    for _ in range(100):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(head(b'{"text": "a"}'))
    async with serve(servicer):
        await embed(path)
    assert len(servicer.clients) == 1
