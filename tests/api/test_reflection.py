"""grpc.reflection: every kind of question, in both versions and every protocol, in every state of the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from runed_proto.grpc.reflection.v1 import reflection_pb2 as v1
from runed_proto.grpc.reflection.v1alpha import reflection_pb2 as v1alpha
from runed_proto.runed.v1 import runed_pb2 as pb

from runed.api.rpc import reflection
from runed.domain.status import Status
from tests.api.conftest import Serve, Served
from tests.api.streams import CONTENT_TYPES, StreamClient
from tests.fakes.fake_host import WAIT
from tests.support import eventually, refusal_of_json

METHODS: dict[Any, str] = {
    v1: "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    v1alpha: "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
}
SERVICES = [
    "runed.v1.RunedService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
]
CONTRACT = "runed/v1/runed.proto"
EXTENSION = "tests/extension.proto"
NOT_FOUND, INVALID_ARGUMENT = 5, 3


@pytest.fixture(scope="module", autouse=True)
def extension() -> None:
    """An extension and a file with imports in the pool. The contract itself has neither."""
    file = FileDescriptorProto(
        name=EXTENSION, package="tests", syntax="proto2", dependency=["google/protobuf/descriptor.proto", CONTRACT]
    )
    file.extension.add(
        name="note",
        number=50_001,
        extendee=".google.protobuf.FieldOptions",
        type=FieldDescriptorProto.TYPE_STRING,
        label=FieldDescriptorProto.LABEL_OPTIONAL,
    )
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


@asynccontextmanager
async def asking(served: Served, protocol: str = "grpc", version: Any = v1) -> AsyncIterator[StreamClient]:  # noqa: ANN401 # a module
    """Open a stream of questions over HTTP/2."""
    output = version.ServerReflectionResponse
    async with await StreamClient.open(served.path, protocol, method=METHODS[version], output=output) as stream:
        yield stream


async def ask(served: Served, *questions: v1.ServerReflectionRequest) -> list[v1.ServerReflectionResponse]:
    """Send all questions on one stream, and check that it ends without an error."""
    async with asking(served) as stream:
        await stream.send(*questions, end=True)
        assert await stream.outcome() is None
        return stream.messages()


def files(answer: v1.ServerReflectionResponse) -> list[str]:
    """Return the names of the files of an answer."""
    return [FileDescriptorProto.FromString(data).name for data in answer.file_descriptor_response.file_descriptor_proto]


def symbol(name: str) -> v1.ServerReflectionRequest:
    return v1.ServerReflectionRequest(file_containing_symbol=name)


@pytest.mark.parametrize("version", [v1, v1alpha], ids=["v1", "v1alpha"])
@pytest.mark.parametrize("protocol", CONTENT_TYPES)
async def test_questions_are_answered_one_by_one(protocol: str, version: Any, served: Served) -> None:  # noqa: ANN401 # a module
    async with asking(served, protocol, version) as stream:
        question = version.ServerReflectionRequest(host="here", list_services="*")
        await stream.send(question)
        [services] = await stream.received(1)
        assert [service.name for service in services.list_services_response.service] == SERVICES
        assert (services.valid_host, services.original_request) == ("here", question)
        await stream.send(version.ServerReflectionRequest(file_containing_symbol="runed.v1.RunedService"))
        _, contract = await stream.received(2)
        assert files(contract) == [CONTRACT]
        await stream.send(end=True)
        assert await stream.outcome() is None
    assert served.host.asked == []


@pytest.mark.parametrize(
    "name",
    [
        "runed.v1.RunedService",
        "runed.v1.RunedService.Embed",
        "runed.v1.RunedService.EmbedStream",
        "runed.v1.EmbedRequest",
        "runed.v1.EmbedRequest.text",
        "runed.v1.Lane",
        "runed.v1.LANE_BULK",
        "runed.v1.HealthResponse.Status",
        "runed.v1.HealthResponse.STATUS_OK",
        "runed.v1.SetCentroidsRequest.payload",
    ],
)
async def test_every_kind_of_symbol_is_found(name: str, served: Served) -> None:
    [answer] = await ask(served, symbol(name))
    assert files(answer) == [CONTRACT]


async def test_error_details_can_be_looked_up(served: Served) -> None:
    [answer] = await ask(served, symbol("google.rpc.ErrorInfo"))
    assert files(answer) == ["google/rpc/error_details.proto", "google/protobuf/duration.proto"]


async def test_what_is_told_of_all_services_is_whole(served: Served) -> None:
    answers = await ask(served, *(symbol(name) for name in SERVICES))
    pool = descriptor_pool.DescriptorPool()
    for answer in answers:
        for data in answer.file_descriptor_response.file_descriptor_proto:
            pool.AddSerializedFile(data)
    assert [pool.FindServiceByName(name).full_name for name in SERVICES] == SERVICES
    assert pool.FindServiceByName(SERVICES[0]).methods_by_name["EmbedStream"].server_streaming


@pytest.mark.parametrize(
    "question",
    [
        v1.ServerReflectionRequest(file_by_filename=EXTENSION),
        symbol("tests.note"),
        v1.ServerReflectionRequest(
            file_containing_extension=v1.ExtensionRequest(
                containing_type="google.protobuf.FieldOptions", extension_number=50_001
            )
        ),
    ],
    ids=["by name", "by symbol", "by extension"],
)
async def test_imports_come_along_once_a_stream(question: v1.ServerReflectionRequest, served: Served) -> None:
    first, second, third = await ask(served, question, question, v1.ServerReflectionRequest(file_by_filename=CONTRACT))
    assert files(first) == [EXTENSION, "google/protobuf/descriptor.proto", CONTRACT]
    assert files(second) == [EXTENSION]
    assert files(third) == [CONTRACT], "what is asked for is given, even if it was before"


async def test_extension_numbers(served: Served) -> None:
    some, none = await ask(
        served,
        v1.ServerReflectionRequest(all_extension_numbers_of_type="google.protobuf.FieldOptions"),
        v1.ServerReflectionRequest(all_extension_numbers_of_type="runed.v1.EmbedRequest"),
    )
    assert some.all_extension_numbers_response.base_type_name == "google.protobuf.FieldOptions"
    assert 50_001 in some.all_extension_numbers_response.extension_number
    assert none.all_extension_numbers_response.base_type_name == "runed.v1.EmbedRequest"
    assert not none.all_extension_numbers_response.extension_number


UNKNOWN: Sequence[v1.ServerReflectionRequest] = [
    v1.ServerReflectionRequest(file_by_filename="no/such.proto"),
    symbol("runed.v1.Nothing"),
    symbol("runed.v1.RunedService.Nothing"),
    symbol("runed.v1.EmbedRequest.nothing"),
    symbol(""),
    symbol("."),
    symbol("\0"),
    symbol("é" * 1000),
    v1.ServerReflectionRequest(
        file_containing_extension=v1.ExtensionRequest(containing_type="runed.v1.EmbedRequest", extension_number=7)
    ),
    v1.ServerReflectionRequest(
        file_containing_extension=v1.ExtensionRequest(containing_type="google.protobuf.FieldOptions", extension_number=-1)
    ),
    v1.ServerReflectionRequest(file_containing_extension=v1.ExtensionRequest(containing_type="no.Such")),
    v1.ServerReflectionRequest(all_extension_numbers_of_type="no.Such"),
    v1.ServerReflectionRequest(all_extension_numbers_of_type="runed.v1.RunedService"),
]


async def test_what_does_not_exist_is_said_so_and_the_stream_goes_on(served: Served) -> None:
    *refused, empty, last = await ask(served, *UNKNOWN, v1.ServerReflectionRequest(), symbol("runed.v1.Lane"))
    assert [answer.original_request for answer in refused] == UNKNOWN
    assert {answer.error_response.error_code for answer in refused} == {NOT_FOUND}
    assert all("list_services" in answer.error_response.error_message for answer in refused)
    assert empty.error_response.error_code == INVALID_ARGUMENT
    assert files(last) == [CONTRACT]


async def test_malformed_question_ends_its_stream_alone(served: Served) -> None:
    async with asking(served) as stream:
        await stream.send_raw(b"\x1a\xff")
        refusal = await stream.outcome()
        assert refusal is not None
        assert (refusal.code, refusal.reason) == ("invalid_argument", "MALFORMED_REQUEST")
    assert len(await ask(served, symbol("runed.v1.Lane"))) == 1


async def test_client_may_be_silent_for_as_long_as_it_likes(serve: Serve) -> None:
    async with serve(stall_timeout=0.1, head_timeout=0.1) as served, asking(served) as stream:
        await asyncio.sleep(0.3)
        await stream.send(symbol("runed.v1.Lane"))
        await stream.received(1)
        await asyncio.sleep(0.3)
        await stream.send(symbol("runed.v1.Role"), end=True)
        assert len(await stream.received(2)) == 2
        assert await stream.outcome() is None


@pytest.mark.parametrize("how", ["reset", "lost"])
async def test_stream_ends_with_its_client(how: str, served: Served) -> None:
    async with asking(served) as stream:
        await stream.send(symbol("runed.v1.Lane"))
        await stream.received(1)
        [connection] = served.server._connections.values()
        if how == "reset":
            stream.client.h2.reset_stream(stream.stream_id, 8)
            await stream.client.flush()
            await eventually(lambda: connection.idle)
        else:
            stream.client.writer.transport.abort()
            await eventually(lambda: not served.server._connections)


async def test_drain_is_not_held_up_by_who_asks_no_more_but_answers_while_it_lasts(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflection, "POLL_INTERVAL", 0.01)
    async with serve() as served, asking(served) as stream, await StreamClient.open(served.path) as embedding:
        await embedding.send(pb.EmbedStreamRequest(items=[pb.EmbedStreamItem(id="1", text=WAIT)]), end=True)
        await eventually(lambda: served.host.waiting == 1)
        await stream.send(symbol("runed.v1.Lane"))
        await stream.received(1)
        served.host.status = Status.SHUTTING_DOWN
        stopping = asyncio.create_task(served.server.stop(60))
        await asyncio.sleep(0.05)  # a few looks
        await stream.send(symbol("runed.v1.Role"))
        assert len(await stream.received(2)) == 2
        assert not stream.exchange.over
        served.host.let_go()
        assert await embedding.outcome() is None
        assert await stream.outcome() is None
        await asyncio.wait_for(stopping, 20)


@pytest.mark.parametrize("version", [v1, v1alpha], ids=["v1", "v1alpha"])
async def test_http1_is_told_what_it_needs(version: Any, served: Served) -> None:  # noqa: ANN401 # a module
    transport = httpx.AsyncHTTPTransport(uds=str(served.path))
    async with httpx.AsyncClient(transport=transport, base_url="http://runed", timeout=5) as client:
        response = await client.post(METHODS[version], json={})
    assert response.status_code == 505
    refusal = refusal_of_json(response.json())
    assert refusal.reason == "MALFORMED_REQUEST"
    assert "ServerReflectionInfo needs HTTP/2" in refusal.message


@pytest.mark.parametrize("path", ["/grpc.health.v1.Health/Nothing", "/grpc.reflection.v1.ServerReflection/", "/nothing"])
async def test_unknown_method_is_told_all_services(path: str, served: Served) -> None:
    transport = httpx.AsyncHTTPTransport(uds=str(served.path))
    async with httpx.AsyncClient(transport=transport, base_url="http://runed", timeout=5) as client:
        response = await client.post(path, json={})
    assert response.status_code == 404
    refusal = refusal_of_json(response.json())
    assert refusal.reason == "UNIMPLEMENTED"
    assert all(f"{name} has" in refusal.message for name in SERVICES)
    assert "EmbedBatch" in refusal.message
    assert "Watch" in refusal.message
