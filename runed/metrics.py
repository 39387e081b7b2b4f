"""The numbers of calls and of the scheduler: totals, those of the last minute for `Health`, and both as Prometheus text."""

from __future__ import annotations

import math
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runed.domain.requests import Lane
from runed.domain.status import LaneStats, SchedulerStats

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
"""The media type of `Metrics.render`."""

Labelled: TypeAlias = tuple[Mapping[str, str], float]
"""The labels of a number, and the number."""

_T = TypeVar("_T")

_SLICE_SECONDS = 5
"""Seconds of a slice of the last minute."""

_SLICES = 12
"""Slices that are kept. The oldest is dropped as a whole."""

_SHORTEST = 1e-6
"""Shortest wait that does not count as 0, in seconds."""

_BUCKETS_PER_E = 20
"""Buckets of the last minute's waits per factor of e. So a percentile is right to 2.5 %, and 413 buckets reach to 15
minutes."""

_MOST_NEW = 1000
"""Most waits that are kept until they are counted. To count many at once costs less, since the code is in the caches then."""

REQUEST_SECONDS = "runed_request_duration_seconds"
"""The name of the time of calls."""

_REQUEST_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_WAIT_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_BATCH_SECONDS_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BATCH_TEXTS_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_BATCH_TOKENS_BOUNDS = (8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 8192.0)


class Metrics:
    """Counts calls and the work of the scheduler. All calls of its methods must come from one thread.

    A count takes a few microseconds. All counts together take a fixed amount of memory.

    Args:
        clock: Returns seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        # It holds for the whole process: the library has no such switch for one registry.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str, bounds: Sequence[float], *labels: str) -> Histogram:
            return Histogram(name, text, labels or ["lane"], buckets=bounds, registry=registry)

        # Numbers of the class itself, since a counter of the library takes a lock for each text.
        self._answered = self._hits = self._shared = self._refused = 0
        self._tokens = counter("runed_tokens", "Tokens computed by the engine.", "lane")
        self._waits = histogram("runed_queue_wait_seconds", "Wait of a text until the engine took it.", _WAIT_BOUNDS)
        self._seconds = histogram("runed_batch_seconds", "Time of the engine for a micro-batch.", _BATCH_SECONDS_BOUNDS)
        self._batch_texts = histogram("runed_batch_texts", "Texts of a micro-batch.", _BATCH_TEXTS_BOUNDS)
        self._batch_tokens = histogram("runed_batch_tokens", "Tokens of a micro-batch.", _BATCH_TOKENS_BOUNDS)
        text = "Time of a call, from its head to its answer, by method and code; a stream is one call."
        self._requests = histogram(REQUEST_SECONDS, text, _REQUEST_BOUNDS, "method", "code")
        self._errors = counter("runed_request_errors", "Calls that were answered with an error.", "reason")
        text = "Texts that were answered with an error of their own, in calls that were not."
        self._text_errors = counter("runed_text_errors", text, "reason")
        self._requests_of: dict[tuple[str, str], Histogram] = {}
        # Here, so that a lane is shown before its first text, and that no text looks it up.
        self._waits_of = {lane: self._waits.labels(lane.value) for lane in Lane}
        self._tokens_of = {lane: self._tokens.labels(lane.value) for lane in Lane}
        self._batches_of = {
            lane: tuple(metric.labels(lane.value) for metric in (self._seconds, self._batch_texts, self._batch_tokens))
            for lane in Lane
        }
        self._clock = clock
        self._new_waits: list[tuple[float, Lane, float]] = []
        self._recent_waits = {lane: _LastMinute(clock, Tally[int]) for lane in Lane}
        self._recent_batches = _LastMinute(clock, _Batches)
        self._watched = _Watched()
        registry.register(self._watched)
        self.watch("runed_texts_total", "Texts answered with a vector, including cached ones.", lambda: self._answered)
        self.watch("runed_cache_hits_total", "Texts whose vector was in the cache.", lambda: self._hits)
        text = "Texts whose vector was being computed for another caller already."
        self.watch("runed_shared_texts_total", text, lambda: self._shared)
        text = "Calls refused because the queue, or their memory, was full."
        self.watch("runed_refused_requests_total", text, lambda: self._refused)
        ProcessCollector(registry=registry)  # the daemon's own memory, processor time and open files

    def waited(self, lane: Lane, seconds: float) -> None:
        """Count a text that was taken from the queue of its lane.

        Args:
            lane: The lane.
            seconds: The time that the text had waited.
        """
        self._new_waits.append((self._clock(), lane, seconds))
        if len(self._new_waits) == _MOST_NEW:
            self._count_waits()

    def computed(self, lane: Lane, *, texts: int, tokens: int, seconds: float) -> None:
        """Count a micro-batch that came back.

        Args:
            lane: The lane that it was made for.
            texts: The number of its texts.
            tokens: The number of their tokens.
            seconds: The time that the backend took.
        """
        self._tokens_of[lane].inc(tokens)
        for metric, number in zip(self._batches_of[lane], (seconds, texts, tokens), strict=True):
            metric.observe(number)
        batches = self._recent_batches.at(self._clock())
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
        """Count texts that were answered with a vector, including cached ones."""
        self._answered += texts

    def refused(self) -> None:
        """Count a call that was refused because the queue, or the memory of requests, was full."""
        self._refused += 1

    def called(self, method: str, code: str, seconds: float, reason: str = "", texts: Mapping[str, int] | None = None) -> None:
        """Count a call that has ended.

        Args:
            method: The name of its method. There are few of them, whatever clients send.
            code: "ok", or the code of its error.
            seconds: Its time.
            reason: The reason of its error, or "".
            texts: The number of texts with errors of their own, by reason.
        """
        if (requests := self._requests_of.get((method, code))) is None:
            requests = self._requests_of[method, code] = self._requests.labels(method, code)
        requests.observe(seconds)
        if reason:
            self._errors.labels(reason).inc()
        for each, number in (texts or {}).items():
            self._text_errors.labels(each).inc(number)

    def watch(self, name: str, help: str, read: Callable[[], float], **labels: str) -> None:  # noqa: A002 # Prometheus' word
        """Report a number that another part keeps. It is read at every request for the metrics.

        Args:
            name: The metric, as in "runed_cache_bytes". A name that ends with "_total" is a counter's, any other a gauge's.
            help: The meaning, for people. The first text of a name is used.
            read: Returns the number, quickly and without failing.
            labels: Labels that tell the numbers of one name apart. A number of the same labels is replaced.
        """
        self._watched.add(name, help, read, labels)

    def watch_all(self, name: str, help: str, read: Callable[[], Iterable[Labelled]]) -> None:  # noqa: A002 # as above
        """Report numbers whose labels change, such as one for each engine that runs; see `watch`.

        Args:
            name: As for `watch`.
            help: As for `watch`.
            read: Returns the labels and the number of each, quickly and without failing.
        """
        self._watched.add_all(name, help, read)

    def stats(self) -> SchedulerStats:
        """Return the totals, and the last minute."""
        self._count_waits()
        recent = _Batches()
        for batches in self._recent_batches.slices():
            recent.count += batches.count
            recent.texts += batches.texts
            recent.tokens += batches.tokens
        return SchedulerStats(
            total_texts=self._answered,
            total_tokens=_total(self._tokens),
            tokens_per_second=recent.tokens / self._recent_batches.seconds(),
            total_batches=_total(self._batch_texts, "_count"),
            mean_batch_texts=recent.texts / recent.count if recent.count else 0.0,
            cache_hits=self._hits,
            shared_texts=self._shared,
            refused_requests=self._refused,
            interactive=self._lane_stats(Lane.INTERACTIVE),
            bulk=self._lane_stats(Lane.BULK),
        )

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format, of the media type `CONTENT_TYPE`."""
        self._count_waits()
        return generate_latest(self._registry)

    def collect(self) -> list[Metric]:
        """Return all metrics as Prometheus' library has them."""
        self._count_waits()
        return list(self._registry.collect())

    def _count_waits(self) -> None:
        waits, self._new_waits = self._new_waits, []
        for moment, lane, seconds in waits:
            self._waits_of[lane].observe(seconds)
            self._recent_waits[lane].at(moment)[bucket_of(seconds)] += 1

    def _lane_stats(self, lane: Lane) -> LaneStats:
        waits: Tally[int] = Tally()
        for counts in self._recent_waits[lane].slices():
            waits.update(counts)
        return LaneStats(
            total_texts=_total(self._waits_of[lane], "_count"),
            wait_p50_seconds=percentile_of(waits, 0.5),
            wait_p99_seconds=percentile_of(waits, 0.99),
        )


@dataclass(slots=True)
class _Batches:
    """Numbers of the micro-batches of a slice of time, and of their texts and tokens."""

    count: int = 0
    texts: int = 0
    tokens: int = 0


class _LastMinute(Generic[_T]):
    """The numbers of the last minute, in slices of time.

    Args:
        clock: Returns seconds that only grow.
        empty: Makes the numbers of a slice in which nothing has happened yet.
    """

    def __init__(self, clock: Callable[[], float], empty: Callable[[], _T]) -> None:
        self._clock = clock
        self._empty = empty
        self._born = clock()
        self._slices: deque[tuple[int, _T]] = deque([(self._number(), empty())], maxlen=_SLICES)

    def at(self, moment: float) -> _T:
        """Return the numbers of the slice of a moment, so that a count can be added. Moments never go back."""
        number = int(moment // _SLICE_SECONDS)
        if self._slices[-1][0] != number:
            self._slices.append((number, self._empty()))
        return self._slices[-1][1]

    def slices(self) -> list[_T]:
        """Return the numbers of each slice of the last minute."""
        first = self._number() - _SLICES + 1
        return [contents for number, contents in self._slices if number >= first]

    def seconds(self) -> float:
        """Return the seconds that `slices` cover, at least 1."""
        oldest = (self._number() - _SLICES + 1) * _SLICE_SECONDS
        return max(self._clock() - max(oldest, self._born), 1.0)

    def _number(self) -> int:
        return int(self._clock() // _SLICE_SECONDS)


class _Watched(Collector):
    """The metrics whose numbers other parts keep."""

    def __init__(self) -> None:
        self._readings: dict[str, _Reading] = {}

    def add(self, name: str, text: str, read: Callable[[], float], labels: dict[str, str]) -> None:
        reading = self._readings.setdefault(name, _Reading(text))
        reading.sources[tuple(sorted(labels.items()))] = read

    def add_all(self, name: str, text: str, read: Callable[[], Iterable[Labelled]]) -> None:
        self._readings[name] = _Reading(text, read_all=read)

    def describe(self) -> Iterable[Metric]:
        """Return no names. Otherwise the registry would read every number to learn them."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read every number."""
        for name, reading in self._readings.items():
            counter = name.endswith("_total")
            family: Metric = CounterMetricFamily(name, reading.help) if counter else GaugeMetricFamily(name, reading.help)
            for labels, read in reading.sources.items():
                family.add_sample(name, dict(labels), read())
            for changing, number in reading.read_all():
                family.add_sample(name, dict(changing), number)
            yield family


@dataclass(slots=True)
class _Reading:
    """A watched metric: its meaning, the functions that read its numbers, by labels, and one that reads labels, too."""

    help: str
    sources: dict[tuple[tuple[str, str], ...], Callable[[], float]] = field(default_factory=dict)
    read_all: Callable[[], Iterable[Labelled]] = tuple


def _total(metric: Counter | Histogram, suffix: str = "_total") -> int:
    """Return the sum of a metric's samples whose name has the given end: of all lanes, or of one for the child of a lane."""
    samples = (sample for family in metric.collect() for sample in family.samples)
    return int(sum(sample.value for sample in samples if sample.name.endswith(suffix)))


def bucket_of(seconds: float) -> int:
    """Return the number of the bucket of a time, for `percentile_of`."""
    return math.floor(math.log(max(seconds, _SHORTEST)) * _BUCKETS_PER_E)


def percentile_of(buckets: Tally[int], share: float) -> float:
    """Return the middle of the bucket that holds a percentile, by nearest rank; 0 if there is no time.

    Args:
        buckets: How many times are in each bucket.
        share: The percentile, from 0 to 1.
    """
    rank = math.ceil(buckets.total() * share)
    for bucket in sorted(buckets):
        rank -= buckets[bucket]
        if rank <= 0:
            return math.exp((bucket + 0.5) / _BUCKETS_PER_E)
    return 0.0
