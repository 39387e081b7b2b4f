"""Turns at the event loop."""

from __future__ import annotations

import asyncio
import time

from runed.turns import SLICE, Pauses, Ration, breathe, take_turn


async def _rounds(until: asyncio.Event) -> int:
    """Count the rounds of the event loop."""
    rounds = 0
    while not until.is_set():
        rounds += 1
        await asyncio.sleep(0)
    return rounds


async def test_only_one_task_goes_on_in_a_round() -> None:
    over = asyncio.Event()
    counting = asyncio.create_task(_rounds(over))
    turns = 0

    async def work() -> None:
        nonlocal turns
        for _ in range(5):
            await take_turn()
            turns += 1

    await asyncio.gather(*(work() for _ in range(20)))
    over.set()
    assert turns == 100
    assert 95 <= await counting <= 120


async def test_turns_come_in_the_order_of_asking_and_a_cancelled_one_is_passed_on() -> None:
    order: list[int] = []

    async def ask(number: int) -> None:
        await take_turn()
        order.append(number)

    tasks = [asyncio.create_task(ask(number)) for number in range(6)]
    await asyncio.sleep(0)
    tasks[3].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [0, 1, 2, 4, 5]
    await asyncio.wait_for(take_turn(), 1)


async def test_input_does_not_wait_for_all_the_work() -> None:
    done: list[str] = []

    async def work() -> None:
        for _ in range(5):
            time.sleep(1.2 * SLICE)  # noqa: ASYNC251 # it stands for work in the event loop
            await breathe()
        done.append("work")

    tasks = [asyncio.create_task(work()) for _ in range(20)]
    await asyncio.sleep(0)
    await take_turn()
    done.append("input")
    await asyncio.gather(*tasks)
    assert done[0] == "input"


async def test_work_that_takes_no_time_takes_no_turns() -> None:
    over = asyncio.Event()
    counting = asyncio.create_task(_rounds(over))
    await asyncio.sleep(0)
    for _ in range(50):
        await breathe()
    over.set()
    assert await counting <= 3


async def test_a_thread_pauses_as_long_as_it_worked_and_an_event_loop_never() -> None:
    def pause() -> float:
        pauses = Pauses()
        time.sleep(0.2)  # it stands for work
        began = time.perf_counter()
        pauses.pause()
        return time.perf_counter() - began

    assert await asyncio.to_thread(pause) >= 0.2
    assert pause() < 0.2


def test_a_ration_shrinks_at_once_and_grows_slowly() -> None:
    ration = Ration()
    for _ in range(10):
        ration.spent(SLICE / 10)
    assert ration.size == Ration.MOST
    ration.spent(10 * SLICE)
    assert ration.size == Ration.MOST // 4
    for _ in range(10):
        ration.spent(10 * SLICE)
    assert ration.size == Ration.LEAST
    ration.spent(SLICE)
    assert ration.size == Ration.LEAST
    ration.spent(SLICE / 10)
    assert ration.size == 2 * Ration.LEAST
