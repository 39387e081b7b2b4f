"""HTTP/1.1 on h11, without upgrades. A plain call goes past h11, which costs as much as the call itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import h11

from runed.log import get_logger, log_refusal
from runed.server.heads import Head, Headers, Refusal, answer_itself, date_header, read_head, refusal
from runed.server.ordinary import read_ordinary, write_ordinary
from runed.server.stream import BODY_LIMIT, RequestStream, ServerContext

WRITE_SIZE = 64 * 1024
"""Bytes of a response that go to the transport at a time, so that a slow client costs time but no memory."""

MAX_HEAD = 16 * 1024
"""Bytes of a head, or of the line before a chunk, that may come without being complete."""

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
        tasks: asyncio.TaskGroup,
        client: tuple[str, int],
        protocol: Http1Protocol,
    ) -> None:
        super().__init__(context, tasks, client)
        self._protocol = protocol
        self._room = asyncio.Event()
        self._head: tuple[int, Headers] | None = None

    async def has_room(self) -> None:
        """Wait while the app has enough to read."""
        while len(self._body) > BODY_LIMIT:
            self._room.clear()
            await self._room.wait()

    async def send_head(self, status: int, headers: Headers) -> None:
        """Keep the head for the next part, since each write costs a system call and wakes the client up."""
        self._head = (status, headers)

    async def send_body(self, data: bytes, *, last: bool) -> None:
        """Send a part of the response."""
        head, self._head = self._head, None
        await self._protocol.respond(head, data, last=last)

    async def send_trailers(self, headers: Headers) -> None:  # noqa: ARG002 # as for HTTP/2
        """End the response. No trailers are offered to the app."""
        await self.send_body(b"", last=True)

    async def finish(self) -> None:
        """Let the next request come, or close the connection."""
        self._protocol.recycle()

    async def app_ended(self) -> None:
        """End the request if the app has not done so, and let the reader of the connection go on in any case."""
        try:
            await super().app_ended()
        finally:
            self._protocol.forget(self)

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
        self._protocol.finish()

    def cut_off(self) -> None:
        """Close the connection without a look at what is unsent."""
        self.disconnect()
        self._protocol.abort()


class Http1Protocol:
    """One HTTP/1.1 connection.

    Args:
        context: The state of the server.
        tasks: The tasks of the app's calls.
        client: The name of the transport, and the number of the connection.
        write: Sends bytes to the client.
        finish: Closes the connection after what was sent.
        abort: Closes the connection at once.

    Attributes:
        finish: As above.
        abort: As above.
        passed_gate: Whether a request has passed the gate of the server.
        at_rest: Set while no request is being answered.
    """

    def __init__(
        self,
        context: ServerContext,
        tasks: asyncio.TaskGroup,
        client: tuple[str, int],
        *,
        write: Callable[[bytes], Awaitable[None]],
        finish: Callable[[], None],
        abort: Callable[[], None],
    ) -> None:
        self.finish = finish
        self.abort = abort
        self.passed_gate = False
        self.at_rest = asyncio.Event()
        self.at_rest.set()
        self._context = context
        self._tasks = tasks
        self._client = client
        self._write = write
        self._h11 = _new_connection()
        self._unread = b""  # the request that is being answered, if h11 has not read it
        self._stream: Http1Stream | None = None
        self._input_ended = False

    @property
    def requests(self) -> list[RequestStream]:
        """The request that is being answered, if there is one."""
        return [] if self._stream is None else [self._stream]

    @property
    def in_head(self) -> bool:
        """Whether the head of a request has begun but not ended."""
        return self._stream is None and bool(self._h11.trailing_data[0])

    @property
    def expects_input(self) -> bool:
        """Whether the client still sends a request that is already answered, or bytes that are not a request."""
        return not self._input_ended and self._h11.their_state in {h11.SEND_BODY, h11.ERROR}

    async def receive(self, data: bytes) -> None:
        """Handle bytes of the client. Empty lines before a request mean nothing, nor does what follows the last request."""
        if self._ended:
            return
        if self._stream is None and not self._h11.trailing_data[0]:
            data = data.lstrip(b"\r\n")
            if not data:  # it would mean the end to h11
                return
            if self._is_fresh and (ordinary := read_ordinary(data)) is not None:
                self._unread = data
                await self._open(ordinary[0])
                if self._stream is not None:
                    self._stream.take_body(ordinary[1])
                    self._stream.end_request()
                return
        self._catch_up()
        self._h11.receive_data(data)
        await self._handle_events()

    async def end_input(self) -> bool:
        """Take the end of the client's input. Return whether whole requests still wait for their answers."""
        self._input_ended = True
        return any(request.request_ended for request in self.requests)

    async def probe(self) -> None:
        """Send bytes that mean nothing, so that the kernel of a client that has left says so."""
        self._catch_up()
        if self._h11.our_state is h11.SEND_RESPONSE and self._h11.their_http_version != b"1.0":
            await self._write(self._frame(h11.InformationalResponse(status_code=100, headers=[])))

    async def respond(self, head: tuple[int, Headers] | None, data: bytes, *, last: bool) -> None:
        """Send one part of a response.

        During a drain, or when nothing more can be read, tell that the connection closes. Otherwise a client would send its
        next request on a connection that is closed by then.

        Args:
            head: The status and the headers, for the first part.
            data: A part of the body.
            last: Whether this is the last part.
        """
        closes = self._context.draining.is_set() or self._input_ended or self.expects_input
        if head is not None and last and self._unread and not closes and (answer := write_ordinary(*head, data)) is not None:
            self._unread = b""
            await self._write(answer)
            return
        self._catch_up()
        framed = b""
        if head is not None:
            headers = [*head[1], date_header(), *([(b"connection", b"close")] if closes else [])]
            framed = self._frame(h11.Response(status_code=head[0], headers=headers))
        for start in range(0, len(data), WRITE_SIZE):
            if framed and start:
                await self._write(framed)
                framed = b""
            framed += self._frame(h11.Data(data=data[start : start + WRITE_SIZE]))
        if last:
            framed += self._frame(h11.EndOfMessage())
        await self._write(framed)

    def recycle(self) -> None:
        """End the request that is being answered. Let the next one come, or close the connection."""
        self._catch_up()
        self.close()
        states = self._h11.our_state, self._h11.their_state
        if self._context.draining.is_set() or states not in {(h11.DONE, h11.DONE), (h11.IDLE, h11.IDLE)}:
            self.finish()
        elif states == (h11.DONE, h11.DONE):
            self._h11.start_next_cycle()
            pipelined = self._h11.trailing_data[0]
            if pipelined[:1] in {b"\r", b"\n"}:  # h11 takes an empty line before a request for the request
                self._h11 = _new_connection()
                if pipelined := pipelined.lstrip(b"\r\n"):
                    self._h11.receive_data(pipelined)

    def forget(self, stream: Http1Stream) -> None:
        """Remove a request whose app has ended."""
        if self._stream is stream:
            self.close()

    def close(self) -> None:
        """Abandon the request that is being answered, if there is one."""
        if self._stream is not None:
            self._stream.disconnect()
            self._stream = None
        self.at_rest.set()

    @property
    def _is_fresh(self) -> bool:
        """Whether h11 waits for the first request, or for the next one."""
        return self._h11.our_state is h11.IDLE and self._h11.their_state is h11.IDLE

    @property
    def _ended(self) -> bool:
        """Whether the last request has come whole. RFC 9112 section 9.6 wants its answer, whatever follows it."""
        return self._h11.their_state is h11.MUST_CLOSE

    def _catch_up(self) -> None:
        """Let h11 read the request that went past it."""
        if self._unread:
            self._h11.receive_data(self._unread)
            self._unread = b""
            while not isinstance(self._h11.next_event(), h11.EndOfMessage):
                pass

    def _frame(self, event: h11.Event) -> bytes:
        """Return the bytes of a part of a response; b"" if h11 has given the connection up, for a fault of the client."""
        try:
            return self._h11.send(event) or b""
        except h11.LocalProtocolError:
            if self._h11.their_state is not h11.ERROR:
                raise
            return b""

    async def _handle_events(self) -> None:
        while (event := await self._next_event()) is not None:
            if isinstance(event, h11.Request):
                head = read_head(event)
                if isinstance(head, Refusal):
                    await self._refuse(head, with_body=event.method != b"HEAD")
                else:
                    await self._open(head)
            elif event is h11.PAUSED:
                await self.at_rest.wait()
                if self._h11.their_state is h11.DONE:  # the connection is being closed
                    return
            elif self._stream is None:
                return
            elif isinstance(event, h11.Data):
                self._stream.take_body(bytes(event.data))
                await self._stream.has_room()
            elif isinstance(event, h11.EndOfMessage):
                self._stream.end_request()

    async def _next_event(self) -> type[h11.NEED_DATA | h11.PAUSED] | h11.Event | None:
        """Return the next event of h11, or None if there is none now. Refuse bytes that are no HTTP, and close then."""
        if self._ended:
            return None
        if self._h11.they_are_waiting_for_100_continue:
            await self._write(self._frame(h11.InformationalResponse(status_code=100, headers=[date_header()])))
        try:
            event = self._h11.next_event()
        except h11.RemoteProtocolError as error:
            if self._h11.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                await self._refuse_bytes(error.error_status_hint)
            self.finish()
            return None
        return None if event is h11.NEED_DATA or isinstance(event, h11.ConnectionClosed) else event

    async def _open(self, head: Head) -> None:
        """Start a request, or answer it at once. A WebSocket handshake is treated as an ordinary GET."""
        if (answer := self._context.refusal(head) or answer_itself(head)) is not None:
            await self._refuse(answer, with_body=head.method != b"HEAD")
            return
        self.passed_gate = True
        self.at_rest.clear()
        self._stream = Http1Stream(self._context, self._tasks, self._client, self)
        self._stream.begin(head)

    async def _refuse_bytes(self, status: int) -> None:
        """Answer bytes that are no HTTP."""
        log_refusal(_log, "request refused: it is no HTTP/1.1", connection=self._client, status=status)
        await self._answer(refusal(status, _MALFORMED.get(status, _MALFORMED[400])))

    async def _refuse(self, answer: Refusal, *, with_body: bool = True) -> None:
        """Send a whole answer, and close the connection."""
        await self._answer(answer, with_body=with_body)
        self.finish()

    async def _answer(self, answer: Refusal, *, with_body: bool = True) -> None:
        self._catch_up()
        headers = [*answer.headers, (b"connection", b"close")]
        if answer.body:
            headers.append((b"content-length", b"%d" % len(answer.body)))
        framed = self._frame(h11.Response(status_code=answer.status, headers=headers))
        if with_body and answer.body:
            framed += self._frame(h11.Data(data=answer.body))
        await self._write(framed + self._frame(h11.EndOfMessage()))


def _new_connection() -> h11.Connection:
    return h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
