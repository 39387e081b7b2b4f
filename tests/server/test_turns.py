"""No client keeps the others waiting: connections take turns, and what is given up before its turn costs no call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from hyperframe.frame import RstStreamFrame
from runed_proto.runed.v1 import runed_pb2 as pb

from tests.server.app import Servicer
from tests.server.clients import SERVICE, RawClient
from tests.server.conftest import Serve

WORK = 0.005
"""Seconds of the event loop that a call of `Costly` takes."""


@asynccontextmanager
async def waits_of_another_client(path: Path, clock: Callable[[], float] = time.process_time) -> AsyncIterator[list[float]]:
    """Call Health again and again after a pause of 10 ms, and note how far a clock goes on until each answer.

    The pause counts, since the event loop may stand still during it. The default clock counts seconds of processor time, of
    the server and its clients together.
    """
    waits: list[float] = []

    async def ask() -> None:
        while True:
            began = clock()
            try:
                await asyncio.sleep(0.01)
                reader, writer = await asyncio.open_unix_connection(path)
                query = "encoding=json&message=%7B%7D"
                writer.write(f"GET {SERVICE}/Health?{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
                with closing(writer):
                    assert (await reader.read()).startswith(b"HTTP/1.1 200")
            finally:
                waits.append(clock() - began)  # a call without an answer at the end has waited, too

    asking = asyncio.create_task(ask())
    try:
        yield waits
    finally:
        failed = asking.done()
        asking.cancel()
        await asyncio.wait({asking})
        assert not failed


class Costly:
    """An app whose calls each keep the event loop for `WORK` seconds, except those of Health."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 # ASGI's
        if not scope["path"].endswith("Health"):
            self.calls += 1
            time.sleep(WORK)  # noqa: ASYNC251 # it stands for work in the event loop
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")], "trailers": False})
        await send({"type": "http.response.body", "body": b"{}", "more_body": False})


async def test_requests_that_are_reset_before_their_turn_cost_no_call(path: Path, serve: Serve) -> None:
    app = Costly()
    async with serve(app), await RawClient.connect(path) as client:
        for _ in range(300):
            stream = client.open(b"/x", end=False)
            client.h2.reset_stream(stream)
        await client.flush()
        assert (await client.over(client.open(b"/x"))).ended
    assert app.calls < 60, "all but the few whose reset came with a later piece of the input"


async def test_many_requests_at_once_do_not_keep_another_client_waiting(path: Path, serve: Serve) -> None:
    app = Costly()
    async with serve(app), waits_of_another_client(path, lambda: app.calls) as waits:
        clients = [await RawClient.connect(path) for _ in range(4)]
        for client in clients:
            for _ in range(100):
                client.open(b"/x")
            await client.flush()
        for client in clients:
            assert await client.until(lambda: all(it.over for it in client.exchanges.values()), within=20)  # noqa: B023 # at once
            await client.__aexit__()
    assert app.calls == 400
    assert max(waits) < 40, "calls of the others before an answer; 400 if they take no turns"


async def test_tiny_chunks_do_not_keep_another_client_waiting(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer), waits_of_another_client(path) as waits:
        reader, writer = await asyncio.open_unix_connection(path)
        head = f"POST {SERVICE}/Embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 160_000 + b"2\r\n{}\r\n0\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
    assert max(waits) < 0.6, "seconds; all the chunks take over one"


async def test_another_client_is_served_again_and_again_between_resets_of_nothing(
    path: Path, serve: Serve, servicer: Servicer
) -> None:
    async with serve(servicer), waits_of_another_client(path) as waits, await RawClient.connect(path) as client:
        stream = client.open(b"/x", end=False)
        client.h2.reset_stream(stream)
        await client.flush()
        client.writer.write(RstStreamFrame(stream).serialize() * 100_000)
        await client.over(client.call("Embed", pb.EmbedRequest(text="x")), within=20)
    assert max(waits) < sum(waits) / 7, "a third or more if each read from the socket is handled at once"
