"""Calls of the Connect protocol without streams, over HTTP/1.1, as pure computation: bytes in, bytes out, no socket.

A call is a POST of a protobuf message. The answer is a protobuf message, or an error as JSON. Both transports share this
module. The generated client of connectrpc cannot replace it: it uses pyqwest, and pyqwest 0.12 has no UNIX sockets.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from dataclasses import dataclass
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from runed.client.wire.trace_context import trace_headers
from runed.errors import (
    BackendUnavailableError,
    DeadlineExceededError,
    InvalidRequestError,
    QueueFullError,
    RequestTooLargeError,
    RunedError,
    UnimplementedError,
    error_of_reason,
)

SERVICE = "runed.v1.RunedService"

HTTP_OK = 200
"""The HTTP status of an answer that is not an error."""

_MAX_TIMEOUT_MS = 10**10 - 1
"""Most milliseconds in the header of a time limit. The protocol allows ten digits."""

_HEADERS = (
    "host: runed\r\n"
    "content-type: application/proto\r\n"
    "connect-protocol-version: 1\r\n"
    "accept-encoding: identity\r\n"  # compression costs time and saves nothing between two processes of one machine
)

_CLASSES: dict[str, type[RunedError]] = {
    "deadline_exceeded": DeadlineExceededError,
    "invalid_argument": InvalidRequestError,
    "resource_exhausted": RequestTooLargeError,
    "unavailable": BackendUnavailableError,
    "unimplemented": UnimplementedError,
}
"""Classes of errors with a reason that is unknown here, by Connect code."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response.

    Attributes:
        status: The HTTP status.
        body: A protobuf message if the status is 200, else an error as JSON.
    """

    status: int
    body: bytes

    def message(self) -> bytes:
        """Return the encoded protobuf message.

        Raises:
            RunedError: The answer is an error. Its class tells the kind.
        """
        if self.status != HTTP_OK:
            raise _error(self)
        return self.body


class BrokenAnswerError(Exception):
    """The connection ended before the answer did, or the answer is not HTTP."""


class Exchange:
    """The state of one connection: any number of calls, one after another."""

    def __init__(self) -> None:
        self._parser = HttpResponseParser(self)
        self._body: list[bytes] = []
        self._answer: Answer | None = None
        self._reusable = False

    def request(self, method: str, message: bytes, timeout: float | None) -> bytes:
        """Return the bytes to send for a call.

        Args:
            method: The method's name, as in "Embed".
            message: The encoded request.
            timeout: Seconds after which the daemon may drop the call.
        """
        self._answer = None
        self._reusable = False
        limit = "" if timeout is None else f"connect-timeout-ms: {min(max(1, math.ceil(timeout * 1000)), _MAX_TIMEOUT_MS)}\r\n"
        trace = "".join(f"{name}: {value}\r\n" for name, value in trace_headers().items())
        head = f"POST /{SERVICE}/{method} HTTP/1.1\r\n{_HEADERS}{limit}{trace}content-length: {len(message)}\r\n\r\n"
        return head.encode() + message

    def receive(self, data: bytes) -> Answer | None:
        """Take received bytes, and return the answer once it is complete.

        Args:
            data: The next bytes; b"" means that the other side closed the connection.

        Raises:
            BrokenAnswerError: See there.
        """
        if not data:
            raise BrokenAnswerError("the connection ended before the answer")
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            raise BrokenAnswerError("the answer is not HTTP") from None
        answer, self._answer = self._answer, None  # a connection that waits for its next call would keep megabytes
        return answer

    def can_go_on(self) -> bool:
        """Return whether this connection can carry another call after the last answer."""
        return self._reusable

    # Called by the parser

    def on_message_begin(self) -> None:
        """Begin an answer. A second one to the same request is no answer to the next request."""
        self._body = []
        self._reusable = False

    def on_body(self, body: bytes) -> None:
        """Take a part of the answer's body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Keep the answer, unless it only tells that another one will come (1xx)."""
        status = self._parser.get_status_code()
        if status >= HTTP_OK and self._answer is None:
            self._answer = Answer(status, b"".join(self._body))
            self._reusable = self._parser.should_keep_alive()
        self._body = []


def _error(answer: Answer) -> RunedError:
    """Turn an answer that is not a message into its error."""
    try:
        return error_of(json.loads(answer.body))
    except (ValueError, RecursionError):  # no JSON, no error of ours, or lists in lists in lists
        return RunedError(
            f"the daemon answered HTTP {answer.status} without an error of its own; is it another program's socket?"
        )


def error_of(document: object) -> RunedError:
    """Turn an error of the daemon back into its class.

    Args:
        document: The error as the Connect protocol writes it, decoded from JSON.

    Raises:
        ValueError: The document is not an error.
    """
    try:
        match document:
            case {"code": str(code), **others}:
                message = str(others.get("message", ""))
                details = others.get("details", [])
            case _:
                raise ValueError("no error")
        reason, metadata, retry_after = _read_details(details if isinstance(details, list) else [])
    except (KeyError, TypeError, AttributeError):
        raise ValueError("no error") from None
    otherwise = _CLASSES.get(code, RunedError)
    if otherwise is RequestTooLargeError and retry_after is not None:
        otherwise = QueueFullError  # another try cannot help a request that is too large
    return error_of_reason(
        reason or ("CANCELED" if code == "canceled" else ""),
        message or f"the daemon answered {code}",
        metadata=metadata,
        retry_after=retry_after,
        otherwise=otherwise,
    )


def _read_details(details: list[dict[str, Any]]) -> tuple[str, dict[str, str], float | None]:
    """Return reason and metadata of the ErrorInfo, and the seconds of the RetryInfo."""
    from google.protobuf.message import DecodeError  # noqa: PLC0415 # errors are rare, and the next import takes 15 ms
    from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo  # noqa: PLC0415 # as above

    reason, metadata, retry_after = "", {}, None
    for detail in details:
        value = detail["value"]
        try:
            data = base64.b64decode(value + "=" * (-len(value) % 4))
            if detail["type"] == "google.rpc.ErrorInfo":
                info = ErrorInfo.FromString(data)
                reason, metadata = info.reason, dict(info.metadata)
            elif detail["type"] == "google.rpc.RetryInfo":
                retry_after = RetryInfo.FromString(data).retry_delay.ToNanoseconds() / 1e9
        except (binascii.Error, DecodeError):
            continue
    return reason, metadata, retry_after
