"""The client for asyncio. The tests of the blocking client cover the code that both share."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from pathlib import Path

import numpy as np
import pytest

import runed
from runed import errors
from tests.client.conftest import Arrange, events, live_descriptors, pids
from tests.support import process_gone, wait_until


async def test_connecting_starts_a_daemon_and_embeds(arrange: Arrange) -> None:
    async with await runed.connect_async(home=arrange(loading=2, max_batch_size=2)) as client:
        assert (await client.embed("four"))[0] == 4
        vectors = await client.embed_batch(["a", "bb", "ccc"])
        assert vectors.dtype == np.float32
        assert vectors[:, 0].tolist() == [1, 2, 3]
        assert (await client.health()).status is runed.Status.OK
        assert (await client.info()).model_name == "fake"
        assert (await client.wait_until_ready()).vector_dim == 4


async def test_connecting_is_awaited_by_the_block_of_the_client(arrange: Arrange) -> None:
    home = arrange()
    async with runed.connect_async(home=home) as client:
        assert (await client.embed_batch(["four"]))[0, 0] == 4
        assert repr(client) == f"<runed.AsyncClient on {home / 'embedding.sock'}, model fake>"
    with pytest.raises(errors.RunedError, match="this client is closed"):
        await client.embed("four")


async def test_connecting_can_be_cancelled(home: Path) -> None:
    (home / "config.json").write_text('{"version": 1, "runed_binary": "/bin/cat"}')
    connecting = asyncio.create_task(runed.connect_async(home=home, timeout=0.2))
    await asyncio.sleep(0)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting


async def test_info_waits_and_refuses_as_that_of_the_blocking_client(arrange: Arrange) -> None:
    async with runed.connect_async(home=arrange(loading=3, downloading=False)) as client:
        assert (await client.info()).vector_dim == 4


async def test_starting_a_daemon_does_not_block_the_loop(arrange: Arrange) -> None:
    home = arrange()
    program = home / "fake-runed"
    # Half a second, since a quick start leaves few turns to count on a busy machine.
    program.write_text(program.read_text().replace("exec ", "sleep 0.5\nexec ", 1))
    connecting = asyncio.create_task(runed.connect_async(home=home))
    turns = 0
    while not connecting.done():
        await asyncio.sleep(0.005)
        turns += 1
    assert turns > 5
    await (await connecting).close()


async def test_tasks_get_their_own_answers(shared: Path) -> None:
    async with await runed.connect_async(home=shared) as client:
        lengths = [1 + number % 50 for number in range(200)]
        vectors = await asyncio.gather(*(client.embed("x" * length) for length in lengths))
        assert [vector[0] for vector in vectors] == lengths


async def test_a_cancelled_call_ends_in_the_daemon_too_and_spoils_no_other(shared: Path) -> None:
    async with await runed.connect_async(home=shared) as client:
        await client.embed("a")
        slow = asyncio.create_task(client.embed("slow"))
        await asyncio.to_thread(wait_until, lambda: "slow began" in events(shared))
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        await asyncio.to_thread(wait_until, lambda: "slow cancelled" in events(shared))
        assert (await client.embed("four"))[0] == 4


async def test_a_call_takes_no_longer_than_it_may(shared: Path) -> None:
    async with await runed.connect_async(home=shared) as client:
        with pytest.raises(errors.DeadlineExceededError):
            await client.embed("slow", timeout=0.3)
        with pytest.raises(errors.DeadlineExceededError):
            await client.embed("a", timeout=0)
        assert (await client.embed("a", timeout=30))[0] == 1


async def test_a_callers_own_timeout_is_left_alone(shared: Path) -> None:
    async with await runed.connect_async(home=shared) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await client.embed("slow", timeout=30)
        assert (await client.embed("a"))[0] == 1


async def test_a_daemon_that_went_away_is_started_again(arrange: Arrange) -> None:
    home = arrange()
    async with await runed.connect_async(home=home) as client:
        await client.embed("a")
        (first,) = pids(home)
        os.kill(first, signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda: process_gone(first))
        vectors = await asyncio.gather(*(client.embed("a") for _ in range(8)))
        assert {vector[1] for vector in vectors} == {pids(home)[1]}
        assert len(pids(home)) == 2
        await client.embed("drain")
        assert (await client.embed("a"))[1] == pids(home)[2]
        await client.shutdown()


async def test_without_a_daemon_it_says_what_to_do(home: Path) -> None:
    with pytest.raises(errors.DaemonUnavailableError, match="runed ensure"):
        await runed.connect_async(home=home, spawn=False)


async def test_errors_are_typed(shared: Path) -> None:
    async with await runed.connect_async(home=shared) as client:
        with pytest.raises(errors.TextTooLongError, match="fake: TEXT_TOO_LONG"):
            await client.embed("fail:TEXT_TOO_LONG")
        with pytest.raises(errors.InvalidTextError):
            await client.embed("\ud800")


async def test_no_connection_stays_open(shared: Path) -> None:
    async with await runed.connect_async(home=shared) as first:
        await first.embed("a")
    before = live_descriptors()
    client = await runed.connect_async(home=shared)
    await asyncio.gather(*(client.embed("x") for _ in range(50)))
    assert len(live_descriptors() - before) <= 16, "a burst of tasks leaves no more than a few"
    with pytest.raises(errors.DeadlineExceededError):
        await client.embed("slow", timeout=0.2)
    await client.close()
    await asyncio.sleep(0)
    gc.collect()
    assert live_descriptors() <= before
    with pytest.raises(errors.RunedError, match="this client is closed"):
        await client.embed("a")


def test_a_forked_child_does_not_disturb_its_parents_connections(shared: Path) -> None:

    async def child(client: runed.AsyncClient) -> int:
        return 0 if [(await client.embed("x" * n))[0] for n in range(1, 21)] == list(range(1, 21)) else 1

    async def parent() -> None:
        async with await runed.connect_async(home=shared) as client:
            await client.embed("a")
            if (pid := os.fork()) == 0:
                asyncio._set_running_loop(None)
                os._exit(asyncio.new_event_loop().run_until_complete(child(client)))
            for length in range(101, 121):
                assert (await client.embed("y" * length))[0] == length
            _, status = await asyncio.to_thread(os.waitpid, pid, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            assert (await client.embed("four"))[0] == 4

    asyncio.run(parent())
