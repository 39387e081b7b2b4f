"""Who is next: a bounded queue of texts, with two lanes, that is fair between clients by the tokens that their texts cost."""

from __future__ import annotations

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count, islice

from runed.backends.base import BatchLimits, TextInput
from runed.domain.requests import Lane

BULK_SHARE = 0.2
"""The part of the tokens that bulk texts get while interactive ones wait, too. Without it, a few busy interactive clients would
keep a bulk job waiting for ever; with much more, a bulk job would be felt in every interactive answer."""

INTERACTIVE_RESERVE = 8
"""One in so many places, and bytes, of the queue is kept from bulk texts, so that they never shut interactive ones out."""

COUNT_AHEAD = 128
"""How many texts beyond the next micro-batch are counted with it: enough that a request pays, few enough that little counting
is lost when their caller goes."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What may wait at most.

    Attributes:
        texts: The number of texts.
        bytes: Their bytes in UTF-8, all together.
    """

    texts: int
    bytes: int

    @property
    def bulk(self) -> QueueLimits:
        """What of it bulk texts may take: all but the reserve for interactive ones."""
        return QueueLimits(self.texts - self.texts // INTERACTIVE_RESERVE, self.bytes - self.bytes // INTERACTIVE_RESERVE)


@dataclass(frozen=True, slots=True)
class Computed:
    """What a job gives.

    Attributes:
        vector: Little-endian float32 values of L2 norm 1, as many as the model has.
        tokens: The exact number of tokens that the model read, special ones included.
    """

    vector: bytes
    tokens: int


@dataclass(eq=False, slots=True, kw_only=True)
class Job:
    """One text to compute. Whoever made it waits for its future; when that is done early (cancelled), the job is abandoned.

    Attributes:
        input: The text, or its tokens.
        tokens: The number of its tokens, special ones included, or an upper bound of it.
        exact: Whether `tokens` is the number itself. It must be for an input of tokens.
        size: The bytes of the text in UTF-8.
        lane: The lane that it waits in.
        client: Whose it is, such as "unix:7".
        future: Gets the answer, or an exception, exactly once.
        since: When it was submitted, in seconds of the event loop's clock; the batcher sets it.
    """

    input: TextInput
    tokens: int
    exact: bool
    size: int
    lane: Lane
    client: str
    future: asyncio.Future[Computed]
    since: float = 0.0
    number: int = field(default=0, init=False)
    flow: _Flow | None = field(default=None, init=False, repr=False)


@dataclass(eq=False, slots=True)
class _Flow:
    """The jobs of one client in one lane.

    Attributes:
        served: Its virtual time: the tokens that it was given, or would have been had it been there from the beginning.
        jobs: What waits, the oldest first. Ordered and keyed, because the jobs of a caller that goes leave from the middle.
    """

    served: int
    jobs: OrderedDict[Job, None] = field(default_factory=OrderedDict)


class _Lane:
    """The jobs of one lane, fair between clients: the next job is of the client that was served the fewest tokens."""

    def __init__(self) -> None:
        self.texts = 0
        self.bytes = 0
        self._flows: dict[str, _Flow] = {}
        self._clock = 0

    def add(self, job: Job) -> None:
        flow = self._flows.get(job.client)
        if flow is None:
            flow = self._flows[job.client] = _Flow(self._clock)
        elif not flow.jobs:
            # A client that pauses saves up no claim; one that was served more than the others still waits for them.
            flow.served = max(flow.served, self._clock)
        flow.jobs[job] = None
        job.flow = flow
        self.texts += 1
        self.bytes += job.size

    def remove(self, job: Job) -> None:
        assert job.flow is not None
        del job.flow.jobs[job]
        self.texts -= 1
        self.bytes -= job.size

    def take(self, batch: Sequence[Job]) -> None:
        """Remove a `next_batch`."""
        assert batch[0].flow is not None
        self._clock = batch[0].flow.served  # the smallest of all that wait, so it never goes back
        for job in batch:
            self.remove(job)

    def in_order(self) -> Iterator[Job]:
        """Give the jobs that somebody waits for in the order in which they would be taken, and leave them where they are."""
        heap: list[tuple[int, int, Job, Iterator[Job]]] = []
        for flow in self._flows.values():
            jobs: Iterator[Job] = (job for job in flow.jobs if not job.future.done())
            if (job := next(jobs, None)) is not None:
                heap.append((flow.served, job.number, job, jobs))
        heapq.heapify(heap)
        while heap:
            served, _, job, jobs = heap[0]
            yield job
            if (following := next(jobs, None)) is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (served + job.tokens, following.number, following, jobs))

    def next_batch(self, limits: BatchLimits) -> list[Job]:
        """Give what would be the next micro-batch; empty if nothing waits."""
        batch: list[Job] = []
        tokens = 0
        for job in self.in_order():
            tokens += job.tokens
            if batch and tokens > limits.tokens:
                break
            batch.append(job)
            if len(batch) == limits.texts:
                break
        return batch

    def fills(self, limits: BatchLimits) -> bool:
        """Tell whether what waits leaves no room in the next micro-batch."""
        return self.texts >= limits.texts or len(self.next_batch(limits)) < self.texts

    def settle(self, batch: Sequence[Job]) -> None:
        """Charge a batch that was taken to its clients."""
        for job in batch:
            assert job.flow is not None
            job.flow.served += job.tokens
            job.flow = None
        # A client that has nothing waiting is forgotten as soon as it may come back like a new one.
        self._flows = {
            client: flow for client, flow in self._flows.items() if flow.jobs or (self.texts and flow.served > self._clock)
        }


class FairQueue:
    """The texts that wait for the engine.

    Interactive texts go first, but while they do, bulk texts earn `BULK_SHARE` of the tokens, and have their turn as soon as
    they can pay for their next micro-batch. Within a lane, clients share the tokens equally; within a client, the oldest text
    goes first. A job whose future is done is not given out any more, and leaves in the next round of the event loop.

    Args:
        limits: What may wait at most. The queue tells whether there is room, its owner decides (`excess`).

    Attributes:
        vacated: Is set whenever a job has left.
    """

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        self._lanes = {lane: _Lane() for lane in Lane}
        self._numbers = count()
        self._owed = 0.0
        self._contested = False
        self.vacated = asyncio.Event()

    def limits(self, lane: Lane) -> QueueLimits:
        """Tell what may wait at most: in both lanes, and for `Lane.BULK`, in that lane."""
        return self._limits if lane is Lane.INTERACTIVE else self._limits.bulk

    def depth(self, lane: Lane) -> tuple[int, int]:
        """Give the number of texts that wait in a lane, and their bytes."""
        return self._lanes[lane].texts, self._lanes[lane].bytes

    def fills(self, lane: Lane, limits: BatchLimits) -> bool:
        """Tell whether what waits in a lane fills a micro-batch."""
        return self._lanes[lane].fills(limits)

    def excess(self, lane: Lane, *, texts: int, size: int) -> float:
        """Tell what part of what waits would have to leave before so much more may wait.

        Args:
            lane: The lane that they would wait in.
            texts: The number of texts.
            size: Their bytes.

        Returns:
            0 if there is room now; more than 1 if there never is.
        """
        interactive, bulk = self._lanes[Lane.INTERACTIVE], self._lanes[Lane.BULK]
        both = (interactive.texts + bulk.texts, interactive.bytes + bulk.bytes)
        excess = _excess(both, texts, size, self._limits)
        if lane is Lane.BULK:
            excess = max(excess, _excess((bulk.texts, bulk.bytes), texts, size, self.limits(lane)))
        return excess

    def push(self, jobs: Sequence[Job]) -> None:
        """Let jobs wait, each in its lane behind those of its client; the caller has looked for room."""
        for job in jobs:
            self._add(job)
            job.future.add_done_callback(partial(self._leave, job))

    def promote(self, job: Job) -> None:
        """Move a job from bulk to interactive, behind its client's jobs there; nothing happens if it does not wait any more."""
        if job.lane is Lane.BULK and _waits(job):
            self._lanes[Lane.BULK].remove(job)
            job.lane = Lane.INTERACTIVE
            self._add(job)

    def take(self, limits: BatchLimits, bulk_limits: BatchLimits | None = None) -> list[Job]:
        """Take the next micro-batch out: texts of one lane, in fair order, as many as fit.

        Args:
            limits: What it may hold. A first text of more tokens is taken alone.
            bulk_limits: What one of bulk texts may hold; None means the same.

        Returns:
            The jobs, for `settle` when they have been computed; empty if nothing waits.
        """
        interactive = self._lanes[Lane.INTERACTIVE].next_batch(limits)
        bulk = self._lanes[Lane.BULK].next_batch(bulk_limits or limits)
        self._contested = bool(interactive and bulk)
        if not bulk:
            self._owed = 0.0  # a claim is earned by waiting only
        batch = interactive or bulk
        if self._contested and self._owed >= sum(job.tokens for job in bulk):
            batch = bulk
        if batch:
            self._lanes[batch[0].lane].take(batch)
            self.vacated.set()
        return batch

    def settle(self, batch: Sequence[Job]) -> None:
        """Charge the last batch taken to its clients and its lane, by the tokens that are known by now.

        Only now, because bounds are several times the numbers: who was charged by bounds would wait for those who were not.
        """
        lane = batch[0].lane
        self._lanes[lane].settle(batch)
        if self._contested:
            cost = sum(job.tokens for job in batch)
            self._owed += -cost if lane is Lane.BULK else cost * BULK_SHARE / (1 - BULK_SHARE)

    def uncounted(self, limits: BatchLimits) -> list[Job]:
        """Give jobs to be counted: those that come next in a lane whose next micro-batch is kept small by bounds alone."""
        for lane in self._lanes.values():
            order = lane.in_order()
            first = list(islice(order, limits.texts))
            if sum(job.tokens for job in first) > limits.tokens and not all(job.exact for job in first):
                return [job for job in chain(first, islice(order, COUNT_AHEAD)) if not job.exact]
        return []

    def drain(self) -> list[Job]:
        """Take everything out that somebody waits for."""
        jobs = [job for lane in self._lanes.values() for job in lane.in_order()]
        for job in jobs:
            self._leave(job)
        return jobs

    def _add(self, job: Job) -> None:
        job.number = next(self._numbers)
        self._lanes[job.lane].add(job)

    def _leave(self, job: Job, _: object = None) -> None:
        """Give the place of a job back, once; the done-callback of every job's future ends here, too."""
        if _waits(job):
            self._lanes[job.lane].remove(job)
            job.flow = None
            self.vacated.set()


def _waits(job: Job) -> bool:
    return job.flow is not None and job in job.flow.jobs


def _excess(waiting: tuple[int, int], texts: int, size: int, limits: QueueLimits) -> float:
    """Give the part of what waits that is too much for so much more, by texts or by bytes."""
    by_texts = (waiting[0] + texts - limits.texts) / max(1, waiting[0])
    by_bytes = (waiting[1] + size - limits.bytes) / max(1, waiting[1])
    return max(0.0, by_texts, by_bytes)
