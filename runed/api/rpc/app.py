"""The services in every protocol of RPC: Connect with protobuf or JSON, gRPC and gRPC-Web."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from runed_proto.grpc.health.v1 import health_pb2
from runed_proto.grpc.reflection.v1 import reflection_pb2
from runed_proto.grpc.reflection.v1alpha import reflection_pb2 as alpha_reflection_pb2
from runed_proto.runed.v1 import runed_pb2

from runed.api.error_codes import MalformedRequestError
from runed.api.host import CountCall, Host
from runed.api.later import Later
from runed.api.rpc.handler import RunedServicer
from runed.api.rpc.heads import fault_of, without_noise
from runed.api.rpc.health import HealthServicer
from runed.api.rpc.intake import take_in
from runed.api.rpc.observation import Observer
from runed.api.rpc.reflection import AlphaReflectionServicer, ReflectionServicer
from runed.api.rpc.refusals import Application, Receive, Scope, Send, connect_body, is_grpc, refuse
from runed.api.rpc.unary import UnaryMethod
from runed.errors import RunedError, UnimplementedError

_RUNED = runed_pb2.DESCRIPTOR.services_by_name["RunedService"]
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
_REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
_ALPHA_REFLECTION = alpha_reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
_SERVICES = (_RUNED, _HEALTH, _REFLECTION, _ALPHA_REFLECTION)

_INSTEAD = {
    "runed.v1.RunedService.EmbedStream": ", or send the texts by EmbedBatch instead",
    "grpc.health.v1.Health.Watch": ", or ask Check now and then instead",
}
"""Advice on how to do without a stream, by the full name of a method."""

_GRPC_NEEDS_HTTP2 = MalformedRequestError(
    "gRPC needs HTTP/2; speak it without TLS (h2c by prior knowledge), or use Connect or gRPC-Web instead"
)
_WRONG_METHOD = MalformedRequestError(
    "this HTTP method cannot be used here; send a POST with JSON, as `curl -H 'Content-Type: application/json' -d '{}'` does"
)
_OTHER_PATHS = "GET /health, GET /metrics, and the APIs of OpenAI (/v1/...) and Ollama (/api/...)"
_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])")
"""The place before each further word in the name of a method. The name of its handler has an underscore there."""

_WRONG_TYPE = MalformedRequestError(
    "this Content-Type cannot be used here; for JSON, send the header Content-Type: application/json"
)


def build_rpc_app(host: Host, count: CountCall) -> Application:
    """Build the application that serves the methods of all services.

    Args:
        host: The daemon.
        count: Counts all calls.

    Returns:
        An ASGI application that refuses every other path in the protocol of its caller. A request over HTTP/2 has to offer the
        extension "runed.duplex" of `runed.server`.
    """
    observer = Observer(host, count)
    names = [service.full_name for service in _SERVICES]
    reflection = ReflectionServicer(host, names)
    implementations = (RunedServicer(host), HealthServicer(host, names), reflection, AlphaReflectionServicer(reflection))
    servicers: dict[str, Any] = dict(zip(names, implementations, strict=True))
    library = Later(partial(_build_library, servicers, observer))
    routes: dict[str, Application] = {}
    for service in _SERVICES:
        name = service.full_name
        routes |= _routes(service, servicers[name], _served_by(library, name), observer)
    unknown = UnimplementedError(f"there is no such path; here are {_OTHER_PATHS}; {_methods_of(_SERVICES)}")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if (route := routes.get(scope["path"])) is None:
            observer.refused(unknown)
            await refuse(scope, send, 404, unknown)
        else:
            await route(scope, receive, send)

    return app


def _build_library(servicers: dict[str, Any], observer: Observer) -> dict[str, Application]:
    from runed.api.rpc.library import build_library  # noqa: PLC0415 # see `Later`

    return build_library(servicers, observer)


def _served_by(library: Later[dict[str, Application]], service: str) -> Application:
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await (await library.get())[service](scope, receive, send)

    return serve


def _methods_of(services: Iterable[ServiceDescriptor]) -> str:
    return "; ".join(f"{service.full_name} has {', '.join(method.name for method in service.methods)}" for service in services)


def _routes(service: ServiceDescriptor, servicer: object, library: Application, observer: Observer) -> dict[str, Application]:
    """Return the application of each path of a service."""
    routes: dict[str, Application] = {}
    for method in service.methods:
        streams = method.client_streaming or method.server_streaming
        wrong_type = _wrong_stream_type(method) if streams else _WRONG_TYPE
        application = _hinting(library, wrong_type, partial(observer.refused, method=method.name))
        if not streams:
            handler = getattr(servicer, _WORD.sub("_", method.name).lower())
            application = UnaryMethod(method, handler, observer, application)
        routes[f"/{service.full_name}/{method.name}"] = _route(method, observer, application)
    return routes


def _wrong_stream_type(method: MethodDescriptor) -> MalformedRequestError:
    return MalformedRequestError(
        "this Content-Type cannot be used for a stream; for JSON, send the header Content-Type: application/connect+json "
        f"and frame each message as the Connect protocol wants it{_INSTEAD.get(method.full_name, '')}"
    )


def _route(method: MethodDescriptor, observer: Observer, application: Application) -> Application:
    """Serve a method; a caller that the RPC library cannot serve gets advice."""
    both_ways = method.client_streaming and method.server_streaming
    streams = method.client_streaming or method.server_streaming
    message_class = GetMessageClass(method.input_type)
    needs_http2 = MalformedRequestError(
        f"{method.name} needs HTTP/2, as it goes both ways at once; speak it without TLS (h2c by prior knowledge)"
        f"{_INSTEAD.get(method.full_name, '')}"
    )

    def refusal(scope: Scope) -> tuple[int, RunedError] | None:
        if is_grpc(scope) and scope["http_version"] != "2":
            return 505, _GRPC_NEEDS_HTTP2
        if both_ways and scope["http_version"] != "2":
            return 505, needs_http2
        return None if (fault := fault_of(scope)) is None else (400, fault)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if (refused := refusal(scope)) is not None:
            observer.refused(refused[1], method.name)
            await refuse(scope, send, *refused)
        elif not streams:
            await application(without_noise(scope), receive, send)  # which reads its message itself
        else:
            scope, receive = take_in(without_noise(scope), receive, message_class, observer.max_request_bytes)
            if both_ways:
                await _serve_stream(application, scope, receive, send)
            else:
                await application(scope, receive, send)

    return serve


async def _serve_stream(service: Application, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve a stream until its client leaves or cancels it.

    The RPC library notices that only after it has read the whole request. It does not read a stream while the engine has no
    room.
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
        if not all_read:  # otherwise the library cancels, and a second cancel would hit the handler's cleaning up
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


def _hinting(library: Application, wrong_type: MalformedRequestError, refused: Callable[[RunedError], None]) -> Application:
    """Add advice to the refusals that the RPC library answers with a bare status."""
    errors = {405: _WRONG_METHOD, 415: wrong_type}

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        body = b""

        async def send_with_hint(message: dict[str, Any]) -> None:
            nonlocal body
            status = message.get("status", 0)
            if status == 415 and scope["method"] in {"GET", "HEAD"}:  # noqa: PLR2004 # a browser sends no type at all
                status = 405
                message |= {"status": status, "headers": [*message["headers"], (b"allow", b"POST")]}
            if error := errors.get(status):
                refused(error)
                body = connect_body(error)
                message |= {"headers": [*message["headers"], (b"content-type", b"application/json")]}
            elif body and message["type"] == "http.response.body":
                message |= {"body": body}
            await send(message)

        await library(scope, receive, send_with_hint)

    return serve
