"""The idle clock frees the engine's memory when no text has come for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager


class IdleClock:
    """Calls `suspend` once no work has been in flight for `timeout` seconds.

    Args:
        timeout: Seconds of idleness; 0 means that the clock never fires.
        suspend: Stops the engine. Work may arrive while it runs.

    Attributes:
        timeout: As above; 0 once it is closed.
    """

    def __init__(self, timeout: float, suspend: Callable[[], Awaitable[None]]) -> None:
        self.timeout = timeout
        self._suspend = suspend
        self._in_flight = 0
        self._timer: asyncio.TimerHandle | None = None
        self._suspending: asyncio.Task[None] | None = None

    @property
    def remaining(self) -> float:
        """Seconds until the clock fires; 0 while work is in flight, and if it never fires or has fired."""
        return 0.0 if self._timer is None else max(0.0, self._timer.when() - asyncio.get_running_loop().time())

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Keep the engine awake inside the block. The idle time starts at the end of the last block."""
        self._in_flight += 1
        self._cancel_timer()
        try:
            yield
        finally:
            self._in_flight -= 1
            if self._in_flight == 0 and self.timeout > 0:
                self._timer = asyncio.get_running_loop().call_later(self.timeout, self._fire)

    async def close(self) -> None:
        """Stop the clock, and wait for a suspension that is under way."""
        self.timeout = 0
        self._cancel_timer()
        if self._suspending is not None:
            await asyncio.wait([self._suspending])

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        self._suspending = asyncio.create_task(self._suspend_if_idle())

    async def _suspend_if_idle(self) -> None:
        # Work may have begun since the timer fired, since its task can run before this one.
        if self._in_flight == 0:
            await self._suspend()
