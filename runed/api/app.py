"""The ASGI application: the services, the metrics, and an answer for whatever is neither."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from runed_proto.grpc.health.v1 import health_pb2
from runed_proto.grpc.health.v1.health_connect import HealthASGIApplication
from runed_proto.grpc.reflection.v1 import reflection_pb2
from runed_proto.grpc.reflection.v1.reflection_connect import ServerReflectionASGIApplication
from runed_proto.grpc.reflection.v1alpha import reflection_pb2 as alpha_reflection_pb2
from runed_proto.grpc.reflection.v1alpha.reflection_connect import (
    ServerReflectionASGIApplication as AlphaServerReflectionASGIApplication,
)
from runed_proto.runed.v1 import runed_pb2
from runed_proto.runed.v1.runed_connect import RunedServiceASGIApplication

from runed.api.host import Host
from runed.api.openai.app import PREFIX, build_openai_app
from runed.api.rpc.codecs import CODECS
from runed.api.rpc.error_codes import MalformedRequestError
from runed.api.rpc.handler import RunedServicer
from runed.api.rpc.heads import fault_of
from runed.api.rpc.health import HealthServicer
from runed.api.rpc.observation import Observer
from runed.api.rpc.reflection import AlphaReflectionServicer, ReflectionServicer
from runed.api.rpc.refusals import Scope, Send, connect_body, is_grpc, refuse, respond
from runed.errors import UnimplementedError
from runed.metrics import CONTENT_TYPE

Receive = Callable[[], Awaitable[dict[str, Any]]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_RUNED = runed_pb2.DESCRIPTOR.services_by_name["RunedService"]
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
_REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
_ALPHA_REFLECTION = alpha_reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
_SERVICES = (_RUNED, _HEALTH, _REFLECTION, _ALPHA_REFLECTION)

_METRICS_PATH = "/metrics"

_INSTEAD = {
    "runed.v1.RunedService.EmbedStream": ", or send the texts by EmbedBatch instead",
    "grpc.health.v1.Health.Watch": ", or ask Check now and then instead",
}
"""What does without a stream, by the full name of a method."""

_GRPC_NEEDS_HTTP2 = MalformedRequestError(
    "gRPC needs HTTP/2; speak it without TLS (h2c by prior knowledge), or use Connect or gRPC-Web instead"
)
_WRONG_METHOD = MalformedRequestError("this HTTP method cannot be used here; send a POST")
_WRONG_TYPE = MalformedRequestError(
    "this Content-Type cannot be used here; for JSON, send the header Content-Type: application/json"
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
    options: dict[str, Any] = {
        "interceptors": [Observer(max_request_bytes=limit)],
        "read_max_bytes": limit,
        "codecs": CODECS,
    }
    names = [service.full_name for service in _SERVICES]
    reflection = ReflectionServicer(host, names)
    routes: dict[str, Application] = {
        _METRICS_PATH: _metrics(host),
        **_routes(_RUNED, RunedServiceASGIApplication(RunedServicer(host), **options)),
        **_routes(_HEALTH, HealthASGIApplication(HealthServicer(host, names), **options)),
        **_routes(_REFLECTION, ServerReflectionASGIApplication(reflection, **options)),
        **_routes(_ALPHA_REFLECTION, AlphaServerReflectionASGIApplication(AlphaReflectionServicer(reflection), **options)),
    }
    unknown = UnimplementedError(f"there is no such method; {_methods_of(_SERVICES)}")

    openai: Any = build_openai_app(host)  # its types for ASGI are others

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(PREFIX):
            await openai(scope, receive, send)
        elif (route := routes.get(scope["path"])) is None:
            await refuse(scope, send, 404, unknown)
        else:
            await route(scope, receive, send)

    return app


def _methods_of(services: Iterable[ServiceDescriptor]) -> str:
    return "; ".join(f"{service.full_name} has {', '.join(method.name for method in service.methods)}" for service in services)


def _metrics(host: Host) -> Application:
    async def serve(scope: Scope, _receive: Receive, send: Send) -> None:
        if scope["method"] not in {"GET", "HEAD"}:
            await respond(send, 405, [(b"allow", b"GET, HEAD"), (b"content-length", b"0")])
            return
        body = host.metrics()
        headers = [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", str(len(body)).encode())]
        await respond(send, 200, headers, b"" if scope["method"] == "HEAD" else body)

    return serve


def _routes(service: ServiceDescriptor, application: Any) -> dict[str, Application]:  # noqa: ANN401 # the library's types for ASGI are others
    """Give the paths of a service, and what serves each."""
    return {f"/{service.full_name}/{method.name}": _route(method, application) for method in service.methods}


def _route(method: MethodDescriptor, application: Application) -> Application:
    """Serve a method, and tell callers who cannot be served by the RPC library what they need."""
    both_ways = method.client_streaming and method.server_streaming
    instead = _INSTEAD.get(method.full_name, "")
    needs_http2 = MalformedRequestError(
        f"{method.name} needs HTTP/2, as it goes both ways at once; speak it without TLS (h2c by prior knowledge){instead}"
    )
    wrong_type = _WRONG_TYPE
    if method.client_streaming or method.server_streaming:
        wrong_type = MalformedRequestError(
            "this Content-Type cannot be used for a stream; for JSON, send the header Content-Type: application/connect+json "
            f"and frame each message as the Connect protocol wants it{instead}"
        )

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if is_grpc(scope) and scope["http_version"] != "2":
            await refuse(scope, send, 505, _GRPC_NEEDS_HTTP2)
        elif both_ways and scope["http_version"] != "2":
            await refuse(scope, send, 505, needs_http2)
        elif fault := fault_of(scope):
            await refuse(scope, send, 400, fault)
        elif both_ways:
            await _serve_stream(application, scope, receive, _with_hint(send, wrong_type=wrong_type))
        else:
            await application(scope, receive, _with_hint(send, wrong_type=wrong_type))

    return serve


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
