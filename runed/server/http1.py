"""HTTP/1.1 by Hypercorn's protocol on h11, with our own streams and without upgrades."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import h11
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.events import Body, Request, Response
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.typing import ASGISendEvent, ConnectionState, TaskGroup

from runed.server.stream import BODY_LIMIT, RequestStream, ServerContext

WRITE_SIZE = 64 * 1024
"""Bytes of a response that go to the transport at a time, so that a slow client costs time but no memory."""


class Http1Stream(RequestStream):
    """A request over HTTP/1.1."""

    def __init__(
        self,
        context: ServerContext,
        tasks: TaskGroup,
        client: tuple[str, int],
        protocol: Http1Protocol,
    ) -> None:
        super().__init__(context, tasks, client, protocol.stream_send, STREAM_ID)
        self._protocol = protocol
        self._room = asyncio.Event()

    async def handle(self, event: StreamEvent) -> None:
        """Take an event of the connection. Stop its reader while the app has enough to read."""
        await super().handle(event)
        while len(self._body) > BODY_LIMIT:
            self._room.clear()
            await self._room.wait()

    async def app_send(self, message: ASGISendEvent | None) -> None:
        """Send a part of a response. The head waits for the first part of the body, as ASGI allows."""
        self._protocol.hold()
        await super().app_send(message)
        if message is None or message["type"] != "http.response.start":
            await self._protocol.flush()

    def disconnect(self) -> None:
        """Abandon this request, and let the reader of the connection go on."""
        super().disconnect()
        self._room.set()

    def body_was_read(self, size: int) -> None:  # noqa: ARG002 # HTTP/2 counts, HTTP/1.1 only needs to know
        """Let the reader of the connection go on."""
        self._room.set()

    async def give_up(self) -> None:
        """Close the connection: HTTP/1.1 has no other way to end a request."""
        self.disconnect()
        await self._protocol.send(Closed())


class Http1Protocol(H11Protocol):
    """One HTTP/1.1 connection.

    Args:
        context: The state of the server.
        tasks: The tasks of the app's calls.
        client: The name of the transport, and the number of the connection.
        send: Sends bytes to the client, or closes the connection.
    """

    def __init__(
        self,
        context: ServerContext,
        tasks: TaskGroup,
        client: tuple[str, int],
        send: Callable[[Event], Awaitable[None]],
    ) -> None:
        super().__init__(
            context.app,  # type: ignore[arg-type] # unused: only `_create_stream` of Hypercorn, replaced below, reads it
            context.config,
            context.worker,
            tasks,
            ConnectionState({}),
            False,  # Hypercorn's `ssl`, which it takes by position
            client,
            None,
            self._write,
        )
        self._server_context = context
        self._client = client
        self._send_now = send
        self._held: bytearray | None = None

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.stream is None

    @property
    def in_head(self) -> bool:
        """Whether the head of a request has begun but not ended."""
        return self.idle and bool(self.connection.trailing_data[0])

    @property
    def expects_input(self) -> bool:
        """Whether the client still sends a request that is already answered, or bytes that are not a request."""
        return self.connection.their_state in {h11.SEND_BODY, h11.ERROR}

    def hold(self) -> None:
        """Gather written bytes until `flush`, since each write costs a system call and wakes the client up."""
        if self._held is None:
            self._held = bytearray()

    async def flush(self) -> None:
        """Send the gathered bytes."""
        data, self._held = self._held, None
        if data:
            await self._send_now(RawData(bytes(data)))

    async def _write(self, event: Event) -> None:
        if self._held is not None and isinstance(event, RawData):
            self._held += event.data
            if len(self._held) < WRITE_SIZE:
                return
            await self.flush()
            self.hold()
        else:
            await self.flush()
            await self._send_now(event)

    async def stream_send(self, event: StreamEvent) -> None:
        """Send one part of a response.

        During a drain, or before the request has ended, tell that the connection closes. Otherwise a client would send its next
        request on a connection that is closed by then.
        """
        if isinstance(event, Response) and (self.context.terminated.is_set() or self.expects_input):
            await super().stream_send(replace(event, headers=[*event.headers, (b"connection", b"close")]))
        elif isinstance(event, Body):
            for start in range(0, len(event.data), WRITE_SIZE):
                await super().stream_send(replace(event, data=event.data[start : start + WRITE_SIZE]))
        else:
            await super().stream_send(event)

    async def _check_protocol(self, event: h11.Request) -> None:
        """Ignore `Upgrade: h2c`, which RFC 9113 dropped: the preface alone chooses HTTP/2."""

    async def _create_stream(self, request: h11.Request) -> None:
        """Start a request. A WebSocket handshake is treated as an ordinary GET."""
        self.stream = Http1Stream(self._server_context, self.task_group, self._client, self)
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode(),
                raw_path=request.target,
                state=self.connection_state,
            )
        )
