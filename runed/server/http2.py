"""HTTP/2 on h2.

No event of a stream reaches another stream. Every buffer has a limit in bytes. The end of a connection frees all its memory.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection

from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset
from h2.exceptions import ProtocolError

from runed.log import get_logger, log_refusal
from runed.server.framing import Framing
from runed.server.heads import Head, Headers, Refusal, date_header
from runed.server.lingering import Lingering
from runed.server.stream import RequestStream, ServerContext
from runed.turns import Ration, take_turn

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""The first bytes of an HTTP/2 client (RFC 9113 section 3.4). No HTTP/1.1 request begins with them."""

WRITE_LIMIT = 64 * 1024
"""Bytes of responses that are framed ahead of the transport. Further bytes wait, and so do their handlers."""

_CONNECTION_HEADERS = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
"""Response headers that HTTP/2 forbids (RFC 9113 section 8.2.2)."""

_ENDS = (StreamEnded, StreamReset)
"""Events that end what a client sends of a request."""

_PROBE = b"present?"
"""The eight bytes of a PING to a client that has ended its input."""

DRAIN_LINGER_SECONDS = 0.5
"""Most seconds that the end of a drain waits for a client that still sends."""

_log = get_logger(__name__)


class Http2Stream(RequestStream):
    """A request over HTTP/2.

    Attributes:
        stream_id: Its number.
        head: The headers of the response, which wait for its first part or its end.
        unsent: The bytes of the response that wait for the client's flow-control window.
        sent: Set when `unsent` is empty, or will never be sent.
        response_ended: Whether the end of the response was framed.
    """

    def __init__(self, context: ServerContext, client: tuple[str, int], connection: Http2Connection, stream_id: int) -> None:
        super().__init__(context, connection.tasks, client)
        self.stream_id = stream_id
        self.head: list[tuple[bytes, bytes]] | None = None
        self.unsent = memoryview(b"")
        self.sent = asyncio.Event()
        self.response_ended = False
        self._connection = connection

    async def send_head(self, status: int, headers: Headers) -> None:
        """Keep the head for the next part. gRPC's clients want an error without a body as headers that end the stream."""
        named = [(key, value) for name, value in headers if (key := name.lower()) not in _CONNECTION_HEADERS]
        self.head = [(b":status", b"%d" % status), *named, date_header()]

    async def send_body(self, data: bytes, *, last: bool) -> None:
        """Send a part of the response as far as the client's window allows, and wait until the rest is sent."""
        if data:
            self._connection.send_body(self, data)
            await self.flushed()
        if last and not self.closed:
            self._connection.end(self)

    async def send_trailers(self, headers: Headers) -> None:
        """Send the last part of the response."""
        self._connection.end(self, [(name.lower(), value) for name, value in headers])

    async def finish(self) -> None:
        """End the stream."""
        self._connection.finish(self)

    async def app_ended(self) -> None:
        """End the stream if the app has not done so, and forget it."""
        try:
            await super().app_ended()
        finally:
            self._connection.forget(self)

    def disconnect(self) -> None:
        """Abandon this request."""
        self.body_was_read(len(self._body))  # otherwise the window of the connection would stay smaller for ever
        super().disconnect()
        self.unsent = memoryview(b"")
        self.sent.set()

    def body_was_read(self, size: int) -> None:
        """Open the client's window again."""
        self._connection.acknowledge(self.stream_id, size)

    async def give_up(self) -> None:
        """Reset this stream."""
        self._connection.reset(self, ErrorCodes.CANCEL)

    def cut_off(self) -> None:
        """Reset this stream."""
        self._connection.reset(self, ErrorCodes.ENHANCE_YOUR_CALM)

    async def flushed(self) -> None:
        """Wait until all bytes so far are framed, or the client has stalled for too long."""
        while self.unsent:
            before = len(self.unsent)
            self.sent.clear()
            try:
                async with asyncio.timeout(self.server_context.stall_timeout):
                    await self.sent.wait()
            except TimeoutError:
                if len(self.unsent) == before:
                    await self.give_up()


class _Bodies:
    """The bodies of responses that wait to be framed.

    Args:
        h2: The protocol of the connection.
        give_up: Resets a stream whose window can never open again.
    """

    def __init__(self, h2: Framing, give_up: Callable[[Http2Stream, ErrorCodes], None]) -> None:
        self._h2 = h2
        self._give_up = give_up
        self._sending: deque[Http2Stream] = deque()
        self._framed = 0
        self._windows_are_final = False

    def add(self, stream: Http2Stream) -> None:
        """Frame the unsent bytes of a stream as soon as that is possible."""
        self._sending.append(stream)
        self._frame()

    def __bool__(self) -> bool:
        return bool(self._sending)

    def clear(self) -> None:
        """Drop all bodies."""
        self._sending.clear()

    def end_windows(self) -> None:
        """Take note that the client's input has ended, so that no window opens again. What does not fit is given up."""
        self._windows_are_final = True
        self._frame()

    def output(self) -> bytes:
        """Return the next bytes of the connection to write."""
        self._framed = 0
        self._frame()
        return self._h2.data_to_send()

    def _frame(self) -> None:
        """Frame waiting bodies, one frame of each in turn, as far as the windows and the transport allow."""
        blocked = 0
        while blocked < len(self._sending) and self._framed < WRITE_LIMIT:
            stream = self._sending.popleft()
            if stream.closed:
                continue
            window = self._h2.local_flow_control_window(stream.stream_id)
            size = min(len(stream.unsent), window, self._h2.max_outbound_frame_size, WRITE_LIMIT)
            if size <= 0 and self._windows_are_final:
                self._give_up(stream, ErrorCodes.FLOW_CONTROL_ERROR)
                continue
            if size <= 0:
                self._sending.append(stream)
                blocked += 1
                continue
            blocked = 0
            self._h2.send_data(stream.stream_id, stream.unsent[:size])
            self._framed += size
            stream.unsent = stream.unsent[size:]
            if stream.unsent:
                self._sending.append(stream)
            else:
                stream.sent.set()


class Http2Connection:
    """One HTTP/2 connection.

    Args:
        context: The state of the server.
        tasks: The tasks of the app's calls.
        client: The name of the transport, and the number of the connection.
        writer: The transport.

    Attributes:
        tasks: As above.
        streams: The requests whose app has not ended, by stream id.
        closed: Whether one side has ended the connection.
        passed_gate: Whether a request has passed the gate of the server.
        at_rest: Set while no request is being answered.
    """

    def __init__(
        self, context: ServerContext, tasks: asyncio.TaskGroup, client: tuple[str, int], writer: asyncio.StreamWriter
    ) -> None:
        self.tasks = tasks
        self.streams: dict[int, Http2Stream] = {}
        self.closed = False
        self.passed_gate = False
        self.at_rest = asyncio.Event()
        self.at_rest.set()
        self._context = context
        self._client = client
        self._writer = writer
        self._h2 = Framing(context.max_streams)
        self._draining = False
        self._ration = Ration()
        self._bodies = _Bodies(self._h2, self.reset)
        self._lingering = Lingering(self._reset, context.max_streams // 4, context.stall_timeout)
        self._has_output = asyncio.Event()
        self._has_output.set()  # our SETTINGS
        self._writable = asyncio.Event()
        self._writable.set()

    @property
    def requests(self) -> Collection[RequestStream]:
        """The requests that are being answered."""
        return self.streams.values()

    @property
    def in_frame(self) -> bool:
        """Whether the client sends a frame or a header block bit by bit."""
        return self._h2.is_amid

    async def end_input(self) -> bool:
        """Take the end of the client's input. Return whether whole requests still wait for their answers."""
        for stream in self.streams.values():
            if not stream.request_ended:
                stream.disconnect()
        self._bodies.end_windows()
        self.drain()
        return any(not stream.closed for stream in self.streams.values())

    async def probe(self) -> None:
        """Send bytes that mean nothing, so that the kernel of a client that has left says so."""
        self._h2.ping(_PROBE)
        self._has_output.set()

    async def receive(self, data: bytes) -> None:
        """Handle bytes of the client, and wait until it reads the answers."""
        start = 0
        while start < len(data):
            await take_turn()
            if self.closed:
                return
            end = start + self._ration.size
            await self._receive_slice(data[start:end])
            start = end
            # No more frames are read from a client that reads no answers. Otherwise answers would pile up.
            await self._writable.wait()

    async def write(self) -> None:
        """Send framed bytes whenever there are some, until the connection ends. Then close the transport."""
        try:
            while not self.closed:
                await self._has_output.wait()
                self._has_output.clear()
                while data := self._bodies.output():
                    self._writer.write(data)
                    if self._writer.transport.get_write_buffer_size():
                        self._writable.clear()
                        async with asyncio.timeout(self._context.stall_timeout):
                            await self._writer.drain()
                        self._writable.set()
                if self._draining and not self.streams:
                    # gRPC's library drops an answer that it has not read yet if it finds that it cannot send any more.
                    await self._lingering.wait(DRAIN_LINGER_SECONDS)
                    break
        except OSError:  # the client has disconnected, or (TimeoutError) reads no more
            self._writer.transport.abort()
        finally:
            self._writable.set()
            self._writer.close()

    def drain(self) -> None:
        """Take no new requests, and close when the open ones have been answered."""
        if not self._draining:
            self._draining = True
            self._h2.send_goaway()
            self._has_output.set()

    def close(self) -> None:
        """Abandon all requests, and send the framed bytes if the client is still there."""
        self.closed = True
        for stream in self.streams.values():
            stream.disconnect()
        self._bodies.clear()
        self._lingering.clear()
        if not self._writer.is_closing():
            self._writer.write(self._h2.data_to_send())
        self._has_output.set()

    def send_body(self, stream: Http2Stream, data: bytes) -> None:
        """Take a part of a response to frame."""
        self._send_head(stream)
        stream.unsent = memoryview(data)
        self._bodies.add(stream)
        self._has_output.set()

    def end(self, stream: Http2Stream, trailers: Headers | None = None) -> None:
        """Frame the end of a response."""
        if trailers is not None:
            self._send_head(stream)
            self._h2.send_headers(stream.stream_id, trailers, end_stream=True)
        elif not self._send_head(stream, end_stream=True):
            self._h2.end_stream(stream.stream_id)
        stream.response_ended = True
        self._has_output.set()

    def finish(self, stream: Http2Stream) -> None:
        """Close the stream of a response that is complete, or of an app that has failed before its end."""
        if not stream.response_ended:
            self._reset(stream.stream_id, ErrorCodes.INTERNAL_ERROR)
        elif not stream.request_ended:
            self._lingering.add(stream.stream_id)
        stream.disconnect()

    def _send_head(self, stream: Http2Stream, *, end_stream: bool = False) -> bool:
        """Frame the head of a response if it still waits, and return whether it did."""
        head, stream.head = stream.head, None
        if head is not None:
            self._h2.send_headers(stream.stream_id, head, end_stream=end_stream)
        return head is not None

    def acknowledge(self, stream_id: int, size: int) -> None:
        """Let the client send `size` bytes more."""
        if size:
            self._h2.acknowledge_received_data(size, stream_id)
            self._has_output.set()

    def reset(self, stream: Http2Stream, code: ErrorCodes) -> None:
        """End one request for both sides, now."""
        self._reset(stream.stream_id, code)
        stream.disconnect()

    def forget(self, stream: Http2Stream) -> None:
        """Remove a request whose app has ended."""
        del self.streams[stream.stream_id]
        if not self.streams:
            self.at_rest.set()
        self._has_output.set()

    async def _receive_slice(self, data: bytes) -> None:
        started = time.perf_counter()
        try:
            events = self._h2.read(data)
        except ProtocolError:  # h2 has framed a GOAWAY with the reason
            log_refusal(_log, "connection refused: it is no HTTP/2", connection=self._client)
            self.close()
            return
        self._ration.spent(time.perf_counter() - started)
        opened = False
        for event in events:
            if self.closed:
                return
            if isinstance(event, _ENDS):
                self._lingering.forget(event.stream_id)
            match event:
                case RequestReceived():
                    await self._open(event, turn_used=opened)
                    opened = True
                case DataReceived():
                    self._take_body(event)
                case StreamEnded() if stream := self.streams.get(event.stream_id):
                    stream.end_request()
                case StreamReset() if stream := self.streams.get(event.stream_id):
                    stream.disconnect()
                case _:
                    pass  # `write` looks at the windows when it frames bodies
        if self._h2.has_output or self._bodies:
            self._has_output.set()

    async def _open(self, event: RequestReceived, *, turn_used: bool) -> None:
        if turn_used:
            await take_turn()
            if self.closed:
                return
        if self._draining or len(self.streams) >= self._context.max_streams:
            self._reset(event.stream_id, ErrorCodes.REFUSED_STREAM)
            return
        if (head := _read_head(event)) is None:
            self._reset(event.stream_id, ErrorCodes.PROTOCOL_ERROR)
            return
        if (answer := self._context.refusal(head)) is not None:
            self._answer(event.stream_id, answer, with_body=head.method != b"HEAD")
            return
        self.passed_gate = True
        self.at_rest.clear()
        stream = self.streams[event.stream_id] = Http2Stream(self._context, self._client, self, event.stream_id)
        stream.begin(head)

    def _answer(self, stream_id: int, answer: Refusal, *, with_body: bool) -> None:
        """Send a whole answer, the last one of this connection."""
        body = answer.body if with_body and len(answer.body) <= self._h2.local_flow_control_window(stream_id) else b""
        self._h2.send_headers(
            stream_id,
            [(b":status", b"%d" % answer.status), *answer.headers, (b"content-length", b"%d" % len(answer.body))],
            end_stream=not body,
        )
        if body:
            self._h2.send_data(stream_id, body, end_stream=True)
        self._h2.close_connection(last_stream_id=stream_id)
        self.close()

    def _take_body(self, event: DataReceived) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is None or stream.closed:
            self.acknowledge(event.stream_id, event.flow_controlled_length)
            return
        stream.take_body(event.data)
        self.acknowledge(event.stream_id, event.flow_controlled_length - len(event.data))  # its padding

    def _reset(self, stream_id: int, code: ErrorCodes) -> None:
        try:
            self._h2.reset_stream(stream_id, code)
        except ProtocolError:
            return  # the client has closed the stream, or the connection, before
        self._has_output.set()


def _read_head(event: RequestReceived) -> Head | None:
    """Return the head of a request; None if it cannot be told to an app."""
    pseudo: dict[bytes, bytes] = {}
    headers: list[tuple[bytes, bytes]] = []
    host = b""
    for name, value in event.headers:
        if name.startswith(b":"):
            pseudo[name] = value
        elif name == b"host":
            host = value
        else:
            headers.append((name, value))
    method, path = pseudo[b":method"], pseudo.get(b":path", b"")
    if not (path and path.isascii() and method.isascii()):
        return None
    return Head(method.upper(), path, [(b"host", pseudo.get(b":authority", host)), *headers], "2")
