"""grpc.health.v1: every protocol tells the daemon's state at once and at each change, and no watcher delays the daemon."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import httpx
import pytest
from google.protobuf.message import Message
from runed_proto.grpc.health.v1 import health_pb2 as pb

from runed.api.rpc import health
from runed.domain.status import LoadingPhase, Status
from tests.api.conftest import Serve, Served
from tests.api.streams import CONTENT_TYPES, StreamClient
from tests.support import eventually, refusal_of_json

SERVICE = "/grpc.health.v1.Health"
NAMES = [
    "",
    "runed.v1.RunedService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
]
SERVING, NOT_SERVING = pb.HealthCheckResponse.SERVING, pb.HealthCheckResponse.NOT_SERVING

STATES = [
    (Status.OK, None, SERVING),
    (Status.IDLE, None, SERVING),
    (Status.LOADING, LoadingPhase.STARTING_LLAMA_SERVER, SERVING),
    (Status.LOADING, LoadingPhase.FETCHING_LLAMA_SERVER, NOT_SERVING),
    (Status.LOADING, LoadingPhase.FETCHING_MODEL, NOT_SERVING),
    (Status.DEGRADED, None, NOT_SERVING),
    (Status.SHUTTING_DOWN, None, NOT_SERVING),
]


@asynccontextmanager
async def http1(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=str(served.path)), base_url="http://runed", timeout=5
    ) as client:
        yield client


@asynccontextmanager
async def watching(served: Served, protocol: str = "grpc", service: str = "") -> AsyncIterator[StreamClient]:
    """Watch a service over HTTP/2."""
    method = f"{SERVICE}/Watch"
    async with await StreamClient.open(served.path, protocol, method=method, output=pb.HealthCheckResponse) as stream:
        await stream.send(pb.HealthCheckRequest(service=service), end=True)
        yield stream


def told(messages: list[pb.HealthCheckResponse]) -> list[int]:
    return [message.status for message in messages]


async def ask_grpc(served: Served, method: str, request: Message, response: type[Message]) -> Message:
    async with grpc.aio.insecure_channel(f"unix:{served.path}") as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{SERVICE}/{method}")
        return response.FromString(await call(request.SerializeToString(), timeout=5))


@pytest.mark.parametrize(("status", "phase", "expected"), STATES)
async def test_check_and_list_follow_the_daemon(
    status: Status, phase: LoadingPhase | None, expected: int, served: Served
) -> None:
    served.host.status, served.host.phase = status, phase
    async with http1(served) as client:
        for name in NAMES:
            answer = (await client.post(f"{SERVICE}/Check", json={"service": name})).json()
            assert answer == {"status": pb.HealthCheckResponse.ServingStatus.Name(expected)}
    listed = await ask_grpc(served, "List", pb.HealthListRequest(), pb.HealthListResponse)
    assert isinstance(listed, pb.HealthListResponse)
    assert {name: answer.status for name, answer in listed.statuses.items()} == dict.fromkeys(NAMES, expected)
    checked = await ask_grpc(served, "Check", pb.HealthCheckRequest(), pb.HealthCheckResponse)
    assert checked == pb.HealthCheckResponse(status=expected)  # type: ignore[arg-type] # it is one of the values of the enum
    assert served.host.asked == []


async def test_start_that_downloads_nothing_is_serving(served: Served) -> None:
    served.host.status, served.host.phase = Status.LOADING, LoadingPhase.FETCHING_LLAMA_SERVER
    served.host.downloading = False
    checked = await ask_grpc(served, "Check", pb.HealthCheckRequest(), pb.HealthCheckResponse)
    assert checked == pb.HealthCheckResponse(status=SERVING)


async def test_check_of_an_unknown_service_names_the_known_ones(served: Served) -> None:
    async with http1(served) as client:
        response = await client.post(f"{SERVICE}/Check", json={"service": "no.such.Service"})
    assert response.status_code == 404
    refusal = refusal_of_json(response.json())
    assert (refusal.code, refusal.reason) == ("not_found", "UNKNOWN_SERVICE")
    assert all(name in refusal.message for name in NAMES)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask_grpc(served, "Check", pb.HealthCheckRequest(service="no.such.Service"), pb.HealthCheckResponse)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("protocol", CONTENT_TYPES)
async def test_watch_tells_at_once_and_each_change_once(protocol: str, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "POLL_INTERVAL", 0.01)
    async with watching(served, protocol, "runed.v1.RunedService") as stream:
        assert told(await stream.received(1)) == [SERVING]
        served.host.status = Status.IDLE  # is SERVING, too
        await asyncio.sleep(0.05)
        served.host.status = Status.DEGRADED
        assert told(await stream.received(2)) == [SERVING, NOT_SERVING]
        served.host.status = Status.OK
        assert told(await stream.received(3)) == [SERVING, NOT_SERVING, SERVING]
    await eventually(lambda: not served.server._connections)
    assert served.host.asked == []


async def test_watch_of_an_unknown_service_says_so_and_stays(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "POLL_INTERVAL", 0.01)
    async with watching(served, service="no.such.Service") as stream:
        assert told(await stream.received(1)) == [pb.HealthCheckResponse.SERVICE_UNKNOWN]
        served.host.status = Status.DEGRADED
        await asyncio.sleep(0.05)
        assert len(stream.messages()) == 1
        assert not stream.exchange.over


@pytest.mark.parametrize("protocol", ["connect+json", "grpc-web"])
async def test_watch_over_http1_ends_with_its_client(protocol: str, served: Served) -> None:
    payload = b"{}" if protocol == "connect+json" else b""
    body = b"\0" + len(payload).to_bytes(4, "big") + payload
    headers = {"content-type": CONTENT_TYPES[protocol].decode()}
    async with http1(served) as client:
        async with client.stream("POST", f"{SERVICE}/Watch", content=body, headers=headers) as response:
            first = await anext(response.aiter_raw())
            if protocol == "connect+json":
                assert json.loads(first[5:]) == {"status": "SERVING"}
            else:
                assert pb.HealthCheckResponse.FromString(first[5:]).status == SERVING
            assert len(served.server._connections) == 1
        await eventually(lambda: not served.server._connections)


@pytest.mark.parametrize("how", ["reset", "lost"])
async def test_watch_over_http2_ends_with_its_client(how: str, served: Served) -> None:
    before = len(asyncio.all_tasks())
    async with watching(served) as stream:
        await stream.received(1)
        if how == "reset":
            stream.client.h2.reset_stream(stream.stream_id, 8)
            await stream.client.flush()
            connection, *_ = served.server._connections.values()
            await eventually(lambda: connection.idle)
        else:
            stream.client.writer.transport.abort()
        await eventually(lambda: len(asyncio.all_tasks()) <= before + (2 if how == "reset" else 0))


async def test_drain_tells_those_who_watch_and_is_not_held_up_by_them(serve: Serve) -> None:
    async with serve() as served, watching(served) as stream:
        assert told(await stream.received(1)) == [SERVING]
        served.host.status = Status.SHUTTING_DOWN
        stopping = asyncio.create_task(served.server.stop(60))
        assert told(await stream.received(2)) == [SERVING, NOT_SERVING]
        assert await stream.outcome() is None
        await asyncio.wait_for(stopping, 20)


async def test_silent_watch_outlives_the_stall_timeout(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "POLL_INTERVAL", 0.01)
    async with serve(stall_timeout=0.1, head_timeout=0.1) as served, watching(served) as stream:
        await stream.received(1)
        await asyncio.sleep(0.3)
        served.host.status = Status.DEGRADED
        assert told(await stream.received(2)) == [SERVING, NOT_SERVING]


async def test_number_of_watches_is_bounded_and_freed_again(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MAX_WATCHES", 1)
    async with watching(served) as first:
        await first.received(1)
        async with watching(served) as second:
            refusal = await second.outcome()
            assert refusal is not None
            assert (refusal.code, refusal.reason) == ("resource_exhausted", "TOO_MANY_WATCHES")
            assert refusal.metadata == {"limit": "1"}
    await eventually(lambda: not served.server._connections)
    async with watching(served) as third:
        assert told(await third.received(1)) == [SERVING]


async def test_json_that_is_no_stream_is_told_what_to_send(served: Served) -> None:
    async with http1(served) as client:
        response = await client.post(f"{SERVICE}/Watch", json={})
    assert response.status_code == 415
    message = refusal_of_json(response.json()).message
    assert "application/connect+json" in message
    assert "Check" in message
