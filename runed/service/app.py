"""The ASGI application: the service, the metrics, and an answer for whatever is neither."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from runed_proto.runed.v1.runed_connect import RunedServiceASGIApplication
from runed_proto.runed.v1.runed_pb2 import DESCRIPTOR

from runed.engine.metrics import CONTENT_TYPE
from runed.errors import UnimplementedError
from runed.service.codecs import CODECS
from runed.service.handler import Host, RunedServicer
from runed.service.observe import Observer
from runed.service.refusals import Scope, Send, connect_body, is_grpc, refuse, respond
from runed.service.wire import MalformedRequestError

Receive = Callable[[], Awaitable[dict[str, Any]]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_SERVICE = DESCRIPTOR.services_by_name["RunedService"]
_PATHS = frozenset(f"/{_SERVICE.full_name}/{method.name}" for method in _SERVICE.methods)
_STREAM_PATH = f"/{_SERVICE.full_name}/EmbedStream"
_METRICS_PATH = "/metrics"

_UNKNOWN = UnimplementedError(
    f"there is no such method; {_SERVICE.full_name} has {', '.join(method.name for method in _SERVICE.methods)}"
)
_GRPC_NEEDS_HTTP2 = MalformedRequestError(
    "gRPC needs HTTP/2; speak it without TLS (h2c by prior knowledge), or use Connect or gRPC-Web instead"
)
_STREAM_NEEDS_HTTP2 = MalformedRequestError(
    "EmbedStream needs HTTP/2, as it goes both ways at once; speak it without TLS (h2c by prior knowledge), or send the texts "
    "by EmbedBatch instead"
)
_WRONG_METHOD = MalformedRequestError("this HTTP method cannot be used here; send a POST")
_WRONG_TYPE = MalformedRequestError(
    "this Content-Type cannot be used here; for JSON, send the header Content-Type: application/json"
)
_WRONG_STREAM_TYPE = MalformedRequestError(
    "this Content-Type cannot be used for a stream; for JSON, send the header Content-Type: application/connect+json and frame "
    "each message as the Connect protocol wants it, or send the texts by EmbedBatch instead"
)


def build_app(host: Host) -> Application:
    """Build the application that serves everything on the daemon's socket.

    Args:
        host: The daemon.

    Returns:
        An ASGI application that speaks Connect (protobuf and JSON), gRPC and gRPC-Web, and answers `GET /metrics`. A request
        over HTTP/2 has to offer the extension "runed.duplex" of `runed.server`.
    """
    limit = host.info().max_request_bytes
    service: Any = RunedServiceASGIApplication(
        RunedServicer(host),
        interceptors=[Observer(max_request_bytes=limit)],
        read_max_bytes=limit,
        codecs=CODECS,
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == _METRICS_PATH:
            await _send_metrics(host, scope, send)
        elif path not in _PATHS:
            await refuse(scope, send, 404, _UNKNOWN)
        elif is_grpc(scope) and scope["http_version"] != "2":
            await refuse(scope, send, 505, _GRPC_NEEDS_HTTP2)
        elif path != _STREAM_PATH:
            await service(scope, receive, _with_hint(send, wrong_type=_WRONG_TYPE))
        elif scope["http_version"] != "2":
            await refuse(scope, send, 505, _STREAM_NEEDS_HTTP2)
        else:
            await _serve_stream(service, scope, receive, _with_hint(send, wrong_type=_WRONG_STREAM_TYPE))

    return app


async def _send_metrics(host: Host, scope: Scope, send: Send) -> None:
    if scope["method"] not in {"GET", "HEAD"}:
        await respond(send, 405, [(b"allow", b"GET, HEAD"), (b"content-length", b"0")])
        return
    body = host.metrics()
    headers = [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    await respond(send, 200, headers, b"" if scope["method"] == "HEAD" else body)


async def _serve_stream(service: Application, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve a stream until its client goes or gives it up.

    The RPC library sees that only once it has read all of the request. While the engine has no room, a stream is not read.
    """
    disconnected: asyncio.Event = scope["extensions"]["runed.duplex"]["begin"]()
    all_read = False

    async def receive_and_look() -> dict[str, Any]:
        nonlocal all_read
        message = await receive()
        all_read = message["type"] == "http.request" and not message["more_body"]
        return message

    async def watch() -> None:
        await disconnected.wait()
        if not all_read:  # else the library has noticed, and a second cancellation would hit the handler as it cleans up
            presence.reschedule(asyncio.get_running_loop().time())

    presence = asyncio.timeout(None)
    try:
        async with presence:
            watching = asyncio.create_task(watch())
            try:
                await service(scope, receive_and_look, send)
            finally:
                watching.cancel()
    except TimeoutError:
        if not presence.expired():
            raise


def _with_hint(send: Send, *, wrong_type: MalformedRequestError) -> Send:
    """Say what to do in the refusals that the RPC library answers with a bare status."""
    body = b""

    async def send_with_hint(message: dict[str, Any]) -> None:
        nonlocal body
        if error := {405: _WRONG_METHOD, 415: wrong_type}.get(message.get("status", 0)):
            body = connect_body(error)
            message |= {"headers": [*message["headers"], (b"content-type", b"application/json")]}
        elif body and message["type"] == "http.response.body":
            message |= {"body": body}
        await send(message)

    return send_with_hint
