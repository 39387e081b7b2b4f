"""One stream: any number of texts in, vectors out as they are ready, with a bounded number of them in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack

from runed.domain.requests import Embedding, StreamAnswer, StreamItem, StreamResult
from runed.errors import BackendFaultError, InvalidRequestError, RunedError
from runed.scheduling.tickets import Plan, Ticket

WINDOW_TEXTS = 512
WINDOW_BYTES = 1024 * 1024
"""What may be in flight of one stream, from its reading to the sending of its vector; a single longer text may, too. Enough to
keep the engine busy while the client is asleep for a moment, and to sort texts by length."""

PIECE_TEXTS = 64
"""What is queued at once, unless the queue holds less."""

Claim = Callable[[Sequence[str], Plan, ExitStack], Awaitable[list[Ticket]]]
"""How to begin to embed texts; see `Engine.claim`."""


class Stream:
    """One stream of one caller.

    Args:
        plan: What holds for all of its texts.
        claim: How to begin to embed some.
        answered: Told how many vectors were sent.
        piece_texts: How many texts to queue at once.
    """

    def __init__(self, plan: Plan, *, claim: Claim, answered: Callable[[int], None], piece_texts: int) -> None:
        self._plan = plan
        self._claim = claim
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
        """Embed what comes.

        Args:
            chunks: The texts; more are taken only when there is room for them.

        Yields:
            What became ready.

        Raises:
            RunedError: What failed was not a text's fault; whatever was not answered may be sent again.
        """
        self._spawn(self._read(chunks))
        try:
            while self._tasks or self._ready or self._failure:
                await self._news.wait()
                self._news.clear()
                if ready := self._ready:
                    self._ready = []
                    yield StreamAnswer([result for result, _ in ready], self._plan.space)
                    # Only now: a client that reads no results gets no further texts in.
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
                sizes = [len(item.text) for item in piece]
                await self._wait_for_room(len(piece), sum(sizes))
                self._spawn(self._embed(piece, sizes))

    async def _wait_for_room(self, texts: int, size: int) -> None:
        while self._texts and (self._texts + texts > WINDOW_TEXTS or self._bytes + size > WINDOW_BYTES):
            self._room.clear()
            await self._room.wait()
        self._texts += texts
        self._bytes += size

    async def _embed(self, piece: Sequence[StreamItem], sizes: Sequence[int]) -> None:
        """Embed a piece, and hand each of its results on as soon as it is there."""
        with ExitStack() as awake:
            tickets = await self._claim([item.text for item in piece], self._plan, awake)
            try:
                pending = list(zip(piece, sizes, tickets, strict=True))
                while pending:
                    for item, size, ticket in pending:
                        if ticket.ready:
                            self._finish(item, size, ticket.redeem())
                    pending = [entry for entry in pending if not entry[2].ready]
                    if pending:
                        futures = {ticket.future for _, _, ticket in pending if ticket.future is not None}
                        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for ticket in tickets:
                    ticket.release()

    def _finish(self, item: StreamItem, size: int, outcome: Embedding | RunedError) -> None:
        if isinstance(outcome, RunedError) and not isinstance(outcome, InvalidRequestError | BackendFaultError):
            self._failure = self._failure or outcome
        else:
            self._ready.append((StreamResult(item.id, outcome), size))
        self._news.set()

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
        self._news.set()
