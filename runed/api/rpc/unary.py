"""The way of an ordinary call with one message and one answer: from the whole request to its handler, and back.

The RPC library answers everything else: other forms of a request, and all errors. It serves streams and single messages by the
same steps, which cost several times as much.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from connectrpc.code import Code
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import Headers, RequestContext
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from runed.api.large import INLINE_BYTES
from runed.api.rpc.codecs import CODECS, BatchWriter
from runed.api.rpc.decoding import take_over
from runed.api.rpc.errors import connect_error
from runed.api.rpc.intake import ACCEPTED_ENCODINGS, take_in
from runed.api.rpc.observation import Observer
from runed.api.rpc.refusals import Application, Receive, Scope, Send
from runed.server import KNOWN_HEADS, SMALL, WHEN_GONE

if TYPE_CHECKING:
    from connectrpc.codec import Codec

Handler = Callable[[Any, RequestContext[Any, Any]], Awaitable[Message]]
"""A method of a generated service with one message and one answer."""

_BINARY, _JSON = CODECS

_CODECS: dict[bytes, Codec[Any, Any]] = {
    b"application/proto": _BINARY,
    b"application/json": _JSON,
    b"application/grpc": _BINARY,
    b"application/grpc+proto": _BINARY,
}
"""The codec of each content type that is served here."""

_ENVELOPE = 5
"""Bytes before a message of gRPC: its flags and its length."""

_FIRST = {"type": "http.request", "body": bytes(_ENVELOPE), "more_body": True}
"""The rest of a message in an envelope, once `intake` has read it."""

_END = {"type": "http.request", "body": b"", "more_body": False}
"""The end of a request. It is also the rest of a message without an envelope, once `intake` has read it."""

_UNITS = {"H": 3_600_000, "M": 60_000, "S": 1000, "m": 1, "u": 1e-3, "n": 1e-6}
"""Milliseconds of each unit of the header `grpc-timeout`."""


@dataclass(frozen=True, slots=True)
class _Form:
    """The form of an ordinary request, as its head tells it.

    Attributes:
        kind: The content type.
        codec: The codec of that content type.
        grpc: Whether this is gRPC.
        timeout_ms: Milliseconds that the call may take, or None.
        headers: All headers. Nobody changes them.
    """

    kind: bytes
    codec: Codec[Any, Any]
    grpc: bool
    timeout_ms: int | None
    headers: Headers


def _form(headers: tuple[tuple[bytes, bytes], ...], method: str) -> _Form | None:
    """Return the form of a request, or None if the library has to serve it."""
    values = dict(headers)
    kind = values.get(b"content-type", b"")
    codec = _CODECS.get(kind)
    if codec is None or method != "POST" or b"content-encoding" in values or b"grpc-encoding" in values:
        return None
    grpc = kind.startswith(b"application/grpc")
    pairs = [(name.decode(), value.decode()) for name, value in headers if name not in ACCEPTED_ENCODINGS]
    return _Form(kind, codec, grpc, _timeout(values, grpc=grpc), Headers(pairs))


_known_form = lru_cache(KNOWN_HEADS)(_form)


class UnaryMethod:
    """Serves one method.

    Args:
        method: The method.
        handler: Its handler.
        observer: Sees each call, as it sees those that the library serves.
        library: Serves the method for every request that is not ordinary.
    """

    def __init__(self, method: MethodDescriptor, handler: Handler, observer: Observer, library: Application) -> None:
        self._method: MethodInfo[Any, Any] = MethodInfo(
            name=method.name,
            service_name=method.containing_service.full_name,
            input=GetMessageClass(method.input_type),
            output=GetMessageClass(method.output_type),
            idempotency_level=IdempotencyLevel.UNKNOWN,
            stream_type=StreamType.UNARY,
        )
        self._limit = observer.max_request_bytes
        self._handler = handler
        self._handler_for_json = partial(BatchWriter().intercept_unary, handler)
        self._observer = observer
        self._library = library

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request without a fault in its head."""
        form_of = _known_form if scope.get(SMALL) else _form
        if (form := form_of(tuple(scope["headers"]), scope["method"])) is None:
            await self._library(*self._take_in(scope, receive), send)
            return
        context = RequestContext(
            method=self._method,
            http_method="POST",
            request_headers=form.headers,
            timeout_ms=form.timeout_ms,
            client_address=f"{scope['client'][0]}:{scope['client'][1]}",
        )
        call = await self._observer.on_start(context)
        try:
            answer = form.codec.encode(await self._call(form, context, scope, receive))
        except _NotOrdinaryError as reason:
            await self._library(reason.scope, reason.receive, send)
            return
        except Exception as error:  # noqa: BLE001 # the library answers it, whatever it is
            await self._library(self._take_in(scope, receive)[0], _failing(error), send)
            return
        except asyncio.CancelledError:
            with suppress(Exception):  # the connection may be gone
                cancelled = connect_error(Code.CANCELED, "Request was cancelled")
                await self._library(self._take_in(scope, receive)[0], _failing(cancelled), send)
            raise
        await self._observer.on_end(call, context, None)
        await (_send_grpc if form.grpc else _send_connect)(send, form.kind, answer, context)

    async def _call(self, form: _Form, context: RequestContext[Any, Any], scope: Scope, receive: Receive) -> Message:
        """Read the message and call the handler. Cancel it when its client leaves or its deadline passes.

        Raises:
            _NotOrdinaryError: The library has to serve the request.
            ConnectError: The client has left, or the deadline has passed.
        """
        handler = self._handler_for_json if form.codec is _JSON else self._handler
        limit = asyncio.timeout(None)
        watch = _Watch(limit, scope[WHEN_GONE], context.timeout_ms)
        try:
            async with limit:
                try:
                    request = await self._read(form, scope, receive)
                    watch.request_was_read()
                    return await handler(request, context)
                finally:
                    watch.end()
        except TimeoutError:
            if not limit.expired():
                raise
            if watch.client_left:
                raise connect_error(Code.CANCELED, "Client disconnected") from None
            raise connect_error(Code.DEADLINE_EXCEEDED, "Request timed out") from None

    async def _read(self, form: _Form, scope: Scope, receive: Receive) -> Message:
        """Read a request of one message.

        Raises:
            _NotOrdinaryError: It is another one.
        """
        part = await receive()
        if (message := self._small_message(form, part)) is not None:
            return message
        scope, receive = self._take_in(scope, _again([part], receive))
        part = await receive()
        if part != (_FIRST if form.grpc else _END) or (message := take_over()) is None:
            raise _NotOrdinaryError(scope, _again([part], receive))
        if form.grpc and (end := await receive()) != _END:
            # The library refuses both messages, whatever the first one was.
            raise _NotOrdinaryError(scope, _again([part, end], receive))
        return message

    def _small_message(self, form: _Form, part: dict[str, Any]) -> Message | None:
        """Return the message of a request that has come whole, and is small; None if it takes more to read it."""
        if form.codec is not _BINARY or part["type"] != "http.request" or part["more_body"]:
            return None
        data: bytes = part["body"]
        if len(data) > INLINE_BYTES:
            return None
        if form.grpc:
            if data[:1] != b"\0" or int.from_bytes(data[1:_ENVELOPE], "big") != len(data) - _ENVELOPE:
                return None
            data = data[_ENVELOPE:]
        try:
            message: Message = self._method.input.FromString(data)
        except DecodeError:
            return None
        return message

    def _take_in(self, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        return take_in(scope, receive, self._method.input, self._limit)


class _Watch:
    """Ends a call when its client leaves or its deadline passes. A call that never waits gets neither a timer nor a task.

    Args:
        limit: Ends the call.
        when_gone: Takes a function to call when the client has left.
        timeout_ms: Milliseconds that the call may take, or None.

    Attributes:
        client_left: Whether the client has left.
    """

    def __init__(
        self, limit: asyncio.Timeout, when_gone: Callable[[Callable[[], None] | None], None], timeout_ms: float | None
    ) -> None:
        self.client_left = False
        self._loop = asyncio.get_running_loop()
        self._limit = limit
        self._when_gone = when_gone
        self._deadline = None if timeout_ms is None else self._loop.time() + timeout_ms / 1000
        self._waits = self._is_read = False
        self._start = self._loop.call_soon(self._begin)

    def request_was_read(self) -> None:
        """Watch the client from now on. Before, the call itself notices when it leaves."""
        self._is_read = True
        if self._waits:
            self._when_gone(self._leave)

    def end(self) -> None:
        """End the watch."""
        self._start.cancel()
        self._when_gone(None)

    def _begin(self) -> None:
        self._waits = True
        self._limit.reschedule(self._deadline)
        if self._is_read:
            self.request_was_read()

    def _leave(self) -> None:
        self.client_left = True
        if not self._limit.expired():
            self._limit.reschedule(self._loop.time())


class _NotOrdinaryError(Exception):
    """A request is not one whole message.

    Attributes:
        scope: The request, for the library.
        receive: Begins with what was read of it.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        super().__init__()
        self.scope = scope
        self.receive = receive


def _again(parts: Iterable[dict[str, Any]], receive: Receive) -> Receive:
    """Return a `receive` that begins with parts that were read before."""
    left = iter(parts)

    async def next_part() -> dict[str, Any]:
        part = next(left, None)
        return await receive() if part is None else part

    return next_part


def _failing(error: Exception) -> Receive:
    """Return a `receive` for a call that has failed."""

    async def fail() -> dict[str, Any]:
        raise error

    return fail


def _timeout(headers: dict[bytes, bytes], *, grpc: bool) -> int | None:
    """Return the milliseconds that a call may take, rounded up."""
    value = headers.get(b"grpc-timeout" if grpc else b"connect-timeout-ms")
    if not value:
        return None
    return math.ceil(int(value[:-1]) * _UNITS[chr(value[-1])]) if grpc else int(value)


async def _send_connect(send: Send, kind: bytes, answer: bytes, context: RequestContext[Any, Any]) -> None:
    headers = [
        (b"content-type", kind),
        (b"content-length", b"%d" % len(answer)),
        *_encoded(context.response_headers),
        *_encoded(context.response_trailers, b"trailer-"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers, "trailers": False})
    await send({"type": "http.response.body", "body": answer, "more_body": False})


async def _send_grpc(send: Send, kind: bytes, answer: bytes, context: RequestContext[Any, Any]) -> None:
    headers = [(b"content-type", kind), *_encoded(context.response_headers)]
    body = b"\0" + len(answer).to_bytes(4, "big") + answer
    trailers = [(b"grpc-status", b"0"), *_encoded(context.response_trailers)]
    await send({"type": "http.response.start", "status": 200, "headers": headers, "trailers": True})
    await send({"type": "http.response.body", "body": body, "more_body": False})
    await send({"type": "http.response.trailers", "headers": trailers, "more_trailers": False})


def _encoded(headers: Headers, prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
    return [(prefix + name.encode(), value.encode()) for name, value in headers.allitems()]
