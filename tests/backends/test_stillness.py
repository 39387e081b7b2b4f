"""The time without work of a child: a slow or sleeping machine must not look like a hang."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from runed.backends.engine.process import ChildProcess, OutputLog
from runed.backends.engine.stillness import Stillness
from tests.support import wait_until

Spawn = Callable[[str], Awaitable[ChildProcess]]

BUSY = "while True: pass"
IDLE = "import time; time.sleep(600)"


@pytest.fixture
async def spawn(tmp_path: Path) -> AsyncIterator[Spawn]:
    children: list[ChildProcess] = []

    async def run(program: str) -> ChildProcess:
        output = OutputLog(tmp_path / "output")
        argv = [sys.executable, "-ESs", "-c", f"print('begun', flush=True)\n{program}"]
        child = await ChildProcess.spawn(argv, env={}, output=output, record=tmp_path / "record", leftovers=[])
        children.append(child)
        await asyncio.to_thread(wait_until, lambda: output.written, what="the start of the child")
        await asyncio.sleep(0.1)  # until it does what it was started for
        return child

    yield run
    for child in children:
        await child.kill()


async def watch(child: ChildProcess, *, looks: int, answering: bool = False) -> float:
    """Return the stillness after some looks, 0.05 s apart."""
    stillness = Stillness(child, look=0.05)
    seconds = 0.0
    for _ in range(looks):
        seconds = stillness.look(answering=answering)
        await asyncio.sleep(0.05)
    return seconds


async def is_seen_at_work(child: ChildProcess) -> bool:
    """Return whether a look finds work after so many looks that a still child is known to be still. Look for 10 s."""
    stillness = Stillness(child, look=0.05)
    for number in range(200):
        if stillness.look() < 0.15 and number > 10:
            return True
        await asyncio.sleep(0.05)
    return False


async def test_child_that_waits_is_still(spawn: Spawn) -> None:
    assert await watch(await spawn(IDLE), looks=10) > 0.25


async def test_child_that_works_is_not_still(spawn: Spawn) -> None:
    assert await is_seen_at_work(await spawn(BUSY))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell the time of the whole process only")
async def test_thread_that_answers_now_and_then_is_no_progress_of_a_main_thread_that_hangs(spawn: Spawn) -> None:
    answering = "import threading, time\ndef answer():\n while True: sum(range(10**5)); time.sleep(0.02)\n"
    child = await spawn(f"{answering}threading.Thread(target=answer).start(); time.sleep(600)")
    before = child.progress()
    await asyncio.sleep(0.7)
    assert child.progress() == before


async def test_other_thread_that_works_is_work_unless_it_answers(spawn: Spawn) -> None:
    counting = "import threading, time\ndef count():\n while True: sum(range(10**7))\n"
    child = await spawn(f"{counting}threading.Thread(target=count).start(); time.sleep(600)")
    assert await is_seen_at_work(child)
    if sys.platform == "linux":
        assert await watch(child, looks=10, answering=True) > 0.25


async def test_work_of_a_descendant_counts(spawn: Spawn) -> None:
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}])"
    assert await is_seen_at_work(await spawn(script))


async def test_output_is_work(spawn: Spawn) -> None:
    assert await is_seen_at_work(await spawn("import time\nwhile True: print(1, flush=True); time.sleep(0.02)"))


async def test_time_in_which_this_process_did_not_run_does_not_count(spawn: Spawn) -> None:
    child = await spawn(IDLE)
    stillness = Stillness(child, look=0.05)
    for _ in range(3):
        stillness.look()
    time.sleep(1.0)  # noqa: ASYNC251 # as if this process was stopped, or the machine slept
    assert stillness.look() < 0.5


async def test_restart_forgets_the_time(spawn: Spawn) -> None:
    child = await spawn(IDLE)
    stillness = Stillness(child, look=1.0)
    for _ in range(3):
        stillness.look()
    await asyncio.sleep(0.3)
    stillness.restart()
    assert stillness.look() < 0.25
