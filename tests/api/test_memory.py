"""The memory of all requests in flight has a bound. What does not fit is refused, and told when to come again."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import httpx
import pytest
from runed_proto.runed.v1 import runed_pb2 as pb
from runed_proto.runed.v1.runed_pb2 import EmbedBatchRequest, EmbedRequest, HealthRequest

from runed.server import Budget
from runed.server.budget import Holder
from runed.server.stream import SLOW, RequestStream
from tests.api.conftest import Serve, Served
from tests.api.streams import StreamClient, request
from tests.fakes.fake_host import WAIT
from tests.server.clients import SERVICE, RawClient
from tests.server.test_http1 import head
from tests.support import PROTOCOLS, Answer, eventually, refusal_of_json

MIB = 1024 * 1024
LIMIT = 2 * MIB
PART = MIB * 11 // 32


@pytest.fixture
def budget() -> Budget:
    return Budget(LIMIT)


def assert_refused_for_now(answer: Answer) -> None:
    assert answer.refusal is not None
    assert (answer.refusal.code, answer.refusal.reason) == ("resource_exhausted", "QUEUE_FULL")
    assert "RUNED_REQUEST_MEMORY" in answer.refusal.message
    assert str(LIMIT) in answer.refusal.message
    assert answer.refusal.retry_seconds == 1


async def begin(path: Path, size: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request but for its last byte."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(head(b'{"text":"' + b"x" * size + b'"}')[:-1])
    return reader, writer


@asynccontextmanager
async def full(serve: Serve, budget: Budget) -> AsyncIterator[Served]:
    """Serve a host whose requests hold most of the memory until the end."""
    async with serve(budget=budget) as served:
        request = EmbedBatchRequest(texts=[WAIT, "x" * PART])
        held = [asyncio.create_task(served.call("connect+proto", "EmbedBatch", request)) for _ in range(3)]
        await eventually(lambda: served.host.waiting == 3)
        served.host.asked.clear()
        yield served
        served.host.let_go()
        assert [answer.refusal for answer in await asyncio.gather(*held)] == [None] * 3
        await eventually(lambda: budget.used == 0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_body_that_does_not_fit_is_refused_and_told_when_to_come_again(
    protocol: str, serve: Serve, budget: Budget
) -> None:
    async with full(serve, budget) as served:
        assert_refused_for_now(await served.call(protocol, "Embed", EmbedRequest(text="x" * PART)))
        assert not served.host.asked
        assert (await served.call(protocol, "Embed", EmbedRequest(text="x"))).refusal is None
        assert (await served.call(protocol, "Health", HealthRequest())).refusal is None


async def test_openai_api_refuses_it_too(serve: Serve, budget: Budget) -> None:
    async with full(serve, budget) as served, client_for(served.path) as client:
        response = await client.post("http://runed/v1/embeddings", json={"input": "x" * PART})
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "QUEUE_FULL"
        assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_body_that_can_never_fit_is_too_large(protocol: str, serve: Serve, budget: Budget) -> None:
    async with serve(budget=budget) as served:
        answer = await served.call(protocol, "EmbedBatch", EmbedBatchRequest(texts=["x" * PART] * 5))
        assert answer.refusal is not None
        assert answer.refusal.reason == "REQUEST_TOO_LARGE"
        await eventually(lambda: budget.used == 0)


def client_for(path: Path) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path)), timeout=10)


async def test_oldest_unfinished_request_makes_room(serve: Serve, budget: Budget) -> None:
    async with serve(budget=budget) as served:
        unfinished = [await begin(served.path, PART) for _ in range(3)]
        await eventually(lambda: budget.used > 3 * PART)
        answer = await served.call("connect+proto", "Embed", EmbedRequest(text="x" * PART))
        assert answer.refusal is None
        reader, _ = unfinished[0]
        answered = await asyncio.wait_for(reader.read(), 5)
        refusal = json.loads(answered[answered.index(b"{") : answered.rindex(b"}") + 1])
        assert_refused_for_now(Answer(refusal=refusal_of_json(refusal)))
        reader, writer = unfinished[2]
        writer.write(b"}")  # the youngest still goes on
        assert b" 200 " in await asyncio.wait_for(reader.readline(), 5)
        for _, writer in unfinished:
            writer.transport.abort()
        await eventually(lambda: budget.used == 0)


async def test_stream_that_waits_for_its_answers_makes_no_room(serve: Serve, budget: Budget) -> None:
    async with serve(budget=budget) as served, await StreamClient.open(served.path) as stream:
        await stream.send(request(WAIT, "b"))
        await eventually(lambda: served.host.waiting == 1)
        await asyncio.sleep(SLOW + 0.1)
        unfinished = [await begin(served.path, PART) for _ in range(5)]
        reader, _ = unfinished[0]
        assert await asyncio.wait_for(reader.read(), 5)  # it made room instead
        for _, writer in unfinished:
            writer.transport.abort()
        served.host.let_go()
        await stream.send(request("c"), end=True)
        assert len(await stream.results(3)) == 3
        assert await stream.outcome() is None
        await eventually(lambda: budget.used == 0)


@pytest.mark.parametrize("protocol", ["connect+proto", "connect+json"])
async def test_answer_that_does_not_fit_is_refused_before_the_work(protocol: str, serve: Serve) -> None:
    async with serve(budget=Budget(MIB // 4)) as served:
        answer = await served.call(protocol, "EmbedBatch", EmbedBatchRequest(texts=["x"] * 4000))
        assert answer.refusal is not None
        assert answer.refusal.reason == "REQUEST_TOO_LARGE"
        assert "RUNED_REQUEST_MEMORY" in answer.refusal.message
        assert not served.host.asked


async def test_many_open_streams_of_one_connection_count(serve: Serve, budget: Budget) -> None:
    async with serve(budget=budget, max_streams=1000) as served, await RawClient.connect(served.path) as client:
        calls = [client.open(f"{SERVICE}/Embed".encode(), end=False) for _ in range(300)]
        await client.flush()
        await client.until(lambda: client.exchanges[calls[0]].over)
        assert client.exchanges[calls[0]].headers[b"grpc-status"] == b"8"
        assert LIMIT // 2 < budget.used <= LIMIT
        assert not client.exchanges[calls[-1]].over
        assert (await served.call("grpc", "Embed", EmbedRequest(text="x"))).refusal is None


async def test_stream_may_be_longer_than_the_memory(serve: Serve) -> None:
    budget = Budget(MIB)
    async with serve(budget=budget) as served, await StreamClient.open(served.path) as stream:
        for number in range(40):
            item = pb.EmbedStreamItem(id=f"{number} {'i' * 40_000}", text="a text")
            await stream.send(pb.EmbedStreamRequest(items=[item]), end=number == 39)
            assert len(await stream.results(number + 1)) == number + 1
        assert await stream.outcome() is None
        await eventually(lambda: budget.used == 0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_nothing_of_an_answered_request_is_kept(serve: Serve, protocol: str) -> None:
    # Behind a timer that still runs, asyncio keeps a cancelled timer, with the context of its request.
    timer = asyncio.get_running_loop().call_later(30, gc.collect)
    async with serve() as served:
        answer = await served.call(protocol, "EmbedBatch", EmbedBatchRequest(texts=["x" * 500] * 2000))
        assert answer.refusal is None
        await eventually(lambda: not _kept())
    timer.cancel()


def _kept() -> list[RequestStream]:
    """Return the requests that something holds."""
    gc.collect()
    return [it for it in gc.get_objects() if isinstance(it, RequestStream)]


async def test_memory_is_returned_once_after_large_requests(serve: Serve) -> None:
    reliefs: list[int] = []
    memory = Budget(16 * MIB, on_relief=lambda: reliefs.append(memory.used))
    async with serve(budget=memory) as served:
        await served.call("grpc", "Embed", EmbedRequest(text="a small text"))
        assert memory._relief is None
        for _ in range(3):
            await served.call("grpc", "EmbedBatch", EmbedBatchRequest(texts=["x" * 2 * MIB]))
        await eventually(lambda: reliefs == [0])


async def test_memory_is_returned_while_the_request_goes_on() -> None:
    reliefs: list[int] = []
    memory = Budget(16 * MIB, on_relief=lambda: reliefs.append(memory.used))
    account = memory.open(cast("Holder", None))
    account.take(2 * MIB)
    account.forget_body()
    await eventually(lambda: reliefs == [0])
