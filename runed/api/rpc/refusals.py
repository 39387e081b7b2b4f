"""Answers to requests that never reach the RPC library, in the protocol that the caller speaks."""

from __future__ import annotations

import base64
import json
import struct
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.rpc import code_pb2
from google.rpc.status_pb2 import Status

from runed.api.error_codes import code_of
from runed.api.rpc.errors import error_info
from runed.errors import RunedError

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_KIND = "runed.content_type"
"""The key of the content type in a request, where it is kept since many look at it."""

_END_OF_STREAM = 0b10
"""The flag of the message of the Connect protocol that ends a stream."""


def content_type(scope: Scope) -> str:
    """Return the content type of a request, or ""."""
    kind: str | None = scope.get(_KIND)
    if kind is None:
        kind = scope[_KIND] = dict(scope["headers"]).get(b"content-type", b"").decode("latin-1")
    return kind


def is_any_grpc(scope: Scope) -> bool:
    """Return whether a request is one of gRPC or of gRPC-Web."""
    return content_type(scope).startswith("application/grpc")


def is_grpc(scope: Scope) -> bool:
    """Return whether a request is one of gRPC, which needs the trailers of HTTP/2, and not of gRPC-Web."""
    return is_any_grpc(scope) and not content_type(scope).startswith("application/grpc-web")


async def refuse(scope: Scope, send: Send, status: int, error: RunedError) -> None:
    """Refuse a request.

    Args:
        scope: The request.
        send: ASGI's.
        status: The HTTP status of the answer in a protocol whose errors have one.
        error: The reason, and advice.
    """
    if is_any_grpc(scope) and not (is_grpc(scope) and scope["http_version"] != "2"):
        await respond(send, 200, _grpc_headers(content_type(scope), error))
    elif content_type(scope).startswith("application/connect+"):
        end = json.dumps({"error": _connect_error(error)}).encode()
        message = struct.pack(">BI", _END_OF_STREAM, len(end)) + end
        await respond(send, 200, [(b"content-type", content_type(scope).encode("latin-1"))], message)
    else:
        await respond(send, status, [(b"content-type", b"application/json")], connect_body(error))


def connect_body(error: RunedError) -> bytes:
    """Return an error as the Connect protocol writes it."""
    return json.dumps(_connect_error(error)).encode()


async def respond(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes = b"") -> None:
    """Send a whole response."""
    await send({"type": "http.response.start", "status": status, "headers": headers, "trailers": False})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _grpc_headers(content_type: str, error: RunedError) -> list[tuple[bytes, bytes]]:
    code: int = code_pb2.Code.Value(code_of(error).value.upper())
    status = Status(code=code, message=error.message)
    status.details.add().Pack(error_info(error))
    return [
        (b"content-type", content_type.encode("latin-1")),
        (b"grpc-status", str(code).encode()),
        (b"grpc-message", urllib.parse.quote(error.message, safe=" ").encode()),
        (b"grpc-status-details-bin", base64.b64encode(status.SerializeToString()).rstrip(b"=")),
    ]


def _connect_error(error: RunedError) -> dict[str, Any]:
    detail = error_info(error)
    value = base64.b64encode(detail.SerializeToString()).decode().rstrip("=")
    return {
        "code": code_of(error).value,
        "message": error.message,
        "details": [{"type": detail.DESCRIPTOR.full_name, "value": value, "debug": MessageToDict(detail)}],
    }
