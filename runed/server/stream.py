"""One request and its response, as the link between a connection and the ASGI app."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any
from urllib.parse import unquote

from runed.errors import RunedError
from runed.log import describe_exception, get_logger, log_refusal
from runed.server.budget import Budget, enter
from runed.server.gate import Gate, Share
from runed.server.heads import SMALL_HEAD, Head, Headers, Refusal

Application = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application: `await app(scope, receive, send)`. Each framework has its own types for the three."""

BODY_LIMIT = 256 * 1024
"""Bytes of the body of one request that wait for the app. A client that sends faster than the app reads has to wait."""

REQUEST_COST = 24 * 1024
"""Bytes that a request costs besides its headers and its body: its task, its buffers and its state."""

DUPLEX_COST = 512 * 1024
"""Bytes that a request in both directions costs besides: the texts and vectors of it that are in flight."""

SPARE = 3
"""Divisor of a body that gives what its growing buffers take besides."""

SLOW = 1.0
"""Seconds after which a client that does not go on may be missed when room is needed."""

DUPLEX = "runed.duplex"
"""Our own ASGI extension, for HTTP/2 only; see `RequestStream.begin_duplex`."""

SMALL = "runed.small_head"
"""The key of a request that tells whether its head is small; see `SMALL_HEAD`."""

WHEN_GONE = "runed.when_gone"
"""The key of a request for `RequestStream.when_gone`. ASGI tells that a client has left only to a task that waits for it."""

_TRAILERS = "http.response.trailers"
"""An extension of ASGI, for HTTP/2 only, and its message."""

_BODILESS = {204, 304}
"""Statuses of responses without a body."""

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServerContext:
    """The state that all connections of one server share.

    Attributes:
        app: The ASGI application.
        draining: Set when a drain begins.
        max_streams: Requests that one HTTP/2 connection may have open at a time.
        head_timeout: Seconds within which the head of a request must be complete once it has begun.
        stall_timeout: Seconds for which a request waits for a client that neither sends nor reads a byte.
        transport: The name of the transport, "unix" or "tcp".
        budget: The memory of all requests.
        gate: Refuses requests by their heads; None for a server that serves everybody.
        share: The part of the event loop that clients get which have not passed the gate.
    """

    app: Application
    draining: asyncio.Event
    max_streams: int
    head_timeout: float
    stall_timeout: float
    transport: str
    budget: Budget
    gate: Gate | None
    share: Share

    def refusal(self, head: Head) -> Refusal | None:
        """Return the answer to a request that does not pass the gate, or None."""
        return None if self.gate is None else self.gate(head)


class _Phase(Enum):
    """What the app sends next."""

    HEAD = auto()
    BODY = auto()
    TRAILERS = auto()
    NOTHING = auto()


class RequestStream(ABC):
    """One request. Its body waits in one buffer until the app reads it, so that what waits has a size in bytes.

    Args:
        context: The state of the server.
        tasks: The tasks of the app's calls.
        client: The name of the transport, and the number of the connection.

    Attributes:
        server_context: As above.
        closed: Whether the request has ended, or was abandoned.
        request_ended: Whether all of the request has come.
    """

    def __init__(self, context: ServerContext, tasks: asyncio.TaskGroup, client: tuple[str, int]) -> None:
        now = asyncio.get_running_loop().time()
        self.server_context = context
        self.closed = False
        self.request_ended = False
        self._tasks = tasks
        self._client = client
        self._phase = _Phase.HEAD
        self._bodiless = False
        self._takes_trailers = self._sends_trailers = False
        self._body = bytearray()
        self._end_delivered = False
        self._changed = asyncio.Event()
        self._disconnected = asyncio.Event()
        self._duplex = False
        self._when_gone: Callable[[], None] | None = None
        self._refusal: RunedError | None = None
        self._account = context.budget.open(self)
        self._receives_since = now
        self._sends_since: float | None = None

    def waits_since(self, now: float) -> float | None:
        """Return the time since which the request waits for its client; None if it does not, or if the client may be just busy.

        Args:
            now: The time of the event loop.
        """
        if self._sends_since is not None:
            return self._sends_since if now - self._sends_since > SLOW else None
        if self.request_ended or self._account.owed:
            return None
        return self._receives_since if not self._duplex or now - self._receives_since > SLOW else None

    def evict(self, error: RunedError) -> None:
        """End the request, since others need its memory. A client that still sends is told why."""
        if self._sends_since is not None:
            self.cut_off()
            return
        self._refusal = error
        self.body_was_read(len(self._body))
        self._body.clear()
        self._changed.set()

    def begin(self, head: Head) -> None:
        """Call the app for a request."""
        self._take(REQUEST_COST + head.size, base=True)
        both_ways = head.version == "2"  # in HTTP/1.1, one direction follows the other, and few clients know trailers
        self._bodiless = head.method == b"HEAD"
        self._takes_trailers = both_ways and (b"te", b"trailers") in head.headers
        scope = _scope(head, self._client) | {
            SMALL: head.size <= SMALL_HEAD,
            WHEN_GONE: self.when_gone,
            "extensions": {_TRAILERS: {}, DUPLEX: {"begin": self.begin_duplex}} if both_ways else {},
        }
        self._tasks.create_task(self._serve(scope))

    def take_body(self, data: bytes) -> None:
        """Take a part of the request's body."""
        if self.closed:
            return
        self._take(len(data) + len(data) // SPARE)
        if self._refusal is not None:
            self.body_was_read(len(data))
            return
        if self._duplex:
            self._receives_since = asyncio.get_running_loop().time()
        self._body += data
        self._changed.set()

    def end_request(self) -> None:
        """Take note that all of the request has come."""
        self.request_ended = True
        self._changed.set()

    def disconnect(self) -> None:
        """Abandon this request. The app reads `http.disconnect`, and the rest of its response is dropped."""
        self.closed = True
        self._body.clear()
        self._changed.set()
        self._disconnected.set()
        if self._when_gone is not None:
            self._when_gone()

    def begin_duplex(self) -> asyncio.Event:
        """Let both sides send at the same time. The app calls this as `scope["extensions"]["runed.duplex"]["begin"]`.

        From now on the client may stay silent for any time, since it may wait for an answer or for its next input. It still has
        to read its answers within the stall timeout.

        Returns:
            An event that is set when the client disconnects or abandons the request. ASGI tells this only after the whole
            body, and an app that makes its client wait does not read the whole body.
        """
        self._duplex = True
        self._take(DUPLEX_COST, base=True)
        return self._disconnected

    def when_gone(self, callback: Callable[[], None] | None) -> None:
        """Let a function be called when the client disconnects or abandons the request, at once if it has; None undoes this."""
        self._when_gone = callback
        if callback is not None and self.closed:
            callback()

    async def receive(self) -> dict[str, Any]:
        """Wait for the next part of the request, as ASGI's `receive`.

        Raises:
            RunedError: There is no memory for the request. The app answers that to the client.
        """
        while not (self.closed or self._refusal or self._body or self.request_ended != self._end_delivered):
            self._changed.clear()
            may_be_silent = self.request_ended or self._duplex
            try:
                async with asyncio.timeout(None if may_be_silent else self.server_context.stall_timeout):
                    await self._changed.wait()
            except TimeoutError:
                await self.give_up()
        if self.closed:
            return {"type": "http.disconnect"}
        if self._refusal is not None:
            raise self._refusal
        body = bytes(self._body)
        self._body.clear()
        self._end_delivered = self.request_ended
        self.body_was_read(len(body))
        return {"type": "http.request", "body": body, "more_body": not self._end_delivered}

    def _take(self, size: int, *, base: bool = False) -> None:
        """Take memory for this request, or let `receive` refuse it."""
        if self._refusal is None and not self.closed:
            try:
                self._account.take(size, base=base)
            except RunedError as error:
                self._account.close()
                self.evict(error)

    @abstractmethod
    def body_was_read(self, size: int) -> None:
        """Let the client send `size` bytes more."""

    @abstractmethod
    async def give_up(self) -> None:
        """Tell a client that stalls that its request has ended, and `disconnect`."""

    @abstractmethod
    def cut_off(self) -> None:
        """End a request whose client does not read its answer, and `disconnect`."""

    @abstractmethod
    async def send_head(self, status: int, headers: Headers) -> None:
        """Take the head of the response. It waits for the next part, as ASGI allows."""

    @abstractmethod
    async def send_body(self, data: bytes, *, last: bool) -> None:
        """Send a part of the body of the response. Wait until the client has room for it."""

    @abstractmethod
    async def send_trailers(self, headers: Headers) -> None:
        """Send the last part of a response."""

    @abstractmethod
    async def finish(self) -> None:
        """End the request, and `disconnect`. A response that is not complete is broken off."""

    async def _serve(self, scope: dict[str, Any]) -> None:
        """Call the app, and log an exception without its text."""
        enter(self._account)
        try:
            await self.server_context.app(scope, self.receive, self._send)
        except Exception as error:  # noqa: BLE001 # a failure of the app ends only its own request
            facts = describe_exception(error)
            log_refusal(_log, "request failed", level=logging.ERROR, kind=str(facts), connection=self._client, **facts)
        finally:
            await self.app_ended()

    async def app_ended(self) -> None:
        """End the request if the app has not done so."""
        try:
            if not self.closed and self._phase is _Phase.HEAD:
                headers = [(b"content-length", b"0"), (b"connection", b"close")]
                await self._send({"type": "http.response.start", "status": 500, "headers": headers})
                await self._send({"type": "http.response.body"})
            if not self.closed:
                await self.finish()
        finally:
            self._account.close()

    async def _send(self, message: dict[str, Any]) -> None:
        """Send a part of the response, as ASGI's `send`."""
        if self.closed:
            return
        self._sends_since = asyncio.get_running_loop().time()
        try:
            await self._send_part(message)
        finally:
            self._sends_since = None
            if self._duplex:
                self._receives_since = asyncio.get_running_loop().time()

    async def _send_part(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "http.response.start" and self._phase is _Phase.HEAD:
            self._phase = _Phase.BODY
            self._bodiless |= message["status"] in _BODILESS
            self._sends_trailers = message.get("trailers", False)
            await self.send_head(message["status"], _stripped(message.get("headers", ())))
        elif kind == "http.response.body" and self._phase is _Phase.BODY:
            data = b"" if self._bodiless else message.get("body", b"")
            if not (message.get("more_body", False) or self._sends_trailers):
                await self._end(data)
                return
            if not message.get("more_body", False):
                self._phase = _Phase.TRAILERS
            if data:
                await self.send_body(data, last=False)
        elif kind == _TRAILERS and self._phase is _Phase.TRAILERS:
            await self._end(b"", _stripped(message["headers"]) if self._takes_trailers else None)
        else:
            raise RuntimeError(f"the app sent {kind} while {self._phase.name} of its response was due")

    async def _end(self, data: bytes, trailers: Headers | None = None) -> None:
        """Send the last part of the response, and end the request."""
        self._phase = _Phase.NOTHING
        if trailers is None:
            await self.send_body(data, last=True)
        else:
            await self.send_trailers(trailers)
        if not self.closed:
            await self.finish()


def _scope(head: Head, client: tuple[str, int]) -> dict[str, Any]:
    """Return what ASGI tells an app of a request, without extensions."""
    path, _, query = head.target.partition(b"?")
    return {
        "type": "http",
        "asgi": {"spec_version": "2.1", "version": "3.0"},
        "http_version": head.version,
        "method": head.method.decode(),
        "scheme": "http",
        "path": unquote(path.decode()),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": head.headers,
        "client": client,
        "server": None,
        "state": {},
    }


def _stripped(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return headers without white space around them, which clients refuse."""
    return [(name.strip(), value.strip()) for name, value in headers]
