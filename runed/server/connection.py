"""One accepted connection: its bytes, the choice of its protocol, and its end."""

from __future__ import annotations

import asyncio

from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.events import Closed, Event, RawData

from runed.log import describe_exception, get_logger
from runed.server.http1 import Http1Protocol
from runed.server.http2 import PREFACE, Http2Connection
from runed.server.stream import ServerContext

READ_SIZE = 64 * 1024
"""Bytes taken from the kernel at a time."""

CLOSE_TIMEOUT = 5.0
"""Seconds in which a client must take the last bytes, or end a request that is already answered, before it is cut off."""

_log = get_logger(__name__)


class Connection:
    """Serves one client until it goes or the server stops.

    A client of a UNIX socket or of loopback that dies is reported by the kernel at once, so an idle connection needs no time
    limit.

    Args:
        context: What all connections share.
        number: The number that tells this connection from all others of the server.
        reader: What the client sends.
        writer: What the client gets.
    """

    def __init__(self, context: ServerContext, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._context = context
        self._client = (context.transport, number)
        self._reader = reader
        self._writer = writer
        self._protocol: Http1Protocol | Http2Connection | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._draining = False
        self.last_heard = asyncio.get_running_loop().time()

    @property
    def idle(self) -> bool:
        """Whether no request is being answered, and more may come."""
        return not self._draining and (self._protocol is None or self._protocol.idle)

    async def run(self) -> None:
        """Serve until the connection is over and all calls of the app on it have ended."""
        try:
            async with TaskGroup(asyncio.get_running_loop()) as tasks:
                try:
                    await self._serve(tasks)
                finally:
                    await self._close()
        except* Exception as group:  # noqa: BLE001 # a fault of ours may cost this connection, but not the server
            for error in group.exceptions:
                _log.error("connection failed", connection=self._client, **describe_exception(error))

    def drain(self) -> None:
        """Take no new requests and close when the open ones have been answered; an idle connection closes at once."""
        if isinstance(self._protocol, Http2Connection):
            self._protocol.drain()
        elif self.idle:
            self._writer.close()
        self._draining = True

    def abort(self) -> None:
        """Close at once, whatever is in flight."""
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
                    await protocol.handle(RawData(data))
                    deadline = (deadline or self._head_deadline()) if protocol.in_head else None
                data = await self._read(deadline)
        finally:
            await protocol.handle(Closed())

    def _head_deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._context.head_timeout

    async def _read(self, deadline: float | None = None) -> bytes:
        """Give the next bytes, or none when the client has gone, has been cut off, or was too slow."""
        try:
            async with asyncio.timeout_at(deadline):
                data = await self._reader.read(READ_SIZE)
        except OSError:
            return b""
        self.last_heard = asyncio.get_running_loop().time()
        return data

    async def _send(self, event: Event) -> None:
        """Take what the HTTP/1.1 protocol has for the client."""
        match event:
            case RawData() if not self._writer.is_closing():
                self._writer.write(event.data)
                if not self._writer.transport.get_write_buffer_size():
                    return
                try:
                    async with asyncio.timeout(self._context.stall_timeout):
                        await self._writer.drain()
                except OSError:  # the client has gone, or (TimeoutError) takes nothing any more
                    self.abort()
            case Closed():
                self._finish()
            case _:
                pass  # Hypercorn's `Updated` drives its idle timer

    def _finish(self) -> None:
        """Close after the last response; one that is still sending must end that first, or it would not see the response."""
        assert isinstance(self._protocol, Http1Protocol)
        if self._protocol.expects_input and not self._lingering and self._writer.can_write_eof():
            self._writer.write_eof()
            self._lingering = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, self.abort)
        else:
            self._writer.close()

    async def _close(self) -> None:
        """Free the descriptor, even if the client does not take what is left for it."""
        if self._lingering is not None:
            self._lingering.cancel()
        self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._writer.wait_closed()
        except OSError:
            self.abort()
