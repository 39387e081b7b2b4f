"""Reads the messages of a request ahead of the RPC library, which would decompress and decode them in the event loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from google.protobuf.message import Message

from runed.api.large import beside_the_loop, let_go
from runed.api.rpc.decoding import Decoded, decode, hand_over
from runed.api.rpc.inflating import inflate, too_large
from runed.api.rpc.refusals import Receive, Scope, content_type, is_any_grpc
from runed.server import reserve
from runed.turns import breathe

_ENVELOPE_BYTES = 5
_COMPRESSED = 0b01

ACCEPTED_ENCODINGS = (b"accept-encoding", b"connect-accept-encoding", b"grpc-accept-encoding")
"""Headers that offer to decompress the answer."""


def take_in(scope: Scope, receive: Receive, message_class: type[Message], limit: int) -> tuple[Scope, Receive]:
    """Return a request as the RPC library shall see it: with empty messages, which the codecs replace by those that were read.

    The library also sees no offer of the client to decompress answers. Both sides are on one machine, where compression costs
    more than it saves.

    Args:
        scope: The request.
        receive: ASGI's.
        message_class: The class of its messages.
        limit: The most bytes of a message.
    """
    headers = [header for header in scope["headers"] if header[0] not in ACCEPTED_ENCODINGS]
    request = scope | {"headers": headers}
    if scope["method"] != "POST":
        return request, receive
    kind = content_type(scope).lower()
    streams = kind.startswith("application/connect+")
    encoding_header = (
        b"grpc-encoding" if is_any_grpc(scope) else b"connect-content-encoding" if streams else b"content-encoding"
    )
    given = dict(headers).get(encoding_header)
    encoding = given or b"identity"
    if encoding not in {b"identity", b"gzip"}:
        return request, receive  # the library refuses it
    if given is not None:
        request["headers"] = [header for header in headers if header[0] != encoding_header]
    reader = partial(decode, message_class=message_class, codec="json" if "json" in kind else "proto")
    messages = _Messages(receive, reader, limit, gzip=encoding == b"gzip")
    return request, messages.next_envelope if streams or is_any_grpc(scope) else messages.body


class _Messages:
    """The messages of one request."""

    def __init__(self, receive: Receive, reader: Callable[[bytes], Decoded], limit: int, *, gzip: bool) -> None:
        self._receive = receive
        self._reader = reader
        self._limit = limit
        self._gzip = gzip
        self._buffer = bytearray()
        self._more = True
        self._over = False

    async def body(self) -> dict[str, Any]:
        """Read the whole body as one message. Return an empty body."""
        while self._more:
            if (event := await self._read()) is not None:
                return event
            if len(self._buffer) > self._limit:
                self._buffer.clear()
                raise too_large(self._limit)
        if self._over:
            return await self._receive()
        await self._hand_over(self._take(0, len(self._buffer)), compressed=self._gzip)
        return self._part(b"")

    async def next_envelope(self) -> dict[str, Any]:
        """Read a message in its envelope. Return an empty message in an envelope, or what the library needs to refuse it."""
        while not self._over:
            if len(self._buffer) >= _ENVELOPE_BYTES:
                flags, size = self._buffer[0], int.from_bytes(self._buffer[1:_ENVELOPE_BYTES], "big")
                if size > self._limit:
                    self._buffer.clear()
                    raise too_large(self._limit)
                if flags & ~_COMPRESSED or (flags and not self._gzip):
                    return self._part(bytes([flags, 0, 0, 0, 0]))
                end = _ENVELOPE_BYTES + size
                if len(self._buffer) >= end:
                    await self._hand_over(self._take(_ENVELOPE_BYTES, end), compressed=bool(flags))
                    if self._buffer:  # a message that is alone does not wait for the work of others
                        await breathe()
                    return {"type": "http.request", "body": bytes(_ENVELOPE_BYTES), "more_body": True}
            if not self._more:
                return self._part(bytes(self._buffer[:_ENVELOPE_BYTES]))
            if (event := await self._read()) is not None:
                return event
        return await self._receive()

    def _take(self, start: int, end: int) -> bytes:
        """Return bytes of the buffer, and remove everything up to their end."""
        with memoryview(self._buffer) as view:
            taken = bytes(view[start:end])
        del self._buffer[:end]
        return taken

    def _part(self, body: bytes) -> dict[str, Any]:
        """Return the last part of the body."""
        self._over = True
        self._buffer.clear()
        return {"type": "http.request", "body": body, "more_body": False}

    async def _read(self) -> dict[str, Any] | None:
        """Read a part of the body. Return the event if it is none."""
        event = await self._receive()
        if event["type"] != "http.request":
            return event
        self._buffer += event["body"]
        self._more = event["more_body"]
        return None

    async def _hand_over(self, data: bytes, *, compressed: bool) -> None:
        try:
            if compressed and data:
                # Even a small message may become a large one.
                data = await beside_the_loop(partial(inflate, data, self._limit), 1000 * len(data))
                reserve(len(data))
            hand_over(await beside_the_loop(partial(self._reader, data), len(data)))
        except BaseException as error:  # a cancel, too
            # The library keeps the error of a stream until the next collection of garbage.
            let_go(error)
            del data
            raise
