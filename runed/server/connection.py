"""One accepted connection: its bytes, the choice of its protocol, and its end."""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import time
from collections.abc import Collection, Coroutine
from contextlib import closing, suppress
from typing import Any

from runed.log import describe_exception, get_logger, log_refusal
from runed.peers import Peer, peer_of
from runed.server.http1 import Http1Protocol
from runed.server.http2 import PREFACE, Http2Connection
from runed.server.lingering import LINGER_SECONDS
from runed.server.stream import SLOW, RequestStream, ServerContext
from runed.turns import Ration, take_turn

READ_SIZE = 64 * 1024
"""Bytes that are read from the kernel at a time."""

FRESH = 0.1
"""Seconds for which a connection or a request is too young to make room for another one."""

LOOK_SECONDS = 0.1
"""Seconds between two looks whether a client that has ended its input is still there."""

PROBE_LOOKS = 5
"""Number of such looks for each probe of a TCP connection. Answers that come soon are not mixed with probes."""

_log = get_logger(__name__)


class Connection:
    """Serves one client until it disconnects or the server stops.

    The kernel reports at once that a client on this machine has died, so an idle connection needs no time limit.

    Args:
        context: The state of the server.
        number: The number of this connection, unique in the server.
        sock: The accepted socket.
    """

    def __init__(self, context: ServerContext, number: int, sock: socket.socket) -> None:
        self._context = context
        self._client = (context.transport, number)
        self._sock = sock
        self._reader = asyncio.StreamReader(READ_SIZE // 2)  # it holds twice as much before it stops reading
        self._writer: asyncio.StreamWriter | None = None
        self._protocol: Http1Protocol | Http2Connection | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._draining = False
        self._handling = False
        self._ration = Ration()
        self._last_heard = asyncio.get_running_loop().time()

    @property
    def idle(self) -> bool:
        """Whether no request is being answered, and another may come."""
        return not (self._draining or self._requests)

    @property
    def peer(self) -> Peer | None:
        """The process at the other end of a UNIX socket; None if it is gone, and the system does not tell who it was."""
        try:
            return peer_of(self._sock)
        except ConnectionResetError:
            return None

    def missed_since(self, now: float) -> float | None:
        """Return the time since which the connection can be missed, when there are too many.

        That is the time since which its client is silent, or keeps its requests waiting. It is None if a request waits for us,
        if the client may be about to go on, or if the connection is being closed.

        Args:
            now: The time of the event loop.
        """
        if self._draining:
            return None
        since = [request.waits_since(now) for request in self._requests] or [self._last_heard]
        waiting = [moment for moment in since if moment is not None and now - moment > FRESH]
        return max(waiting) if len(waiting) == len(since) else None

    def give_way(self) -> bool:
        """Close, since another connection needs the room. Return whether this is possible."""
        silent = asyncio.get_running_loop().time() - self._last_heard
        if not self.idle:
            self.abort()
        elif (self._handling and silent < SLOW) or self._has_input():  # we have not come to its bytes yet
            return False
        else:
            self.drain()
        return True

    async def run(self) -> None:
        """Serve until the connection is closed and all its calls of the app have ended."""
        try:
            self._writer = writer = await _open(self._sock, self._reader)
            async with asyncio.TaskGroup() as tasks:
                try:
                    await self._serve(tasks, writer)
                finally:
                    await self._close(writer)
        except* Exception as group:  # noqa: BLE001 # a defect here may end this connection, but not the server
            for error in group.exceptions:
                facts = describe_exception(error)
                log_refusal(_log, "connection failed", level=logging.ERROR, kind=str(facts), connection=self._client, **facts)

    def drain(self) -> None:
        """Take no new requests, and close when the open ones have been answered. An idle connection closes at once."""
        if isinstance(self._protocol, Http2Connection):
            self._protocol.drain()
        elif self._writer is not None and self.idle:
            self._writer.close()
        self._draining = True

    def abort(self) -> None:
        """Close at once, also while a request is in flight."""
        self._draining = True
        if self._writer is not None:
            self._writer.transport.abort()

    @property
    def _requests(self) -> Collection[RequestStream]:
        return () if self._protocol is None else self._protocol.requests

    async def _serve(self, tasks: asyncio.TaskGroup, writer: asyncio.StreamWriter) -> None:
        if self._draining:  # since before the connection was open
            return
        data = await self._read()
        deadline = self._head_deadline()
        while len(data) < len(PREFACE) and PREFACE.startswith(data):
            if not (more := await self._read(deadline)):
                return
            data += more
        if data.startswith(PREFACE):
            await self._serve_http2(tasks, writer, data)
        else:
            await self._serve_http1(tasks, data)

    async def _serve_http2(self, tasks: asyncio.TaskGroup, writer: asyncio.StreamWriter, data: bytes) -> None:
        self._protocol = protocol = Http2Connection(self._context, tasks, self._client, writer)
        if self._draining:
            protocol.drain()
        tasks.create_task(protocol.write())
        deadline: float | None = None
        try:
            while data and not protocol.closed:
                await self._in_share(protocol, protocol.receive(data))
                deadline = (deadline or self._frame_deadline()) if protocol.in_frame else None
                data = await self._read(deadline)
            if not data and not protocol.closed:
                await self._answer_the_rest(protocol)
        finally:
            protocol.close()

    async def _serve_http1(self, tasks: asyncio.TaskGroup, data: bytes) -> None:
        self._protocol = protocol = Http1Protocol(
            self._context, tasks, self._client, write=self._send, finish=self._finish, abort=self.abort
        )
        deadline: float | None = None
        try:
            while data:
                if not self._lingering:
                    await self._in_share(protocol, self._handle_in_turns(protocol, data))
                    deadline = (deadline or self._head_deadline()) if protocol.in_head else None
                data = await self._read(deadline)
            await self._answer_the_rest(protocol)
        finally:
            protocol.close()

    async def _handle_in_turns(self, protocol: Http1Protocol, data: bytes) -> None:
        """Handle bytes of HTTP/1.1 in turns."""
        start = 0
        while start < len(data) and not self._lingering:
            await take_turn()
            end = start + self._ration.size
            started = time.perf_counter()
            await protocol.receive(data[start:end])
            self._ration.spent(time.perf_counter() - started)
            start = end

    async def _in_share(self, protocol: Http1Protocol | Http2Connection, handling: Coroutine[Any, Any, None]) -> None:
        """Handle bytes. Let a client that has not passed the gate wait for its share of the event loop before."""
        if self._context.gate is None or protocol.passed_gate:
            await handling
            return
        with closing(handling):
            await self._context.share.turn()
            began = time.perf_counter()
            await handling
        if not protocol.passed_gate:  # otherwise the time is that of an app
            self._context.share.charge(time.perf_counter() - began)

    async def _answer_the_rest(self, protocol: Http1Protocol | Http2Connection) -> None:
        """Let the answers to whole requests go out after the end of the client's input.

        Many a client ends its input when it has sent all, and then reads (`nc -N`). A client that has closed both directions
        has left.
        """
        if not await protocol.end_input() or self._has_left():
            return
        looks = 0
        while not (protocol.at_rest.is_set() or self._has_left()):
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await protocol.at_rest.wait()
            looks += 1
            if self._context.transport == "tcp" and looks % PROBE_LOOKS == 0:
                # Over TCP, a client that has closed both directions says so only when it gets bytes.
                await protocol.probe()

    def _has_left(self) -> bool:
        """Return whether the connection is closed in both directions."""
        if self._writer is None or self._writer.is_closing():
            return True
        return bool(events_of(self._writer.get_extra_info("socket"), 0))  # the kernel tells the end and errors in any case

    def _has_input(self) -> bool:
        """Return whether bytes of the client wait to be read. A closed connection has none, and no descriptor to ask by."""
        if self._writer is None:
            return True
        return not self._writer.is_closing() and bool(events_of(self._writer.get_extra_info("socket"), select.POLLIN))

    def _head_deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._context.head_timeout

    def _frame_deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._context.stall_timeout

    async def _read(self, deadline: float | None = None) -> bytes:
        """Return the next bytes, or b"" if the client has disconnected, was cut off, or missed the deadline."""
        self._handling = False
        try:
            if deadline is None:  # the wait of most calls
                data = await self._reader.read(READ_SIZE)
            else:
                async with asyncio.timeout_at(deadline):
                    data = await self._reader.read(READ_SIZE)
        except OSError:
            return b""
        self._handling = True
        self._last_heard = asyncio.get_running_loop().time()
        return data

    async def _send(self, data: bytes) -> None:
        """Send bytes of the HTTP/1.1 protocol to the client."""
        assert self._writer is not None
        if not data or self._writer.is_closing():
            return
        self._writer.write(data)
        if not self._writer.transport.get_write_buffer_size():
            return
        try:
            async with asyncio.timeout(self._context.stall_timeout):
                await self._writer.drain()
        except OSError:  # the client has disconnected, or (TimeoutError) reads no more
            self.abort()

    def _finish(self) -> None:
        """Close after the last response. First wait until the client stops sending, or it would miss the response."""
        assert self._writer is not None
        assert isinstance(self._protocol, Http1Protocol)
        writer = self._writer
        if self._protocol.expects_input and not self._lingering and writer.can_write_eof():
            with suppress(OSError):  # the client has left
                writer.write_eof()
                self._lingering = asyncio.get_running_loop().call_later(LINGER_SECONDS, self.abort)
                return
        writer.close()

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        """Free the descriptor, even if the client does not read its last bytes."""
        if self._lingering is not None:
            self._lingering.cancel()
        writer.close()
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                await writer.wait_closed()
        except OSError:
            self.abort()


async def _open(sock: socket.socket, reader: asyncio.StreamReader) -> asyncio.StreamWriter:
    """Make a stream of an accepted socket."""
    loop = asyncio.get_running_loop()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock)
    return asyncio.StreamWriter(transport, protocol, reader, loop)


def events_of(sock: socket.socket, wanted: int) -> int:
    """Return what the kernel has to tell about a connection now: some of the wanted events, and in any case its end and errors.

    Args:
        sock: An open socket.
        wanted: The events, such as `select.POLLIN`.
    """
    poll = select.poll()
    poll.register(sock, wanted)
    return sum(events for _, events in poll.poll(0))
