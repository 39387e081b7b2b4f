"""The ASGI application: the service, and an answer in the caller's own protocol for whatever is none of its methods."""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Any

from google.rpc.code_pb2 import UNIMPLEMENTED
from google.rpc.status_pb2 import Status
from runed_proto.runed.v1.runed_connect import RunedServiceASGIApplication
from runed_proto.runed.v1.runed_pb2 import DESCRIPTOR

from runed.engine.engine import MAX_REQUEST_BYTES
from runed.errors import UnimplementedError
from runed.service.codecs import CODECS
from runed.service.handler import Host, RunedServicer
from runed.service.observe import Observer
from runed.service.wire import error_info

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_SERVICE = DESCRIPTOR.services_by_name["RunedService"]
_PATHS = frozenset(f"/{_SERVICE.full_name}/{method.name}" for method in _SERVICE.methods)


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
        if scope["type"] == "http" and scope["path"] not in _PATHS:
            await _refuse_unknown(scope, send)
            return
        await service(scope, receive, send)

    return app


async def _refuse_unknown(scope: Scope, send: Send) -> None:
    methods = ", ".join(method.name for method in _SERVICE.methods)
    error = UnimplementedError(f"there is no such method; {_SERVICE.full_name} has {methods}")
    detail = error_info(error)
    content_type = dict(scope["headers"]).get(b"content-type", b"").decode("latin-1")
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
    body = {
        "code": "unimplemented",
        "message": error.message,
        "details": [
            {
                "type": detail.DESCRIPTOR.full_name,
                "value": base64.b64encode(detail.SerializeToString()).decode().rstrip("="),
            }
        ],
    }
    await _respond(send, 404, [(b"content-type", b"application/json")], json.dumps(body).encode())


async def _respond(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers, "trailers": False})
    await send({"type": "http.response.body", "body": body, "more_body": False})
