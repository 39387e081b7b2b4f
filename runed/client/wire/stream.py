"""One bidirectional stream of the Connect protocol over HTTP/2, as pure computation: bytes in, bytes out, no socket.

A connection carries one stream and ends with it. Messages go in envelopes: a byte of flags, four of length, the message. The
last envelope of the daemon has JSON instead of a message, with the error of the stream if there is one.
"""

from __future__ import annotations

import json
import struct

from runed.client.wire.http2 import Http2Request, broken_off
from runed.client.wire.trace_context import trace_headers
from runed.client.wire.unary import HTTP_OK, SERVICE, Answer, error_of
from runed.errors import RunedError

MAX_MESSAGE = 64 * 1024 * 1024
"""Most bytes of a message of the daemon. A larger one is not from runed."""

_ENVELOPE = struct.Struct(">BI")
_END_OF_STREAM = 0x02

_HEADERS = (
    ("content-type", "application/connect+proto"),
    ("connect-protocol-version", "1"),
    # As in `unary`.
    ("connect-accept-encoding", "identity"),
)


class StreamExchange:
    """The state of one stream.

    Attributes:
        ended: Whether the last envelope of the daemon has come.
        failure: The reason why the stream ended early, or None.

    Args:
        method: The method's name, as in "EmbedStream".
    """

    def __init__(self, method: str) -> None:
        self.ended = False
        self.failure: RunedError | None = None
        self._request = Http2Request(f"/{SERVICE}/{method}", (*_HEADERS, *trace_headers().items()))
        self._buffer = bytearray()

    @property
    def draining(self) -> bool:
        """Whether the daemon is about to end. It still answers the messages that it has, and takes no others."""
        return self._request.draining

    @property
    def blocked(self) -> bool:
        """Whether messages wait for room in the daemon."""
        return self._request.blocked

    @property
    def half_closed(self) -> bool:
        """Whether `end` was called."""
        return self._request.half_closed

    def send(self, message: bytes) -> None:
        """Take a message. `output` returns it as the daemon has room."""
        self._request.send(_ENVELOPE.pack(0, len(message)) + message)

    def end(self) -> None:
        """End the messages."""
        self._request.end()

    def reset(self) -> None:
        """Abandon the stream. `output` returns the frame that tells the daemon."""
        if not self.ended:
            self._request.reset()

    def output(self) -> bytes:
        """Return the next bytes to write."""
        return self._request.output()

    def receive(self, data: bytes) -> list[bytes]:
        """Take received bytes, and return the complete messages. A failure does not hide the messages before it.

        Args:
            data: The next bytes; b"" means that the other side closed the connection.
        """
        messages: list[bytes] = []
        self._buffer += self._request.receive(data)
        try:
            self._unpack(messages)
            if self._request.ended and not self.ended:
                if self._request.status != HTTP_OK:
                    Answer(self._request.status, bytes(self._buffer)).message()
                raise broken_off()
        except RunedError as error:
            self.failure = error
        if not self.ended:
            self.failure = self.failure or self._request.failure
        return messages

    def _unpack(self, messages: list[bytes]) -> None:
        while self._request.status == HTTP_OK and len(self._buffer) >= _ENVELOPE.size and not self.ended:
            flags, length = _ENVELOPE.unpack_from(self._buffer)
            if flags & ~_END_OF_STREAM or length > MAX_MESSAGE:
                raise not_of_runed()
            if len(self._buffer) < (end := _ENVELOPE.size + length):
                return
            message = bytes(self._buffer[_ENVELOPE.size : end])
            del self._buffer[:end]
            if flags:
                self._finish(message)
            else:
                messages.append(message)

    def _finish(self, message: bytes) -> None:
        self.ended = True
        try:
            document = json.loads(message)
            if error := document.get("error"):
                raise error_of(error)
        except (ValueError, AttributeError, RecursionError):
            raise not_of_runed() from None


def not_of_runed() -> RunedError:
    """Return the error of an answer that is not a message of the contract."""
    return RunedError("the answer is no message of runed; is it another program's socket?")
