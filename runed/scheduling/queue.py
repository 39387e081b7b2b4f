"""The bounded queue of texts, with two lanes. It is fair between clients by the tokens that their texts cost."""

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
from runed.scheduling.micro_batch import cut_micro_batch

BULK_SHARE = 0.2
"""Share of the tokens that bulk texts get while interactive texts wait, too. Without it, a few busy interactive clients
would keep a bulk job waiting for ever. With a much larger share, a bulk job would delay every interactive answer."""

INTERACTIVE_RESERVE = 8
"""Divisor of the queue's texts and bytes that gives the part reserved for interactive texts. Bulk texts never fill it."""

COUNT_AHEAD = 128
"""Texts beyond the next micro-batch that are counted with it: enough that a request pays, few enough that little counting is
lost if their caller leaves."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Bounds of the waiting texts.

    Attributes:
        texts: The most texts.
        bytes: Their most bytes in UTF-8, all together.
    """

    texts: int
    bytes: int

    @property
    def bulk(self) -> QueueLimits:
        """The limits for bulk texts: all but the reserve for interactive texts."""
        return QueueLimits(self.texts - self.texts // INTERACTIVE_RESERVE, self.bytes - self.bytes // INTERACTIVE_RESERVE)


@dataclass(frozen=True, slots=True)
class Computed:
    """The result of a queue entry.

    Attributes:
        vector: Little-endian float32 values of L2 norm 1, with all dimensions of the model.
        tokens: The exact number of tokens that the model read, including special tokens.
    """

    vector: bytes
    tokens: int


@dataclass(eq=False, slots=True, kw_only=True)
class QueueEntry:
    """One text to compute. Its maker waits for its future, and may cancel the future to abandon the entry.

    Attributes:
        input: The text, or its tokens.
        tokens: The number of its tokens, including special tokens, or an upper bound of it; the batcher may estimate it.
        exact: Whether `tokens` is the exact number. It must be exact for an input of tokens.
        size: The bytes of the text in UTF-8.
        lane: The lane that it waits in.
        client: The client of the text, such as "unix:7".
        future: Gets the result, or an exception, exactly once.
        since: The time of its submission, in seconds of the event loop's clock; the batcher sets it.
        number: Its place in the order of arrival; the queue sets it.
        flow: The texts of its client, while it waits or is computed; the queue sets it.
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
    """The entries of one client in one lane.

    Attributes:
        served: Its virtual time: the tokens that it got, or would have got if it had been there from the beginning.
        entries: The waiting entries, the oldest first. An ordered mapping, since a caller's entries may leave the middle.
    """

    served: int
    entries: OrderedDict[QueueEntry, None] = field(default_factory=OrderedDict)


class _Lane:
    """The entries of one lane, fair between clients: the next entry is of the client that got the fewest tokens."""

    def __init__(self) -> None:
        self.texts = 0
        self.bytes = 0
        self._flows: dict[str, _Flow] = {}
        self._clock = 0

    def add(self, entry: QueueEntry) -> None:
        flow = self._flows.get(entry.client)
        if flow is None:
            flow = self._flows[entry.client] = _Flow(self._clock)
        elif not flow.entries:
            # A client that pauses earns nothing meanwhile. A client that got more than the others still waits for them.
            flow.served = max(flow.served, self._clock)
        flow.entries[entry] = None
        entry.flow = flow
        self.texts += 1
        self.bytes += entry.size

    def remove(self, entry: QueueEntry) -> None:
        assert entry.flow is not None
        del entry.flow.entries[entry]
        self.texts -= 1
        self.bytes -= entry.size

    def take(self, batch: Sequence[QueueEntry]) -> None:
        """Remove a `next_batch`."""
        assert batch[0].flow is not None
        self._clock = batch[0].flow.served  # the smallest time of all waiting clients, so it never goes back
        for entry in batch:
            self.remove(entry)

    def in_order(self) -> Iterator[QueueEntry]:
        """Yield the entries with a waiting caller, in the order in which they would be taken. Take none of them."""
        heap: list[tuple[int, int, QueueEntry, Iterator[QueueEntry]]] = []
        for flow in self._flows.values():
            entries: Iterator[QueueEntry] = (entry for entry in flow.entries if not entry.future.done())
            if (entry := next(entries, None)) is not None:
                heap.append((flow.served, entry.number, entry, entries))
        heapq.heapify(heap)
        while heap:
            served, _, entry, entries = heap[0]
            yield entry
            if (following := next(entries, None)) is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (served + entry.tokens, following.number, following, entries))

    def next_batch(self, limits: BatchLimits) -> list[QueueEntry]:
        """Return the entries that would be the next micro-batch; empty if nothing waits."""
        return cut_micro_batch(self.in_order(), limits) if self.texts else []

    def fills(self, limits: BatchLimits) -> bool:
        """Return whether the waiting entries fill the next micro-batch."""
        return self.texts >= limits.texts or len(self.next_batch(limits)) < self.texts

    def settle(self, batch: Sequence[QueueEntry]) -> None:
        """Charge the tokens of a batch to its clients."""
        for entry in batch:
            assert entry.flow is not None
            entry.flow.served += entry.tokens
            entry.flow = None
        # A client without waiting entries is dropped as soon as it would be treated like a new one.
        self._flows = {
            client: flow for client, flow in self._flows.items() if flow.entries or (self.texts and flow.served > self._clock)
        }


class FairQueue:
    """The texts that wait for the engine.

    Interactive texts go first. While they do, bulk texts earn `BULK_SHARE` of the tokens. They get their turn as soon as they
    can pay for their next micro-batch. Within a lane, clients share the tokens equally. Within a client, the oldest text goes
    first. An entry whose future is done is not taken any more, and leaves in the next round of the event loop.

    Args:
        limits: Bounds of the waiting texts. The queue only tells whether there is room (`excess`); its owner decides.

    Attributes:
        vacated: Set whenever an entry has left.
    """

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        self._lanes = {lane: _Lane() for lane in Lane}
        self._numbers = count()
        self._owed = 0.0
        self._contested = False
        self.vacated = asyncio.Event()

    def limits(self, lane: Lane) -> QueueLimits:
        """Return the bounds for a lane. Those of `Lane.INTERACTIVE` hold for both lanes together."""
        return self._limits if lane is Lane.INTERACTIVE else self._limits.bulk

    def depth(self, lane: Lane) -> tuple[int, int]:
        """Return the number of texts that wait in a lane, and their bytes."""
        return self._lanes[lane].texts, self._lanes[lane].bytes

    def fills(self, lane: Lane, limits: BatchLimits) -> bool:
        """Return whether the texts that wait in a lane fill a micro-batch."""
        return self._lanes[lane].fills(limits)

    def excess(self, lane: Lane, *, texts: int, size: int) -> float:
        """Return the share of the waiting texts that must leave before some more may wait.

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

    def push(self, entries: Sequence[QueueEntry]) -> None:
        """Append entries to their lanes, each behind those of its client. The caller has checked that there is room."""
        for entry in entries:
            self._add(entry)
            entry.future.add_done_callback(partial(self._leave, entry))

    def promote(self, entry: QueueEntry) -> None:
        """Move a bulk entry to the interactive lane, behind those of its client. An entry that does not wait any more stays."""
        if entry.lane is Lane.BULK and _waits(entry):
            self._lanes[Lane.BULK].remove(entry)
            entry.lane = Lane.INTERACTIVE
            self._add(entry)

    def take(self, limits: BatchLimits, bulk_limits: BatchLimits | None = None) -> list[QueueEntry]:
        """Remove the next micro-batch: texts of one lane, in fair order, as many as fit.

        Args:
            limits: Its limits. A first text of more tokens is taken alone.
            bulk_limits: Its limits if it is of bulk texts; None means the same.

        Returns:
            The entries, for `settle` when they have been computed; empty if nothing waits.
        """
        interactive = self._lanes[Lane.INTERACTIVE].next_batch(limits)
        bulk = self._lanes[Lane.BULK].next_batch(bulk_limits or limits)
        self._contested = bool(interactive and bulk)
        if not bulk:
            self._owed = 0.0  # bulk texts earn only while they wait
        batch = interactive or bulk
        if self._contested and self._owed >= sum(entry.tokens for entry in bulk):
            batch = bulk
        if batch:
            self._lanes[batch[0].lane].take(batch)
            self.vacated.set()
        return batch

    def settle(self, batch: Sequence[QueueEntry]) -> None:
        """Charge the last batch to its clients and its lane, by the tokens that are known now.

        They are not charged earlier, because bounds are several times the exact numbers. A client charged by bounds would wait
        for clients charged by exact numbers.
        """
        lane = batch[0].lane
        self._lanes[lane].settle(batch)
        if self._contested:
            cost = sum(entry.tokens for entry in batch)
            self._owed += -cost if lane is Lane.BULK else cost * BULK_SHARE / (1 - BULK_SHARE)

    def uncounted(self, limits: BatchLimits) -> list[QueueEntry]:
        """Return the entries to count: the next ones of a lane, if only their bounds keep the next micro-batch small."""
        for lane in self._lanes.values():
            if not lane.texts:
                continue
            order = lane.in_order()
            first = list(islice(order, limits.texts))
            if sum(entry.tokens for entry in first) > limits.tokens and not all(entry.exact for entry in first):
                return [entry for entry in chain(first, islice(order, COUNT_AHEAD)) if not entry.exact]
        return []

    def drain(self) -> list[QueueEntry]:
        """Remove all entries that have a waiting caller."""
        entries = [entry for lane in self._lanes.values() for entry in lane.in_order()]
        for entry in entries:
            self._leave(entry)
        return entries

    def _add(self, entry: QueueEntry) -> None:
        entry.number = next(self._numbers)
        self._lanes[entry.lane].add(entry)

    def _leave(self, entry: QueueEntry, _: object = None) -> None:
        """Free the place of an entry once. The done-callback of each entry's future calls this, too."""
        if _waits(entry):
            self._lanes[entry.lane].remove(entry)
            entry.flow = None
            self.vacated.set()


def _waits(entry: QueueEntry) -> bool:
    return entry.flow is not None and entry in entry.flow.entries


def _excess(waiting: tuple[int, int], texts: int, size: int, limits: QueueLimits) -> float:
    """Return the share of the waiting texts, or of their bytes, that must leave before some more fit."""
    by_texts = (waiting[0] + texts - limits.texts) / max(1, waiting[0])
    by_bytes = (waiting[1] + size - limits.bytes) / max(1, waiting[1])
    return max(0.0, by_texts, by_bytes)
