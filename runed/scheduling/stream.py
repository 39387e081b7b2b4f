"""One stream: it takes any number of texts and returns vectors as they are ready. A bounded number of texts is in flight."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence

from runed.domain.requests import Embedding, StreamAnswer, StreamItem, StreamResult
from runed.scheduling.claims import Claim, ClaimDesk, Terms

WINDOW_TEXTS = 512
"""Most texts of one stream in flight, from their reading to the sending of their vectors. Enough to keep the engine busy
while the client pauses for a moment, and to sort texts by length."""

WINDOW_BYTES = 1024 * 1024
"""Most characters of one stream in flight, in texts and ids. A single longer text may exceed it."""

PIECE_TEXTS = 64
"""Number of texts that are queued at once, unless the queue holds fewer."""


class Stream:
    """One stream of one caller.

    Args:
        terms: The terms of all of its texts.
        desk: Takes claims to their tickets.
        answered: Called with the number of vectors that were sent.
        piece_texts: The number of texts to queue at once.
    """

    def __init__(self, terms: Terms, *, desk: ClaimDesk, answered: Callable[[int], None], piece_texts: int) -> None:
        self._terms = terms
        self._desk = desk
        self._answered = answered
        self._piece_texts = piece_texts
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready: list[tuple[StreamResult, int]] = []
        self._texts = 0
        self._bytes = 0
        self._failure: BaseException | None = None
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    async def run(self, chunks: AsyncIterator[Sequence[StreamItem]]) -> AsyncGenerator[StreamAnswer]:
        """Embed the texts of a stream.

        Args:
            chunks: The texts. More are taken only while there is room for them.

        Yields:
            The results that became ready.

        Raises:
            RunedError: A failure that has another cause than a text. The texts without an answer may be sent again.
        """
        self._spawn(self._read(chunks))
        try:
            while self._tasks or self._ready or self._failure:
                await self._news.wait()
                self._news.clear()
                if ready := self._ready:
                    self._ready = []
                    yield StreamAnswer([result for result, _ in ready], self._terms.space)
                    # Only now, so that no further texts are taken from a client that reads no results.
                    self._texts -= len(ready)
                    self._bytes -= sum(size for _, size in ready)
                    self._room.set()
                    self._answered(sum(isinstance(result.outcome, Embedding) for result, _ in ready))
                if self._failure is not None:
                    raise self._failure
        finally:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    async def _read(self, chunks: AsyncIterator[Sequence[StreamItem]]) -> None:
        async for chunk in chunks:
            for start in range(0, len(chunk), self._piece_texts):
                piece = chunk[start : start + self._piece_texts]
                sizes = [len(item.text) + len(item.id) for item in piece]
                await self._wait_for_room(len(piece), sum(sizes))
                self._spawn(self._embed(piece, sizes))

    async def _wait_for_room(self, texts: int, size: int) -> None:
        while self._texts and (self._texts + texts > WINDOW_TEXTS or self._bytes + size > WINDOW_BYTES):
            self._room.clear()
            await self._room.wait()
        self._texts += texts
        self._bytes += size

    async def _embed(self, piece: Sequence[StreamItem], sizes: Sequence[int]) -> None:
        """Embed a piece, and pass each of its results on as soon as it is ready."""
        claims = [Claim(item.text) for item in piece]
        async with self._desk.claimed(claims, self._terms):
            pending = list(zip(piece, sizes, claims, strict=True))
            while pending:
                for item, size, claim in pending:
                    if claim.ready:
                        outcome = self._terms.finish(claim.outcome(self._terms), claim)
                        self._ready.append((StreamResult(item.id, outcome), size))
                self._news.set()
                pending = [entry for entry in pending if not entry[2].ready]
                if pending:
                    futures = {claim.future for _, _, claim in pending if claim.future is not None}
                    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
        self._news.set()
