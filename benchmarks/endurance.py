"""Errors and memory over many calls."""

from __future__ import annotations

import asyncio
import time

import grpc
from runed_proto.runed.v1.runed_pb2 import EmbedRequest, EmbedResponse

import runed
from benchmarks.lab import CLIENTS, Daemon, Lab
from benchmarks.results import Row
from runed.processes import resident_bytes

CALLS = 20_000
WARM_UP = 4_000
CONCURRENCY = 64

FEW, MANY = 200, 2_000
"""Numbers of distinct texts after which the memory is measured."""


def measure_calls(lab: Lab, *, calls: int = CALLS) -> list[Row]:
    """Send many concurrent gRPC calls on one connection, long enough for a leak or a protocol error to show.

    The daemon runs without a cache, whose growth is wanted.
    """
    warm_up = calls * WARM_UP // CALLS
    with Daemon(lab.model, RUNED_CACHE_SIZE="0") as daemon:
        started = time.perf_counter()
        errors, growth = asyncio.run(_call_on(daemon, calls, warm_up))
        rate = calls / (time.perf_counter() - started)
    return [
        Row(
            f"{calls:,} gRPC calls, {CONCURRENCY} at a time, one connection, no cache",
            f"{errors} errors, RSS {growth:+.1%} after the first {warm_up:,}, {rate:.0f} calls/s",
            "-",
            "-",
            "no error, less than 3 %",
            errors == 0 and growth < 0.03,
        )
    ]


async def _call_on(daemon: Daemon, calls: int, warm_up: int) -> tuple[int, float]:
    """Send the calls. Return the number of failed calls, and the growth of the daemon's memory after the warm-up."""
    numbers = iter(range(calls))
    errors = 0
    warm = 0
    pid = daemon.running.process.pid

    async with grpc.aio.insecure_channel(f"unix:{daemon.target.socket}") as channel:
        embed = channel.unary_unary(
            "/runed.v1.RunedService/Embed",
            request_serializer=EmbedRequest.SerializeToString,
            response_deserializer=EmbedResponse.FromString,
        )

        async def call_on() -> None:
            nonlocal errors, warm
            for number in numbers:
                try:
                    response = await embed(EmbedRequest(text=f"call {number}"), timeout=60)
                    errors += len(response.vector) == 0
                except grpc.aio.AioRpcError:
                    errors += 1
                if number == warm_up:
                    warm = resident_bytes(pid)

        await asyncio.gather(*(call_on() for _ in range(CONCURRENCY)))
    return errors, resident_bytes(pid) / warm - 1


def measure_memory(lab: Lab) -> list[Row]:
    """Measure the memory of a new daemon and its engine after few and after many distinct texts, with the default cache."""
    with Daemon(lab.model) as daemon:
        asyncio.run(_embed_all(daemon, lab.fresh_texts(FEW)))
        few = daemon.resident_bytes
        asyncio.run(_embed_all(daemon, lab.fresh_texts(MANY - FEW)))
        many = daemon.resident_bytes
    growth = many / few - 1
    return [
        Row(
            f"RSS of daemon and engine after {MANY:,} distinct texts",
            f"{many / 2**20:.1f} MiB",
            "-",
            f"{growth:+.1%} of {few / 2**20:.1f} MiB after {FEW}",
            "within 5 %",
            abs(growth) <= 0.05,
        )
    ]


async def _embed_all(daemon: Daemon, texts: list[str]) -> None:
    """Embed single texts by several concurrent clients."""
    left = iter(texts)

    async def call_on() -> None:
        async with await runed.connect_async(socket_path=daemon.target.socket) as client:
            for text in left:
                await client.embed(text)

    await asyncio.gather(*(call_on() for _ in range(CLIENTS)))
