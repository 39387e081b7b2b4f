"""One accepted connection: its bytes, the choice of its protocol, and its end."""

from __future__ import annotations

import asyncio
import time

from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.events import Closed, Event, RawData

from runed.log import describe_exception, get_logger
from runed.server.http1 import Http1Protocol
from runed.server.http2 import PREFACE, Http2Connection
from runed.server.stream import ServerContext
from runed.turns import Ration, take_turn

READ_SIZE = 64 * 1024
"""Bytes that are read from the kernel at a time."""

CLOSE_TIMEOUT = 5.0
"""Seconds that a client may take to read the last bytes, or to end a request that is already answered. It is cut off then."""

_log = get_logger(__name__)


class Connection:
    """Serves one client until it disconnects or the server stops.

    The kernel reports at once that a client on this machine has died, so an idle connection needs no time limit.

    Args:
        context: The state of the server.
        number: The number of this connection, unique in the server.
        reader: The bytes of the client.
        writer: The bytes for the client.
    """

    def __init__(self, context: ServerContext, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._context = context
        self._client = (context.transport, number)
        self._reader = reader
        self._writer = writer
        self._protocol: Http1Protocol | Http2Connection | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._draining = False
        self._ration = Ration()
        self.last_heard = asyncio.get_running_loop().time()

    @property
    def idle(self) -> bool:
        """Whether no request is being answered, and another may come."""
        return not self._draining and (self._protocol is None or self._protocol.idle)

    async def run(self) -> None:
        """Serve until the connection is closed and all its calls of the app have ended."""
        try:
            async with TaskGroup(asyncio.get_running_loop()) as tasks:
                try:
                    await self._serve(tasks)
                finally:
                    await self._close()
        except* Exception as group:  # noqa: BLE001 # a defect here may end this connection, but not the server
            for error in group.exceptions:
                _log.error("connection failed", connection=self._client, **describe_exception(error))

    def drain(self) -> None:
        """Take no new requests, and close when the open ones have been answered. An idle connection closes at once."""
        if isinstance(self._protocol, Http2Connection):
            self._protocol.drain()
        elif self.idle:
            self._writer.close()
        self._draining = True

    def abort(self) -> None:
        """Close at once, also while a request is in flight."""
        self._writer.transport.abort()

    async def _serve(self, tasks: TaskGroup) -> None:
        data = await self._read()
        deadline = self._head_deadline()
        while len(data) < len(PREFACE) and PREFACE.startswith(data):
            if not (more := await self._read(deadline)):
                return
            data += more
        if data.startswith(PREFACE):
            await self._serve_http2(tasks, data)
        else:
            await self._serve_http1(tasks, data)

    async def _serve_http2(self, tasks: TaskGroup, data: bytes) -> None:
        self._protocol = protocol = Http2Connection(self._context, tasks, self._client, self._writer)
        if self._draining:
            protocol.drain()
        tasks.spawn(protocol.write)
        try:
            while data and not protocol.closed:
                await protocol.receive(data)
                data = await self._read()
        finally:
            protocol.close()

    async def _serve_http1(self, tasks: TaskGroup, data: bytes) -> None:
        self._protocol = protocol = Http1Protocol(self._context, tasks, self._client, self._send)
        deadline: float | None = None
        try:
            while data:
                if not self._lingering:
                    await self._handle(protocol, data)
                    deadline = (deadline or self._head_deadline()) if protocol.in_head else None
                data = await self._read(deadline)
        finally:
            await protocol.handle(Closed())

    async def _handle(self, protocol: Http1Protocol, data: bytes) -> None:
        """Handle bytes of HTTP/1.1 in turns."""
        start = 0
        while start < len(data) and not self._lingering:
            await take_turn()
            end = start + self._ration.size
            started = time.perf_counter()
            await protocol.handle(RawData(data[start:end]))
            self._ration.spent(time.perf_counter() - started)
            start = end

    def _head_deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._context.head_timeout

    async def _read(self, deadline: float | None = None) -> bytes:
        """Return the next bytes, or b"" if the client has disconnected, was cut off, or missed the deadline."""
        try:
            async with asyncio.timeout_at(deadline):
                data = await self._reader.read(READ_SIZE)
        except OSError:
            return b""
        self.last_heard = asyncio.get_running_loop().time()
        return data

    async def _send(self, event: Event) -> None:
        """Send bytes of the HTTP/1.1 protocol to the client, or close the connection."""
        match event:
            case RawData() if not self._writer.is_closing():
                self._writer.write(event.data)
                if not self._writer.transport.get_write_buffer_size():
                    return
                try:
                    async with asyncio.timeout(self._context.stall_timeout):
                        await self._writer.drain()
                except OSError:  # the client has disconnected, or (TimeoutError) reads no more
                    self.abort()
            case Closed():
                self._finish()
            case _:
                pass  # Hypercorn's `Updated` drives its idle timer

    def _finish(self) -> None:
        """Close after the last response. First wait until the client stops sending, or it would miss the response."""
        assert isinstance(self._protocol, Http1Protocol)
        if self._protocol.expects_input and not self._lingering and self._writer.can_write_eof():
            self._writer.write_eof()
            self._lingering = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, self.abort)
        else:
            self._writer.close()

    async def _close(self) -> None:
        """Free the descriptor, even if the client does not read its last bytes."""
        if self._lingering is not None:
            self._lingering.cancel()
        self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._writer.wait_closed()
        except OSError:
            self.abort()
