"""What a server that asks each client for a secret does before it serves one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from runed.server.heads import Head, Refusal

Gate = Callable[[Head], Refusal | None]
"""Looks at the head of a request. Returns the answer to a request that is not served."""


LONGEST_TURN = 0.05
"""Most seconds that count for one turn."""


class Share:
    """The part of the event loop's time that strangers get, all together. Strangers are clients that have not passed the gate.

    Args:
        part: The part, from 0 to 1.
        slot: Seconds that one turn of a stranger is expected to take.
    """

    def __init__(self, part: float = 0.2, slot: float = 0.0005) -> None:
        self._part = part
        self._slot = slot
        self._free_at = 0.0

    async def turn(self) -> None:
        """Wait for a turn."""
        now = asyncio.get_running_loop().time()
        starts = max(now, self._free_at)
        self._free_at = starts + self._slot / self._part
        if starts > now:
            await asyncio.sleep(starts - now)

    def charge(self, seconds: float) -> None:
        """Let later turns wait for one that took longer than expected. Much of a long time is that of other clients."""
        self._free_at += max(0.0, min(seconds, LONGEST_TURN) - self._slot) / self._part
