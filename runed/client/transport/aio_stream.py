"""Streams over the daemon's UNIX socket with asyncio; the twin of `stream_transport`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from runed.client.calls.flows import Ensure, Send, Sleep
from runed.client.calls.stream import Connect, Give, Job, Outcome, StreamFlow, Turn, UploadFlow
from runed.client.transport.aio import open_socket
from runed.client.transport.blocking import CHUNK, too_late
from runed.client.wire.stream import StreamExchange
from runed.errors import RunedError

K = TypeVar("K")
T = TypeVar("T")

_LONGEST_TURN = 0.005
"""Seconds for which texts of a blocking iterator are taken before other tasks have their turn."""


class AsyncStreamConnection(asyncio.Protocol):
    """A connection that carries one stream.

    Args:
        exchange: The state that it begins with.
        news: Set when something can be received.
    """

    def __init__(self, exchange: StreamExchange, news: asyncio.Event) -> None:
        self.exchange = exchange
        self._news = news
        self._received = bytearray()
        self._at_end = False
        self._transport: asyncio.Transport | None = None
        self._closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Keep what came until it is taken; a caller who takes nothing holds up the daemon, and not us its answers."""
        assert self._transport is not None
        self._received += data
        if len(self._received) >= CHUNK:
            self._transport.pause_reading()
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 # however it ended
        """Note the end."""
        self._at_end = True
        self._closed.set_result(None)
        self._news.set()

    def write(self) -> None:
        """Write what the exchange gives; no more waits than the daemon has granted."""
        assert self._transport is not None
        if data := self.exchange.output():
            self._transport.write(data)

    def take(self) -> bytes | None:
        """Take what came: b"" at the end of the connection, None if there is nothing."""
        assert self._transport is not None
        if self._received:
            data = bytes(self._received)
            self._received.clear()
            if not self._at_end:
                self._transport.resume_reading()
            return data
        return b"" if self._at_end else None

    def close(self) -> None:
        """Give up what is still open of the stream, and close."""
        assert self._transport is not None
        self.exchange.reset()
        self.write()
        self._transport.close()

    async def wait_closed(self) -> None:
        """Wait until the descriptor is free."""
        assert self._transport is not None
        # A daemon that does not read must not hold us up.
        self._transport.abort()
        await asyncio.shield(self._closed)


class Feeder(Generic[K]):
    """A task that takes texts from the caller's iterator while the job has room.

    Args:
        job: Where they are put.
        source: The caller's texts.
        news: Set when there are some, and at their end.
    """

    def __init__(
        self, job: Job[K], source: Iterable[tuple[K, str]] | AsyncIterable[tuple[K, str]], news: asyncio.Event
    ) -> None:
        self._job = job
        self._source = source
        self._news = news
        self._room = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._feed())
        self._task.add_done_callback(lambda _: news.set())

    def check(self) -> None:
        """Let the task go on if there is room, and raise what the caller's iterator raised."""
        if self._job.has_room:
            self._room.set()
        if self._task.done():
            self._task.result()

    async def close(self) -> None:
        """End the task."""
        self._task.cancel()
        # What the iterator raises now comes too late to matter.
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()

    async def _feed(self) -> None:
        async with aclosing(_iterate(self._source)) as items:
            async for item in items:
                self._job.add(item)
                self._news.set()
                while not self._job.has_room:
                    self._room.clear()
                    await self._room.wait()
        self._job.source_ended = True


async def run_stream(
    flow: StreamFlow[K],
    job: Job[K],
    source: Iterable[tuple[K, str]] | AsyncIterable[tuple[K, str]],
    path: Path,
    perform: Callable[[Send | Sleep | Ensure], Awaitable[Any]],
) -> AsyncGenerator[tuple[K, Outcome], None]:
    """Do the steps of a stream; arguments as for `stream_transport.run_stream`."""
    result: Any = None
    error: RunedError | None = None
    news = asyncio.Event()
    feeder = Feeder(job, source, news)
    connections: list[AsyncStreamConnection] = []
    try:
        while True:
            try:
                step = flow.throw(error) if error else flow.send(result)
            except StopIteration:
                return
            result = error = None
            if isinstance(step, Give):
                for each in step.results:
                    yield each
                continue
            if isinstance(step, Turn):
                result = await _turn(step, feeder, news)
                continue
            try:
                if isinstance(step, Connect):
                    result = await _connect(path, step, news)
                    connections.append(result)
                else:
                    result = await perform(step)
            except RunedError as raised:
                error = raised
    finally:
        flow.close()
        await feeder.close()
        for connection in connections:
            await connection.wait_closed()


async def run_upload(flow: UploadFlow[T], path: Path, perform: Callable[[Send | Sleep | Ensure], Awaitable[Any]]) -> T:
    """Do the steps of a call that sends many messages and gets one; arguments as for `stream_transport.run_upload`."""
    result: Any = None
    error: RunedError | None = None
    news = asyncio.Event()
    connections: list[AsyncStreamConnection] = []
    try:
        while True:
            try:
                step = flow.throw(error) if error else flow.send(result)
            except StopIteration as stop:
                value: T = stop.value
                return value
            result = error = None
            try:
                match step:
                    case Connect():
                        result = await _connect(path, step, news)
                        connections.append(result)
                    case Turn(connection=AsyncStreamConnection() as connection):
                        connection.write()
                        await _wait(news, step.timeout)
                        result = connection.take()
                    case Turn():
                        pass
                    case _:
                        result = await perform(step)
            except RunedError as raised:
                error = raised
    finally:
        flow.close()
        for connection in connections:
            await connection.wait_closed()


async def _turn(step: Turn, feeder: Feeder[K], news: asyncio.Event) -> bytes | None:
    connection = step.connection
    if isinstance(connection, AsyncStreamConnection):
        connection.write()
    feeder.check()
    await _wait(news, step.timeout)
    feeder.check()
    return connection.take() if isinstance(connection, AsyncStreamConnection) else None


async def _wait(news: asyncio.Event, seconds: float | None) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await news.wait()
    news.clear()


async def _connect(path: Path, step: Connect, news: asyncio.Event) -> AsyncStreamConnection:
    try:
        async with asyncio.timeout(step.timeout):
            sock = await open_socket(path)
    except TimeoutError:
        raise too_late(step.timeout) from None
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_unix_connection(lambda: AsyncStreamConnection(step.exchange, news), sock=sock)
    return connection


async def _iterate(source: Iterable[tuple[K, str]] | AsyncIterable[tuple[K, str]]) -> AsyncGenerator[tuple[K, str], None]:
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield item
    else:
        loop = asyncio.get_running_loop()
        turn_began = loop.time()
        for item in source:
            yield item
            if loop.time() - turn_began > _LONGEST_TURN:
                await asyncio.sleep(0)
                turn_began = loop.time()
