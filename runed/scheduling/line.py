"""The line of one model: its backend, the speed of it, and the way of a micro-batch through it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Protocol

from runed import tracing
from runed.backends.base import BackendStatus, Counting, CountingEmbedder, EmbeddingBatch
from runed.domain.requests import Lane
from runed.errors import (
    BackendFaultError,
    BackendUnavailableError,
    InvalidTextError,
    RunedError,
    ShuttingDownError,
    TextTooLongError,
)
from runed.log import describe_exception, get_logger, log_refusal
from runed.scheduling.counting import count, settle_tokens, share_tokens
from runed.scheduling.pace import FIRST_RETRY_AFTER, Pace, Returns
from runed.scheduling.queue import Computed, QueueEntry

_FLIGHTS_A_RESERVE = 8
"""Flights at once of which one is kept for interactive texts."""

_BYTES_A_TOKEN = 4
"""Bytes that a token is assumed to have where an engine tells no number of tokens."""

_log = get_logger(__name__)


class BatchObserver(Protocol):
    """Notes texts and micro-batches."""

    def waited(self, lane: Lane, seconds: float) -> None:
        """Note that a text was taken from its lane's queue after the given waiting time."""
        ...

    def computed(self, lane: Lane, *, texts: int, tokens: int, seconds: float) -> None:
        """Note that a micro-batch came back."""
        ...


class Line:
    """Computes the micro-batches of one model.

    Args:
        name: The name of the model.
        backend: The backend.
        metrics: Notes micro-batches.

    Attributes:
        name: As above.
        backend: As above.
        pace: The speed of the backend.
        returns: How soon its interactive callers come back.
        flights: The micro-batches that the backend has.
        closed: Whether no text is taken any more.
        replaced: Whether that is because another backend takes over.
    """

    def __init__(self, name: str, backend: CountingEmbedder, metrics: BatchObserver) -> None:
        self.name = name
        self.backend = backend
        self.pace = Pace()
        self.returns = Returns()
        self.flights: list[Sequence[QueueEntry]] = []
        self.closed = False
        self.replaced = False
        self._metrics = metrics
        self._tasks: set[asyncio.Task[object]] = set()

    @property
    def is_ready(self) -> bool:
        """Whether the engine answers. Otherwise a micro-batch waits for its start, and uses no processor meanwhile."""
        return self.backend.state.status is BackendStatus.READY

    @property
    def is_remote(self) -> bool:
        """Whether the engine is on another machine."""
        return self.backend.limits.flights > 0

    @property
    def uses_processors(self) -> bool:
        """Whether a micro-batch uses the processors of this machine now."""
        return not self.is_remote and self.is_ready

    @property
    def reserve(self) -> int:
        """The number of flights that bulk texts leave to interactive ones. Of a few, it is one while such texts are likely."""
        flights = self.backend.limits.flights
        return max(flights // _FLIGHTS_A_RESERVE, int(flights > 1 and self.pace.patience is not None))

    def has_room(self, lane: Lane) -> bool:
        """Return whether the backend takes another micro-batch, of texts of a lane, now."""
        reserve = self.reserve if lane is Lane.BULK else 0
        return len(self.flights) < max(1, self.backend.limits.flights) - reserve

    def check_open(self) -> None:
        """Refuse a text that comes too late.

        Raises:
            ShuttingDownError: The daemon ends.
            BackendUnavailableError: Another backend takes over.
        """
        if self.closed:
            raise self.refusal()

    def refusal(self) -> RunedError:
        """Return the error of the texts that are not computed any more."""
        if self.replaced:
            return BackendUnavailableError("another engine takes over; try again", retry_after=FIRST_RETRY_AFTER)
        return ShuttingDownError("the daemon is shutting down; try again, and a new one will be started")

    def fail(self, entries: Sequence[QueueEntry], error: Exception) -> None:
        """Fail the entries that have no answer yet."""
        for entry in entries:
            if not entry.future.done():
                # A copy for each caller: a shared error would collect the traces and notes of all callers.
                entry.future.set_exception(error.retold() if isinstance(error, RunedError) else error)
                entry.future.exception()  # marks it as seen, so that asyncio does not report it

    def spawn(self, work: Coroutine[object, object, object]) -> asyncio.Task[object]:
        """Begin a task that ends with the line."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def end_tasks(self) -> None:
        """Cancel all tasks of the line, and wait for them."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def compute(self, batch: Sequence[QueueEntry]) -> None:
        """Compute and answer each entry. If a micro-batch fails, try its texts one by one, so that only a bad text fails."""
        try:
            with tracing.micro_batch(self.name, batch, asyncio.get_running_loop().time()):
                answers = await self._embed(batch)
        except (BackendFaultError, InvalidTextError, TextTooLongError) as error:
            if len(batch) == 1:
                self.fail(batch, error)
                return
            event = "micro-batch failed, its texts are tried one by one"
            log_refusal(_log, event, kind=error.reason, texts=len(batch), reason=error.reason)
            for entry in batch:
                if not entry.future.done():
                    await self.compute([entry])
        except Exception as error:  # noqa: BLE001 # neither these entries nor the next ones may wait for ever
            if not isinstance(error, RunedError):
                _log.error("micro-batch failed unexpectedly", texts=len(batch), **describe_exception(error))
            self.fail(batch, error)
        else:
            for entry, answer in zip(batch, answers, strict=True):
                if not entry.future.done():
                    entry.future.set_result(answer)

    async def _embed(self, batch: Sequence[QueueEntry]) -> list[Computed]:
        """Send one micro-batch, and derive the number of tokens of each of its texts."""
        clock = asyncio.get_running_loop().time
        warm = self.is_ready
        began = clock()
        counts = self.backend.limits.counting is Counting.EACH
        unknown = [entry for entry in batch if not entry.exact]
        # The sum, which every answer tells, is enough to derive one unknown number.
        told = self.backend.limits.counted or not counts or len(unknown) <= 1
        counting = None if told else self.spawn(count(unknown, self.backend))
        try:
            answer = await (self._ask_far(batch) if self.is_remote else self._ask(batch))
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
        if counts:
            settle_tokens(batch, answer.tokens, answer.counts)
        else:
            share_tokens(batch, answer.tokens)
        answers = [Computed(vector, entry.tokens if entry.exact else 0) for vector, entry in pairs]
        if warm:  # the time of a start tells nothing about the speed
            tokens = answer.tokens or 1 + sum(entry.size for entry in batch) // _BYTES_A_TOKEN
            self.pace.learn(batch, tokens, seconds)
        self._metrics.computed(batch[0].lane, texts=len(batch), tokens=answer.tokens, seconds=seconds)
        return answers

    async def _ask(self, batch: Sequence[QueueEntry]) -> EmbeddingBatch:
        with tracing.engine(woken=not self.is_ready):
            return await self.backend.embed([entry.input for entry in batch])

    async def _ask_far(self, batch: Sequence[QueueEntry]) -> EmbeddingBatch:
        """Ask an engine on another machine. If all callers leave, cancel the request: the engine may drop it then."""
        asking = asyncio.ensure_future(self._ask(batch))

        def leave(_: object) -> None:
            if all(entry.future.done() for entry in batch):
                asking.cancel()

        for entry in batch:
            entry.future.add_done_callback(leave)
        try:
            return await asking
        finally:
            for entry in batch:
                entry.future.remove_done_callback(leave)
