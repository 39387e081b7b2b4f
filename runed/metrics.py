"""The numbers of the engine: totals since the start, the last minute for `Health`, and all of it as Prometheus text."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from runed.domain.requests import Lane
from runed.domain.status import EngineStats, LaneStats

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
"""The media type of `Metrics.render`."""

_T = TypeVar("_T")

_SLICE_SECONDS = 5
_SLICES = 12
"""The last minute is kept as so many slices of so many seconds; the oldest is dropped as a whole."""

_SHORTEST = 1e-6
_BUCKETS_PER_E = 20
"""Waits are counted in buckets whose bounds grow by e^(1/20), so that a percentile is right to 2.5 %. There are few of them:
413 from a microsecond to a quarter of an hour."""

_WAIT_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_BATCH_SECONDS_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BATCH_TEXTS_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_BATCH_TOKENS_BOUNDS = (8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 8192.0)


class Metrics(Collector):
    """Counts what the engine does. Not for several threads: everything is called on the event loop.

    An observation takes about a microsecond, and all of them together take a fixed amount of memory.

    Args:
        clock: Gives seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lanes = {lane: _LaneCounts(clock) for lane in Lane}
        self._batches = _LastMinute(clock, _Batches)
        self._hits = 0
        self._shared = 0
        self._answered = 0
        self._refused = 0
        self._readings: dict[str, _Reading] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)  # the daemon's own memory, processor time and open files

    def waited(self, lane: Lane, seconds: float) -> None:
        """Count a text that was taken from its lane's queue, and how long it had waited."""
        counts = self._lanes[lane]
        counts.waits.observe(seconds)
        counts.recent_waits.current()[_bucket(seconds)] += 1

    def computed(self, lane: Lane, *, texts: int, tokens: int, seconds: float) -> None:
        """Count a micro-batch that came back.

        Args:
            lane: The lane that it was made for.
            texts: The number of its texts.
            tokens: The number of their tokens.
            seconds: How long the backend took.
        """
        counts = self._lanes[lane]
        counts.batch_seconds.observe(seconds)
        counts.batch_texts.observe(texts)
        counts.batch_tokens.observe(tokens)
        batches = self._batches.current()
        batches.count += 1
        batches.texts += texts
        batches.tokens += tokens

    def hit(self, texts: int = 1) -> None:
        """Count texts whose vector was in the cache."""
        self._hits += texts

    def shared(self, texts: int = 1) -> None:
        """Count texts that joined the same text in flight."""
        self._shared += texts

    def answered(self, texts: int) -> None:
        """Count texts that were answered with a vector, wherever it came from."""
        self._answered += texts

    def refused(self) -> None:
        """Count a call that was refused because the queue was full."""
        self._refused += 1

    def watch(self, name: str, help: str, read: Callable[[], float], **labels: str) -> None:  # noqa: A002 # Prometheus' word
        """Report a number that somebody else keeps, read whenever the metrics are.

        Args:
            name: The metric, as in "runed_cache_bytes". A name that ends with "_total" is a counter's, any other a gauge's.
            help: What it is, for people; the first one given for a name counts.
            read: Gives the number; must be quick and must not fail.
            labels: Tell several numbers of one name apart. The same ones again replace what was read before.
        """
        reading = self._readings.setdefault(name, _Reading(help))
        reading.sources[tuple(sorted(labels.items()))] = read

    def stats(self) -> EngineStats:
        """Give the totals, and the last minute."""
        recent = _Batches()
        for batches in self._batches.slices():
            recent.count += batches.count
            recent.texts += batches.texts
            recent.tokens += batches.tokens
        return EngineStats(
            total_texts=self._answered,
            total_tokens=int(sum(counts.batch_tokens.sum for counts in self._lanes.values())),
            tokens_per_second=recent.tokens / self._batches.seconds(),
            total_batches=sum(counts.batch_texts.count for counts in self._lanes.values()),
            mean_batch_texts=recent.texts / recent.count if recent.count else 0.0,
            cache_hits=self._hits,
            shared_texts=self._shared,
            refused_requests=self._refused,
            interactive=self._lanes[Lane.INTERACTIVE].stats(),
            bulk=self._lanes[Lane.BULK].stats(),
        )

    def render(self) -> bytes:
        """Give all metrics in Prometheus' text format, of the media type `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Promise no names: the registry would otherwise read every source to learn them."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Give all metrics to the registry."""
        for name, text, count in (
            ("runed_texts", "Texts answered with a vector, cached ones included.", self._answered),
            ("runed_cache_hits", "Texts whose vector was in the cache.", self._hits),
            ("runed_shared_texts", "Texts whose vector was being computed for another caller already.", self._shared),
            ("runed_refused_requests", "Calls refused because the queue was full.", self._refused),
        ):
            yield CounterMetricFamily(name, text, value=count)
        tokens = CounterMetricFamily("runed_tokens", "Tokens computed by the engine.", labels=["lane"])
        for lane, counts in self._lanes.items():
            tokens.add_metric([lane.value], counts.batch_tokens.sum)
        yield tokens
        yield self._histogram("runed_queue_wait_seconds", "Wait of a text until the engine took it.", lambda of: of.waits)
        yield self._histogram("runed_batch_seconds", "Time of the engine for a micro-batch.", lambda of: of.batch_seconds)
        yield self._histogram("runed_batch_texts", "Texts of a micro-batch.", lambda of: of.batch_texts)
        yield self._histogram("runed_batch_tokens", "Tokens of a micro-batch.", lambda of: of.batch_tokens)
        for name, reading in self._readings.items():
            yield reading.family(name)

    def _histogram(self, name: str, text: str, choose: Callable[[_LaneCounts], _Histogram]) -> Metric:
        family = HistogramMetricFamily(name, text, labels=["lane"])
        for lane, counts in self._lanes.items():
            histogram = choose(counts)
            family.add_metric([lane.value], histogram.cumulative(), histogram.sum)
        return family


class _LaneCounts:
    """What is counted of one lane."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.waits = _Histogram(_WAIT_BOUNDS)
        self.recent_waits = _LastMinute(clock, Counter[int])
        self.batch_seconds = _Histogram(_BATCH_SECONDS_BOUNDS)
        self.batch_texts = _Histogram(_BATCH_TEXTS_BOUNDS)
        self.batch_tokens = _Histogram(_BATCH_TOKENS_BOUNDS)

    def stats(self) -> LaneStats:
        waits: Counter[int] = Counter()
        for counts in self.recent_waits.slices():
            waits.update(counts)
        return LaneStats(
            total_texts=self.waits.count, wait_p50_seconds=_percentile(waits, 0.5), wait_p99_seconds=_percentile(waits, 0.99)
        )


class _Histogram:
    """Counts by upper bounds, as Prometheus does. Its own class costs a third of a microsecond, the library's two.

    Args:
        bounds: The upper bounds, inclusive and growing.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    @property
    def count(self) -> int:
        return sum(self._counts)

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[str, float]]:
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip([*self._bounds, math.inf], self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == math.inf else str(bound), total))
        return buckets


@dataclass(slots=True)
class _Batches:
    """Micro-batches of a while: how many, and what was in them."""

    count: int = 0
    texts: int = 0
    tokens: int = 0


class _LastMinute(Generic[_T]):
    """What happened in the last minute, in slices of time.

    Args:
        clock: Gives seconds that only grow.
        empty: Makes the contents of a slice in which nothing has happened yet.
    """

    def __init__(self, clock: Callable[[], float], empty: Callable[[], _T]) -> None:
        self._clock = clock
        self._empty = empty
        self._born = clock()
        self._slices: deque[tuple[int, _T]] = deque([(self._number(), empty())], maxlen=_SLICES)

    def current(self) -> _T:
        """Give the slice of this moment, to be added to."""
        number = self._number()
        if self._slices[-1][0] != number:
            self._slices.append((number, self._empty()))
        return self._slices[-1][1]

    def slices(self) -> list[_T]:
        """Give those of the last minute."""
        first = self._number() - _SLICES + 1
        return [contents for number, contents in self._slices if number >= first]

    def seconds(self) -> float:
        """Give how long `slices` reach back, at least one second."""
        oldest = (self._number() - _SLICES + 1) * _SLICE_SECONDS
        return max(self._clock() - max(oldest, self._born), 1.0)

    def _number(self) -> int:
        return int(self._clock() // _SLICE_SECONDS)


@dataclass(slots=True)
class _Reading:
    """A metric whose numbers somebody else keeps: what it is, and where they come from, by labels."""

    help: str
    sources: dict[tuple[tuple[str, str], ...], Callable[[], float]] = field(default_factory=dict)

    def family(self, name: str) -> Metric:
        counter = name.endswith("_total")
        family: Metric = CounterMetricFamily(name, self.help) if counter else GaugeMetricFamily(name, self.help)
        for labels, read in self.sources.items():
            family.add_sample(name, dict(labels), read())
        return family


def _bucket(seconds: float) -> int:
    return math.floor(math.log(max(seconds, _SHORTEST)) * _BUCKETS_PER_E)


def _percentile(buckets: Counter[int], share: float) -> float:
    """Give the middle of the bucket that holds a percentile, by nearest rank."""
    rank = math.ceil(buckets.total() * share)
    for bucket in sorted(buckets):
        rank -= buckets[bucket]
        if rank <= 0:
            return math.exp((bucket + 0.5) / _BUCKETS_PER_E)
    return 0.0
