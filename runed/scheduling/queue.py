"""The bounded queue of the texts of all models, with two lanes. It is fair between clients by what their texts cost."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count, islice
from typing import TypeAlias

from runed.backends.base import BatchLimits, TextInput
from runed.domain.requests import Lane
from runed.scheduling.micro_batch import cut_micro_batch
from runed.tracing import Span

BULK_SHARE = 0.2
"""Share of the tokens that bulk texts get while interactive texts wait, too. Without it, a few busy interactive clients
would keep a bulk job waiting for ever. With a much larger share, a bulk job would delay every interactive answer."""

INTERACTIVE_RESERVE = 8
"""Divisor of the queue's texts and bytes that gives the part reserved for interactive texts. Bulk texts never fill it."""

COUNT_AHEAD = 128
"""Texts beyond the next micro-batch that are counted with it: enough that a request pays, few enough that little counting is
lost if their caller leaves."""


LimitsByModel: TypeAlias = Mapping[str, BatchLimits]
"""The limits of a micro-batch of each model of which one may be taken."""


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
        model: The name of its model.
        since: The time of its submission, in seconds of the event loop's clock; the batcher sets it.
        callers: The spans of the calls that wait for it, as far as they are recorded.
        number: Its place in the order of arrival; the queue sets it.
        flow: The texts of its client, while it waits or is computed; the queue sets it.
        contested: Whether the other lane had texts as well when its micro-batch was taken; the queue sets it.
    """

    input: TextInput
    tokens: int
    exact: bool
    size: int
    lane: Lane
    client: str
    future: asyncio.Future[Computed]
    model: str = ""
    since: float = 0.0
    callers: tuple[Span, ...] = ()
    number: int = field(default=0, init=False)
    flow: _Flow | None = field(default=None, init=False, repr=False)
    contested: bool = field(default=False, init=False, repr=False)


_Entries: TypeAlias = OrderedDict[QueueEntry, None]
"""Entries in order. An ordered mapping, since a caller's entries may leave the middle."""


@dataclass(eq=False, slots=True)
class _Flow:
    """The entries of one client in one lane.

    Attributes:
        served: Its virtual time: the cost of what it got, or would have got if it had been there from the beginning.
        entries: The waiting entries of each model that has some, the oldest first.
    """

    served: float
    entries: dict[str, _Entries] = field(default_factory=dict)


class _Lane:
    """The entries of one lane, fair between clients: the next entry is of the client that got the least.

    Args:
        weights: The cost of a token of each model; 1 if it is not listed.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.texts = 0
        self.bytes = 0
        self.by_model: Counter[str] = Counter()
        self._weights = weights
        self._flows: dict[str, _Flow] = {}
        self._clock = 0.0

    def add(self, entry: QueueEntry) -> None:
        flow = self._flows.get(entry.client)
        if flow is None:
            flow = self._flows[entry.client] = _Flow(self._clock)
        elif not flow.entries:
            # A client that pauses earns nothing meanwhile. A client that got more than the others still waits for them.
            flow.served = max(flow.served, self._clock)
        flow.entries.setdefault(entry.model, OrderedDict())[entry] = None
        entry.flow = flow
        self.texts += 1
        self.bytes += entry.size
        self.by_model[entry.model] += 1

    def remove(self, entry: QueueEntry) -> None:
        assert entry.flow is not None
        entries = entry.flow.entries[entry.model]
        del entries[entry]
        if not entries:
            del entry.flow.entries[entry.model]
        self.texts -= 1
        self.bytes -= entry.size
        self.by_model[entry.model] -= 1

    def take(self, batch: Sequence[QueueEntry]) -> None:
        """Remove a `next_batch`."""
        assert batch[0].flow is not None
        # The smallest time of all clients that could be served. Clients of other models may have a smaller one.
        self._clock = max(self._clock, batch[0].flow.served)
        for entry in batch:
            self.remove(entry)

    def cost(self, entries: Iterable[QueueEntry]) -> float:
        """Return the cost of entries."""
        return sum(self._price(entry) for entry in entries)

    def in_order(self, models: Iterable[str] | None = None) -> Iterator[QueueEntry]:
        """Yield the entries with a waiting caller, in the order in which they would be taken. Take none of them.

        Args:
            models: The models whose entries are yielded; None means all.
        """
        heap: list[tuple[float, int, QueueEntry, Iterator[QueueEntry]]] = []
        for flow in self._flows.values():
            entries = _waiting(flow, models)
            if (entry := next(entries, None)) is not None:
                heap.append((flow.served, entry.number, entry, entries))
        heapq.heapify(heap)
        while heap:
            served, _, entry, entries = heap[0]
            yield entry
            if (following := next(entries, None)) is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (served + self._price(entry), following.number, following, entries))

    def next_batch(self, limits: LimitsByModel) -> list[QueueEntry]:
        """Return the entries that would be the next micro-batch, which are of one model; empty if nothing waits."""
        models = [model for model in limits if self.by_model[model]]
        if len(models) > 1:
            models = [entry.model for entry in islice(self.in_order(models), 1)]
        return cut_micro_batch(self.in_order(models), limits[models[0]]) if models else []

    def fills(self, model: str, limits: BatchLimits) -> bool:
        """Return whether the waiting entries of a model fill its next micro-batch."""
        texts = self.by_model[model]
        return texts >= limits.texts or len(self.next_batch({model: limits})) < texts

    def settle(self, batch: Sequence[QueueEntry]) -> None:
        """Charge the cost of a batch to its clients."""
        for entry in batch:
            assert entry.flow is not None
            entry.flow.served += self._price(entry)
            entry.flow = None
        # A client without waiting entries is dropped as soon as it would be treated like a new one.
        self._flows = {
            client: flow for client, flow in self._flows.items() if flow.entries or (self.texts and flow.served > self._clock)
        }

    def _price(self, entry: QueueEntry) -> float:
        return entry.tokens * self._weights.get(entry.model, 1)


def _waiting(flow: _Flow, models: Iterable[str] | None) -> Iterator[QueueEntry]:
    """Yield the entries of a flow that have a waiting caller, the oldest first."""
    kinds = [entries for model, entries in flow.entries.items() if models is None or model in models]
    ordered = kinds[0] if len(kinds) == 1 else heapq.merge(*kinds, key=lambda entry: entry.number)
    return (entry for entry in ordered if not entry.future.done())


class FairQueue:
    """The texts that wait for the engines.

    Interactive texts go first, whatever their model. While they do, bulk texts earn `BULK_SHARE` of the cost. They get their
    turn as soon as they can pay for their next micro-batch. Within a lane, clients share the cost equally. Within a client, the
    oldest text goes first. The cost of a text is that of its tokens, which depends on the model. An entry whose future is done
    is not taken any more, and leaves in the next round of the event loop.

    Args:
        limits: Bounds of the waiting texts. The queue only tells whether there is room (`excess`); its owner decides.

    Attributes:
        vacated: Set whenever an entry has left.
        weights: The cost of a token of each model; 1 if it is not listed. Its owner changes it as engines are measured.
    """

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        self.weights: dict[str, float] = {}
        self._lanes = {lane: _Lane(self.weights) for lane in Lane}
        self._numbers = count()
        self._owed = 0.0
        self.vacated = asyncio.Event()

    def limits(self, lane: Lane) -> QueueLimits:
        """Return the bounds for a lane. Those of `Lane.INTERACTIVE` hold for both lanes together."""
        return self._limits if lane is Lane.INTERACTIVE else self._limits.bulk

    def depth(self, lane: Lane) -> tuple[int, int]:
        """Return the number of texts that wait in a lane, and their bytes."""
        return self._lanes[lane].texts, self._lanes[lane].bytes

    def waiting(self, model: str, lane: Lane | None = None) -> int:
        """Return the number of texts of a model that wait in a lane, or with None in both."""
        return sum(self._lanes[each].by_model[model] for each in ([lane] if lane else Lane))

    def models(self) -> set[str]:
        """Return the models of which texts wait."""
        return {model for lane in self._lanes.values() for model, texts in lane.by_model.items() if texts}

    def fills(self, lane: Lane, model: str, limits: BatchLimits) -> bool:
        """Return whether the texts of a model that wait in a lane fill a micro-batch."""
        return self._lanes[lane].fills(model, limits)

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

    def take(self, limits: LimitsByModel, bulk_limits: LimitsByModel | None = None) -> list[QueueEntry]:
        """Remove the next micro-batch: texts of one lane and one model, in fair order, as many as fit.

        Args:
            limits: Its limits, by the models that may be chosen. A first text of more tokens is taken alone.
            bulk_limits: Its limits if it is of bulk texts, by the models that may be chosen then; None means the same.

        Returns:
            The entries, for `settle` when they have been computed; empty if nothing waits.
        """
        interactive = self._lanes[Lane.INTERACTIVE].next_batch(limits)
        bulk = self._lanes[Lane.BULK].next_batch(limits if bulk_limits is None else bulk_limits)
        contested = bool(interactive and bulk)
        if not bulk:
            self._owed = 0.0  # bulk texts earn only while they wait
        batch = interactive or bulk
        if contested and self._owed >= self._lanes[Lane.BULK].cost(bulk):
            batch = bulk
        if batch:
            batch[0].contested = contested
            self._lanes[batch[0].lane].take(batch)
            self.vacated.set()
        return batch

    def settle(self, batch: Sequence[QueueEntry]) -> None:
        """Charge a batch that was taken to its clients and its lane, by the tokens that are known now.

        They are not charged earlier, because bounds are several times the exact numbers. A client charged by bounds would wait
        for clients charged by exact numbers.
        """
        lane = batch[0].lane
        self._lanes[lane].settle(batch)
        if batch[0].contested:
            cost = self._lanes[lane].cost(batch)
            self._owed += -cost if lane is Lane.BULK else cost * BULK_SHARE / (1 - BULK_SHARE)

    def uncounted(self, limits: LimitsByModel) -> list[QueueEntry]:
        """Return entries to count: the next ones of a lane and a model, if only their bounds keep the next micro-batch small.

        Args:
            limits: The limits of a micro-batch, by the models whose texts can be counted.
        """
        for lane in self._lanes.values():
            for model, limit in limits.items():
                if not lane.by_model[model]:
                    continue
                order = lane.in_order([model])
                first = list(islice(order, limit.texts))
                if sum(entry.tokens for entry in first) > limit.tokens and not all(entry.exact for entry in first):
                    return [entry for entry in chain(first, islice(order, COUNT_AHEAD)) if not entry.exact]
        return []

    def drain(self, model: str) -> list[QueueEntry]:
        """Remove all entries of a model that have a waiting caller."""
        entries = [entry for lane in self._lanes.values() for entry in lane.in_order([model])]
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
    return entry.flow is not None and entry in entry.flow.entries.get(entry.model, ())


def _excess(waiting: tuple[int, int], texts: int, size: int, limits: QueueLimits) -> float:
    """Return the share of the waiting texts, or of their bytes, that must leave before some more fit."""
    by_texts = (waiting[0] + texts - limits.texts) / max(1, waiting[0])
    by_bytes = (waiting[1] + size - limits.bytes) / max(1, waiting[1])
    return max(0.0, by_texts, by_bytes)
