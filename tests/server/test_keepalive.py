"""Clients that send PINGs through hours of silence stay connected, like grpc-go with keepalive every 10 s, in fast motion."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from h2.events import PingAckReceived
from runed_proto.runed.v1 import runed_pb2 as pb

from tests.server.app import WAIT, Servicer
from tests.server.clients import RawClient
from tests.server.conftest import Serve
from tests.support import eventually

PINGS = 360
"""PINGs of one hour of keepalive. grpc-go's server tolerates two before it answers ENHANCE_YOUR_CALM."""


async def ping(client: RawClient, times: int) -> None:
    """Send PINGs, each after the answer to the last one."""
    for number in range(times):
        client.events.clear()
        client.h2.ping(number.to_bytes(8, "big"))
        assert await client.until(lambda: any(isinstance(event, PingAckReceived) for event in client.events))
        [answer] = (event for event in client.events if isinstance(event, PingAckReceived))
        assert answer.ping_data == number.to_bytes(8, "big")


@pytest.mark.parametrize("in_flight", [False, True], ids=["without a call", "during a silent call"])
async def test_pings_in_silence_are_answered_and_never_punished(
    in_flight: bool,  # noqa: FBT001 # pytest passes it by name
    path: Path,
    serve: Serve,
    servicer: Servicer,
) -> None:
    async with serve(servicer, stall_timeout=0.2, head_timeout=0.2) as server, await RawClient.connect(path) as client:
        waiting = client.call("Embed", pb.EmbedRequest(text=WAIT)) if in_flight else None
        await client.flush()
        await eventually(lambda: servicer.waiting == in_flight)
        await ping(client, PINGS)
        await asyncio.sleep(0.5)  # longer than every time limit of the server
        await ping(client, 1)
        assert (client.goaway, client.ended, len(server._connections)) == (None, False, 1)
        servicer.let_go()
        for call in filter(None, [waiting, client.call("Info", pb.InfoRequest())]):
            assert (await client.over(call)).succeeded


async def test_many_pings_at_once_are_all_answered(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer), await RawClient.connect(path) as client:
        for number in range(PINGS):
            client.h2.ping(number.to_bytes(8, "big"))
        answers = [number.to_bytes(8, "big") for number in range(PINGS)]
        await client.until(lambda: len(client.events) > PINGS)
        assert [event.ping_data for event in client.events if isinstance(event, PingAckReceived)] == answers
        assert (await client.over(client.call("Info", pb.InfoRequest()))).succeeded
