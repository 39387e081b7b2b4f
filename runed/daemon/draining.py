"""The drain: the daemon takes nothing new, finishes the calls in flight and exits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

from runed.domain.requests import StreamItem
from runed.errors import ShuttingDownError

if TYPE_CHECKING:
    from runed.server import Server

DEFAULT_GRACE = 10.0
"""Seconds that the calls in flight may take at a shutdown by default."""

SIGNAL_GRACE = 1.0
"""Seconds that the calls in flight may take if a signal ends the daemon, or if its socket is gone. Nobody waits for its end
then but clients that need its successor. The clients send a call again that was cut off."""

MAX_GRACE = 300.0
"""Most seconds of grace that a caller can ask for."""


class Draining:
    """Tells whether the daemon drains, and ends its servers.

    Args:
        announce: Called once, when the drain begins.

    Attributes:
        grace: Seconds that the calls in flight may take; valid once the drain has begun.
    """

    def __init__(self, announce: Callable[[], None]) -> None:
        self.grace = DEFAULT_GRACE
        self._announce = announce
        self._begun = asyncio.Event()
        self._hurried = asyncio.Event()

    @property
    def begun(self) -> bool:
        """Whether the daemon drains."""
        return self._begun.is_set()

    def begin(self, grace: float | None = None) -> None:
        """Begin to drain. A second call ends the grace at once.

        Args:
            grace: Seconds that the calls in flight may take, at most `MAX_GRACE`; None means `DEFAULT_GRACE`.
        """
        if self.begun:
            self._hurried.set()
            return
        self.grace = DEFAULT_GRACE if grace is None else min(grace, MAX_GRACE)
        self._begun.set()
        self._announce()

    def cut(self) -> None:
        """Drain without any grace, also if the drain has begun."""
        self.begin(0)
        self._hurried.set()

    async def wait(self) -> None:
        """Wait until the drain begins."""
        await self._begun.wait()

    def check(self) -> None:
        """Refuse a call that comes too late.

        Raises:
            ShuttingDownError: The daemon drains.
        """
        if self.begun:
            raise ShuttingDownError("the daemon is shutting down; connect again to start a new one")

    async def stop(self, servers: Sequence[Server]) -> None:
        """Stop servers, each after its last call or at the end of the grace."""
        stopping = asyncio.create_task(_stop(servers, self.grace))
        hurried = asyncio.create_task(self._hurried.wait())
        await asyncio.wait([stopping, hurried], return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not stopping.done():
            await _stop(servers, 0)
        await stopping


async def _stop(servers: Sequence[Server], grace: float) -> None:
    await asyncio.gather(*(server.stop(grace) for server in servers))


class DrainableStream:
    """The texts of a stream until the daemon drains. Texts that were read are answered. Later ones are for the next daemon.

    Args:
        chunks: The texts.
        draining: Tells when the drain begins.

    Attributes:
        was_cut_off: Whether the drain ended the stream before its client did.
    """

    def __init__(self, chunks: AsyncIterator[Sequence[StreamItem]], draining: Draining) -> None:
        self.was_cut_off = False
        self._chunks = chunks
        self._draining = draining

    async def chunks(self) -> AsyncGenerator[Sequence[StreamItem]]:
        """Yield the texts."""
        draining = asyncio.create_task(self._draining.wait())
        try:
            while True:
                chunk = asyncio.ensure_future(anext(self._chunks, None))
                # Marks an error as seen, also if the call ends before it: asyncio would log it otherwise.
                chunk.add_done_callback(lambda done: done.cancelled() or done.exception())
                try:
                    await asyncio.wait({chunk, draining}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not chunk.done():
                        chunk.cancel()
                        await asyncio.wait({chunk})
                if chunk.cancelled():
                    self.was_cut_off = True
                    return
                if (items := chunk.result()) is None:
                    return
                yield items
        finally:
            draining.cancel()
