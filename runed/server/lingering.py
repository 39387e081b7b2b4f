"""Requests over HTTP/2 that are answered before their end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from h2.errors import ErrorCodes

LINGER_SECONDS = 5.0
"""Seconds that a client may take to end a request that is already answered, or to read the last bytes."""


class Lingering:
    """The streams whose answers are complete, and whose clients still send.

    RFC 9113 section 8.1 lets a server reset such a stream at once, with NO_ERROR. Many clients, such as curl, then drop the
    answer. So the rest of the request is discarded for a while.

    Args:
        reset: Resets a stream.
        most: The most streams, which count for the client as open ones. For a further one, the oldest is reset.
        seconds: The time after which a stream is reset, if it is less than `LINGER_SECONDS`.
    """

    def __init__(self, reset: Callable[[int, ErrorCodes], None], most: int, seconds: float) -> None:
        self._reset = reset
        self._most = most
        self._seconds = min(seconds, LINGER_SECONDS)
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._none = asyncio.Event()
        self._none.set()

    async def wait(self, seconds: float) -> None:
        """Wait until the client has ended all these streams, for at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._none.wait()

    def add(self, stream_id: int) -> None:
        """Let a stream linger."""
        self._none.clear()
        self._timers[stream_id] = asyncio.get_running_loop().call_later(self._seconds, self._end, stream_id)
        if len(self._timers) > self._most:
            self._end(next(iter(self._timers)))

    def forget(self, stream_id: int) -> None:
        """Take note that the client has ended a stream."""
        if timer := self._timers.pop(stream_id, None):
            timer.cancel()
            if not self._timers:
                self._none.set()

    def clear(self) -> None:
        """Forget all streams, at the end of the connection."""
        for stream_id in tuple(self._timers):
            self.forget(stream_id)

    def _end(self, stream_id: int) -> None:
        self.forget(stream_id)
        self._reset(stream_id, ErrorCodes.NO_ERROR)
