"""The idle clock fires after idleness, and only then."""

from __future__ import annotations

import asyncio
import time

from runed.scheduling.idle import IdleClock


class Suspension:
    """An awaitable that counts the firings of the clock."""

    def __init__(self) -> None:
        self.count = 0
        self.fired = asyncio.Event()

    async def __call__(self) -> None:
        self.count += 1
        self.fired.set()


async def test_fires_once_after_the_last_work_ended() -> None:
    suspension = Suspension()
    clock = IdleClock(0.05, suspension)
    with clock.busy():
        pass
    await asyncio.wait_for(suspension.fired.wait(), 5)
    await asyncio.sleep(0.1)
    assert suspension.count == 1
    await clock.close()


async def test_never_fires_with_work_in_flight() -> None:
    suspension = Suspension()
    clock = IdleClock(0.02, suspension)
    with clock.busy():
        with clock.busy():
            pass
        await asyncio.sleep(0.1)
        assert suspension.count == 0
    await asyncio.wait_for(suspension.fired.wait(), 5)
    await clock.close()


async def test_work_that_begins_just_as_the_clock_fires_is_not_disturbed() -> None:
    suspension = Suspension()
    clock = IdleClock(0.02, suspension)
    begun: asyncio.Queue[asyncio.Task[None]] = asyncio.Queue()

    async def work() -> None:
        with clock.busy():
            await asyncio.sleep(0.05)
            assert suspension.count == 0

    with clock.busy():
        pass
    asyncio.get_running_loop().call_later(0.01, lambda: begun.put_nowait(asyncio.create_task(work())))
    # Both timers are due now and run one after the other. So the work begins between the clock's timer and its callback.
    time.sleep(0.03)  # noqa: ASYNC251 # the loop itself must be late
    await (await begun.get())
    await asyncio.wait_for(suspension.fired.wait(), 5)
    assert suspension.count == 1
    await clock.close()


async def test_work_in_time_starts_the_count_anew() -> None:
    suspension = Suspension()
    clock = IdleClock(0.3, suspension)
    for _ in range(4):
        with clock.busy():
            pass
        await asyncio.sleep(0.1)
    assert suspension.count == 0
    await asyncio.wait_for(suspension.fired.wait(), 5)
    await clock.close()


async def test_zero_never_fires() -> None:
    suspension = Suspension()
    clock = IdleClock(0, suspension)
    with clock.busy():
        pass
    await asyncio.sleep(0.05)
    assert suspension.count == 0
    await clock.close()


async def test_close_waits_for_a_suspension_under_way() -> None:
    began, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def suspend() -> None:
        began.set()
        await may_end.wait()
        ended.set()

    clock = IdleClock(0.01, suspend)
    with clock.busy():
        pass
    await asyncio.wait_for(began.wait(), 5)
    closing = asyncio.create_task(clock.close())
    await asyncio.sleep(0)
    assert not closing.done()
    may_end.set()
    await closing
    assert ended.is_set()
