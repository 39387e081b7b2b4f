"""The batcher takes micro-batches from the queue, one at a time, sends them to the backend, and answers each entry once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from typing import Protocol

from runed.backends.base import BackendStatus, CountingEmbedder
from runed.domain.requests import Lane
from runed.errors import (
    BackendFaultError,
    BackendUnavailableError,
    BatchTooLargeError,
    InvalidTextError,
    QueueFullError,
    RunedError,
    ShuttingDownError,
    TextTooLongError,
)
from runed.log import describe_exception, get_logger, log_refusal
from runed.scheduling.counting import count, settle_tokens
from runed.scheduling.pace import FIRST_RETRY_AFTER, Pace, Returns
from runed.scheduling.queue import Computed, FairQueue, QueueEntry, QueueLimits

_log = get_logger(__name__)


class BatchObserver(Protocol):
    """Notes texts and micro-batches."""

    def waited(self, lane: Lane, seconds: float) -> None:
        """Note that a text was taken from its lane's queue after the given waiting time."""
        ...

    def computed(self, lane: Lane, *, texts: int, tokens: int, seconds: float) -> None:
        """Note that a micro-batch came back."""
        ...


class Batcher:
    """Computes the queue entries of all callers. All methods must be called in one event loop.

    One micro-batch is in flight at a time: a second one would make vectors depend on each other's texts, and gain no speed. If
    its callers leave, it is not cancelled, since the backend would compute on for a while beside the next one. Its vectors are
    dropped.

    Args:
        backend: The backend. It is called only while an entry waits.
        limits: Bounds of what may wait.
        metrics: Notes texts and micro-batches.
    """

    def __init__(self, backend: CountingEmbedder, *, limits: QueueLimits, metrics: BatchObserver) -> None:
        self._backend = backend
        self._metrics = metrics
        self._queue = FairQueue(limits)
        self._pace = Pace()
        self._entrance = asyncio.Lock()  # asyncio's lock serves its waiters in the order of their coming
        self._flight: Sequence[QueueEntry] = ()
        self._worker: asyncio.Task[object] | None = None
        self._counter: asyncio.Task[object] | None = None
        self._tasks: set[asyncio.Task[object]] = set()
        self._wanted = 0  # the number of texts to gather; 0 outside of `_gather`
        self._gathered = asyncio.Event()
        self._returns = Returns()
        self._closed = False
        self._replaced = False

    def submit(self, entries: Sequence[QueueEntry]) -> None:
        """Queue entries: all of them or, with an error, none.

        Args:
            entries: The entries, all of one lane. Their futures get a `Computed` or an exception. Cancelling a future drops
                its entry, unless its micro-batch has already been sent.

        Raises:
            QueueFullError: There is no room now; `retry_after` estimates the time until there is room.
            BatchTooLargeError: There is never room for so many at once.
            ShuttingDownError: The batcher is closed.
        """
        if not entries:
            return
        lane, texts, size = entries[0].lane, len(entries), sum(entry.size for entry in entries)
        self._check_open()
        _check_fits(self._queue.limits(lane), texts, size)
        if excess := self._queue.excess(lane, texts=texts, size=size):
            raise self._full(lane, excess)
        now = asyncio.get_running_loop().time()
        for entry in entries:
            entry.since = now
        if self._backend.limits.by_estimate:
            self._pace.estimate_tokens(entries)
        self._queue.push(entries)
        if lane is Lane.INTERACTIVE:
            self._returns.came(texts, now)
        if self._wanted and self._has_gathered():
            self._gathered.set()
        if self._worker is None:
            # The worker takes its first micro-batch in the next round of the event loop, when all entries of this round wait.
            self._worker = self._spawn(self._work())
        self._count_ahead()

    async def room(self, *, texts: int, size: int) -> None:
        """Wait until some texts may be submitted to the bulk lane.

        Waiting callers are served in the order of their coming. Nothing is reserved: the caller must submit before its next
        await, or others may take the room. Callers that do not wait here may submit first; their submissions are much smaller.

        Args:
            texts: The number of texts.
            size: Their bytes in UTF-8.

        Raises:
            BatchTooLargeError: There is never room for so many at once.
            ShuttingDownError: The batcher is closed.
        """
        _check_fits(self._queue.limits(Lane.BULK), texts, size)
        async with self._entrance:
            while not self._closed and self._queue.excess(Lane.BULK, texts=texts, size=size):
                self._queue.vacated.clear()
                await self._queue.vacated.wait()
        self._check_open()

    def promote(self, entry: QueueEntry) -> None:
        """Move a bulk entry to the interactive lane, since an interactive caller waits for it, too.

        An entry in flight stays.
        """
        self._queue.promote(entry)

    def depth(self, lane: Lane) -> tuple[int, int]:
        """Return the number of texts that wait in a lane, and their bytes in UTF-8. Texts in flight do not count."""
        return self._queue.depth(lane)

    async def close(self, *, replaced: bool = False) -> None:
        """Refuse new entries, and fail all that wait or are in flight with a `ShuttingDownError`.

        If another scheduler replaces this one, the error is a `BackendUnavailableError`. The micro-batch in flight is
        cancelled, so the backend must be stopped next. If answers are still wanted, drain first.
        """
        self._closed, self._replaced = True, replaced
        _fail(self._queue.drain(), self._refusal())
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _check_open(self) -> None:
        if self._closed:
            raise self._refusal()

    def _refusal(self) -> RunedError:
        if self._replaced:
            return BackendUnavailableError("another engine takes over; try again", retry_after=FIRST_RETRY_AFTER)
        return ShuttingDownError("the daemon is shutting down; try again, and a new one will be started")

    def _full(self, lane: Lane, excess: float) -> QueueFullError:
        limits = self._queue.limits(lane)
        waiting = [self._queue.depth(lane) for lane in Lane]
        texts, size = (sum(amounts) for amounts in zip(*waiting, strict=True))
        return QueueFullError(
            f"the queue is full: {texts:,} texts of {size:,} bytes wait, and the limits for {lane.value} texts are "
            f"{_describe(limits)}; try again later, send less at once, or raise these settings of the daemon",
            metadata={"limit_texts": str(limits.texts), "limit_bytes": str(limits.bytes)},
            retry_after=self._pace.retry_after(excess * size),
        )

    def _spawn(self, work: Coroutine[object, object, object]) -> asyncio.Task[object]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _work(self) -> None:
        """Compute until nothing waits."""
        try:
            while batch := self._take():
                self._flight = batch
                now = asyncio.get_running_loop().time()
                for entry in batch:
                    self._metrics.waited(entry.lane, now - entry.since)
                self._count_ahead()
                await self._compute(batch)
                self._queue.settle(batch)
                if batch[0].lane is Lane.INTERACTIVE:
                    await self._gather(sum(not entry.future.cancelled() for entry in batch), since=now)
        finally:
            _fail(self._flight, self._refusal())  # cancelled by `close`; otherwise all of them have their answers
            self._flight = ()
            self._worker = None

    def _take(self) -> list[QueueEntry]:
        limits = self._backend.limits
        bulk_waits = self._queue.depth(Lane.BULK)[0] > 0
        return self._queue.take(limits, self._pace.bulk_limits(limits) if bulk_waits else None)

    async def _gather(self, answered: int, *, since: float) -> None:
        """Wait a moment for the callers of the micro-batch that was sent at `since`, so that their next texts share one."""
        now = asyncio.get_running_loop().time()
        patience = self._returns.patience(now - since)
        self._returns.answered(answered, now)
        self._wanted = answered + self._queue.depth(Lane.INTERACTIVE)[0]
        if self._wanted > 1 and not self._has_gathered():
            self._gathered.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._gathered.wait()
        self._wanted = 0

    def _has_gathered(self) -> bool:
        """Return whether enough texts wait, or more than fit."""
        return self._queue.depth(Lane.INTERACTIVE)[0] >= self._wanted or self._queue.fills(
            Lane.INTERACTIVE, self._backend.limits
        )

    async def _compute(self, batch: Sequence[QueueEntry]) -> None:
        """Compute and answer each entry. If a micro-batch fails, try its texts one by one, so that only a bad text fails."""
        try:
            answers = await self._embed(batch)
        except (BackendFaultError, InvalidTextError, TextTooLongError) as error:
            if len(batch) == 1:
                _fail(batch, error)
                return
            event = "micro-batch failed, its texts are tried one by one"
            log_refusal(_log, event, kind=error.reason, texts=len(batch), reason=error.reason)
            for entry in batch:
                if not entry.future.done():
                    await self._compute([entry])
        except Exception as error:  # noqa: BLE001 # neither these entries nor the next ones may wait for ever
            if not isinstance(error, RunedError):
                _log.error("micro-batch failed unexpectedly", texts=len(batch), **describe_exception(error))
            _fail(batch, error)
        else:
            for entry, answer in zip(batch, answers, strict=True):
                if not entry.future.done():
                    entry.future.set_result(answer)

    async def _embed(self, batch: Sequence[QueueEntry]) -> list[Computed]:
        """Send one micro-batch, and derive the number of tokens of each of its texts."""
        clock = asyncio.get_running_loop().time
        warm = self._backend.state.status is BackendStatus.READY
        began = clock()
        unknown = [entry for entry in batch if not entry.exact]
        # The answer tells only the sum, which is enough to derive one unknown number.
        counting = self._spawn(count(unknown, self._backend)) if len(unknown) > 1 else None
        try:
            answer = await self._backend.embed([entry.input for entry in batch])
            seconds = clock() - began
            if counting is not None:
                await asyncio.wait({counting})
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # The backend's own task was cancelled, not the worker.
            raise BackendUnavailableError("the engine was interrupted; try again", retry_after=FIRST_RETRY_AFTER) from None
        finally:
            if counting is not None:
                counting.cancel()  # after a failure, counting would only start the backend again
        pairs = list(zip(answer.vectors, batch, strict=True))  # first: an answer of another length is nobody's
        settle_tokens(batch, answer.tokens)
        answers = [Computed(vector, entry.tokens) for vector, entry in pairs]
        if warm:  # the time of a start tells nothing about the speed
            self._pace.learn(batch, answer.tokens, seconds)
        self._metrics.computed(batch[0].lane, texts=len(batch), tokens=answer.tokens, seconds=seconds)
        return answers

    def _count_ahead(self) -> None:
        """Count waiting texts during the micro-batch in flight, so that more of them fit into the next one."""
        limits = self._backend.limits
        if self._flight and self._counter is None and not limits.by_estimate and self._queue.uncounted(limits):
            self._counter = self._spawn(self._count_waiting())

    async def _count_waiting(self) -> None:
        try:
            while self._flight and (entries := self._queue.uncounted(self._backend.limits)):
                if not await count(entries, self._backend):
                    break  # otherwise a backend that cannot count would be asked again and again
        finally:
            self._counter = None


def _fail(entries: Sequence[QueueEntry], error: Exception) -> None:
    for entry in entries:
        if not entry.future.done():
            # A copy for each caller: a shared error would collect the traces and notes of all callers.
            entry.future.set_exception(error.retold() if isinstance(error, RunedError) else error)
            entry.future.exception()  # marks it as seen, so that asyncio does not report it


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
