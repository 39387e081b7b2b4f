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

import h11

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
    ("host", "runed"),
    ("content-type", "application/proto"),
    ("connect-protocol-version", "1"),
    # Compression costs time and saves nothing between two processes of one machine.
    ("accept-encoding", "identity"),
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


class Exchange:
    """The state of one connection: any number of calls, one after another."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.CLIENT)
        self._status = 0
        self._body: list[bytes | bytearray] = []

    def request(self, method: str, message: bytes, timeout: float | None) -> bytes:
        """Return the bytes to send for a call.

        Args:
            method: The method's name, as in "Embed".
            message: The encoded request.
            timeout: Seconds after which the daemon may drop the call.
        """
        headers = [*_HEADERS, ("content-length", str(len(message)))]
        if timeout is not None:
            headers.append(("connect-timeout-ms", str(min(max(1, math.ceil(timeout * 1000)), _MAX_TIMEOUT_MS))))
        parts = (
            self._http.send(h11.Request(method="POST", target=f"/{SERVICE}/{method}", headers=headers)),
            self._http.send(h11.Data(data=message)),
            self._http.send(h11.EndOfMessage()),
        )
        return b"".join(part for part in parts if part)

    def receive(self, data: bytes) -> Answer | None:
        """Take received bytes, and return the answer once it is complete.

        Args:
            data: The next bytes; b"" means that the other side closed the connection.

        Raises:
            h11.RemoteProtocolError: The connection ended before the answer did, or the answer is not HTTP.
        """
        self._http.receive_data(data)
        while (event := self._http.next_event()) is not h11.NEED_DATA:
            match event:
                case h11.Response():
                    self._status = event.status_code
                case h11.Data():
                    self._body.append(event.data)
                case h11.EndOfMessage():
                    answer = Answer(self._status, b"".join(self._body))
                    self._body.clear()
                    return answer
                case h11.ConnectionClosed():
                    raise h11.RemoteProtocolError("the connection ended before the answer")
        return None

    def start_next(self) -> bool:
        """Prepare for another call, and return whether this connection can carry one."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True


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
