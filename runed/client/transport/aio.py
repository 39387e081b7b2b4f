"""The steps of flows over the daemon's UNIX socket with asyncio; the twin of `blocking`."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

from google.protobuf.message import Message

from runed.client.calls.patience import Deadline
from runed.client.calls.steps import Ensure, Send, Sleep
from runed.client.target import Target
from runed.client.transport.aio_slots import AsyncSlots
from runed.client.transport.blocking import (
    BLOCKED,
    BROKEN,
    CHUNK,
    DIAL_PATIENCE,
    DIAL_PAUSE,
    MAX_IDLE,
    broken,
    closed,
    too_late,
)
from runed.client.wire.unary import Answer, Exchange
from runed.lifecycle.listener import dial


class AsyncTransport:
    """Calls with asyncio, from any number of tasks. Each call in flight has its own connection.

    Args:
        target: The daemon to talk to.

    Attributes:
        path: The daemon's socket.
        streams: The connections of streams.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self.path = target.socket
        self._idle: list[_AsyncConnection] = []
        self._abandoned: list[_AsyncConnection] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots = AsyncSlots()
        self.streams = AsyncSlots()
        self._closed = False

    async def perform(self, step: Send | Sleep | Ensure) -> Message | None:
        """Perform a step, and return its result."""
        match step:
            case Send():
                return step.decode(await self._call(step.method, step.request.SerializeToString(), step.timeout))
            case Ensure():
                await asyncio.to_thread(self._target.ensure, step.timeout)
            case Sleep():
                await asyncio.sleep(step.seconds)
        return None

    async def close(self) -> None:
        """Close all idle connections. A connection in use is closed when its call ends."""
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        for connection in idle:
            await connection.wait_closed()

    def check_open(self) -> None:
        """Make sure that calls can be made.

        Raises:
            ClosedError: `close` was called.
        """
        if self._closed:
            raise closed()

    async def _call(self, method: str, message: bytes, timeout: float | None) -> bytes:  # noqa: ASYNC109 # the daemon is told too
        """Call a method. A cancel ends the call in the daemon, too.

        Args:
            method: Its name, as in "Embed".
            message: The encoded request.
            timeout: Seconds that the call may take; None means no limit.

        Returns:
            The encoded response.

        Raises:
            DaemonUnavailableError: Nobody listens, or the connection broke before the answer.
            DeadlineExceededError: The time was over first.
            RunedError: The daemon answered an error.
        """
        self.check_open()
        deadline = Deadline(timeout, "the daemon did not answer")
        try:
            async with asyncio.timeout(timeout):
                give_back = await self._slots.take(None)
                try:
                    return await self._call_now(method, message, deadline)
                finally:
                    give_back()
        except TimeoutError:
            raise deadline.exceeded() from None
        except BROKEN:
            raise broken(self.path) from None

    async def _call_now(self, method: str, message: bytes, deadline: Deadline) -> bytes:
        while connection := self._take_idle():
            with suppress(*BROKEN):
                return await self._use(connection, method, message, deadline)
            self._discard_idle()
        connection = await _AsyncConnection.open(self.path, deadline.remaining())
        return await self._use(connection, method, message, deadline)

    def _take_idle(self) -> _AsyncConnection | None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # Another loop, most likely in a child after a fork. Closing or dropping a connection would remove it from the
            # selector that the child still shares with its parent.
            self._loop = loop
            self._abandoned += self._idle
            self._idle = []
        return self._idle.pop() if self._idle else None

    async def _use(self, connection: _AsyncConnection, method: str, message: bytes, deadline: Deadline) -> bytes:
        try:
            answer = await connection.call(method, message, deadline.remaining())
        except BaseException:
            # As in `Transport`. A cancelled task comes here, too.
            connection.close()
            raise
        if connection.exchange.can_go_on() and not self._closed and len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.close()
        return answer.message()

    def _discard_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()


class _AsyncConnection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.exchange = Exchange()

    @classmethod
    async def open(cls, path: Path, timeout: float | None) -> _AsyncConnection:  # noqa: ASYNC109 # as in `open_socket`
        return cls(*await asyncio.open_unix_connection(sock=await open_socket(path, timeout), limit=CHUNK))

    async def call(self, method: str, message: bytes, timeout: float | None) -> Answer:  # noqa: ASYNC109 # it is sent, not waited for
        self._writer.write(self.exchange.request(method, message, timeout))
        # As in `_Connection.call`.
        with suppress(BrokenPipeError):
            await self._writer.drain()
        while True:
            if answer := self.exchange.receive(await self._reader.read(CHUNK)):
                return answer

    def close(self) -> None:
        self._writer.close()

    async def wait_closed(self) -> None:
        with suppress(OSError):
            await self._writer.wait_closed()


async def open_socket(path: Path, timeout: float | None) -> socket.socket:  # noqa: ASYNC109 # a time limit has its own error
    """Connect to the daemon; arguments and errors as for `blocking.open_socket`."""
    limit = DIAL_PATIENCE if timeout is None else timeout
    try:
        async with asyncio.timeout(limit):
            while True:
                try:
                    # A UNIX socket connects at once or not at all.
                    return dial(path, timeout=0)
                except BLOCKED:
                    await asyncio.sleep(DIAL_PAUSE)
    except TimeoutError:
        raise too_late(limit) from None
