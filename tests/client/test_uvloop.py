"""The client for asyncio on uvloop, the event loop of many web servers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import runed
import runed.testing

uvloop: Any = pytest.importorskip("uvloop")


def test_calls_and_streams_work_on_uvloop() -> None:
    async def embed() -> tuple[int, set[int]]:
        async with runed.connect_async(home=daemon.home) as client:
            vector = await client.embed("green tea")
            return len(vector), {key async for key, _ in client.embed_stream(enumerate(["oolong", "pu-erh"]))}

    with runed.testing.daemon(dimensions=8) as daemon, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(embed()) == (8, {0, 1})
        answer = runner.run(
            runed.http_client_async(home=daemon.home).execute(
                "POST", "http://runed/runed.v1.RunedService/Embed", {"content-type": "application/json"}, b'{"text": "tea"}'
            )
        )
        assert answer.status == 200
