"""A stream of any length takes a bounded amount of the daemon's memory, for every behaviour of its client."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from subprocess import Popen

import grpc
import psutil
import pytest
from runed_proto.runed.v1 import runed_pb2 as pb

from runed.lifecycle.listener import probe
from tests.api.streams import PATH, request
from tests.support import wait_until

TEXTS = 100_000
TEXTS_A_MESSAGE = 100
TEXT = "x" * 1000
"""100 MB of texts altogether."""

MIB = 1024 * 1024


@pytest.fixture
def host(home: Path) -> Iterator[Popen[bytes]]:
    """A fake host in a process of its own, listening on "s" of the home."""
    process = Popen([sys.executable, "-m", "tests.fakes.fake_host", str(home / "s")])
    wait_until(lambda: probe(home / "s"), what="the host")
    yield process
    process.terminate()
    assert process.wait(10) == 0


@pytest.mark.slow
async def test_client_that_reads_no_results_is_held_back(host: Popen[bytes], home: Path) -> None:
    process = psutil.Process(host.pid)
    async with grpc.aio.insecure_channel(f"unix:{home / 's'}") as channel:
        method = channel.stream_stream(
            PATH,
            request_serializer=pb.EmbedStreamRequest.SerializeToString,
            response_deserializer=pb.EmbedStreamResponse.FromString,
        )
        await anext(aiter(method(iter([request("one")]))))  # everything imported late is there
        before = process.memory_info().rss
        sent = 0

        async def requests() -> AsyncIterator[pb.EmbedStreamRequest]:
            nonlocal sent
            for _ in range(TEXTS // TEXTS_A_MESSAGE):
                yield request(*[TEXT] * TEXTS_A_MESSAGE)
                sent += TEXTS_A_MESSAGE

        call = method(requests())
        await stands_still(lambda: sent)
        held_back_at = sent
        grown = process.memory_info().rss - before
        assert held_back_at < TEXTS / 10
        assert grown < 8 * MIB
        received = 0
        async for response in call:
            received += len(response.results)
            if received >= 2 * held_back_at:  # it goes on where it was
                break
        call.cancel()
        assert process.memory_info().rss - before < 8 * MIB


async def stands_still(read: Callable[[], int]) -> None:
    """Wait until a number has not changed for half a second."""
    last = -1
    while (number := read()) != last or number == 0:
        last = number
        await asyncio.sleep(0.5)
