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

from runed.log import get_logger, log_refusal
from runed.server.gate import Refusal
from runed.server.heads import Head, answer_itself, read_head, refusal
from runed.server.stream import BODY_LIMIT, RequestStream, ServerContext

WRITE_SIZE = 64 * 1024
"""Bytes of a response that go to the transport at a time, so that a slow client costs time but no memory."""

_MALFORMED = {
    400: "this is no request of HTTP/1.1 (RFC 9112): its first line, a header or a length is malformed, or it has not one "
    "Host; for HTTP/2, begin with its preface, without TLS",
    431: "the headers of the request are too large",
    501: "the only transfer encoding that is served here is chunked",
}
"""Messages for bytes that h11 cannot read. Its own may quote the client."""

_log = get_logger(__name__)


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

    async def send_part(self, message: ASGISendEvent | None) -> None:
        """Send a part of a response. The head waits for the first part of the body, as ASGI allows."""
        self._protocol.hold()
        await super().send_part(message)
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

    def cut_off(self) -> None:
        """Close the connection without a look at what is unsent."""
        self.disconnect()
        self._protocol.abort()


class Http1Protocol(H11Protocol):
    """One HTTP/1.1 connection.

    Args:
        context: The state of the server.
        tasks: The tasks of the app's calls.
        client: The name of the transport, and the number of the connection.
        send: Sends bytes to the client, or closes the connection.
        abort: Closes the connection at once.

    Attributes:
        abort: As above.
        passed_gate: Whether a request has passed the gate of the server.
        at_rest: Set while no request is being answered.
    """

    def __init__(
        self,
        context: ServerContext,
        tasks: TaskGroup,
        client: tuple[str, int],
        send: Callable[[Event], Awaitable[None]],
        abort: Callable[[], None],
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
        self.abort = abort
        self.passed_gate = False
        self.at_rest = asyncio.Event()
        self.at_rest.set()
        self._server_context = context
        self._client = client
        self._send_now = send
        self._held: bytearray | None = None
        self._input_ended = False

    @property
    def requests(self) -> list[RequestStream]:
        """The request that is being answered, if there is one."""
        return [self.stream] if isinstance(self.stream, RequestStream) else []

    @property
    def in_head(self) -> bool:
        """Whether the head of a request has begun but not ended."""
        return self.stream is None and bool(self.connection.trailing_data[0])

    @property
    def expects_input(self) -> bool:
        """Whether the client still sends a request that is already answered, or bytes that are not a request."""
        return not self._input_ended and self.connection.their_state in {h11.SEND_BODY, h11.ERROR}

    async def handle(self, event: Event) -> None:
        """Take bytes of the client, or the end of the connection. Empty lines before a request mean nothing."""
        if isinstance(event, RawData) and self.stream is None and not self.connection.trailing_data[0]:
            event = RawData(event.data.lstrip(b"\r\n"))
            if not event.data:  # it would mean the end to h11
                return
        await super().handle(event)

    async def end_input(self) -> bool:
        """Take the end of the client's input. Return whether whole requests still wait for their answers."""
        self._input_ended = True
        return any(request.request_ended for request in self.requests)

    async def probe(self) -> None:
        """Send bytes that mean nothing, so that the kernel of a client that has left says so."""
        if self.connection.our_state is h11.SEND_RESPONSE and self.connection.their_http_version != b"1.0":
            await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))

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

        During a drain, or when nothing more can be read, tell that the connection closes. Otherwise a client would send its
        next request on a connection that is closed by then.
        """
        if isinstance(event, Response) and (self.context.terminated.is_set() or self.expects_input or self._input_ended):
            await super().stream_send(replace(event, headers=[*event.headers, (b"connection", b"close")]))
        elif isinstance(event, Body):
            for start in range(0, len(event.data), WRITE_SIZE):
                await super().stream_send(replace(event, data=event.data[start : start + WRITE_SIZE]))
        else:
            await super().stream_send(event)

    async def _check_protocol(self, event: h11.Request) -> None:
        """Ignore `Upgrade: h2c`, which RFC 9113 dropped: the preface alone chooses HTTP/2."""

    async def _create_stream(self, request: h11.Request) -> None:
        """Start a request, or answer it at once. A WebSocket handshake is treated as an ordinary GET."""
        head = read_head(request)
        answer = head if isinstance(head, Refusal) else self._server_context.refusal(head.headers) or answer_itself(head)
        if answer is not None:
            await self._answer(answer, with_body=request.method != b"HEAD")
            await self.send(Closed())
            return
        assert isinstance(head, Head)
        self.passed_gate = True
        self.at_rest.clear()
        self.stream = Http1Stream(self._server_context, self.task_group, self._client, self)
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(head.headers),
                http_version=request.http_version.decode(),
                method=head.method.decode(),
                raw_path=head.target,
                state=self.connection_state,
            )
        )

    async def _send_error_response(self, status_code: int) -> None:
        """Answer bytes that are no HTTP."""
        log_refusal(_log, "request refused: it is no HTTP/1.1", connection=self._client, status=status_code)
        await self._answer(refusal(status_code, _MALFORMED.get(status_code, _MALFORMED[400])))

    async def _answer(self, answer: Refusal, *, with_body: bool = True) -> None:
        """Send a whole answer, the last one of this connection."""
        headers = [*answer.headers, (b"connection", b"close")]
        if answer.body:
            headers.append((b"content-length", str(len(answer.body)).encode()))
        self.hold()
        await self._send_h11_event(h11.Response(status_code=answer.status, headers=headers))
        if with_body and answer.body:
            await self._send_h11_event(h11.Data(data=answer.body))
        await self._send_h11_event(h11.EndOfMessage())
        await self.flush()

    async def _maybe_recycle(self) -> None:
        await super()._maybe_recycle()
        pipelined = self.connection.trailing_data[0]
        if self.connection.our_state is h11.IDLE and pipelined[:1] in {b"\r", b"\n"}:
            # h11 takes an empty line before a request for the request.
            self.connection = h11.Connection(h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size)
            if pipelined := pipelined.lstrip(b"\r\n"):
                self.connection.receive_data(pipelined)

    async def _close_stream(self) -> None:
        await super()._close_stream()
        self.at_rest.set()
