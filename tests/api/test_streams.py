"""EmbedStream: both directions at once, in every protocol that works over HTTP/2."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import grpc
import httpx
import numpy as np
import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from runed_proto.runed.v1 import runed_pb2 as pb

from runed.domain.requests import EmbedOptions, Lane, Role, Truncate
from tests.api.conftest import Serve, Served
from tests.api.streams import CONTENT_TYPES, PATH, StreamClient, request
from tests.fakes.fake_host import MAX_TOKENS, WAIT, vector_of
from tests.support import eventually, refusal_of_json, refusal_of_trailers

LONG = "word " * (MAX_TOKENS + 1)


def floats(response: pb.EmbedResponse) -> bytes:
    return np.array(response.vector, dtype="<f4").tobytes()


@pytest.mark.parametrize("protocol", CONTENT_TYPES)
async def test_vectors_come_as_they_are_ready_with_the_ids_of_their_texts(protocol: str, served: Served) -> None:
    async with await StreamClient.open(served.path, protocol) as stream:
        await stream.send(request("one", LONG, lane=pb.LANE_INTERACTIVE, truncate=pb.TRUNCATE_START, dimensions=4))
        first = await stream.results(2)  # while the client's side is open
        await stream.send(request("cached three"), end=True)
        results = await stream.results(3)
        assert await stream.outcome() is None
    assert set(first) == {"one", LONG}
    assert {id_: floats(result) for id_, result in results.items()} == {
        text: vector_of(text, 4) for text in ("one", LONG, "cached three")
    }
    assert (results[LONG].token_count, results[LONG].total_token_count, results[LONG].truncated) == (12, 15, True)
    assert results["cached three"].cached
    assert all(message.fingerprint == "fp" for message in stream.messages())
    assert not any(result.fingerprint for result in results.values())
    [asked] = served.host.asked
    assert asked.options == EmbedOptions(lane=Lane.INTERACTIVE, truncate=Truncate.START, dimensions=4)
    assert asked.client == "unix:1"


async def test_grpc_library_speaks_it(served: Served) -> None:
    async def requests() -> AsyncIterator[pb.EmbedStreamRequest]:
        for number in range(0, 1000, 10):
            yield request(*(f"text {n}" for n in range(number, number + 10)))

    async with grpc.aio.insecure_channel(f"unix:{served.path}") as channel:
        method = channel.stream_stream(
            PATH,
            request_serializer=pb.EmbedStreamRequest.SerializeToString,
            response_deserializer=pb.EmbedStreamResponse.FromString,
        )
        results = {result.id: result.embedding async for response in method(requests()) for result in response.results}
    assert {id_: floats(result) for id_, result in results.items()} == {
        f"text {n}": vector_of(f"text {n}") for n in range(1000)
    }


@pytest.mark.parametrize("protocol", CONTENT_TYPES)
async def test_empty_streams_end_well(protocol: str, served: Served) -> None:
    async with await StreamClient.open(served.path, protocol) as stream:
        await stream.send(end=True)
        assert await stream.outcome() is None
    assert not served.host.asked
    async with await StreamClient.open(served.path, protocol) as stream:
        await stream.send(request(role=pb.ROLE_QUERY), end=True)
        assert await stream.outcome() is None
    assert served.host.asked[0].options.role is Role.QUERY


async def test_options_of_the_first_message_hold_for_all(served: Served) -> None:
    async with await StreamClient.open(served.path) as stream:
        await stream.send(request(role=pb.ROLE_QUERY, instruction="find it"), request("one"))
        await stream.send(request("two", role=pb.ROLE_QUERY, instruction="find it"), end=True)
        assert await stream.outcome() is None
        assert set(await stream.results(2)) == {"one", "two"}
    assert stream.messages()[0].prompt == "query:find it"


@pytest.mark.parametrize("protocol", CONTENT_TYPES)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lane", pb.LANE_INTERACTIVE),
        ("role", pb.ROLE_DOCUMENT),
        ("instruction", "other"),
        ("dimensions", 7),
        ("truncate", pb.TRUNCATE_END),
    ],
)
async def test_other_options_later_are_refused(protocol: str, field: str, value: object, served: Served) -> None:
    async with await StreamClient.open(served.path, protocol) as stream:
        await stream.send(request("one", role=pb.ROLE_QUERY, instruction="find it"))
        await stream.results(1)
        await stream.send(request("two", **{field: value}))
        refusal = await stream.outcome()
    assert refusal is not None
    assert (refusal.code, refusal.reason) == ("invalid_argument", "INVALID_REQUEST")
    assert refusal.metadata == {"field": field}
    assert field in refusal.message


@pytest.mark.parametrize("protocol", CONTENT_TYPES)
async def test_bad_text_has_an_error_of_its_own(protocol: str, served: Served) -> None:
    async with await StreamClient.open(served.path, protocol) as stream:
        await stream.send(request("one", "", LONG), request("two"), end=True)
        results = await stream.results(4)
        assert await stream.outcome() is None
    assert {id_: result.error.reason for id_, result in results.items()} == {
        "one": "",
        "": "EMPTY_TEXT",
        LONG: "TEXT_TOO_LONG",
        "two": "",
    }
    assert results[LONG].error.metadata["limit"] == str(MAX_TOKENS)
    assert not results[""].vector


@pytest.mark.parametrize("protocol", CONTENT_TYPES)
async def test_failure_of_the_engine_ends_the_stream_with_its_reason(protocol: str, served: Served) -> None:
    async with await StreamClient.open(served.path, protocol) as stream:
        await stream.send(request("one"), request("break:BACKEND_UNAVAILABLE"))
        refusal = await stream.outcome()
        assert set(await stream.results(1)) == {"one"}
    assert refusal is not None
    assert (refusal.code, refusal.reason) == ("unavailable", "BACKEND_UNAVAILABLE")
    assert refusal.retry_seconds == 1.5


@pytest.mark.parametrize("protocol", ["grpc", "grpc-web", "connect+proto"])
async def test_malformed_message_is_refused_and_what_came_before_is_answered(protocol: str, served: Served) -> None:
    async with await StreamClient.open(served.path, protocol) as stream:
        await stream.send(request("one"))
        await stream.results(1)
        await stream.send_raw(b"\x0a\xff")
        refusal = await stream.outcome()
    assert refusal is not None
    assert (refusal.code, refusal.reason) == ("invalid_argument", "MALFORMED_REQUEST")


async def test_too_large_message_is_refused_before_it_is_here(served: Served) -> None:
    async with await StreamClient.open(served.path) as stream:
        stream.client.h2.send_data(stream.stream_id, b"\0\xff\0\0\0")
        refusal = await stream.outcome()
    assert refusal is not None
    assert (refusal.code, refusal.reason) == ("resource_exhausted", "REQUEST_TOO_LARGE")


async def test_unknown_lane_is_refused(served: Served) -> None:
    async with await StreamClient.open(served.path) as stream:
        await stream.send(request("one", lane=7))
        refusal = await stream.outcome()
    assert refusal is not None
    assert refusal.reason == "INVALID_REQUEST"
    assert not served.host.asked


async def test_many_results_at_once_come_in_messages_that_every_client_takes(served: Served) -> None:
    items = [pb.EmbedStreamItem(id=f"{number:04}" + "x" * 1000, text="x") for number in range(3500)]
    async with grpc.aio.insecure_channel(f"unix:{served.path}") as channel:
        method = channel.stream_stream(
            PATH,
            request_serializer=pb.EmbedStreamRequest.SerializeToString,
            response_deserializer=pb.EmbedStreamResponse.FromString,
        )
        responses = [response async for response in method(iter([pb.EmbedStreamRequest(items=items)]))]
    assert [result.id for response in responses for result in response.results] == [item.id for item in items]
    assert 4 <= len(responses) <= 5
    assert max(response.ByteSize() for response in responses) < 1.1 * 1024 * 1024


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/grpc", *(value.decode() for value in CONTENT_TYPES.values())]
)
async def test_http1_is_told_what_it_needs(content_type: str, served: Served) -> None:
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(served.path)), timeout=10) as client:
        response = await client.post(f"http://runed{PATH}", content=b"", headers={"content-type": content_type})
    if content_type.startswith("application/connect"):
        assert (response.status_code, response.content[0]) == (200, 2)
        refusal = refusal_of_json(json.loads(response.content[5:])["error"])
    elif content_type.startswith("application/grpc-web"):
        trailers = refusal_of_trailers(response.headers)
        assert trailers is not None
        refusal = trailers
    else:
        assert response.status_code == 505
        refusal = refusal_of_json(response.json())
    assert (refusal.code, refusal.reason) == ("invalid_argument", "MALFORMED_REQUEST")
    assert "HTTP/2" in refusal.message
    assert ("EmbedBatch" in refusal.message) == (content_type not in {"application/grpc", "application/grpc+proto"})


async def test_json_that_is_no_stream_is_told_what_to_send(served: Served) -> None:
    async with await StreamClient.open(served.path, headers={b"content-type": b"application/json"}) as stream:
        await stream.client.over(stream.stream_id)
    assert stream.exchange.headers[b":status"] == b"415"
    refusal = refusal_of_json(json.loads(stream.exchange.body))
    assert "application/connect+json" in refusal.message
    assert "EmbedBatch" in refusal.message


async def test_client_may_be_silent_for_as_long_as_it_likes(serve: Serve) -> None:
    async with serve(stall_timeout=0.1, head_timeout=0.1) as served, await StreamClient.open(served.path) as stream:
        await asyncio.sleep(0.3)  # before its first text
        await stream.send(request("one"))
        await stream.results(1)
        await asyncio.sleep(0.3)  # between two texts
        await stream.send(request(WAIT))
        await eventually(lambda: served.host.waiting == 1)
        await asyncio.sleep(0.3)  # until a result is ready
        served.host.let_go()
        await stream.results(2)
        await stream.send(end=True)
        assert await stream.outcome() is None


async def test_client_that_is_held_back_is_not_cut_off(serve: Serve) -> None:
    async with serve(stall_timeout=0.1) as served, await StreamClient.open(served.path) as stream:
        await stream.send(request(WAIT))
        await eventually(lambda: served.host.waiting == 1)
        sent = 0
        while stream.client.h2.local_flow_control_window(stream.stream_id) > 2000:
            await stream.send(request(f"{sent} {'x' * 1000}"))
            sent += 1
        await asyncio.sleep(0.3)
        assert served.host.taken == 1
        served.host.let_go()
        await stream.send(end=True)
        assert len(await stream.results(sent + 1)) == sent + 1
        assert await stream.outcome() is None


async def test_client_that_takes_no_results_is_cut_off_alone(serve: Serve) -> None:
    window: dict[SettingCodes | int, int] = {SettingCodes.INITIAL_WINDOW_SIZE: 100}
    async with serve(stall_timeout=0.2) as served, await StreamClient.open(served.path) as other:
        async with await StreamClient.open(served.path, settings=window, takes_bodies=False) as stream:
            await stream.send(*(request(f"text {number}") for number in range(50)))
            await stream.client.over(stream.stream_id)
            assert stream.exchange.reset == ErrorCodes.CANCEL
            assert served.host.cancelled == 1
            assert served.host.taken < 50
        await other.send(request("one"), end=True)
        assert await other.outcome() is None
