"""Large batches of one client wait for each other, so that their texts do not all take memory at once. Nobody else waits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from runed_proto.runed.v1 import runed_pb2 as pb

from runed.api.rpc.batch_turns import TEXTS_IN_WORK
from runed.scheduling.scheduler import INTERACTIVE_BATCH
from tests.api.conftest import Served
from tests.fakes.fake_host import WAIT
from tests.server.clients import RawClient
from tests.support import eventually

HALF = TEXTS_IN_WORK // 2


def batch(texts: int, first: str = WAIT, *, lane: pb.Lane = pb.LANE_UNSPECIFIED) -> pb.EmbedBatchRequest:
    return pb.EmbedBatchRequest(texts=[first] + ["x"] * (texts - 1), lane=lane)


async def settle(served: Served, waiting: int) -> None:
    """Wait until so many calls wait in the host, and see that no further one comes."""
    await eventually(lambda: served.host.waiting >= waiting)
    await asyncio.sleep(0.05)
    assert served.host.waiting == waiting


async def finish(served: Served, client: RawClient, calls: Sequence[int]) -> list[bytes]:
    """Let all calls go, also those that reach the host later, and return their statuses."""

    def over() -> bool:
        served.host.let_go()
        return all(client.exchanges[call].over for call in calls)

    async with asyncio.timeout(10):
        while not await client.until(over, within=0.1):
            pass
    return [client.exchanges[call].headers[b"grpc-status"] for call in calls]


async def test_large_batches_of_a_connection_wait_for_each_other(served: Served) -> None:
    async with await RawClient.connect(served.path) as client:
        calls = [client.call("EmbedBatch", batch(HALF)) for _ in range(5)]
        await client.flush()
        await settle(served, 2)
        assert await finish(served, client, calls) == [b"0"] * 5


async def test_batch_that_is_too_large_for_company_is_alone(served: Served) -> None:
    async with await RawClient.connect(served.path) as client:
        calls = [client.call("EmbedBatch", batch(size)) for size in (TEXTS_IN_WORK + 1, INTERACTIVE_BATCH + 1)]
        await client.flush()
        await settle(served, 1)
        assert await finish(served, client, calls) == [b"0"] * 2


@pytest.mark.parametrize(
    ("texts", "lane"), [(INTERACTIVE_BATCH, pb.LANE_UNSPECIFIED), (INTERACTIVE_BATCH + 1, pb.LANE_INTERACTIVE)]
)
async def test_interactive_batch_does_not_wait_for_large_ones(served: Served, texts: int, lane: pb.Lane) -> None:
    async with await RawClient.connect(served.path) as client:
        for _ in range(3):
            client.call("EmbedBatch", batch(HALF))
        await client.flush()
        await settle(served, 2)
        call = client.call("EmbedBatch", batch(texts, "x", lane=lane))
        assert await client.until(lambda: client.exchanges[call].over)
        served.host.let_go()


async def test_other_client_does_not_wait(served: Served) -> None:
    async with await RawClient.connect(served.path) as client, await RawClient.connect(served.path) as other:
        for _ in range(3):
            client.call("EmbedBatch", batch(HALF))
        await client.flush()
        await settle(served, 2)
        call = other.call("EmbedBatch", batch(HALF, "x"))
        assert await other.until(lambda: other.exchanges[call].over)
        served.host.let_go()


async def test_batch_that_is_given_up_leaves_its_place(served: Served) -> None:
    async with await RawClient.connect(served.path) as client:
        calls = [client.call("EmbedBatch", batch(HALF)) for _ in range(5)]
        await client.flush()
        await settle(served, 2)
        for call in calls[1:3]:  # one in work, and the first that waits
            client.h2.reset_stream(call)
        await client.flush()
        await eventually(lambda: served.host.cancelled == 1)
        await settle(served, 2)
        assert await finish(served, client, [calls[0], *calls[3:]]) == [b"0"] * 3
