"""Feeds the backend: takes micro-batches from the queue, one at a time, and gives every job its answer, exactly once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from typing import Protocol

from runed.backends.base import BackendStatus, BatchLimits, Embedder
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
from runed.log import describe_exception, get_logger
from runed.scheduling.queue import Computed, FairQueue, Job, QueueLimits

MIN_RETRY_AFTER = 0.05
MAX_RETRY_AFTER = 30.0
"""Between these lies what a caller is told to wait, in seconds, when the queue is full."""

_FIRST_RETRY_AFTER = 1.0
"""What it is told while no speed has been measured yet."""

_PACE_WEIGHT = 0.2
"""How much the newest micro-batch counts in the measured speed."""

_BULK_PATIENCE = 2.5
"""How long a micro-batch of bulk texts may take while interactive ones come now and then, in times of one such text alone. What
finds it in its way waits for it, and is to take no more than 4 times as long as it would alone."""

_INTERACTIVE_MEMORY = 5.0
"""Seconds for which one interactive text makes another one likely."""

_GATHERING = 0.003
"""Seconds that a micro-batch waits at most for the callers of the last one, who mostly send their next text at once: batches
are larger then, and fewer answers and questions are worked off while the engine needs all cores (measured on two, MiniLM: 2
clients got 102 texts/s without it and 155 with it, 4 got 136 and 167, 8 got 164 and 202, 16 got 202 and 226)."""

_log = get_logger(__name__)


class BatchObserver(Protocol):
    """Who is told what became of texts and micro-batches."""

    def waited(self, lane: Lane, seconds: float) -> None:
        """Take note that a text was taken from its lane's queue, in which it waited so long."""
        ...

    def computed(self, lane: Lane, *, texts: int, tokens: int, seconds: float) -> None:
        """Take note that a micro-batch came back."""
        ...


class Batcher:
    """Computes the jobs of all callers. All methods must be called in one event loop.

    One micro-batch is in flight at a time: a second one would make vectors depend on each other's texts and gain nothing. It
    is never broken off when its callers go, since the backend would go on with it for a while, beside the next one; its
    vectors are dropped then.

    Args:
        backend: What computes. It is asked for nothing unless a job waits.
        limits: What may wait at most.
        metrics: Who is told.
    """

    def __init__(self, backend: Embedder, *, limits: QueueLimits, metrics: BatchObserver) -> None:
        self._backend = backend
        self._metrics = metrics
        self._queue = FairQueue(limits)
        self._entrance = asyncio.Lock()  # asyncio's lock is given to its waiters in the order in which they came
        self._flight: Sequence[Job] = ()
        self._worker: asyncio.Task[None] | None = None
        self._counter: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._pace: float | None = None
        self._lone_seconds: float | None = None
        self._bulk_pace: float | None = None
        self._interactive_until = 0.0
        self._wanted = 0  # while callers are waited for: so many texts
        self._gathered = asyncio.Event()
        self._closed = False

    def submit(self, jobs: Sequence[Job]) -> None:
        """Let jobs wait for their turn; either all of them or, with an error, none.

        Args:
            jobs: The jobs, all of one lane. Their futures get a `Computed` or an exception; who cancels a future abandons the
                job, which is not computed then unless it is already being so.

        Raises:
            QueueFullError: There is no room now; `retry_after` estimates when there will be.
            BatchTooLargeError: There never is room for so much at once.
            ShuttingDownError: The batcher is closed.
        """
        if not jobs:
            return
        lane, texts, size = jobs[0].lane, len(jobs), sum(job.size for job in jobs)
        self._check_open()
        self._check_fits(lane, texts, size)
        if excess := self._queue.excess(lane, texts=texts, size=size):
            raise self._full(lane, excess)
        now = asyncio.get_running_loop().time()
        for job in jobs:
            job.since = now
        self._queue.push(jobs)
        if self._wanted and self._has_gathered():
            self._gathered.set()
        if self._worker is None:
            # The worker takes its first micro-batch in the next round of the event loop, when all that came in this one wait.
            self._worker = self._spawn(self._work())
        self._count_ahead()

    async def room(self, *, texts: int, size: int) -> None:
        """Wait until so much may be submitted to the bulk lane; callers who wait are let in in the order in which they came.

        Nothing is reserved: the caller must submit before it awaits anything else, or others may take its place. Nor do those
        who do not wait here stand back, so that much smaller submissions can delay this one.

        Args:
            texts: The number of texts.
            size: Their bytes in UTF-8.

        Raises:
            BatchTooLargeError: There never is room for so much at once.
            ShuttingDownError: The batcher is closed.
        """
        self._check_fits(Lane.BULK, texts, size)
        async with self._entrance:
            while not self._closed and self._queue.excess(Lane.BULK, texts=texts, size=size):
                self._queue.vacated.clear()
                await self._queue.vacated.wait()
        self._check_open()

    def promote(self, job: Job) -> None:
        """Move a bulk job for which an interactive caller waits, too, to that lane; nothing happens if it was taken already."""
        self._queue.promote(job)

    def depth(self, lane: Lane) -> tuple[int, int]:
        """Give the number of texts that wait in a lane, and their bytes in UTF-8; those in flight do not count."""
        return self._queue.depth(lane)

    async def close(self) -> None:
        """Take nothing new, and give all jobs that wait or are in flight a `ShuttingDownError`.

        What is in flight is broken off: the backend must be stopped next. Drain before, if answers are still wanted.
        """
        self._closed = True
        _fail(self._queue.drain(), _shutting_down())
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _check_open(self) -> None:
        if self._closed:
            raise _shutting_down()

    def _check_fits(self, lane: Lane, texts: int, size: int) -> None:
        limits = self._queue.limits(lane)
        if texts > limits.texts or size > limits.bytes:
            raise BatchTooLargeError(
                f"{texts:,} texts of {size:,} bytes can never wait at once: the limits are {_describe(limits)}; "
                "send less at once, or raise these settings of the daemon",
                metadata={
                    "texts": str(texts),
                    "limit": str(limits.texts),
                    "bytes": str(size),
                    "limit_bytes": str(limits.bytes),
                },
            )

    def _full(self, lane: Lane, excess: float) -> QueueFullError:
        limits = self._queue.limits(lane)
        waiting = [self._queue.depth(lane) for lane in Lane]
        texts, size = (sum(amounts) for amounts in zip(*waiting, strict=True))
        seconds = _FIRST_RETRY_AFTER if self._pace is None else excess * size * self._pace
        return QueueFullError(
            f"the queue is full: {texts:,} texts of {size:,} bytes wait, and the limits for {lane.value} texts are "
            f"{_describe(limits)}; try again later, send less at once, or raise these settings of the daemon",
            metadata={"limit_texts": str(limits.texts), "limit_bytes": str(limits.bytes)},
            retry_after=min(max(seconds, MIN_RETRY_AFTER), MAX_RETRY_AFTER),
        )

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _work(self) -> None:
        """Compute until nothing waits."""
        try:
            while batch := self._queue.take(self._backend.limits, self._bulk_limits()):
                self._flight = batch
                now = asyncio.get_running_loop().time()
                for job in batch:
                    self._metrics.waited(job.lane, now - job.since)
                self._count_ahead()
                await self._compute(batch)
                self._queue.settle(batch)
                if batch[0].lane is Lane.INTERACTIVE:
                    await self._gather(sum(not job.future.cancelled() for job in batch))
        finally:
            _fail(self._flight, _shutting_down())  # cancelled by `close`; else, all of them have their answers
            self._flight = ()
            self._worker = None

    async def _gather(self, answered: int) -> None:
        """Let those who have their answers now, and may come back at once, share a micro-batch with those who wait."""
        self._wanted = answered + self._queue.depth(Lane.INTERACTIVE)[0]
        if self._wanted > 1 and not self._has_gathered():
            self._gathered.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GATHERING):
                    await self._gathered.wait()
        self._wanted = 0

    def _has_gathered(self) -> bool:
        """Tell whether as many wait as are wanted, or more than fit."""
        return self._queue.depth(Lane.INTERACTIVE)[0] >= self._wanted or self._queue.fills(
            Lane.INTERACTIVE, self._backend.limits
        )

    def _bulk_limits(self) -> BatchLimits:
        """Tell what a micro-batch of bulk texts may hold: all that the backend takes, or less if others may come."""
        limits = self._backend.limits
        expected = asyncio.get_running_loop().time() < self._interactive_until
        if not expected or not self._lone_seconds or not self._bulk_pace:
            return limits
        tokens = int(_BULK_PATIENCE * self._lone_seconds / self._bulk_pace)
        return BatchLimits(texts=limits.texts, tokens=max(1, min(tokens, limits.tokens)))

    def _measure(self, jobs: Sequence[Job], tokens: int, seconds: float) -> None:
        """Learn from one micro-batch how fast the backend is."""
        self._pace = _smoothed(self._pace, seconds / max(1, sum(job.size for job in jobs)))
        if jobs[0].lane is Lane.BULK:
            self._bulk_pace = _smoothed(self._bulk_pace, seconds / tokens)
        else:
            self._interactive_until = asyncio.get_running_loop().time() + _INTERACTIVE_MEMORY
            if len(jobs) == 1:
                self._lone_seconds = _smoothed(self._lone_seconds, seconds)

    async def _compute(self, jobs: Sequence[Job]) -> None:
        """Give each job its answer. One text can spoil a micro-batch; tried one by one then, only that one fails."""
        try:
            answers = await self._embed(jobs)
        except (BackendFaultError, InvalidTextError, TextTooLongError) as error:
            if len(jobs) == 1:
                _fail(jobs, error)
                return
            _log.warning("micro-batch failed, its texts are tried one by one", texts=len(jobs), reason=error.reason)
            for job in jobs:
                if not job.future.done():
                    await self._compute([job])
        except Exception as error:  # noqa: BLE001 # whatever it is, the jobs must not wait for ever, nor the next ones
            if not isinstance(error, RunedError):
                _log.error("micro-batch failed unexpectedly", texts=len(jobs), **describe_exception(error))
            _fail(jobs, error)
        else:
            for job, answer in zip(jobs, answers, strict=True):
                if not job.future.done():
                    job.future.set_result(answer)

    async def _embed(self, jobs: Sequence[Job]) -> list[Computed]:
        """Send one micro-batch, and find out how many tokens each of its texts has."""
        clock = asyncio.get_running_loop().time
        warm = self._backend.state.status is BackendStatus.READY
        began = clock()
        unknown = [job for job in jobs if not job.exact]
        # The answer tells the sum only, which is enough for one that is not known.
        counting = self._spawn(self._count(unknown)) if len(unknown) > 1 else None
        try:
            answer = await self._backend.embed([job.input for job in jobs])
            seconds = clock() - began
            if counting is not None:
                await asyncio.wait({counting})
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Not the worker was cancelled but what the backend waited for.
            raise BackendUnavailableError("the engine was interrupted; try again", retry_after=_FIRST_RETRY_AFTER) from None
        finally:
            if counting is not None:
                counting.cancel()  # after a failure, it would only wake the backend up
        _settle_tokens(jobs, answer.tokens)
        answers = [Computed(vector, job.tokens) for vector, job in zip(answer.vectors, jobs, strict=True)]
        if warm:  # the time of a start says nothing of the speed
            self._measure(jobs, answer.tokens, seconds)
        self._metrics.computed(jobs[0].lane, texts=len(jobs), tokens=answer.tokens, seconds=seconds)
        return answers

    def _count_ahead(self) -> None:
        """Count texts that wait for the micro-batch in flight, so that more of them fit into the next one."""
        if self._counter is None and self._queue.uncounted(self._backend.limits):
            self._counter = self._spawn(self._count_waiting())

    async def _count_waiting(self) -> None:
        try:
            while self._flight and (jobs := self._queue.uncounted(self._backend.limits)):
                await self._count(jobs)
                if not all(job.exact for job in jobs):
                    break  # or a backend that cannot count would be asked over and over
        finally:
            self._counter = None

    async def _count(self, jobs: Sequence[Job]) -> None:
        """Replace bounds by exact numbers; where that fails, they stay, which is safe."""
        texts = [job.input for job in jobs if isinstance(job.input, str)]
        try:
            tokens = await self._backend.tokenize(texts)
            for job, its_tokens in list(zip(jobs, tokens, strict=True)):
                if not job.exact:
                    job.tokens, job.exact = len(its_tokens), True
        except Exception as error:  # noqa: BLE001 # no text fails because it could not be counted
            _log.warning("texts could not be counted", texts=len(jobs), **describe_exception(error))


def _settle_tokens(jobs: Sequence[Job], total: int) -> None:
    """Take the number of tokens of the one text that is not known from the sum of all, or check the sum.

    Raises:
        BackendFaultError: The numbers contradict each other, so that the vectors may not be those of the texts.
    """
    unknown = [job for job in jobs if not job.exact]
    rest = total - sum(job.tokens for job in jobs if job.exact)
    if len(unknown) > 1:
        raise BackendFaultError(f"the tokens of {len(unknown)} texts could not be counted")
    if (rest < 1) if unknown else (rest != 0):
        _log.warning("llama-server counts tokens in two ways", texts=len(jobs), tokens=total, known=total - rest)
        raise BackendFaultError(f"llama-server read {total:,} tokens and counted {total - rest:,} before")
    for job in unknown:
        job.tokens, job.exact = rest, True


def _smoothed(value: float | None, newest: float) -> float:
    return newest if value is None else (1 - _PACE_WEIGHT) * value + _PACE_WEIGHT * newest


def _fail(jobs: Sequence[Job], error: Exception) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_exception(_copy(error))
            job.future.exception()  # looked at, so that asyncio reports no failure when the caller goes before it looks


def _copy(error: Exception) -> Exception:
    """Give each caller an error of its own: one that several raise would collect the traces, and the notes, of all of them."""
    if not isinstance(error, RunedError):
        return error
    duplicate = type(error).__new__(type(error), *error.args)  # not by __init__, whose arguments a subclass may choose
    duplicate.__dict__.update(error.__dict__, metadata=dict(error.metadata))
    return duplicate


def _shutting_down() -> ShuttingDownError:
    return ShuttingDownError("the daemon is shutting down; try again, and a new one will be started")


def _describe(limits: QueueLimits) -> str:
    return f"{limits.texts:,} texts (RUNED_QUEUE_TEXTS) and {limits.bytes:,} bytes (RUNED_QUEUE_BYTES)"
