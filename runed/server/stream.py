"""One request and its response, as the link between a connection and the ASGI app."""

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
"""An ASGI application: `await app(scope, receive, send)`. Each framework has its own types for the three."""

BODY_LIMIT = 256 * 1024
"""Bytes of the body of one request that wait for the app. A client that sends faster than the app reads has to wait."""

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
    """

    app: Application
    config: Config
    worker: WorkerContext
    max_streams: int
    head_timeout: float
    stall_timeout: float
    transport: str


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

    async def handle(self, event: StreamEvent) -> None:
        """Take an event of the connection: the head of the request, its body, its end, or the loss of the client."""
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
        return self._disconnected

    async def receive(self) -> ASGIReceiveEvent:
        """Wait for the next part of the request, as ASGI's `receive`."""
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
        """Tell a client that stalls that its request has ended, and `disconnect`."""

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
        try:
            await self.server_context.app(scope, self.receive, send)
        except Exception as error:  # noqa: BLE001 # a failure of the app ends only its own request
            _log.error("request failed", connection=scope["client"], **describe_exception(error))
