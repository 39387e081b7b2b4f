"""Streams over the daemon's UNIX socket with asyncio; the twin of `blocking_stream`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from runed.client.calls.drive import drive_async
from runed.client.calls.patience import Deadline
from runed.client.calls.pending import PendingTexts
from runed.client.calls.steps import Connect, Outcome, StreamFlow, Turn, UploadFlow
from runed.client.transport.aio import AsyncTransport, open_socket
from runed.client.transport.aio_slots import AsyncSlots
from runed.client.transport.blocking import CHUNK, DIAL_PATIENCE
from runed.client.wire.http2 import Http2Request
from runed.client.wire.stream import StreamExchange

E = TypeVar("E", bound=StreamExchange | Http2Request)
K = TypeVar("K")
T = TypeVar("T")

_LONGEST_TURN = 0.005
"""Seconds during which texts of a blocking iterator are taken before other tasks run."""


class AsyncStreamConnection(asyncio.Protocol, Generic[E]):
    """A connection that carries one stream; `open` makes it.

    Args:
        exchange: The initial state of the stream.
        news: Set when something can be received.
        give_back: Called when the connection is closed.
    """

    def __init__(self, exchange: E, news: asyncio.Event, give_back: Callable[[], None]) -> None:
        self.exchange = exchange
        self._give_back = give_back
        self._news = news
        self._received = bytearray()
        self._at_end = False
        self._transport: asyncio.Transport | None = None
        self._closed = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(
        cls,
        path: Path,
        exchange: E,
        news: asyncio.Event,
        timeout: float | None,  # noqa: ASYNC109 # a time limit has its own error
        slots: AsyncSlots,
    ) -> AsyncStreamConnection[E]:
        """Connect to the daemon; errors as for `blocking.open_socket`.

        Args:
            path: The daemon's socket.
            exchange: As for the class.
            news: As for the class.
            timeout: Seconds that the connect may take; None means `DIAL_PATIENCE`.
            slots: The connections that it is one of.
        """
        deadline = Deadline(DIAL_PATIENCE if timeout is None else timeout, "no connection for the stream was free")
        try:
            give_back = await slots.take(deadline.timeout)
        except TimeoutError:
            raise deadline.exceeded() from None
        try:
            sock = await open_socket(path, deadline.remaining())
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_unix_connection(lambda: cls(exchange, news, give_back), sock=sock)
        except BaseException:
            give_back()
            raise
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # that of uvloop is no instance of it

    def data_received(self, data: bytes) -> None:
        """Keep the bytes until they are taken. If the caller takes none, the daemon stops sending."""
        assert self._transport is not None
        self._received += data
        if len(self._received) >= CHUNK:
            self._transport.pause_reading()
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 # however it ended
        """Note the end of the connection."""
        self._at_end = True
        self._give_back()
        self._closed.set_result(None)
        self._news.set()

    def write(self) -> None:
        """Write the output of the exchange, which is never more than the daemon's windows allow."""
        assert self._transport is not None
        if data := self.exchange.output():
            self._transport.write(data)

    def take(self) -> bytes | None:
        """Take the received bytes: b"" at the end of the connection, None if there are none."""
        assert self._transport is not None
        if self._received:
            data = bytes(self._received)
            self._received.clear()
            if self._at_end:
                self._news.set()  # the end came with the data, and nothing else will tell of it
            else:
                self._transport.resume_reading()
            return data
        return b"" if self._at_end else None

    def close(self) -> None:
        """Reset the stream if it is not complete, and close the connection."""
        assert self._transport is not None
        self.exchange.reset()
        self.write()
        self._transport.close()

    async def wait_closed(self) -> None:
        """Wait until the descriptor is free."""
        assert self._transport is not None
        # A daemon that does not read must not delay the close.
        self._transport.abort()
        await asyncio.shield(self._closed)


class Feeder(Generic[K]):
    """A task that takes texts from the caller's iterator while there is room for them.

    Args:
        pending: The texts that wait for their outcome.
        source: The caller's texts.
        news: Set when texts were taken, and at their end.
    """

    def __init__(
        self, pending: PendingTexts[K], source: Iterable[tuple[K, str]] | AsyncIterable[tuple[K, str]], news: asyncio.Event
    ) -> None:
        self._pending = pending
        self._source = source
        self._news = news
        self._room = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._feed())
        self._task.add_done_callback(lambda _: news.set())

    def check(self) -> None:
        """Let the task go on if there is room. Raise an exception like Ctrl-C that ended the task."""
        if self._pending.has_room:
            self._room.set()
        if self._task.done():
            self._task.result()

    async def close(self) -> None:
        """End the task."""
        self._task.cancel()
        # An error of the iterator comes too late to matter now.
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()

    async def _feed(self) -> None:
        try:
            async with aclosing(_iterate(self._source)) as items:
                async for item in items:
                    self._pending.add(item)
                    self._news.set()
                    while not self._pending.has_room:
                        self._room.clear()
                        await self._room.wait()
            self._pending.source_ended = True
        except Exception as error:  # noqa: BLE001 # the flow raises it, so that it is not taken for one of the daemon
            self._pending.source_error = error


class _StreamSteps:
    """Performs the steps of one stream or upload.

    Args:
        transport: Performs the steps that streams share with other calls.
        news: Set when bytes or texts have come.
        feeder: Takes the caller's texts; None for an upload.
    """

    def __init__(
        self,
        transport: AsyncTransport,
        news: asyncio.Event,
        feeder: Feeder[Any] | None = None,
    ) -> None:
        self._transport = transport
        self._news = news
        self._feeder = feeder
        self._connections: list[AsyncStreamConnection[StreamExchange]] = []

    async def perform(self, step: Any) -> Any:  # noqa: ANN401 # any step, and its result
        match step:
            case Connect():
                connection = await AsyncStreamConnection.open(
                    self._transport.path, step.exchange, self._news, step.timeout, self._transport.streams
                )
                self._connections.append(connection)
                return connection
            case Turn(connection=AsyncStreamConnection() as connection):
                connection.write()
                await self._wait(step.timeout)
                return connection.take()
            case Turn():
                return await self._wait(step.timeout)
            case _:
                return await self._transport.perform(step)

    async def close(self) -> None:
        """End the feeder, and wait until all descriptors are free."""
        if self._feeder is not None:
            await self._feeder.close()
        for connection in self._connections:
            await connection.wait_closed()

    async def _wait(self, seconds: float | None) -> None:
        if self._feeder is not None:
            self._feeder.check()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        self._news.clear()
        if self._feeder is not None:
            self._feeder.check()


async def run_stream(
    flow: StreamFlow[K],
    pending: PendingTexts[K],
    source: Iterable[tuple[K, str]] | AsyncIterable[tuple[K, str]],
    transport: AsyncTransport,
) -> AsyncGenerator[tuple[K, Outcome], None]:
    """Drive the flow of a stream. Arguments are those of `blocking_stream.run_stream`."""
    news = asyncio.Event()
    steps = _StreamSteps(transport, news, Feeder(pending, source, news))
    try:
        while results := await drive_async(flow, steps.perform):
            for each in results:
                yield each
    finally:
        flow.close()
        await steps.close()


async def run_upload(flow: UploadFlow[T], transport: AsyncTransport) -> T:
    """Drive the flow of a call that sends many messages and gets one. Arguments are those of `blocking_stream.run_upload`."""
    steps = _StreamSteps(transport, asyncio.Event())
    try:
        return await drive_async(flow, steps.perform)
    finally:
        flow.close()
        await steps.close()


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
