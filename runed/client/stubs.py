"""HTTP clients for the generated stubs of connectrpc, over the daemon's UNIX socket.

connectrpc speaks by pyqwest, and pyqwest 0.12 has no UNIX sockets. Its transport interfaces are implemented here on the HTTP/2
of `embed_stream`. A request has a connection of its own. All protocols of connectrpc work (Connect, gRPC and gRPC-Web), and all
kinds of calls. A response is never compressed as a whole.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from urllib.parse import urlsplit

try:
    import pyqwest
    from pyqwest import Headers, HTTPVersion, Request, Response, StreamError, SyncRequest, SyncResponse
    from pyqwest._pyqwest import get_sync_timeout  # has no public name; pyqwest's own transport for tests does this
except ModuleNotFoundError as error:
    raise ImportError('pyqwest is not installed; run: pip install "runed-client[stubs]"') from error

from runed.client.target import Target
from runed.client.transport.aio_slots import AsyncSlots
from runed.client.transport.aio_stream import AsyncStreamConnection
from runed.client.transport.blocking_stream import BlockingStreamConnection
from runed.client.transport.slots import Slots
from runed.client.wire.http2 import Http2Request
from runed.errors import DaemonUnavailableError

_NOT_SENT = {"host", "connection", "transfer-encoding", "accept-encoding"}
"""Headers that are not sent: those that HTTP/2 forbids, and `accept-encoding`, since nothing here decompresses a response."""


def http_client(
    *,
    home: str | os.PathLike[str] | None = None,
    socket_path: str | os.PathLike[str] | None = None,
    spawn: bool = True,
) -> pyqwest.SyncClient:
    """Make the HTTP client of a generated blocking client.

        stub = RunedServiceClientSync("http://runed", http_client=runed.http_client())

    The first call starts the daemon if none runs, and so does each later call that finds none. Errors are those of connectrpc:
    a daemon that cannot be started is UNAVAILABLE. The caller must repeat a call that was refused for the moment. The messages
    of a stream are taken in the thread of the caller, so they must not wait for an answer.

    Args:
        home: As for `connect`.
        socket_path: As for `connect`.
        spawn: As for `connect`.

    Raises:
        SettingsError: A setting cannot be used.
    """
    return pyqwest.SyncClient(_BlockingTransport(Target.resolve(home=home, socket_path=socket_path, spawn=spawn)))


def http_client_async(
    *,
    home: str | os.PathLike[str] | None = None,
    socket_path: str | os.PathLike[str] | None = None,
    spawn: bool = True,
) -> pyqwest.Client:
    """Make the HTTP client of a generated client for asyncio, like `http_client`.

    The messages of a stream may wait for answers.

        stub = RunedServiceClient("http://runed", http_client=runed.http_client_async())

    Args:
        home: As for `connect`.
        socket_path: As for `connect`.
        spawn: As for `connect`.

    Raises:
        SettingsError: A setting cannot be used.
    """
    return pyqwest.Client(_AsyncTransport(Target.resolve(home=home, socket_path=socket_path, spawn=spawn)))


class _BlockingTransport:
    def __init__(self, target: Target) -> None:
        self._target = target
        self._ensured = False
        self._slots = Slots()

    def execute_sync(self, request: SyncRequest) -> SyncResponse:
        limit = get_sync_timeout()
        end = None if limit is None else time.monotonic() + limit.total_seconds()
        content = request.content
        parts = iter([content]) if isinstance(content, bytes) else content
        return _BlockingContent(self._connect(_begin(request), end), parts, end).response()

    def _connect(self, request: Http2Request, end: float | None) -> BlockingStreamConnection[Http2Request]:
        if self._ensured:
            with suppress(DaemonUnavailableError):
                return BlockingStreamConnection(self._target.socket, request, _left(end), self._slots)
        self._target.ensure(_left(end))
        self._ensured = True
        return BlockingStreamConnection(self._target.socket, request, _left(end), self._slots)


class _BlockingContent(Iterator[bytes]):
    """The data of a response, in pieces as they come. Reading it also sends the request.

    Args:
        connection: The connection of the request.
        parts: The data of the request.
        end: The deadline on the clock of `time.monotonic`; None means no limit.
    """

    def __init__(self, connection: BlockingStreamConnection[Http2Request], parts: Iterator[bytes], end: float | None) -> None:
        self._connection = connection
        self._request = connection.exchange
        self._parts = parts
        self._end = end
        self._first = b""
        self._trailers = Headers()

    def response(self) -> SyncResponse:
        """Wait for the head of the response."""
        while not self._request.status:
            self._first = self._turn()
        return SyncResponse(
            status=self._request.status,
            http_version=HTTPVersion.HTTP2,
            headers=_headers(self._request.headers),
            content=self,
            trailers=self._trailers,
        )

    def __next__(self) -> bytes:
        if self._first:
            data, self._first = self._first, b""
            return data
        while not self._request.ended:
            if data := self._turn():
                return data
        _add(self._request.trailers, self._trailers)
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Close the connection; the daemon is told if the response is not complete."""
        self._connection.close()

    def _turn(self) -> bytes:
        """Send the next part of the request, if there is room for it, and receive."""
        request = self._request
        try:
            _check(request)
            if not (request.half_closed or request.blocked):
                part = next(self._parts, None)
                if part is None:
                    request.end()
                else:
                    request.send(part)
            waiting = request.half_closed or request.blocked
            data = self._connection.transfer(_left(self._end) if waiting else 0)
        except BaseException:
            self.close()
            raise
        return b"" if data is None else request.receive(data)


class _AsyncTransport:
    def __init__(self, target: Target) -> None:
        self._target = target
        self._ensured = False
        self._slots = AsyncSlots()

    async def execute(self, request: Request) -> Response:
        news = asyncio.Event()
        connection = await self._connect(_begin(request), news)
        return await _AsyncContent(connection, request.content, news).response()

    async def _connect(self, request: Http2Request, news: asyncio.Event) -> AsyncStreamConnection[Http2Request]:
        if self._ensured:
            with suppress(DaemonUnavailableError):
                return await AsyncStreamConnection.open(self._target.socket, request, news, None, self._slots)
        await asyncio.to_thread(self._target.ensure, None)
        self._ensured = True
        return await AsyncStreamConnection.open(self._target.socket, request, news, None, self._slots)


class _AsyncContent(AsyncIterator[bytes]):
    """The data of a response, in pieces as they come. A task sends the request meanwhile.

    Args:
        connection: The connection of the request.
        content: The data of the request.
        news: Set when bytes have come, and when the request is sent.
    """

    def __init__(
        self, connection: AsyncStreamConnection[Http2Request], content: bytes | AsyncIterator[bytes], news: asyncio.Event
    ) -> None:
        self._connection = connection
        self._request = connection.exchange
        self._news = news
        self._room = asyncio.Event()
        self._first = b""
        self._trailers = Headers()
        self._sending = asyncio.get_running_loop().create_task(self._send(content))
        self._sending.add_done_callback(lambda _: news.set())

    async def response(self) -> Response:
        """Wait for the head of the response."""
        while not self._request.status:
            self._first = await self._turn()
        return Response(
            status=self._request.status,
            http_version=HTTPVersion.HTTP2,
            headers=_headers(self._request.headers),
            content=self,
            trailers=self._trailers,
        )

    async def __anext__(self) -> bytes:
        if self._first:
            data, self._first = self._first, b""
            return data
        while not self._request.ended:
            if data := await self._turn():
                return data
        _add(self._request.trailers, self._trailers)
        await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Close the connection; the daemon is told if the response is not complete."""
        self._sending.cancel()
        await asyncio.wait([self._sending])
        if not self._sending.cancelled():
            self._sending.exception()  # the error comes too late to matter, or was raised already
        self._connection.close()
        await self._connection.wait_closed()

    async def _turn(self) -> bytes:
        """Wait until bytes have come, and receive them."""
        try:
            _check(self._request)
            await self._news.wait()
            self._news.clear()
            if self._sending.done():
                self._sending.result()
        except BaseException:
            await self.aclose()
            raise
        data = self._connection.take()
        received = b"" if data is None else self._request.receive(data)
        self._connection.write()
        if not self._request.blocked:
            self._room.set()
        return received

    async def _send(self, content: bytes | AsyncIterator[bytes]) -> None:
        if isinstance(content, bytes):
            await self._send_part(content)
        else:
            async for part in content:
                await self._send_part(part)
        self._request.end()
        self._connection.write()

    async def _send_part(self, part: bytes) -> None:
        self._request.send(part)
        self._connection.write()
        while self._request.blocked:
            self._room.clear()
            await self._room.wait()


def _begin(request: Request | SyncRequest) -> Http2Request:
    url = urlsplit(request.url)
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    headers = [(name, value) for name, value in request.headers.items() if name not in _NOT_SENT]
    return Http2Request(path, headers, method=request.method, authority=url.netloc)


def _check(request: Http2Request) -> None:
    """Raise the failure of a request. connectrpc reads the code of a `StreamError`."""
    if request.failure is None:
        return
    if request.reset_code is not None:
        raise StreamError(request.failure.message, request.reset_code)
    raise request.failure


def _headers(pairs: Iterable[tuple[bytes, bytes]]) -> Headers:
    headers = Headers()
    _add(pairs, headers)
    return headers


def _add(pairs: Iterable[tuple[bytes, bytes]], headers: Headers) -> None:
    for name, value in pairs:
        if not name.startswith(b":"):
            headers.add(name.decode(), value.decode())


def _left(end: float | None) -> float | None:
    if end is None:
        return None
    if (seconds := end - time.monotonic()) <= 0:
        raise TimeoutError("the time of the call is over")
    return seconds
