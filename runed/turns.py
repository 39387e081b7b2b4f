"""Turns at the event loop, and pauses of threads beside it. They keep the work of one client from delaying the others.

A task that handles input, or that has much to compute, takes a turn before each piece of work. In one round of the event loop,
one task with a turn goes on. So a round stays short, however many clients send and compute at the same time.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from weakref import WeakKeyDictionary

SLICE = 0.002
"""Seconds of work in one turn."""


class _Turns:
    """The turns at one event loop.

    Two kinds of tasks wait, each kind in the order of its coming: those with input, and those with work. The kinds alternate.
    Otherwise a new request would wait for everything that is being computed.

    Attributes:
        input: The tasks that wait with input.
        work: The tasks that wait with work.
        began: The time of the last turn, which is about the start of this round.
    """

    def __init__(self) -> None:
        self.began = 0.0
        self._taken = False
        self._waiting: deque[deque[asyncio.Future[None]]] = deque([deque(), deque()])
        self.input, self.work = self._waiting

    async def take(self, kind: deque[asyncio.Future[None]]) -> None:
        loop = asyncio.get_running_loop()
        if not self._taken:
            self._taken = True
            self.began = time.perf_counter()
            loop.call_soon(self._pass_on)
            return
        turn = loop.create_future()
        kind.append(turn)
        await turn

    def _pass_on(self) -> None:
        for _ in range(len(self._waiting)):
            self._waiting.rotate()
            kind = self._waiting[0]
            while kind:
                turn = kind.popleft()
                if not turn.done():  # otherwise its task was cancelled
                    turn.set_result(None)
                    self.began = time.perf_counter()
                    asyncio.get_running_loop().call_soon(
                        self._pass_on
                    )  # after the task, so that the next one goes on in the next round
                    return
        self._taken = False


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = WeakKeyDictionary()

_latest: tuple[asyncio.AbstractEventLoop | None, _Turns] = None, _Turns()
"""The loop that was looked up last, and its turns: a process has one loop, and many texts look it up."""


def _turns_of_loop() -> _Turns:
    global _latest
    loop = asyncio.get_running_loop()
    known, turns = _latest
    if known is not loop:
        if (found := _turns.get(loop)) is None:
            found = _turns[loop] = _Turns()
        _latest, turns = (loop, found), found
    return turns


async def take_turn() -> None:
    """Wait for a turn to handle input of a client."""
    turns = _turns_of_loop()
    await turns.take(turns.input)


async def breathe() -> None:
    """Wait for a turn to go on with work, if the present round of the event loop has taken `SLICE`.

    Call this between the pieces of work that may be long or many.
    """
    turns = _turns_of_loop()
    if time.perf_counter() - turns.began > SLICE:
        await turns.take(turns.work)


async def breathe_before(index: int) -> None:
    """Breathe before a text of a call, but not before its first: a call of one text does not wait for the work of others."""
    if index:
        await breathe()


class Pauses:
    """The pauses of a thread between long steps of work.

    A step that is one call of C keeps the interpreter's lock to its end. Meanwhile the event loop stands still whenever it has
    waited for the kernel, so it gets one round for each step. A pause lets it have many.
    """

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def pause(self) -> None:
        """Sleep as long as the work since the last pause took, if that was longer than a turn. Never sleep in an event loop.

        An event loop reads small messages itself, and takes longer than a turn when the machine is busy.
        """
        if (took := time.perf_counter() - self._began) > SLICE and not _in_event_loop():
            time.sleep(took)
            self._began = time.perf_counter()


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Ration:
    """The number of bytes that one connection may have handled in one turn.

    The time of a byte differs by a factor of 1,000: a frame or a chunk has a cost of its own, and may have no content.

    Attributes:
        size: The number of bytes for the next turn.
    """

    LEAST, MOST = 512, 16 * 1024

    def __init__(self) -> None:
        self.size = self.MOST // 4

    def spent(self, seconds: float) -> None:
        """Learn the time that the last turn took."""
        if seconds > 2 * SLICE:
            self.size = max(self.LEAST, self.size // 4)
        elif seconds < SLICE / 2:
            self.size = min(self.MOST, self.size * 2)
