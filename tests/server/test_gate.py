"""A server with a gate: strangers are refused by the header, and take little of the event loop that other servers share."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hyperframe.frame import PingFrame, SettingsFrame

from runed.server import Head, Refusal, Server
from runed.server.gate import Share
from runed.server.http2 import PREFACE
from tests.server.app import Servicer, build_app
from tests.server.clients import RawClient
from tests.server.conftest import ROOT, Serve
from tests.server.test_room import embed
from tests.support import eventually

SECRET = (b"x-secret", b"right")


def gate(head: Head) -> Refusal | None:
    return None if SECRET in head.headers else Refusal(401, [(b"content-type", b"text/plain")], b"the secret is missing\n")


@asynccontextmanager
async def guarded(app: Any = None, *, max_connections: int = 16) -> AsyncIterator[tuple[Server, tuple[str, int]]]:  # noqa: ANN401 # any application
    """Serve an app behind the gate, and yield the address."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = sock.getsockname()
        server = Server(app or build_app(Servicer()), sock, gate=gate, max_connections=max_connections)
        await server.start()
        yield server, address
        await server.stop(0)


def request(*, secret: bool, size: int = 0, extra: bytes = b"") -> bytes:
    lines = b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n" % size
    return lines + (b"x-secret: right\r\n" if secret else b"") + extra + b"\r\n"


@pytest.mark.parametrize("size", [0, 1, 10_000_000], ids=["no body", "a small body", "a large body"])
async def test_stranger_is_refused_before_the_app_is_called_and_the_body_is_read(size: int) -> None:
    called = 0

    async def app(scope: object, receive: object, send: object) -> None:
        nonlocal called
        called += 1

    async with guarded(app) as (server, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(request(secret=False, size=size, extra=b"expect: 100-continue\r\n"))
        answer = await asyncio.wait_for(reader.read(), 8)
        assert answer.startswith(b"HTTP/1.1 401")
        assert b"connection: close" in answer
        assert answer.endswith(b"the secret is missing\n")
        assert called == 0
        writer.close()
        await eventually(lambda: not server._connections)


async def test_stranger_with_many_requests_gets_one_answer() -> None:
    async with guarded() as (_, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(request(secret=False) * 50)
        assert (await asyncio.wait_for(reader.read(65536), 3)).count(b"HTTP/1.1 401") == 1
        writer.close()


async def test_stranger_over_http2_is_refused_and_cut_off() -> None:
    async with guarded() as (server, address):
        client = RawClient(*await asyncio.open_connection(*address), takes_bodies=True)
        client.h2.initiate_connection()
        async with client:
            first, *others = [client.open(b"/x", end=False) for _ in range(20)]
            assert (await client.over(first)).headers[b":status"] == b"401"
            assert bytes(client.exchanges[first].body) == b"the secret is missing\n"
            assert await client.until(lambda: client.goaway is not None)
            assert not any(client.exchanges[other].headers for other in others)
        await eventually(lambda: not server._connections)


async def test_client_that_has_passed_goes_on_though_strangers_come() -> None:
    async def app(scope: object, receive: object, send: Callable[..., Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with guarded(app) as (_, address):
        reader, writer = await asyncio.open_connection(*address)
        strangers = [await asyncio.open_connection(*address) for _ in range(10)]
        for _ in range(3):
            writer.write(request(secret=True))
            assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 3)).startswith(b"HTTP/1.1 204")
            for _, stranger in strangers:
                stranger.write(request(secret=False))
        writer.close()
        for _, stranger in strangers:
            stranger.transport.abort()


FLOOD = """
import socket, sys, time
port, data, rest = int(sys.argv[1]), bytes.fromhex(sys.argv[2]), bytes.fromhex(sys.argv[3])
end = time.monotonic() + 60
while time.monotonic() < end:
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as sock:
            sock.settimeout(0.2)
            sock.sendall(data)
            while rest and time.monotonic() < end:
                sock.sendall(rest)
    except OSError:
        pass
"""

FLOODS = {
    "requests": (request(secret=False), b""),
    "pipelined requests": (request(secret=False) * 400, b""),
    "connections alone": (b"", b""),
    "huge headers": (request(secret=False, extra=b"x-y: " + b"a" * 15_000 + b"\r\n"), b""),
    "a header byte by byte": (b"GET / HTTP/1.1\r\nx: ", b"a"),
    "empty lines": (b"", b"\r\n" * 1000),
    "the greeting of TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), b""),
    "a preflight": (b"OPTIONS /v1/embeddings HTTP/1.1\r\nhost: a\r\norigin: http://evil\r\n\r\n", b""),
    "PINGs of HTTP/2": (PREFACE + SettingsFrame().serialize(), PingFrame(opaque_data=bytes(8)).serialize() * 1000),
    "SETTINGS of HTTP/2": (PREFACE + SettingsFrame().serialize(), SettingsFrame(settings={4: 1}).serialize() * 1000),
}


@pytest.mark.slow
@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_flood_of_strangers_lets_the_clients_of_the_socket_go_on(
    flood: tuple[bytes, bytes], path: Path, serve: Serve, servicer: Servicer
) -> None:
    async with serve(servicer), guarded() as (_, (_, port)):
        attackers = [
            subprocess.Popen([sys.executable, "-c", FLOOD, str(port), *(data.hex() for data in flood)], cwd=ROOT)  # noqa: ASYNC220 # it only starts
            for _ in range(3)
        ]
        try:
            await asyncio.sleep(0.5)
            # Other programs of a busy machine disturb one second, and a flood that takes too much disturbs each.
            waits: list[float] = []
            while not waits or (waits[-1] >= 0.5 and len(waits) < 10):
                waits.append(await longest_wait(path))
        finally:
            for attacker in attackers:
                attacker.kill()
                attacker.wait()
        assert min(waits) < 0.5


async def longest_wait(path: Path) -> float:
    """Return the longest time that a client of the socket waits for an answer, in one second of calls."""
    longest, until = 0.0, time.monotonic() + 1
    while time.monotonic() < until:
        longest = max(longest, await embed(path))
        await asyncio.sleep(0.005)
    return longest


async def test_strangers_that_have_left_are_no_obstacle_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their connections are closed, but still wait for their share while room is made for others."""
    monkeypatch.setattr("runed.server.serving.Share", partial(Share, part=0.0005))  # so that each waits for a second
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    async with guarded(max_connections=4) as (server, address):
        strangers = [socket.create_connection(address) for _ in range(12)]
        for stranger in strangers:
            stranger.sendall(request(secret=False, size=10))
        await eventually(lambda: len(server._connections) == 4)
        for stranger in strangers[:4]:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # so that the close resets
            stranger.close()
        await asyncio.sleep(1.5)
        for stranger in strangers:
            stranger.close()
    assert failures == []
