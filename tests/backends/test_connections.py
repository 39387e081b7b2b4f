"""Connections to the engine: no answer reaches another request, none is endless, and no request gets a stale connection."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import pytest

from runed.backends.engine import connections
from runed.backends.engine.connections import Connections
from runed.errors import BackendFaultError
from tests.support import eventually

Answer: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]
"""Answers one request, whose body is given."""

LIMIT = 1000


class Server:
    """A server whose answers a test chooses.

    Attributes:
        connections: The number of connections so far.
        open: The number of open ones.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._tasks: set[asyncio.Task[None] | None] = set()
        self.connections = 0

    @property
    def open(self) -> int:
        return len(self._tasks)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._tasks.add(task := asyncio.current_task())
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                await self._answer(reader, writer, await reader.readexactly(size))
                await writer.drain()
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self._tasks.discard(task)

    async def end(self) -> None:
        for task in self._tasks:
            if task is not None:
                task.cancel()
        await eventually(lambda: not self._tasks)


def ok(body: bytes, headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s" % (headers, len(body), body)


async def echo(_: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(ok(body))


@asynccontextmanager
async def serving(path: Path, answer: Answer) -> AsyncIterator[Server]:
    server = Server(answer)
    async with await asyncio.start_unix_server(server.serve, path):
        yield server
        await server.end()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


class Pair:
    """A server and the connections to it."""

    def __init__(self, path: Path, stack: AsyncExitStack) -> None:
        self._path = path
        self._stack = stack

    async def __call__(self, answer: Answer = echo, *, most: int = 4) -> tuple[Server, Connections]:
        server = await self._stack.enter_async_context(serving(self._path, answer))
        client = Connections(self._path, most=most, engine="llama-server", content_type="application/json")
        self._stack.callback(client.close)
        return server, client


@pytest.fixture
def pair(home: Path, stack: AsyncExitStack) -> Pair:
    return Pair(home / "s", stack)


async def ask(client: Connections, body: bytes) -> bytes:
    async with asyncio.timeout(5):
        status, answer = await client.ask("POST", "/", body, limit=LIMIT)
    assert status == 200
    return answer


async def test_one_connection_serves_one_request_after_the_other(pair: Pair) -> None:
    server, client = await pair()
    assert [await ask(client, b"%d" % number) for number in range(20)] == [b"%d" % number for number in range(20)]
    assert server.connections == 1


async def test_an_unused_connection_keeps_nothing_of_its_last_answer(pair: Pair) -> None:
    size = 8 * 1024 * 1024

    async def large(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: bytes) -> None:
        writer.write(ok(b"x" * size))

    server, client = await pair(large)
    tracemalloc.start()
    try:
        status, answer = await client.ask("POST", "/", b"", limit=2 * size)
        assert (status, len(answer)) == (200, size)
        assert tracemalloc.get_traced_memory()[0] > size
        del answer
        await eventually(lambda: tracemalloc.get_traced_memory()[0] < size / 4)
    finally:
        tracemalloc.stop()
    assert server.open == 1


async def test_there_are_no_more_connections_than_allowed_and_everybody_is_served_in_order(pair: Pair) -> None:
    seen: list[bytes] = []

    async def slow(_: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        seen.append(body)
        await asyncio.sleep(0.01)
        writer.write(ok(body))

    server, client = await pair(slow)
    texts = [b"%d" % number for number in range(20)]
    assert await asyncio.gather(*(ask(client, text) for text in texts)) == texts
    assert server.connections == 4
    assert [sorted(seen[start : start + 4], key=int) for start in range(0, 20, 4)] == [
        texts[start : start + 4] for start in range(0, 20, 4)
    ]


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"],
        [bytes([byte]) for byte in ok(b"abcde", b"Server: slow\r\n")],
        [ok(b"abcde", b"A: " + b"a" * 10_000 + b"\r\n")],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nabcde\r\n0\r\nX: y\r\n\r\n"],
        [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + ok(b"abcde")],
    ],
    ids=["chunked", "byte by byte", "long head", "extension and trailer", "interim answers first"],
)
async def test_an_answer_may_come_in_any_form(pair: Pair, pieces: list[bytes]) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, _body: bytes) -> None:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)

    server, client = await pair(answer)
    assert await ask(client, b"") == b"abcde"
    assert await ask(client, b"") == b"abcde"
    assert server.connections == 1


@pytest.mark.parametrize(
    "rest", [ok(b"stray"), b"HTTP/1.1 200", b"\0", b"SSH-2.0"], ids=["an answer", "half of one", "a NUL", "something"]
)
@pytest.mark.parametrize("pause", [0.0, 0.02])
async def test_what_follows_an_answer_is_not_the_next_one(pair: Pair, rest: bytes, pause: float) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        if not pause:
            writer.write(ok(body) + rest)
            return
        writer.write(ok(body))
        await asyncio.sleep(pause)
        writer.write(rest)

    server, client = await pair(answer)
    for number in range(3):
        assert await ask(client, b"%d" % number) == b"%d" % number
        await eventually(lambda: server.open == 0)
    assert server.connections == 3


async def test_the_answer_to_a_request_whose_caller_left_is_nobodys(pair: Pair) -> None:
    async def late(_: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        if body == b"left":
            await asyncio.sleep(0.05)
        writer.write(ok(body))

    server, client = await pair(late, most=1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await client.ask("POST", "/", b"left", limit=LIMIT)
    assert await ask(client, b"stayed") == b"stayed"
    assert server.connections == 2


async def test_a_caller_that_leaves_the_queue_takes_nobodys_place(pair: Pair) -> None:
    gate = asyncio.Event()

    async def gated(_: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        await gate.wait()
        writer.write(ok(body))

    _, client = await pair(gated, most=1)
    first, second, third = [asyncio.create_task(ask(client, b"%d" % number)) for number in range(3)]
    await asyncio.sleep(0.01)
    second.cancel()
    gate.set()
    assert (await first, await third) == (b"0", b"2")


async def test_a_connection_that_the_server_closes_or_announces_to_close_is_not_used_again(pair: Pair) -> None:
    async def closing(_: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(ok(body, b"Connection: close\r\n" if body == b"told" else b""))
        if body == b"silent":
            await writer.drain()
            raise ConnectionError

    server, client = await pair(closing)
    for number, body in enumerate([b"told", b"silent", b"told"]):
        assert await ask(client, body) == body
        assert server.connections == number + 1
        await eventually(lambda: server.open == 0)
        await asyncio.sleep(0.02)  # until the client notices


async def test_an_unused_connection_is_left_alone_before_the_server_closes_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = await pair()
    assert await asyncio.gather(*(ask(client, b"") for _ in range(4))) == [b""] * 4
    monkeypatch.setattr(connections, "_KEEP_ALIVE", 0.0)
    assert await ask(client, b"") == b""
    assert server.connections == 5
    await eventually(lambda: server.open == 1)


async def test_an_answer_to_half_a_request_ends_the_connection(home: Path) -> None:
    met = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(ok(b"too large"))
        await asyncio.sleep(0.1)  # reads no further
        writer.transport.abort()

    client = Connections(home / "s", most=1, engine="llama-server", content_type="application/json")
    async with await asyncio.start_unix_server(refuse, home / "s"):
        for number in range(1, 4):
            assert await ask(client, bytes(10_000_000)) == b"too large"
            assert len(met) == number
        client.close()
        await asyncio.sleep(0.3)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (ok(b"x" * (LIMIT + 20_000)), "more bytes"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 10_000, "more bytes"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000, "more bytes"),
        (b"HTTP/1.1 102 Processing\r\n\r\n" * 10_000, "more bytes"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000, "more bytes"),
        (b"HTTP/1.1 200 " + b"y" * 100_000, "more bytes"),
        (b"SSH-2.0-nothing\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "not HTTP"),
    ],
)
async def test_an_answer_that_is_endless_or_no_http_is_a_fault(pair: Pair, answer: bytes, told: str) -> None:
    async def broken(_: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(answer if body else ok(b"fine"))

    server, client = await pair(broken)
    with pytest.raises(BackendFaultError, match=told) as caught:
        await ask(client, b"broken")
    assert "nothing" not in caught.value.message
    assert await ask(client, b"") == b"fine"
    assert server.connections == 2


async def test_after_a_change_of_the_protocol_comes_no_answer(pair: Pair) -> None:
    async def upgrade(_: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
        writer.write(head + ok(b"stray") if body else ok(b"fine"))

    server, client = await pair(upgrade)
    assert await client.ask("POST", "/", b"change", limit=LIMIT) == (101, b"")
    assert await ask(client, b"") == b"fine"
    assert server.connections == 2


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\nContent-", ok(b"12345")[:-1], b"HTTP/1.1 200 OK\r\n\r\nwithout a length"],
    ids=["nothing", "half a head", "a byte too few", "no length"],
)
async def test_a_connection_that_ends_before_its_answer_is_a_loss(pair: Pair, answer: bytes) -> None:
    async def end(_: asyncio.StreamReader, writer: asyncio.StreamWriter, _body: bytes) -> None:
        writer.write(answer)
        await writer.drain()
        raise ConnectionError

    _, client = await pair(end)
    with pytest.raises(ConnectionResetError):
        await ask(client, b"")


async def test_close_ends_requests_on_their_way_and_those_that_wait(pair: Pair) -> None:
    async def never(_: asyncio.StreamReader, _writer: asyncio.StreamWriter, _body: bytes) -> None:
        await asyncio.sleep(5)

    server, client = await pair(never, most=2)
    waiting = [asyncio.create_task(ask(client, b"")) for _ in range(4)]
    await eventually(lambda: server.open == 2)
    client.close()
    assert {type(error) for error in await asyncio.gather(*waiting, return_exceptions=True)} <= {
        ConnectionResetError,
        ConnectionAbortedError,
    }
    with pytest.raises(ConnectionAbortedError):
        await ask(client, b"")


async def test_close_ends_unused_connections(pair: Pair) -> None:
    server, client = await pair()
    await ask(client, b"")
    assert server.open == 1
    client.close()
    await eventually(lambda: server.open == 0)


async def test_nobody_who_listens_is_told_from_a_lost_connection(home: Path) -> None:
    client = Connections(home / "s", most=1, engine="llama-server", content_type="application/json")
    with pytest.raises(FileNotFoundError):
        await ask(client, b"")
    (home / "s").touch()
    with pytest.raises(ConnectionRefusedError):
        await ask(client, b"")
