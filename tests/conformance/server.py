"""The server that Connect's conformance suite tests: the suite's service on the daemon's server, RPC library and codecs.

    python -m tests.conformance.server DESCRIPTORS

The suite starts one for each protocol, HTTP version and limit. It writes a `ServerCompatRequest` to standard input, and reads
the server's address from standard output. Each request defines its answer.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from connectrpc.code import Code
from connectrpc.errors import ConnectError, ErrorDetail
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import RequestContext
from connectrpc.server import ConnectASGIApplication, Endpoint
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet, MethodOptions
from google.protobuf.descriptor_pool import Default
from google.protobuf.message_factory import GetMessageClass
from protobuf.wkt import Any as AnyDetail

from runed.api.call_log import Call
from runed.api.error_codes import code_of
from runed.api.host import count_nothing
from runed.api.rpc import app
from runed.api.rpc.codecs import CODECS
from runed.api.rpc.inflating import Gzip
from runed.api.rpc.observation import Observer
from runed.api.rpc.refusals import Application, Receive, Scope, Send, refuse
from runed.errors import RunedError, UnimplementedError
from runed.server import Server
from tests.fakes.fake_host import FakeHost

PACKAGE = "connectrpc.conformance.v1"

_KINDS: Mapping[tuple[bool, bool], tuple[StreamType, Callable[..., Any]]] = {
    (False, False): (StreamType.UNARY, Endpoint.unary),
    (True, False): (StreamType.CLIENT_STREAM, Endpoint.client_stream),
    (False, True): (StreamType.SERVER_STREAM, Endpoint.server_stream),
    (True, True): (StreamType.BIDI_STREAM, Endpoint.bidi_stream),
}
"""Kinds of methods, by two facts: whether the client streams, and whether the server streams."""

Message = Any
"""A message of the suite. Its class is made at run time."""

Context = RequestContext[Any, Any]
AnyEndpoint = Any  # connectrpc has a type for each kind, and none for all


class Conformance:
    """The service of the suite. The suite's documentation describes each method.

    Args:
        service: Its descriptor.
    """

    def __init__(self, service: ServiceDescriptor) -> None:
        self._methods = service.methods_by_name
        self._payload = message_class("ConformancePayload")

    async def unary(self, request: Message, ctx: Context) -> Message:
        return await self._answer("Unary", request.response_definition, [request], ctx)

    async def idempotent_unary(self, request: Message, ctx: Context) -> Message:
        return await self._answer("IdempotentUnary", request.response_definition, [request], ctx)

    async def unimplemented(self, request: Message, ctx: Context) -> Message:
        raise ConnectError(Code.UNIMPLEMENTED, "this is not implemented")

    async def client_stream(self, requests: AsyncIterator[Message], ctx: Context) -> Message:
        messages = [message async for message in requests]
        definition = messages[0].response_definition if messages else message_class("UnaryResponseDefinition")()
        return await self._answer("ClientStream", definition, messages, ctx)

    async def server_stream(self, request: Message, ctx: Context) -> AsyncIterator[Message]:
        async for response in self._answers("ServerStream", request.response_definition, [request], ctx):
            yield response

    async def bidi_stream(self, requests: AsyncIterator[Message], ctx: Context) -> AsyncIterator[Message]:
        first = await anext(requests, None)
        if first is None:
            return
        if not first.full_duplex:
            messages = [first, *[message async for message in requests]]
            async for response in self._answers("BidiStream", first.response_definition, messages, ctx):
                yield response
            return
        definition = first.response_definition
        left: Iterator[bytes] = iter(definition.response_data)
        _add_metadata(definition, ctx)
        request, answered = first, False
        while request is not None and (data := next(left, None)) is not None:
            await asyncio.sleep(definition.response_delay_ms / 1000)
            info = self._observed([request], None if answered else ctx)
            yield self._response("BidiStream", data, info)
            answered = True
            request = await anext(requests, None)
        for data in left:
            await asyncio.sleep(definition.response_delay_ms / 1000)
            yield self._response("BidiStream", data)
        if definition.HasField("error"):
            raise _error(definition.error, None if answered else self._observed([first], ctx))

    async def _answer(self, method: str, definition: Message, requests: list[Message], ctx: Context) -> Message:
        """Return the one response that a request defines, or raise its error."""
        _add_metadata(definition, ctx)
        info = self._observed(requests, ctx)
        await asyncio.sleep(definition.response_delay_ms / 1000)
        if definition.HasField("error"):
            raise _error(definition.error, info)
        return self._response(method, definition.response_data, info)

    async def _answers(self, method: str, definition: Message, requests: list[Message], ctx: Context) -> AsyncIterator[Message]:
        """Yield the responses that a request defines, and raise its error after them."""
        _add_metadata(definition, ctx)
        info = self._observed(requests, ctx)
        for data in definition.response_data:
            await asyncio.sleep(definition.response_delay_ms / 1000)
            yield self._response(method, data, info)
            info = None
        if definition.HasField("error"):
            raise _error(definition.error, info)

    def _response(self, method: str, data: bytes, info: Message | None = None) -> Message:
        payload = self._payload(data=data, request_info=info)
        return GetMessageClass(self._methods[method].output_type)(payload=payload)

    def _observed(self, requests: list[Message], ctx: Context | None) -> Message:
        """Return the observed facts of a call. Headers, deadline and HTTP method are included if `ctx` is given."""
        info = self._payload.RequestInfo()
        for request in requests:
            info.requests.add().Pack(request)
        if ctx is not None:
            names = dict.fromkeys(name for name, _ in ctx.request_headers.allitems())
            for name in names:
                info.request_headers.add(name=name, value=ctx.request_headers.getall(name))
            if (timeout := ctx.timeout_ms) is not None:
                info.timeout_ms = int(timeout)
            if ctx.http_method == "GET":
                info.connect_get_info.SetInParent()
        return info


class PlainErrors(Observer):
    """The interceptor of the daemon without the details that it adds to errors, as the suite wants them."""

    def __init__(self, max_request_bytes: int) -> None:
        super().__init__(FakeHost(), count_nothing)
        self.max_request_bytes = max_request_bytes

    async def on_end(self, token: Call, ctx: Context, error: Exception | None, /) -> None:
        if isinstance(error, RunedError):
            raise ConnectError(code_of(error), error.message)


class SuiteApplication(ConnectASGIApplication[Conformance]):
    """The application that protoc's plugin would generate for the service, made from its descriptor."""

    def __init__(self, service: ServiceDescriptor, servicer: Conformance, observer: PlainErrors) -> None:
        self._full_name = service.full_name
        super().__init__(
            service=servicer,
            endpoints=lambda servicer: {
                f"{self.path}/{method.name}": _endpoint(method, getattr(servicer, _snake_case(method.name)))
                for method in service.methods
            },
            read_max_bytes=observer.max_request_bytes,
            codecs=CODECS,
            compressions=[Gzip()],
            interceptors=[observer],
        )

    @property
    def path(self) -> str:
        return f"/{self._full_name}"


def load(descriptors: Path) -> ServiceDescriptor:
    """Register the messages of the suite, and return its service."""
    pool = Default()
    for file in FileDescriptorSet.FromString(descriptors.read_bytes()).file:
        if file.package == PACKAGE:
            pool.AddSerializedFile(file.SerializeToString())
    service: ServiceDescriptor = pool.FindServiceByName(f"{PACKAGE}.ConformanceService")
    return service


def message_class(name: str) -> Any:  # noqa: ANN401 # a class that is made at run time
    """Return the class of a message of the suite."""
    return GetMessageClass(Default().FindMessageTypeByName(f"{PACKAGE}.{name}"))


def _endpoint(method: MethodDescriptor, function: Callable[..., Any]) -> AnyEndpoint:
    stream_type, make = _KINDS[method.client_streaming, method.server_streaming]
    safe = method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS
    info = MethodInfo(
        name=method.name,
        service_name=method.containing_service.full_name,
        input=GetMessageClass(method.input_type),
        output=GetMessageClass(method.output_type),
        idempotency_level=IdempotencyLevel.NO_SIDE_EFFECTS if safe else IdempotencyLevel.UNKNOWN,
        stream_type=stream_type,
    )
    endpoint: AnyEndpoint = make(method=info, function=function)
    return endpoint


def _snake_case(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).removeprefix("_")


def _add_metadata(definition: Message, ctx: Context) -> None:
    """Set the headers and trailers that a definition contains."""
    for headers, wanted in (
        (ctx.response_headers, definition.response_headers),
        (ctx.response_trailers, definition.response_trailers),
    ):
        for header in wanted:
            for value in header.value:
                headers.add(header.name, value)


def _error(definition: Message, info: Message | None) -> ConnectError:
    """Return the error that a definition contains, with the observed facts of the call unless a response carried them."""
    details: list[AnyMessage] = list(definition.details)
    if info is not None:
        details.append(AnyMessage())
        details[-1].Pack(info)
    name = definition.DESCRIPTOR.fields_by_name["code"].enum_type.values_by_number[definition.code].name
    return ConnectError(
        Code[name.removeprefix("CODE_")],
        definition.message,
        [ErrorDetail(AnyDetail(type_url=detail.type_url, value=detail.value)) for detail in details],
    )


def _app(service: ServiceDescriptor, read_max_bytes: int | None) -> Application:
    """Serve the methods of the suite's service as the daemon serves those of its own."""
    servicer, observer = Conformance(service), PlainErrors(read_max_bytes or sys.maxsize)
    routes = app._routes(service, servicer, SuiteApplication(service, servicer, observer), observer)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if (route := routes.get(scope["path"])) is None:
            await refuse(scope, send, 404, UnimplementedError("there is no such method"))
        else:
            await route(scope, receive, send)

    return serve


async def _serve(descriptors: Path) -> None:
    asked_to_stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked_to_stop.set)
    service = load(descriptors)
    (size,) = struct.unpack(">I", sys.stdin.buffer.read(4))
    request = message_class("ServerCompatRequest").FromString(sys.stdin.buffer.read(size))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        server = Server(_app(service, request.message_receive_limit or None), sock)
        await server.start()
        host, port = sock.getsockname()
        answer = message_class("ServerCompatResponse")(host=host, port=port).SerializeToString()
        sys.stdout.buffer.write(struct.pack(">I", len(answer)) + answer)
        sys.stdout.buffer.flush()
        await asked_to_stop.wait()
        await server.stop(0)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
