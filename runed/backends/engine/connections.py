"""Kept-alive connections to the engine's UNIX socket. Nothing is sent to a process of another user that listens there.

A library for all of HTTP takes three times the processor time, which every new text would pay (decision 110).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from pathlib import Path
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from runed.backends.engine.interface import ConnectionLostError
from runed.errors import BackendFaultError
from runed.log import get_logger
from runed.peers import peer_of

_KEEP_ALIVE = 3.0
"""Seconds after which an unused connection is not used again. The server closes it after 5 s, which could hit a request on its
way."""

_QUEUE_PAUSE = 0.1
"""Seconds between two tries to connect to an engine whose queue of connections is full. Its watch ends the waiting: an engine
that takes no connection hangs, and is replaced."""

_HEALTH_TIMEOUT = 1.0
"""Seconds that a server has for telling that it is healthy."""

_BUFFER_BYTES = 64 * 1024
"""Bytes that are read at once. asyncio's own way gets 256 KiB from the system for each read and gives them back."""

_HEAD_BYTES = 16 * 1024
"""Most bytes of the head of an answer, which is a few hundred."""

_CONTINUE, _SWITCHING_PROTOCOLS, _OK = 100, 101, 200

_log = get_logger(__name__)


class Connections:
    """The connections to one server. All methods must be called in one event loop.

    Args:
        path: The server's socket.
        most: The most connections. Further requests wait for one, in the order of their coming.
        engine: The name of the engine, for messages.
        content_type: The type of the questions.
    """

    def __init__(self, path: Path, *, most: int, engine: str, content_type: str) -> None:
        self._path = str(path)
        self._engine = engine
        # The socket is the address, so the host means nothing.
        self._headers = f"Host: engine\r\nContent-Type: {content_type}\r\n"
        self._places = asyncio.Semaphore(most)
        self._open: set[_Connection] = set()
        self._unused: list[_Connection] = []
        self._closed = False
        self._told = False

    async def ask(self, method: str, path: str, data: bytes = b"", *, limit: int) -> tuple[int, bytes]:
        """Send a request, and return the status and the body of its answer. There is no time limit.

        Args:
            method: Such as "POST".
            path: Such as "/health".
            data: The question.
            limit: The most bytes of the answer's body. A broken server must not fill the memory of this process.

        Raises:
            FileNotFoundError, ConnectionRefusedError: Nobody listens, or a process of another user. Nothing was sent.
            OSError: There was no complete answer, for another reason.
            BackendFaultError: The answer is not HTTP, or too large.
        """
        head = f"{method} {path} HTTP/1.1\r\n{self._headers}Content-Length: {len(data)}\r\n\r\n"
        async with self._places:
            connection = self._reuse() or await self._connect()
            try:
                return await connection.ask(head.encode() + data, limit + _HEAD_BYTES)
            except OSError:
                while self._unused:  # the server may have closed them, too, and the next try needs one that works
                    self._drop(self._unused.pop())
                raise
            finally:
                if connection.reusable:
                    self._unused.append(connection)
                else:
                    self._drop(connection)

    async def post(self, path: str, data: bytes, *, limit: int) -> tuple[int, bytes]:
        """Send a question, and return the status and the body of its answer. There is no time limit.

        `Supervisor` tells a busy engine from a dead one. A question is sent twice at most.

        Args:
            path: Such as "/embed".
            data: The question.
            limit: As for `ask`.

        Raises:
            ConnectionLostError: There was no complete answer.
            BackendFaultError: As for `ask`.
        """
        try:
            return await self._post(path, data, limit)
        except ConnectionLostError as error:
            if error.unreachable:
                raise
            # A second try: the server may have closed an unused connection just as the request came. It computed nothing then.
            return await self._post(path, data, limit)

    async def healthy(self) -> bool:
        """Return whether the server answers `/health` with status 200 soon."""
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT):
                status, _ = await self.ask("GET", "/health", limit=_HEAD_BYTES)
        except (BackendFaultError, OSError):  # the latter also for a timeout
            return False
        return status == _OK

    def close(self) -> None:
        """Close all connections. Requests on their way fail, and so do all later ones."""
        self._closed = True
        for connection in list(self._open):
            self._drop(connection)

    async def _post(self, path: str, data: bytes, limit: int) -> tuple[int, bytes]:
        try:
            return await self.ask("POST", path, data, limit=limit)
        except OSError as error:
            gone = isinstance(error, FileNotFoundError | ConnectionRefusedError)
            raise ConnectionLostError(unreachable=gone) from None

    def _reuse(self) -> _Connection | None:
        """Take the connection that was used last. Those before it may be left alone until the server closes them."""
        while self._unused:
            connection = self._unused.pop()
            if connection.reusable and time.monotonic() - connection.used < _KEEP_ALIVE:
                return connection
            self._drop(connection)
        return None

    def _drop(self, connection: _Connection) -> None:
        self._open.discard(connection)
        connection.close()

    async def _connect(self) -> _Connection:
        while not self._closed:
            raw = socket.socket(socket.AF_UNIX)
            try:
                raw.setblocking(False)
                raw.connect(self._path)  # at once or not at all, since both ends are on this machine
                self._check_peer(raw)
                _, connection = await asyncio.get_running_loop().create_unix_connection(
                    lambda: _Connection(self._engine), sock=raw
                )
            except BlockingIOError:  # its queue of connections is full
                raw.close()
                await asyncio.sleep(_QUEUE_PAUSE)
            except BaseException:
                raw.close()
                raise
            else:
                self._open.add(connection)
                return connection
        raise ConnectionAbortedError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))

    def _check_peer(self, raw: socket.socket) -> None:
        """Raise a ConnectionRefusedError if a process of another user listens: to the caller, it is as none at all."""
        peer = peer_of(raw)
        if peer.is_ours:
            return
        if not self._told:  # once for each start of the engine, which is looked for many times a second
            self._told = True
            _log.error("another user's process listens on the engine's socket", socket=self._path, uid=peer.uid)
        raise ConnectionRefusedError(errno.ECONNREFUSED, f"a process of user id {peer.uid} listens there")


class _Connection(asyncio.BufferedProtocol):
    """One connection, which has one request at a time.

    Args:
        engine: The name of the engine, for messages.

    Attributes:
        reusable: Whether it may have the next request: the last answer is complete, and nothing else came.
        used: The time of its last answer, in seconds of the monotonic clock.
    """

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self.reusable = False
        self.used = 0.0
        self._transport: asyncio.Transport | None = None
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._parser = HttpResponseParser(self)
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._body: list[bytes] = []
        self._left = 0

    async def ask(self, request: bytes, limit: int) -> tuple[int, bytes]:
        """Send a request. Return the status and the body of its answer, which has `limit` bytes at most with its head."""
        assert self._transport is not None
        if self._transport.is_closing():
            raise _lost()
        self.reusable = False
        self._left = limit
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._answer
        finally:
            self._answer = None
            self._body = []  # a connection that waits for its next request would keep megabytes

    def close(self) -> None:
        """Close the connection at once. A request on its way fails."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    # Called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 # asyncio calls it so
        """Return the place for the next bytes."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Read the next bytes of an answer."""
        self._left -= nbytes
        if self._answer is None or self._answer.done():
            self.close()  # nothing was asked, so this is no answer to what is asked next
        elif self._left < 0:
            self._fail(BackendFaultError(f"{self._engine} answered more bytes than the texts can have"))
        else:
            try:
                self._parser.feed_data(self._buffer[:nbytes])
            except (HttpParserError, HttpParserUpgrade):
                self._fail(BackendFaultError(f"{self._engine} answered something that is not HTTP"))

    def eof_received(self) -> None:
        """Let asyncio close the connection, which calls `connection_lost` in the next round of the event loop."""
        self.reusable = False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 # asyncio calls it so
        """Fail the request on its way."""
        self._fail(_lost())

    # Called by the parser

    def on_message_begin(self) -> None:
        """Note a second answer to one request, which is no answer to the next one."""
        self.reusable = False

    def on_body(self, body: bytes) -> None:
        """Take a part of the answer's body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Hand the answer over."""
        assert self._transport is not None
        status = self._parser.get_status_code()
        if _CONTINUE <= status < _OK and status != _SWITCHING_PROTOCOLS:
            return  # RFC 9110 section 15.2: the answer itself is still to come
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((status, b"".join(self._body)))
            self.used = time.monotonic()
            # An answer to half a request comes from a server that closes the connection.
            self.reusable = self._parser.should_keep_alive() and not self._transport.get_write_buffer_size()

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self.close()


def _lost() -> ConnectionResetError:
    return ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
