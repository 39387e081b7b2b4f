"""One request and its response, as the link between a connection and the ASGI app."""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from hypercorn.config import Config
from hypercorn.protocol.events import Body, EndBody, Request, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.typing import (
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    Scope,
    TaskGroup,
    WorkerContext,
)

from runed.errors import RunedError
from runed.log import describe_exception, get_logger, log_refusal
from runed.server.budget import Budget, enter
from runed.server.gate import Gate, Headers, Refusal, Share

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

_OFFERED_EXTENSIONS = ("http.response.trailers",)
"""Extensions of Hypercorn that the app may use. Server push and early hints have no client here."""

DUPLEX = "runed.duplex"
"""Our own ASGI extension, for HTTP/2 only; see `RequestStream.begin_duplex`."""

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServerContext:
    """The state that all connections of one server share.

    Attributes:
        app: The ASGI application.
        config: Hypercorn's settings.
        worker: Hypercorn's state of the process. Its event `terminated` is set when a drain begins.
        max_streams: Requests that one HTTP/2 connection may have open at a time.
        head_timeout: Seconds within which the head of a request must be complete once it has begun.
        stall_timeout: Seconds for which a request waits for a client that neither sends nor reads a byte.
        transport: The name of the transport, "unix" or "tcp".
        budget: The memory of all requests.
        gate: Refuses requests by their headers; None for a server that serves everybody.
        share: The part of the event loop that clients get which have not passed the gate.
    """

    app: Application
    config: Config
    worker: WorkerContext
    max_streams: int
    head_timeout: float
    stall_timeout: float
    transport: str
    budget: Budget
    gate: Gate | None
    share: Share

    def refusal(self, headers: Headers) -> Refusal | None:
        """Return the answer to a request that does not pass the gate, or None."""
        return None if self.gate is None else self.gate(headers)


class RequestStream(HTTPStream):
    """Hypercorn's HTTP stream, with one buffer in which the body of the request waits until the app reads it.

    Hypercorn has a queue of messages there. A bounded queue blocks the reader of the whole connection, for ever once the app
    has ended. An unbounded queue keeps everything that a client sends. A buffer has a size in bytes, which can be bounded.
    """

    def __init__(
        self,
        context: ServerContext,
        tasks: TaskGroup,
        client: tuple[str, int],
        send: Callable[[StreamEvent], Awaitable[None]],
        stream_id: int,
    ) -> None:
        super().__init__(
            self._run_app,
            context.config,
            context.worker,
            tasks,
            False,  # Hypercorn's `ssl`, which it takes by position
            client,
            None,
            send,
            stream_id,
        )
        self.server_context = context
        self.request_ended = False
        self._body = bytearray()
        self._end_delivered = False
        self._changed = asyncio.Event()
        self._disconnected = asyncio.Event()
        self._duplex = False
        self._refusal: RunedError | None = None
        self._account = context.budget.open(self)
        self._receives_since = asyncio.get_running_loop().time()
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

    async def handle(self, event: StreamEvent) -> None:
        """Take an event of the connection: the head of the request, its body, its end, or the loss of the client."""
        match event:
            case Body():
                self._take_body(event.data)
            case EndBody():
                self.request_ended = True
                self._changed.set()
            case StreamClosed():
                self.disconnect()
            case Request():
                self._take(REQUEST_COST + sum(len(name) + len(value) for name, value in event.headers), base=True)
                await super().handle(event)
            case _:
                await super().handle(event)

    async def app_send(self, message: ASGISendEvent | None) -> None:
        """Send a part of the response. None means that the app has ended."""
        self._sends_since = asyncio.get_running_loop().time()
        try:
            await self.send_part(message)
        finally:
            self._sends_since = None
            if self._duplex:
                self._receives_since = asyncio.get_running_loop().time()
            if message is None:
                self._account.close()

    async def send_part(self, message: ASGISendEvent | None) -> None:
        """Send what `app_send` takes."""
        await super().app_send(message)

    def disconnect(self) -> None:
        """Abandon this request. The app reads `http.disconnect`, and the rest of its response is dropped."""
        self.closed = True
        self._body.clear()
        self._changed.set()
        self._disconnected.set()

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

    async def receive(self) -> ASGIReceiveEvent:
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

    def _take_body(self, data: bytes) -> None:
        self._take(len(data) + len(data) // SPARE)
        if self._refusal is not None:
            self.body_was_read(len(data))
            return
        if self._duplex:
            self._receives_since = asyncio.get_running_loop().time()
        self._body += data
        self._changed.set()

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

    async def _run_app(
        self,
        scope: Scope,
        receive: ASGIReceiveCallable,  # noqa: ARG002 # Hypercorn's queue, which nothing fills
        send: ASGISendCallable,
        sync_spawn: Callable[..., Any],  # noqa: ARG002 # for WSGI
        call_soon: Callable[..., Any],  # noqa: ARG002 # for WSGI
    ) -> None:
        """Call the app, and log an exception without its text. Hypercorn, which runs this as a task, would log the text."""
        assert scope["type"] == "http"
        extensions: dict[str, dict[Any, Any]] = {name: {} for name in _OFFERED_EXTENSIONS if name in scope["extensions"]}
        if scope["http_version"] == "2":  # in HTTP/1.1, one direction follows the other
            extensions[DUPLEX] = {"begin": self.begin_duplex}
        scope["extensions"] = extensions
        enter(self._account)
        try:
            await self.server_context.app(scope, self.receive, send)
        except Exception as error:  # noqa: BLE001 # a failure of the app ends only its own request
            facts = describe_exception(error)
            log_refusal(_log, "request failed", level=logging.ERROR, kind=str(facts), connection=scope["client"], **facts)
