"""The generated clients of connectrpc over `runed.http_client` and its twin."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.protocol import ProtocolType
from runed_proto.runed.v1.runed_connect import RunedServiceClient, RunedServiceClientSync
from runed_proto.runed.v1.runed_pb2 import (
    Centroid,
    CentroidBatch,
    CentroidSetHeader,
    EmbedBatchRequest,
    EmbedRequest,
    EmbedStreamItem,
    EmbedStreamRequest,
    HealthRequest,
    InfoRequest,
    SetCentroidsRequest,
)

import runed
import runed.testing
from runed.testing import DaemonDouble
from tests.client.conftest import Arrange, events, live_descriptors, pids
from tests.support import process_gone, wait_until

PROTOCOLS = pytest.mark.parametrize("protocol", list(ProtocolType))


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonDouble]:
    with runed.testing.daemon() as daemon:
        yield daemon


def stub(home: Path, protocol: ProtocolType = ProtocolType.CONNECT) -> RunedServiceClientSync:
    return RunedServiceClientSync("http://runed", protocol=protocol, http_client=runed.http_client(home=home))


def async_stub(home: Path, protocol: ProtocolType = ProtocolType.CONNECT) -> RunedServiceClient:
    return RunedServiceClient("http://runed", protocol=protocol, http_client=runed.http_client_async(home=home))


def question(number: int) -> EmbedStreamRequest:
    return EmbedStreamRequest(items=[EmbedStreamItem(id=str(number), text=f"text {number}")])


def centroids(daemon: DaemonDouble) -> Iterator[SetCentroidsRequest]:
    yield SetCentroidsRequest(header=CentroidSetHeader(dim=8, nlist=1000))
    for number in range(1000):
        centroid = Centroid(id=number, vec=daemon.vector(str(number)).tolist())
        yield SetCentroidsRequest(batch=CentroidBatch(centroids=[centroid]))


class TestBlocking:
    """All kinds of calls work by all protocols."""

    @PROTOCOLS
    def test_one_answer(self, daemon: DaemonDouble, protocol: ProtocolType) -> None:
        client = stub(daemon.home, protocol)
        assert client.info(InfoRequest()).model_name == "double"
        assert np.allclose(client.embed(EmbedRequest(text="tea")).vector, daemon.vector("tea"))
        texts = [f"{number} " + "word " * 100 for number in range(2000)]
        answer = client.embed_batch(EmbedBatchRequest(texts=texts))
        assert np.allclose(answer.embeddings[1999].vector, daemon.vector(texts[1999]))

    @PROTOCOLS
    def test_a_stream(self, daemon: DaemonDouble, protocol: ProtocolType) -> None:
        answers = list(stub(daemon.home, protocol).embed_stream(question(number) for number in range(500)))
        vectors = {result.id: result.embedding.vector for answer in answers for result in answer.results}
        assert len(vectors) == 500
        assert np.allclose(vectors["7"], daemon.vector("text 7"))

    @PROTOCOLS
    def test_an_upload(self, daemon: DaemonDouble, protocol: ProtocolType) -> None:
        assert stub(daemon.home, protocol).set_centroids(centroids(daemon)).nlist == 1000

    @PROTOCOLS
    def test_errors_are_those_of_connectrpc(self, daemon: DaemonDouble, protocol: ProtocolType) -> None:
        client = stub(daemon.home, protocol)
        with pytest.raises(ConnectError, match="is empty") as caught:
            client.embed(EmbedRequest(text=""))
        assert caught.value.code == Code.INVALID_ARGUMENT
        assert caught.value.details

    def test_answers_come_while_more_is_asked(self, daemon: DaemonDouble) -> None:
        """The messages are far larger than the windows of both sides."""
        answered = 0

        def ask() -> Iterator[EmbedStreamRequest]:
            for number in range(300):
                yield EmbedStreamRequest(items=[EmbedStreamItem(id=str(number), text="x" * 100_000)])
                assert number < 40 or answered

        for answer in stub(daemon.home).embed_stream(ask()):
            answered += len(answer.results)
        assert answered == 300

    def test_a_stream_that_is_given_up_leaves_no_connection(self, daemon: DaemonDouble) -> None:
        client = stub(daemon.home)
        client.health(HealthRequest())
        before = len(live_descriptors())
        answers = client.embed_stream(question(number) for number in range(10_000))
        next(answers)
        del answers
        # The double closes its side a moment later, in this very process.
        wait_until(lambda: len(live_descriptors()) <= before, what="the end of the connection")

    def test_a_time_limit(self, shared: Path) -> None:
        client = stub(shared)
        client.health(HealthRequest())
        with pytest.raises(ConnectError) as caught:
            client.embed(EmbedRequest(text="slow"), timeout_ms=300)
        assert caught.value.code == Code.DEADLINE_EXCEEDED
        wait_until(lambda: "slow cancelled" in events(shared))


class TestAsyncio:
    """The same calls work with asyncio."""

    @PROTOCOLS
    async def test_all_kinds_of_calls(self, daemon: DaemonDouble, protocol: ProtocolType) -> None:
        client = async_stub(daemon.home, protocol)
        answers = await asyncio.gather(*(client.embed(EmbedRequest(text=f"text {number}")) for number in range(20)))
        assert np.allclose(answers[7].vector, daemon.vector("text 7"))

        async def upload() -> AsyncIterator[SetCentroidsRequest]:
            for message in centroids(daemon):
                yield message

        assert (await client.set_centroids(upload())).nlist == 1000
        with pytest.raises(ConnectError, match="is empty"):
            await client.embed(EmbedRequest(text=""))

    @PROTOCOLS
    async def test_the_messages_of_a_stream_may_wait_for_answers(self, daemon: DaemonDouble, protocol: ProtocolType) -> None:
        answered: asyncio.Queue[str] = asyncio.Queue()

        async def ask() -> AsyncIterator[EmbedStreamRequest]:
            yield question(0)
            while (number := int(await answered.get())) < 9:
                yield question(number + 1)

        async for answer in async_stub(daemon.home, protocol).embed_stream(ask()):
            for result in answer.results:
                answered.put_nowait(result.id)
        assert answered.empty()

    async def test_a_large_stream(self, daemon: DaemonDouble) -> None:
        async def ask() -> AsyncIterator[EmbedStreamRequest]:
            for number in range(300):
                yield EmbedStreamRequest(items=[EmbedStreamItem(id=str(number), text="x" * 100_000)])

        results = [result.id async for answer in async_stub(daemon.home).embed_stream(ask()) for result in answer.results]
        assert len(set(results)) == 300

    async def test_an_error_of_the_messages_ends_the_stream(self, daemon: DaemonDouble) -> None:
        async def ask() -> AsyncIterator[EmbedStreamRequest]:
            yield question(0)
            raise ValueError("mine")

        before = len(live_descriptors())
        with pytest.raises(ConnectError, match="mine"):
            async for _ in async_stub(daemon.home).embed_stream(ask()):
                pass
        await asyncio.to_thread(wait_until, lambda: len(live_descriptors()) <= before)

    async def test_a_cancelled_call_ends_in_the_daemon_too(self, arrange: Arrange) -> None:
        home = arrange()
        client = async_stub(home)
        call = asyncio.create_task(client.embed(EmbedRequest(text="slow")))
        await asyncio.to_thread(wait_until, lambda: "slow began" in events(home))
        call.cancel()
        with pytest.raises((asyncio.CancelledError, ConnectError)):
            await call
        await asyncio.to_thread(wait_until, lambda: "slow cancelled" in events(home))


class TestStarting:
    """The daemon is started when it is needed."""

    def test_at_the_first_call_and_after_its_end(self, arrange: Arrange) -> None:
        home = arrange()
        client = stub(home)
        assert pids(home) == []
        assert client.embed(EmbedRequest(text="four")).vector[1] == pids(home)[0]
        os.kill(pids(home)[0], signal.SIGKILL)
        wait_until(lambda: process_gone(pids(home)[0]))
        assert client.embed(EmbedRequest(text="four")).vector[1] == pids(home)[1]

    async def test_with_asyncio_too(self, arrange: Arrange) -> None:
        home = arrange()
        client = async_stub(home)
        assert (await client.embed(EmbedRequest(text="four"))).vector[1] == pids(home)[0]
        os.kill(pids(home)[0], signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda: process_gone(pids(home)[0]))
        assert (await client.embed(EmbedRequest(text="four"))).vector[1] == pids(home)[1]

    def test_only_with_leave(self, arrange: Arrange) -> None:
        home = arrange()
        client = RunedServiceClientSync("http://runed", http_client=runed.http_client(home=home, spawn=False))
        with pytest.raises(ConnectError, match="no daemon listens") as caught:
            client.embed(EmbedRequest(text="four"))
        assert caught.value.code == Code.UNAVAILABLE
        assert pids(home) == []
