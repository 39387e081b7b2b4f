"""The ASGI application: the service, and an answer in the caller's own protocol for whatever is none of its methods."""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Any

from google.rpc.code_pb2 import UNIMPLEMENTED
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from runed_proto.runed.v1.runed_connect import RunedServiceASGIApplication
from runed_proto.runed.v1.runed_pb2 import DESCRIPTOR

from runed.engine.engine import MAX_REQUEST_BYTES
from runed.errors import UnimplementedError
from runed.service.codecs import CODECS
from runed.service.handler import Host, RunedServicer
from runed.service.observe import Observer
from runed.service.wire import DOMAIN, error_info

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_SERVICE = DESCRIPTOR.services_by_name["RunedService"]
_PATHS = frozenset(f"/{_SERVICE.full_name}/{method.name}" for method in _SERVICE.methods)

_HINTS = {
    405: "this HTTP method cannot be used here; send a POST",
    415: "this Content-Type cannot be used here; for JSON, send the header Content-Type: application/json",
}
"""What to do about a status that the RPC library answers without a body."""


def build_app(host: Host) -> Application:
    """Build the application that serves everything on the daemon's socket.

    Args:
        host: The daemon.

    Returns:
        An ASGI application that speaks Connect (protobuf and JSON), gRPC and gRPC-Web.
    """
    service: Any = RunedServiceASGIApplication(
        RunedServicer(host),
        interceptors=[Observer(max_request_bytes=MAX_REQUEST_BYTES)],
        read_max_bytes=MAX_REQUEST_BYTES,
        codecs=CODECS,
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in _PATHS:
            await _refuse_unknown(scope, send)
        elif _is_grpc(scope) and scope["http_version"] != "2":
            hint = "gRPC needs HTTP/2; speak it without TLS (h2c by prior knowledge), or use Connect or gRPC-Web instead"
            body = _connect_body("invalid_argument", hint, _malformed())
            await _respond(send, 505, [(b"content-type", b"application/json")], body)
        else:
            await service(scope, receive, _with_hint(send))

    return app


def _with_hint(send: Send) -> Send:
    """Say what to do in the refusals that the RPC library answers with a bare status."""
    body = b""

    async def send_with_hint(message: dict[str, Any]) -> None:
        nonlocal body
        if hint := _HINTS.get(message.get("status", 0)):
            body = _connect_body("invalid_argument", hint, _malformed())
            message |= {"headers": [*message["headers"], (b"content-type", b"application/json")]}
        elif body and message["type"] == "http.response.body":
            message |= {"body": body}
        await send(message)

    return send_with_hint


def _is_grpc(scope: Scope) -> bool:
    """Tell whether a request is one of gRPC itself, whose trailers only HTTP/2 has, and not of gRPC-Web."""
    content_type = _content_type(scope)
    return content_type.startswith("application/grpc") and not content_type.startswith("application/grpc-web")


def _content_type(scope: Scope) -> str:
    value: bytes = dict(scope["headers"]).get(b"content-type", b"")
    return value.decode("latin-1")


def _malformed() -> ErrorInfo:
    return ErrorInfo(domain=DOMAIN, reason="MALFORMED_REQUEST")


async def _refuse_unknown(scope: Scope, send: Send) -> None:
    methods = ", ".join(method.name for method in _SERVICE.methods)
    error = UnimplementedError(f"there is no such method; {_SERVICE.full_name} has {methods}")
    detail = error_info(error)
    content_type = _content_type(scope)
    if content_type.startswith("application/grpc"):
        status = Status(code=UNIMPLEMENTED, message=error.message)
        status.details.add().Pack(detail)
        headers = [
            (b"content-type", content_type.encode("latin-1")),
            (b"grpc-status", str(UNIMPLEMENTED).encode()),
            (b"grpc-message", urllib.parse.quote(error.message, safe=" ").encode()),
            (b"grpc-status-details-bin", base64.b64encode(status.SerializeToString()).rstrip(b"=")),
        ]
        await _respond(send, 200, headers, b"")
        return
    body = _connect_body("unimplemented", error.message, detail)
    await _respond(send, 404, [(b"content-type", b"application/json")], body)


def _connect_body(code: str, message: str, detail: ErrorInfo) -> bytes:
    value = base64.b64encode(detail.SerializeToString()).decode().rstrip("=")
    error = {"code": code, "message": message, "details": [{"type": detail.DESCRIPTOR.full_name, "value": value}]}
    return json.dumps(error).encode()


async def _respond(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers, "trailers": False})
    await send({"type": "http.response.body", "body": body, "more_body": False})
