"""One request and its response, between a connection and the ASGI app."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from hypercorn.config import Config
from hypercorn.protocol.events import Body, EndBody, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.typing import (
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    Scope,
    TaskGroup,
    WorkerContext,
)

from runed.log import describe_exception, get_logger

Application = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application, as `await app(scope, receive, send)`; each framework has its own types for the three."""

BODY_LIMIT = 256 * 1024
"""Bytes of one request's body that wait for the app; a client that sends faster than the app reads has to wait."""

_OFFERED_EXTENSIONS = ("http.response.trailers",)
"""What the app may use of that which Hypercorn offers: its server push and early hints have no client here."""

DUPLEX = "runed.duplex"
"""An ASGI extension of ours, see `RequestStream.begin_duplex`; HTTP/2 only."""

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServerContext:
    """What all connections of one server share.

    Attributes:
        app: The ASGI application.
        config: Hypercorn's settings.
        worker: Hypercorn's state of the process; its event `terminated` is set when a drain begins.
        max_streams: Requests that one HTTP/2 connection may have open at a time.
        head_timeout: Seconds within which the head of a request must be complete once it has begun.
        stall_timeout: Seconds for which a request may wait for a peer that neither sends nor takes a byte.
        transport: What the connections come by, "unix" or "tcp".
    """

    app: Application
    config: Config
    worker: WorkerContext
    max_streams: int
    head_timeout: float
    stall_timeout: float
    transport: str


class RequestStream(HTTPStream):
    """Hypercorn's HTTP stream, but the body of the request waits in one buffer until the app reads it.

    Hypercorn hands a body over through a queue of messages: bounded, it blocks the reader of the whole connection, for ever
    once the app has ended; unbounded, it holds whatever a client sends. A buffer has a size in bytes, which can be bounded.
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

    async def handle(self, event: StreamEvent) -> None:
        """Take what came from the connection: the request's head, its body, its end, or the loss of its client."""
        match event:
            case Body():
                self._body += event.data
                self._changed.set()
            case EndBody():
                self.request_ended = True
                self._changed.set()
            case StreamClosed():
                self.disconnect()
            case _:
                await super().handle(event)

    def disconnect(self) -> None:
        """Give this request up: the app reads `http.disconnect`, and what it still sends goes nowhere."""
        self.closed = True
        self._body.clear()
        self._changed.set()
        self._disconnected.set()

    def begin_duplex(self) -> asyncio.Event:
        """Serve this request as a conversation of both sides; `scope["extensions"]["runed.duplex"]["begin"]` for the app.

        From now on the client may be silent for as long as it likes, since it may wait for an answer or for its next input. It
        still has to take what is sent to it within the stall timeout.

        Returns:
            Set when the client has gone or gives the request up. ASGI tells that only after all of the body, which an app that
            holds its client back does not read.
        """
        self._duplex = True
        return self._disconnected

    async def receive(self) -> ASGIReceiveEvent:
        """Wait for more of the request, as ASGI's `receive`."""
        while not (self.closed or self._body or self.request_ended != self._end_delivered):
            self._changed.clear()
            may_be_silent = self.request_ended or self._duplex
            try:
                async with asyncio.timeout(None if may_be_silent else self.server_context.stall_timeout):
                    await self._changed.wait()
            except TimeoutError:
                await self.give_up()
        if self.closed:
            return {"type": "http.disconnect"}
        body = bytes(self._body)
        self._body.clear()
        self._end_delivered = self.request_ended
        self.body_was_read(len(body))
        return {"type": "http.request", "body": body, "more_body": not self._end_delivered}

    @abstractmethod
    def body_was_read(self, size: int) -> None:
        """Let the client send `size` bytes more."""

    @abstractmethod
    async def give_up(self) -> None:
        """Tell a client that stalls that its request is over, and `disconnect`."""

    async def _run_app(
        self,
        scope: Scope,
        receive: ASGIReceiveCallable,  # noqa: ARG002 # Hypercorn's queue, which nothing fills
        send: ASGISendCallable,
        sync_spawn: Callable[..., Any],  # noqa: ARG002 # for WSGI
        call_soon: Callable[..., Any],  # noqa: ARG002 # for WSGI
    ) -> None:
        """Call the app; Hypercorn, which runs this as a task, would log an exception with its text."""
        assert scope["type"] == "http"
        extensions: dict[str, dict[Any, Any]] = {name: {} for name in _OFFERED_EXTENSIONS if name in scope["extensions"]}
        if scope["http_version"] == "2":  # HTTP/1.1 has one direction after the other
            extensions[DUPLEX] = {"begin": self.begin_duplex}
        scope["extensions"] = extensions
        try:
            await self.server_context.app(scope, self.receive, send)
        except Exception as error:  # noqa: BLE001 # whatever the app did, only its own request may suffer
            _log.error("request failed", connection=scope["client"], **describe_exception(error))
