"""The bound of a client's connections with asyncio; the twin of `slots`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from runed.client.transport.slots import MAX_CONNECTIONS


class AsyncSlots:
    """The connections of a client with asyncio, for each event loop anew."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._free = asyncio.Semaphore()

    async def take(self, timeout: float | None) -> Callable[[], None]:  # noqa: ASYNC109 # as for the blocking twin
        """Wait until one more connection may be open; see `Slots.take`."""
        if self._loop is not (loop := asyncio.get_running_loop()):
            self._loop = loop
            self._free = asyncio.Semaphore(MAX_CONNECTIONS)
        free = self._free
        async with asyncio.timeout(timeout):
            await free.acquire()
        return free.release
