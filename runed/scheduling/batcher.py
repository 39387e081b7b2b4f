"""The batcher takes micro-batches of all models from one queue, one at a time, and answers each entry once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from runed.backends.base import CountingEmbedder
from runed.domain.requests import Lane
from runed.errors import BatchTooLargeError, QueueFullError
from runed.scheduling.ahead import AheadCounter
from runed.scheduling.line import BatchObserver, Line
from runed.scheduling.offers import Offers
from runed.scheduling.queue import FairQueue, QueueEntry, QueueLimits

_LOOK = 0.1
"""Seconds between two looks at whether an engine still answers, while texts of other models wait behind its micro-batch."""


class Batcher:
    """Computes the queue entries of all callers and all models. All methods must be called in one event loop.

    One micro-batch uses the processors at a time: a second one of the same model would make vectors depend on each other's
    texts, and neither gains speed. A micro-batch whose engine starts, or does not answer, leaves the processors to those of
    other models. If its callers leave, a micro-batch is not cancelled, since the backend would compute on for a while beside
    the next one. Its vectors are dropped.

    An engine on another machine uses no processor of this one. It gets as many micro-batches at once as it takes, beside those
    of this machine.

    Args:
        limits: Bounds of what may wait.
        metrics: Notes texts and micro-batches.
    """

    def __init__(self, *, limits: QueueLimits, metrics: BatchObserver) -> None:
        self._metrics = metrics
        self._queue = FairQueue(limits)
        self._lines: dict[str, Line] = {}
        self._offers = Offers(self._queue, self._lines)
        self._ahead = AheadCounter(self._queue, self._lines)
        self._entrance = asyncio.Lock()  # asyncio's lock serves its waiters in the order of their coming
        self._promised = (0, 0)  # the texts and bytes for which the first of these waiters needs room
        self._workers: dict[asyncio.Task[None], Line | None] = {}
        """Each worker with the line whose micro-batch it waits for. None stands for a moment without one."""
        self._summoned = False  # whether a worker was made that has not looked for texts yet
        self._looking: asyncio.TimerHandle | None = None
        self._wanted = 0  # the number of texts to gather; 0 outside of `_gather`
        self._gathering = ""  # the model whose texts are gathered
        self._gathered = asyncio.Event()

    def open(self, backend: CountingEmbedder, model: str = "") -> Line:
        """Return a line for the texts of a model.

        Args:
            backend: Its backend, which is called only while an entry waits.
            model: The name of the model, as in `QueueEntry.model`. No other open line may have it.
        """
        assert model not in self._lines
        line = self._lines[model] = Line(model, backend, self._metrics)
        return line

    def submit(self, line: Line, entries: Sequence[QueueEntry]) -> None:
        """Queue entries: all of them or, with an error, none.

        Args:
            line: The line of their model.
            entries: The entries, all of one lane. Their futures get a `Computed` or an exception. Cancelling a future drops
                its entry, unless its micro-batch has already been sent.

        Raises:
            QueueFullError: There is no room now; `retry_after` estimates the time until there is room.
            BatchTooLargeError: There is never room for so many at once.
            ShuttingDownError: The line is closed.
            BackendUnavailableError: The line is closed, since another backend takes over.
        """
        if not entries:
            return
        lane, texts, size = entries[0].lane, len(entries), sum(entry.size for entry in entries)
        line.check_open()
        _check_fits(self._queue.limits(lane), texts, size)
        promised_texts, promised_size = self._promised
        if excess := self._queue.excess(lane, texts=texts + promised_texts, size=size + promised_size):
            raise self._full(line, lane, excess)
        now = asyncio.get_running_loop().time()
        for entry in entries:
            entry.since = now
        if line.backend.limits.by_estimate:
            line.pace.estimate_tokens(entries)
        self._queue.push(entries)
        if lane is Lane.INTERACTIVE:
            line.returns.came(texts, now)
        if self._wanted and self._has_gathered():
            self._gathered.set()
        self._staff()
        self._ahead.begin()

    async def room(self, line: Line, *, texts: int, size: int) -> None:
        """Wait until some texts may be submitted to the bulk lane.

        Waiting callers are served in the order of their coming. Free room is kept for the first of them, or smaller
        submissions would let it wait for ever. It must submit before its next await.

        Args:
            line: The line of their model.
            texts: The number of texts.
            size: Their bytes in UTF-8.

        Raises:
            BatchTooLargeError: There is never room for so many at once.
            ShuttingDownError: The line is closed.
            BackendUnavailableError: The line is closed, since another backend takes over.
        """
        _check_fits(self._queue.limits(Lane.BULK), texts, size)
        async with self._entrance:
            self._promised = (texts, size)
            try:
                while not line.closed and self._queue.excess(Lane.BULK, texts=texts, size=size):
                    self._queue.vacated.clear()
                    await self._queue.vacated.wait()
            finally:
                self._promised = (0, 0)
        line.check_open()

    def promote(self, entry: QueueEntry) -> None:
        """Move a bulk entry to the interactive lane, since an interactive caller waits for it, too.

        An entry in flight stays.
        """
        self._queue.promote(entry)

    def limits(self, lane: Lane) -> QueueLimits:
        """Return the bounds of what may wait in a lane."""
        return self._queue.limits(lane)

    def depth(self, lane: Lane) -> tuple[int, int]:
        """Return the number of texts that wait in a lane, and their bytes in UTF-8. Texts in flight do not count."""
        return self._queue.depth(lane)

    async def close(self, line: Line, *, replaced: bool = False) -> None:
        """Refuse new entries of a line, and fail all that wait or are in flight with a `ShuttingDownError`.

        If another backend replaces its one, the error is a `BackendUnavailableError`. The micro-batch in flight is cancelled,
        so the backend must be stopped next. If answers are still wanted, drain first.
        """
        if line.closed:
            return
        line.closed, line.replaced = True, replaced
        del self._lines[line.name]
        line.fail(self._queue.drain(line.name), line.refusal())
        self._queue.vacated.set()  # for those who wait for room
        self._gathered.set()
        flying = [worker for worker, its_line in self._workers.items() if its_line is line]
        for worker in flying:
            worker.cancel()
        # Without a line, the other workers end by themselves.
        if ending := flying if self._lines else list(self._workers):
            await asyncio.wait(ending)
        await line.end_tasks()
        self._staff()

    def _full(self, line: Line, lane: Lane, excess: float) -> QueueFullError:
        limits = self._queue.limits(lane)
        waiting = [self._queue.depth(lane) for lane in Lane]
        texts, size = (sum(amounts) for amounts in zip(*waiting, strict=True))
        return QueueFullError(
            f"the queue is full: {texts:,} texts of {size:,} bytes wait, and the limits for {lane.value} texts are "
            f"{_describe(limits)}; try again later, send less at once, or raise these settings of the daemon",
            metadata={"limit_texts": str(limits.texts), "limit_bytes": str(limits.bytes)},
            retry_after=line.pace.retry_after(excess * size),
        )

    def _staff(self) -> None:
        """Let a worker begin if something waits that no worker will take."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if self._summoned or (self._workers and self._offers.is_single):
            return
        occupied = self._is_occupied()
        if self._offers.find(occupied=occupied):
            # The worker takes its first micro-batch in the next round of the event loop, when all entries of this round wait.
            self._workers[asyncio.create_task(self._work())] = None
            self._summoned = True
        elif occupied and self._offers.find(occupied=False):
            self._looking = asyncio.get_running_loop().call_later(_LOOK, self._staff)

    def _is_occupied(self, *, but: asyncio.Task[None] | None = None) -> bool:
        """Return whether a worker uses the processors, or is about to."""
        return any(line is None or line.uses_processors for worker, line in self._workers.items() if worker is not but)

    async def _work(self) -> None:
        """Compute until nothing waits, or until another worker goes on."""
        me = asyncio.current_task()
        assert me is not None
        self._summoned = False
        try:
            while batch := self._take(me):
                since = asyncio.get_running_loop().time()
                line = self._workers[me] = self._lines[batch[0].model]
                await self._fly(line, batch)
                self._workers[me] = None
                gathers = batch[0].lane is Lane.INTERACTIVE and not line.is_remote
                if gathers and not (len(self._workers) > 1 and self._is_occupied(but=me)):
                    await self._gather(line, sum(not entry.future.cancelled() for entry in batch), since=since)
        finally:
            del self._workers[me]

    async def _fly(self, line: Line, batch: Sequence[QueueEntry]) -> None:
        """Let a line compute a micro-batch, and charge it."""
        line.flights.append(batch)
        now = asyncio.get_running_loop().time()
        for entry in batch:
            self._metrics.waited(entry.lane, now - entry.since)
        self._ahead.begin()
        if not self._offers.is_single:
            self._staff()  # the engine may have to start, or take more
        try:
            await line.compute(batch)
        except asyncio.CancelledError:  # by `close`
            line.fail(batch, line.refusal())
            raise
        finally:
            line.flights.remove(batch)
        self._queue.settle(batch)
        if len(self._lines) > 1:
            self._weigh()

    def _weigh(self) -> None:
        """Measure what a token of each model costs, in tokens of the first model whose speed is known."""
        speeds = {line.name: line.pace.seconds_per_token for line in self._lines.values() if line.pace.seconds_per_token}
        unit = next(iter(speeds.values()), 1.0)
        self._queue.weights.clear()
        self._queue.weights.update({model: seconds / unit for model, seconds in speeds.items()})

    def _take(self, me: asyncio.Task[None]) -> list[QueueEntry]:
        offers = self._offers.find(occupied=self._is_occupied(but=me))
        return self._queue.take(offers, self._offers.bulk(offers)) if offers else []

    async def _gather(self, line: Line, answered: int, *, since: float) -> None:
        """Wait a moment for callers that were answered just now, so that their next texts join the micro-batch.

        Args:
            line: The line of their model.
            answered: The number of texts of the last micro-batch that were answered.
            since: The time at which that micro-batch was sent.
        """
        now = asyncio.get_running_loop().time()
        patience = line.returns.patience(now - since)
        line.returns.answered(answered, now)
        self._gathering = line.name
        self._wanted = answered + self._queue.waiting(line.name, Lane.INTERACTIVE)
        if self._wanted > 1 and not self._has_gathered():
            self._gathered.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._gathered.wait()
        self._wanted = 0

    def _has_gathered(self) -> bool:
        """Return whether enough texts wait, or more than fit, or texts of other models."""
        model = self._gathering
        return (
            self._queue.waiting(model, Lane.INTERACTIVE) >= self._wanted
            or (len(self._lines) > 1 and bool(self._offers.find(occupied=False).keys() - {model}))
            or (model in self._lines and self._queue.fills(Lane.INTERACTIVE, model, self._lines[model].backend.limits))
        )


def _check_fits(limits: QueueLimits, texts: int, size: int) -> None:
    if texts > limits.texts or size > limits.bytes:
        facts = {"texts": str(texts), "limit": str(limits.texts), "bytes": str(size), "limit_bytes": str(limits.bytes)}
        raise BatchTooLargeError(
            f"{texts:,} texts of {size:,} bytes can never wait at once: the limits are {_describe(limits)}; "
            "send less at once, or raise these settings of the daemon",
            metadata=facts,
        )


def _describe(limits: QueueLimits) -> str:
    return f"{limits.texts:,} texts (RUNED_QUEUE_TEXTS) and {limits.bytes:,} bytes (RUNED_QUEUE_BYTES)"
