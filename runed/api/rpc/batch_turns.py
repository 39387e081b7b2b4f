"""The turns of one client's batches. Each connection of HTTP/2 may carry hundreds of them at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from runed.domain.requests import Lane

TEXTS_IN_WORK = 2048
"""Most texts of one client's batches in work at once; a larger batch is alone. Each takes about 0.5 KB as Python objects.
Python returns that memory only in pieces of 1 MiB in which no object lives on."""


class _Flow:
    """The batches of one client in one lane.

    Attributes:
        texts: The number of texts in work.
        first: Held by the batch whose turn is next.
        vacated: Set when a batch has ended.
    """

    def __init__(self) -> None:
        self.texts = 0
        self.first = asyncio.Lock()
        self.vacated = asyncio.Event()


class BatchTurns:
    """Lets the batches of a client wait for each other, in the order of their coming. Clients do not wait for each other."""

    def __init__(self) -> None:
        self._flows: WeakValueDictionary[tuple[str, Lane | None], _Flow] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, client: str, lane: Lane | None, texts: int) -> AsyncIterator[None]:
        """Wait until a batch may be worked on, which it is until the end of the block.

        Args:
            client: The name of the client.
            lane: The lane that it asks for. Batches of different lanes do not wait for each other.
            texts: The number of texts.
        """
        if (flow := self._flows.get((client, lane))) is None:
            flow = self._flows[client, lane] = _Flow()
        async with flow.first:
            while flow.texts and flow.texts + texts > TEXTS_IN_WORK:
                flow.vacated.clear()
                await flow.vacated.wait()
            flow.texts += texts
        try:
            yield
        finally:
            flow.texts -= texts
            flow.vacated.set()
