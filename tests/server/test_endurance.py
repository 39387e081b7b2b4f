"""Many calls on one connection."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import psutil
import pytest
from runed_proto.runed.v1 import runed_pb2 as pb

from tests.server.clients import GrpcClient
from tests.server.conftest import Run

WARM_UP = 4_000
CALLS = 20_000
CONCURRENCY = 64


@pytest.mark.slow
async def test_20000_calls_on_one_connection_with_flat_memory(path: Path, run: Run) -> None:
    server = psutil.Process(run("ours").pid)
    async with GrpcClient(path) as client:

        async def call(number: int) -> None:
            calls = iter(range(number))

            async def worker() -> None:
                for _ in calls:
                    code = await client.embed(pb.EmbedRequest(text="hello"), timeout=20).code()
                    assert code is grpc.StatusCode.OK

            await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))

        await call(WARM_UP)
        warm = server.memory_info().rss
        await call(CALLS - WARM_UP)
        grown = server.memory_info().rss / warm - 1
    assert grown < 0.03
