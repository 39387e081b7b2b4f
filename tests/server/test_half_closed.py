"""Clients that end their sending when they have sent all, and then read: `nc -N`, socat and scripts."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from runed_proto.runed.v1 import runed_pb2 as pb

from runed.server import Server
from tests.server.app import WAIT, Servicer, build_app
from tests.server.clients import SERVICE, RawClient
from tests.server.test_http1 import head
from tests.support import eventually

WAITING = head(b'{"text": "%s"}' % WAIT.encode())

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
Serve = Callable[[Servicer], AbstractAsyncContextManager[Connect]]


@pytest.fixture(params=["unix", "tcp"])
def serve(request: pytest.FixtureRequest, path: Path) -> Serve:
    """Serve over a transport, and yield a function that connects."""
    unix = request.param == "unix"

    @asynccontextmanager
    async def serving(servicer: Servicer) -> AsyncIterator[Connect]:
        sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        sock.bind(str(path) if unix else ("127.0.0.1", 0))
        address = sock.getsockname()
        server = Server(build_app(servicer), sock)
        await server.start()
        yield lambda: asyncio.open_unix_connection(path) if unix else asyncio.open_connection(*address)
        await server.stop(0)

    return serving


@pytest.mark.parametrize("at_once", [True, False], ids=["with the request", "during the work"])
async def test_whole_request_is_answered_after_the_end_of_the_input(
    serve: Serve,
    servicer: Servicer,
    at_once: bool,  # noqa: FBT001 # pytest passes it by name
) -> None:
    async with serve(servicer) as connect:
        reader, writer = await connect()
        writer.write(WAITING)
        if at_once:
            writer.write_eof()
        await eventually(lambda: servicer.waiting == 1)
        if not at_once:
            writer.write_eof()
        await asyncio.sleep(0.2)
        servicer.let_go()
        answer = await asyncio.wait_for(reader.read(), 3)  # to the end: the server closes by itself
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"vector"' in answer
        writer.close()


async def test_all_pipelined_requests_are_answered(serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer) as connect:
        reader, writer = await connect()
        writer.write(head(b'{"text": "a"}') * 3)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 3)
        assert answer.count(b"HTTP/1.1 200") == 3
        writer.close()


async def test_request_without_its_end_is_dropped(serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer) as connect:
        reader, writer = await connect()
        writer.write(head(bytes(100))[:-1])
        writer.write_eof()
        assert b"200" not in await asyncio.wait_for(reader.read(), 3)
        writer.close()


@pytest.mark.parametrize("how", ["close", "half close first", "abort"])
async def test_client_that_has_left_cancels_its_work(serve: Serve, servicer: Servicer, how: str) -> None:
    async with serve(servicer) as connect:
        _, writer = await connect()
        writer.write(WAITING)
        await eventually(lambda: servicer.waiting == 1)
        if how == "half close first":
            writer.write_eof()
            await asyncio.sleep(0.2)
            assert servicer.waiting == 1
        if how == "abort":
            writer.transport.abort()
        else:
            writer.close()
        await eventually(lambda: servicer.cancelled == 1)


async def test_http2_is_answered_too(serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer) as connect, RawClient(*await connect(), takes_bodies=True) as client:
        client.h2.initiate_connection()
        whole = client.call("Embed", pb.EmbedRequest(text=WAIT))
        client.open(f"{SERVICE}/SetCentroids".encode(), b"\0", end=False)
        await client.flush()
        await eventually(lambda: servicer.waiting == 1)
        client.writer.write_eof()
        await asyncio.sleep(0.2)
        servicer.let_go()
        async with asyncio.timeout(3):
            while data := await client.reader.read(65536):
                client._take(client.h2.receive_data(data))
        assert client.exchanges[whole].succeeded


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("at_once", [True, False], ids=["with the request", "during the work"])
async def test_http2_answer_that_can_never_be_sent_ends_the_connection(
    serve: Serve,
    servicer: Servicer,
    window: int,
    at_once: bool,  # noqa: FBT001 # pytest passes it by name
) -> None:
    async with serve(servicer) as connect, RawClient(*await connect(), takes_bodies=False) as client:
        client.h2.initiate_connection()
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
        whole = client.call("Embed", pb.EmbedRequest(text=WAIT))
        await client.flush()
        if at_once:
            client.writer.write_eof()
        await eventually(lambda: servicer.waiting == 1)
        servicer.let_go()
        if not at_once:
            await asyncio.sleep(0.2)
            client.writer.write_eof()
        async with asyncio.timeout(3):
            while data := await client.reader.read(65536):
                client._take(client.h2.receive_data(data))
        assert client.exchanges[whole].reset == ErrorCodes.FLOW_CONTROL_ERROR


async def test_http2_client_that_has_left_cancels_its_work(serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer) as connect:
        async with RawClient(*await connect(), takes_bodies=True) as client:
            client.h2.initiate_connection()
            client.call("Embed", pb.EmbedRequest(text=WAIT))
            await client.flush()
            await eventually(lambda: servicer.waiting == 1)
            client.writer.write_eof()
            await asyncio.sleep(0.2)
            assert servicer.waiting == 1
        await eventually(lambda: servicer.cancelled == 1)
