"""`grpc.reflection.v1` and `v1alpha`. They tell the contract to tools without a copy of it, such as grpcurl."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, suppress
from typing import Any

from connectrpc.request import RequestContext
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.rpc import code_pb2
from runed_proto.grpc.reflection.v1.reflection_pb2 import (
    ErrorResponse,
    ExtensionNumberResponse,
    FileDescriptorResponse,
    ListServiceResponse,
    ServerReflectionRequest,
    ServerReflectionResponse,
    ServiceResponse,
)
from runed_proto.grpc.reflection.v1alpha import reflection_pb2 as v1alpha

from runed.api.host import Host
from runed.domain.status import Status

POLL_INTERVAL = 0.25
"""Seconds between two checks of a silent stream whether the daemon drains. A stream delays a drain by at most this time."""


class ReflectionServicer:
    """Implements the generated `ServerReflection` of v1.

    Args:
        host: The daemon.
        services: The full names of all services.
    """

    def __init__(self, host: Host, services: Iterable[str]) -> None:
        self._host = host
        self._services = [ServiceResponse(name=name) for name in services]

    async def server_reflection_info(
        self, request: AsyncIterator[ServerReflectionRequest], ctx: RequestContext[Any, Any], /
    ) -> AsyncGenerator[ServerReflectionResponse]:
        """Answer questions until the client ends, or until the daemon drains and has nothing else to finish."""
        sent: set[str] = set()
        async with aclosing(_until_drained(request, self._host)) as questions:
            async for question in questions:
                yield self._answer(question, sent)

    def _answer(self, question: ServerReflectionRequest, sent: set[str]) -> ServerReflectionResponse:
        """Answer a question.

        Args:
            question: The question.
            sent: The names of the files that this stream has sent; further names are added.
        """
        answer = ServerReflectionResponse(valid_host=question.host, original_request=question)
        pool = descriptor_pool.Default()
        try:
            match question.WhichOneof("message_request"):
                case "list_services":
                    answer.list_services_response.CopyFrom(ListServiceResponse(service=self._services))
                case "file_by_filename":
                    answer.file_descriptor_response.CopyFrom(_files(pool.FindFileByName(question.file_by_filename), sent))
                case "file_containing_symbol":
                    answer.file_descriptor_response.CopyFrom(_files(_declaring_file(question.file_containing_symbol), sent))
                case "file_containing_extension":
                    wanted = question.file_containing_extension
                    extended = pool.FindMessageTypeByName(wanted.containing_type)
                    extension = pool.FindExtensionByNumber(extended, wanted.extension_number)
                    answer.file_descriptor_response.CopyFrom(_files(_declaring_file(extension.full_name), sent))
                case "all_extension_numbers_of_type":
                    name = question.all_extension_numbers_of_type
                    extensions = pool.FindAllExtensions(pool.FindMessageTypeByName(name))
                    numbers = sorted(extension.number for extension in extensions)
                    answer.all_extension_numbers_response.CopyFrom(
                        ExtensionNumberResponse(base_type_name=name, extension_number=numbers)
                    )
                case _:
                    message = "the message asks for nothing that this version of runed knows; set one field of message_request"
                    answer.error_response.CopyFrom(ErrorResponse(error_code=code_pb2.INVALID_ARGUMENT, error_message=message))
        except KeyError:
            message = "there is no such file, symbol or extension here; list_services tells the services to begin with"
            answer.error_response.CopyFrom(ErrorResponse(error_code=code_pb2.NOT_FOUND, error_message=message))
        return answer


class AlphaReflectionServicer:
    """Implements the generated `ServerReflection` of v1alpha. Its messages equal those of v1, except for their names.

    Args:
        servicer: Answers the questions.
    """

    def __init__(self, servicer: ReflectionServicer) -> None:
        self._servicer = servicer

    async def server_reflection_info(
        self, request: AsyncIterator[v1alpha.ServerReflectionRequest], ctx: RequestContext[Any, Any], /
    ) -> AsyncGenerator[v1alpha.ServerReflectionResponse]:
        """Answer as v1 does."""
        questions = (ServerReflectionRequest.FromString(question.SerializeToString()) async for question in request)
        async with aclosing(self._servicer.server_reflection_info(questions, ctx)) as answers:
            async for answer in answers:
                yield v1alpha.ServerReflectionResponse.FromString(answer.SerializeToString())


def _declaring_file(symbol: str) -> FileDescriptor:
    """Return the file that declares a full name; raises KeyError."""
    pool = descriptor_pool.Default()
    with suppress(KeyError):
        return pool.FindFileContainingSymbol(symbol)
    return pool.FindMethodByName(symbol).containing_service.file  # the pool does not find methods above


def _files(file: FileDescriptor, sent: set[str]) -> FileDescriptorResponse:
    """Return a file, even if it was sent before, and the files that it imports, unless they were sent before."""
    found: list[bytes] = []
    waiting = deque([file])
    while waiting:
        current = waiting.popleft()
        if found and current.name in sent:
            continue
        sent.add(current.name)
        found.append(current.serialized_pb)
        waiting.extend(current.dependencies)
    return FileDescriptorResponse(file_descriptor_proto=found)


async def _until_drained(
    questions: AsyncIterator[ServerReflectionRequest], host: Host
) -> AsyncGenerator[ServerReflectionRequest]:
    """Yield questions as they come, until the daemon drains. The drain must not wait for a silent tool that stays connected."""
    while True:
        question = asyncio.ensure_future(anext(questions, None))
        # Marks an error as seen, also if the call ends before it: asyncio would log it otherwise.
        question.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            while not question.done():
                health = host.health()
                if health.status is Status.SHUTTING_DOWN and not health.in_flight_requests:
                    return
                await asyncio.wait({question}, timeout=POLL_INTERVAL)
        finally:
            if not question.done():
                question.cancel()
                await asyncio.wait({question})
        if (asked := question.result()) is None:
            return
        yield asked
