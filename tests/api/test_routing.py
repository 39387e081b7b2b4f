"""The translation of centroid sets and routes between messages and domain, over every protocol."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Sequence
from typing import cast

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf.json_format import MessageToJson, Parse
from runed_proto.runed.v1 import runed_pb2 as pb

from runed.domain.requests import Centroid, CentroidHeader
from tests.api.conftest import Serve, Served
from tests.api.streams import CONTENT_TYPES, StreamClient
from tests.support import PROTOCOLS, Refusal, eventually, refusal_of_json

PATH = "/runed.v1.RunedService/SetCentroids"
HEADER = pb.CentroidSetHeader(version="sha256:1", dim=3, nlist=5, preset="k5")
VALUES = np.random.default_rng(1).normal(size=(5, 3)).astype("<f4")


def batch(rows: Sequence[int]) -> pb.SetCentroidsRequest:
    return pb.SetCentroidsRequest(
        batch=pb.CentroidBatch(centroids=[pb.Centroid(id=row, vec=VALUES[row].tolist()) for row in rows])
    )


WHOLE = [pb.SetCentroidsRequest(header=HEADER), batch([0, 1, 2]), batch([]), batch([3, 4])]


def pushed(served: Served) -> tuple[CentroidHeader, list[list[Centroid]]]:
    [one] = served.host.pushed
    return one


def check_whole(served: Served) -> None:
    header, batches = pushed(served)
    assert header == CentroidHeader(version="sha256:1", dim=3, nlist=5, preset="k5")
    assert [[centroid.id for centroid in part] for part in batches] == [[0, 1, 2], [], [3, 4]]
    assert b"".join(centroid.values for part in batches for centroid in part) == VALUES.tobytes()


async def push(
    served: Served, messages: Sequence[pb.SetCentroidsRequest], protocol: str = "grpc", *, end: bool = True
) -> tuple[Refusal | None, list[pb.SetCentroidsResponse]]:
    async with await StreamClient.open(served.path, protocol, method=PATH, output=pb.SetCentroidsResponse) as stream:
        await stream.send(*messages, end=end)
        return await stream.outcome(), stream.messages()


@pytest.mark.parametrize("protocol", CONTENT_TYPES)
async def test_set_reaches_the_host_as_it_was_sent(protocol: str, served: Served) -> None:
    refusal, answers = await push(served, WHOLE, protocol)
    assert refusal is None
    assert answers == [pb.SetCentroidsResponse(version="sha256:1", nlist=5, model="fake.f32")]
    check_whole(served)


@pytest.mark.parametrize("protocol", ["grpc-web", "connect+proto", "connect+json"])
async def test_over_http1_too(protocol: str, served: Served) -> None:
    parts = [MessageToJson(message).encode() if "json" in protocol else message.SerializeToString() for message in WHOLE]
    body = b"".join(struct.pack(">BI", 0, len(part)) + part for part in parts)
    content_type = CONTENT_TYPES[protocol].decode()
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(served.path)), timeout=10) as client:
        response = await client.post(f"http://runed{PATH}", content=body, headers={"content-type": content_type})
    assert response.status_code == 200
    size = int.from_bytes(response.content[1:5], "big")
    answer = response.content[5 : 5 + size]
    message = pb.SetCentroidsResponse()
    assert (Parse(answer, message) if "json" in protocol else message.FromString(answer)) == pb.SetCentroidsResponse(
        version="sha256:1", nlist=5, model="fake.f32"
    )
    check_whole(served)


async def test_grpc_library_speaks_it(served: Served) -> None:
    async def requests() -> AsyncIterator[pb.SetCentroidsRequest]:
        for message in WHOLE:
            yield message

    async with grpc.aio.insecure_channel(f"unix:{served.path}") as channel:
        method = channel.stream_unary(
            PATH,
            request_serializer=pb.SetCentroidsRequest.SerializeToString,
            response_deserializer=pb.SetCentroidsResponse.FromString,
        )
        assert (await method(requests())).nlist == 5
    check_whole(served)


async def test_order_and_unknown_fields_of_an_encoding_are_no_matter(served: Served) -> None:
    plain = pb.Centroid(id=300, vec=VALUES[0].tolist()).SerializeToString()
    vec, number = plain[3:], plain[:3]
    later = b"\x98\x06\x07" + b"\xa2\x06\x02hi"  # fields 99 and 100 of some later version
    unpacked = b"".join(b"\x15" + value.tobytes() for value in VALUES[1])
    encodings = [vec + number, later + number + vec, number + vec + later, number + unpacked, vec, number]
    centroids = b"".join(b"\x0a" + bytes([len(encoding)]) + encoding for encoding in encodings)
    message = pb.SetCentroidsRequest(batch=pb.CentroidBatch.FromString(centroids + later))
    refusal, _ = await push(served, [pb.SetCentroidsRequest(header=HEADER), message])
    assert refusal is None
    _, [received] = pushed(served)
    zero, one = VALUES[0].tobytes(), VALUES[1].tobytes()
    assert received == [
        Centroid(300, zero),
        Centroid(300, zero),
        Centroid(300, zero),
        Centroid(300, one),
        Centroid(0, zero),
        Centroid(300, b""),
    ]


BROKEN: dict[str, tuple[list[pb.SetCentroidsRequest], str]] = {
    "nothing": ([], "the first message of a centroid set is its header"),
    "empty message": ([pb.SetCentroidsRequest()], "the first message of a centroid set is its header"),
    "batch first": ([batch([0])], "the first message of a centroid set is its header"),
    "two headers": ([WHOLE[0], WHOLE[0]], "send no second header"),
    "empty message later": ([*WHOLE, pb.SetCentroidsRequest()], "is a batch of centroids"),
}


@pytest.mark.parametrize("protocol", CONTENT_TYPES)
@pytest.mark.parametrize("case", BROKEN)
async def test_messages_in_another_order_are_refused(case: str, protocol: str, served: Served) -> None:
    messages, hint = BROKEN[case]
    refusal, _ = await push(served, messages, protocol)
    assert refusal is not None
    assert (refusal.code, refusal.reason) == ("invalid_argument", "BAD_CENTROIDS")
    assert hint in refusal.message
    assert not served.host.pushed


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("BAD_CENTROIDS", "invalid_argument"),
        ("BOOTSTRAPPING", "failed_precondition"),
        ("NO_CENTROID_SET", "failed_precondition"),
        ("QUEUE_FULL", "resource_exhausted"),
        ("CENTROIDS_NOT_STORED", "internal"),
        ("SHUTTING_DOWN", "unavailable"),
    ],
)
async def test_refusal_of_the_host_travels_with_its_reason(reason: str, code: str, served: Served) -> None:
    refusal, _ = await push(served, [pb.SetCentroidsRequest(header=pb.CentroidSetHeader(preset=f"fail:{reason}"))])
    assert refusal is not None
    assert (refusal.code, refusal.reason, refusal.retry_seconds) == (code, reason, 1.5)


async def test_sender_that_goes_is_noticed(served: Served) -> None:
    async with await StreamClient.open(served.path, method=PATH, output=pb.SetCentroidsResponse) as stream:
        await stream.send(*WHOLE[:2])
        await eventually(lambda: served.host.busy == 1)
    await eventually(lambda: served.host.cancelled == 1)
    assert not served.host.pushed


async def test_sender_that_says_nothing_is_cut_off(serve: Serve) -> None:
    async with serve(stall_timeout=0.1) as served:
        async with await StreamClient.open(served.path, method=PATH, output=pb.SetCentroidsResponse) as stream:
            await stream.send(*WHOLE[:2])
            await stream.client.over(stream.stream_id)
            assert stream.exchange.reset is not None
        await eventually(lambda: served.host.busy == 0)
        assert not served.host.pushed


async def test_malformed_message_is_refused(served: Served) -> None:
    async with await StreamClient.open(served.path, method=PATH, output=pb.SetCentroidsResponse) as stream:
        await stream.send(WHOLE[0])
        await stream.send_raw(b"\x0a\xff")
        refusal = await stream.outcome()
    assert refusal is not None
    assert (refusal.code, refusal.reason) == ("invalid_argument", "MALFORMED_REQUEST")


# Routes


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_route_reaches_the_caller(protocol: str, served: Served) -> None:
    await push(served, WHOLE)
    single = await served.call(protocol, "Embed", pb.EmbedRequest(text="one", with_route=True, dimensions=4))
    [asked] = served.host.asked
    assert asked.options.with_route
    response = cast("pb.EmbedResponse", single.message)
    assert (response.cluster_id, response.centroid_set_version) == (0, "sha256:1")
    request = pb.EmbedBatchRequest(texts=["one", "", "two"], with_route=True, per_item_errors=True)
    several = cast("pb.EmbedBatchResponse", (await served.call(protocol, "EmbedBatch", request)).message)
    routes = [(item.cluster_id, item.centroid_set_version) for item in several.embeddings]
    assert routes == [(0, "sha256:1"), (0, ""), (2, "sha256:1")]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_nobody_who_did_not_ask_gets_a_route(protocol: str, served: Served) -> None:
    await push(served, WHOLE)
    response = cast("pb.EmbedResponse", (await served.call(protocol, "Embed", pb.EmbedRequest(text="one"))).message)
    assert (response.cluster_id, response.centroid_set_version) == (0, "")
    assert not served.host.asked[0].options.with_route


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_info_tells_the_version(protocol: str, served: Served) -> None:
    before = cast("pb.InfoResponse", (await served.call(protocol, "Info", pb.InfoRequest())).message)
    await push(served, WHOLE)
    after = cast("pb.InfoResponse", (await served.call(protocol, "Info", pb.InfoRequest())).message)
    assert (before.centroid_set_version, after.centroid_set_version) == ("", "sha256:1")


async def test_wrong_content_type_says_what_to_send(served: Served) -> None:
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(served.path)), timeout=10) as client:
        response = await client.post(f"http://runed{PATH}", json={})
    assert response.status_code == 415
    refusal = refusal_of_json(json.loads(response.content))
    assert "application/connect+json" in refusal.message
