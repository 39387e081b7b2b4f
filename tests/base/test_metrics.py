"""Metrics tell the counts of the last minute and in total, in bounded memory and with almost no time."""

from __future__ import annotations

import math
import random
import time
from functools import partial

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from runed.domain.requests import Lane
from runed.domain.status import LaneStats, SchedulerStats
from runed.metrics import CONTENT_TYPE, Metrics


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1003.7

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics(clock: Clock) -> Metrics:
    return Metrics(clock)


def scrape(metrics: Metrics) -> dict[str, Metric]:
    families = list(text_string_to_metric_families(metrics.render().decode()))
    assert len({family.name for family in families}) == len(families)
    return {family.name: family for family in families}


def value(family: Metric, suffix: str = "", **labels: str) -> float:
    """Return the one sample of a name and labels."""
    (found,) = [sample.value for sample in family.samples if sample.name == family.name + suffix and sample.labels == labels]
    return found


def test_an_engine_that_did_nothing_has_zeros_and_no_fault(metrics: Metrics) -> None:
    nothing = LaneStats(total_texts=0, wait_p50_seconds=0.0, wait_p99_seconds=0.0)
    assert metrics.stats() == SchedulerStats(
        total_texts=0,
        total_tokens=0,
        tokens_per_second=0.0,
        total_batches=0,
        mean_batch_texts=0.0,
        cache_hits=0,
        shared_texts=0,
        refused_requests=0,
        interactive=nothing,
        bulk=nothing,
    )
    families = scrape(metrics)
    assert value(families["runed_texts"], "_total") == 0
    assert value(families["runed_queue_wait_seconds"], "_count", lane="bulk") == 0


def test_totals(metrics: Metrics) -> None:
    metrics.computed(Lane.BULK, texts=8, tokens=100, seconds=0.03)
    metrics.computed(Lane.INTERACTIVE, texts=2, tokens=11, seconds=0.01)
    metrics.hit(3)
    metrics.hit()
    metrics.shared()
    metrics.answered(15)
    metrics.refused()
    for _ in range(8):
        metrics.waited(Lane.BULK, 0.5)
    stats = metrics.stats()
    assert (stats.total_texts, stats.total_tokens, stats.total_batches, stats.mean_batch_texts) == (15, 111, 2, 5.0)
    assert (stats.cache_hits, stats.shared_texts, stats.refused_requests) == (4, 1, 1)
    assert (stats.bulk.total_texts, stats.interactive.total_texts) == (8, 0)


def test_the_rate_is_of_the_last_minute_and_counts_idle_time(metrics: Metrics, clock: Clock) -> None:
    metrics.computed(Lane.BULK, texts=1, tokens=600, seconds=1.0)
    assert metrics.stats().tokens_per_second == 600.0  # no time has passed, and nothing is divided by 0
    clock.now += 20.0
    assert metrics.stats().tokens_per_second == pytest.approx(30.0)  # the engine is 20 s old, not 60
    clock.now += 200.0
    for _ in range(100):
        clock.now += 1.0
        metrics.computed(Lane.BULK, texts=4, tokens=50, seconds=1.0)
    assert metrics.stats().tokens_per_second == pytest.approx(50.0, rel=0.02)
    assert metrics.stats().mean_batch_texts == 4.0
    clock.now += 30.0
    assert metrics.stats().tokens_per_second == pytest.approx(25.0, rel=0.1)
    clock.now += 31.0
    assert metrics.stats().tokens_per_second == 0.0
    assert metrics.stats().mean_batch_texts == 0.0
    assert metrics.stats().total_tokens == 5600


def test_percentiles_of_the_last_minute_are_right_to_a_few_percent(metrics: Metrics, clock: Clock) -> None:
    metrics.waited(Lane.INTERACTIVE, 900.0)  # more than a minute old when the percentiles are read
    clock.now += 61.0
    waits = [math.exp(random.Random(seed).gauss(-4.0, 2.0)) for seed in range(5000)]
    for wait in waits:
        metrics.waited(Lane.INTERACTIVE, wait)
        clock.now += 55 / len(waits)
    waits.sort()
    stats = metrics.stats().interactive
    assert stats.wait_p50_seconds == pytest.approx(waits[2499], rel=0.03)
    assert stats.wait_p99_seconds == pytest.approx(waits[4949], rel=0.03)
    assert stats.total_texts == 5001
    assert metrics.stats().bulk.wait_p99_seconds == 0.0
    clock.now += 61.0
    assert metrics.stats().interactive.wait_p99_seconds == 0.0


@pytest.mark.parametrize("wait", [0.0, 1e-9, 1e-4, 0.01, 3600.0])
def test_any_wait_can_be_told(metrics: Metrics, wait: float) -> None:
    metrics.waited(Lane.BULK, wait)
    assert metrics.stats().bulk.wait_p50_seconds == pytest.approx(wait, rel=0.03, abs=2e-6)


def test_the_exposition_holds_what_was_counted(metrics: Metrics) -> None:
    metrics.waited(Lane.INTERACTIVE, 0.004)
    metrics.waited(Lane.INTERACTIVE, 0.005)
    metrics.waited(Lane.INTERACTIVE, 1000.0)
    metrics.computed(Lane.INTERACTIVE, texts=3, tokens=40, seconds=0.02)
    metrics.computed(Lane.BULK, texts=9, tokens=60, seconds=0.05)
    metrics.answered(12)
    metrics.hit(2)
    metrics.shared(1)
    metrics.refused()
    families = scrape(metrics)
    waits = families["runed_queue_wait_seconds"]
    assert waits.type == "histogram"
    assert value(waits, "_bucket", lane="interactive", le="0.0025") == 0
    assert value(waits, "_bucket", lane="interactive", le="0.005") == 2  # a bound belongs to its own bucket
    assert value(waits, "_bucket", lane="interactive", le="300.0") == 2
    assert value(waits, "_bucket", lane="interactive", le="+Inf") == 3
    assert value(waits, "_count", lane="interactive") == 3
    assert value(waits, "_sum", lane="interactive") == pytest.approx(1000.009)
    assert value(waits, "_count", lane="bulk") == 0
    assert value(families["runed_batch_texts"], "_sum", lane="bulk") == 9
    assert value(families["runed_batch_seconds"], "_bucket", lane="bulk", le="0.05") == 1
    assert value(families["runed_batch_tokens"], "_sum", lane="interactive") == 40
    assert families["runed_tokens"].type == "counter"
    assert value(families["runed_tokens"], "_total", lane="bulk") == 60
    assert value(families["runed_texts"], "_total") == 12
    assert value(families["runed_cache_hits"], "_total") == 2
    assert value(families["runed_shared_texts"], "_total") == 1
    assert value(families["runed_refused_requests"], "_total") == 1
    assert all(family.documentation for family in families.values())
    assert CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"


HISTOGRAMS = {
    "runed_queue_wait_seconds": (
        0.001,
        0.0025,
        0.005,
        0.01,
        0.025,
        0.05,
        0.1,
        0.25,
        0.5,
        1.0,
        2.5,
        5.0,
        10.0,
        30.0,
        60.0,
        300.0,
    ),
    "runed_batch_seconds": (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
    "runed_batch_texts": (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0),
    "runed_batch_tokens": (8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 8192.0),
}
"""Bounds of the buckets, which dashboards rely on."""


def test_names_labels_and_buckets_stay_as_dashboards_know_them(metrics: Metrics) -> None:
    metrics.watch("runed_cache_bytes", "Bytes.", lambda: 1)
    metrics.watch("runed_requests_total", "Calls.", lambda: 1)
    expected = {(name, "", "") for name in ("runed_cache_bytes", "runed_requests_total")}
    expected |= {(f"runed_{name}_total", "", "") for name in ("texts", "cache_hits", "shared_texts", "refused_requests")}
    for lane in ("interactive", "bulk"):
        expected.add(("runed_tokens_total", lane, ""))
        for name, bounds in HISTOGRAMS.items():
            expected |= {(f"{name}_bucket", lane, le) for le in [*map(str, bounds), "+Inf"]}
            expected |= {(f"{name}_count", lane, ""), (f"{name}_sum", lane, "")}
    samples = [sample for family in scrape(metrics).values() for sample in family.samples]
    assert not [sample.name for sample in samples if sample.name.endswith("_created")]
    assert all(sample.labels.keys() <= {"lane", "le"} for sample in samples)
    found = [(sample.name, sample.labels.get("lane", ""), sample.labels.get("le", "")) for sample in samples]
    assert len(found) == len(set(found))
    assert {sample for sample in found if sample[0].startswith("runed_")} == expected
    assert {sample[0] for sample in found if not sample[0].startswith("runed_")} == {
        *("process_cpu_seconds_total", "process_max_fds", "process_open_fds", "process_resident_memory_bytes"),
        *("process_start_time_seconds", "process_virtual_memory_bytes"),
    }


def test_watched_numbers_are_read_at_each_scrape(metrics: Metrics) -> None:
    depth = {"interactive": 0, "bulk": 7}
    for lane in depth:
        metrics.watch("runed_queue_texts", "Texts that wait.", partial(depth.__getitem__, lane), lane=lane)
    metrics.watch("runed_engine_restarts_total", "Restarts.", lambda: 3)
    metrics.watch("runed_cache_bytes", "Bytes.", lambda: 1)
    metrics.watch("runed_cache_bytes", "Bytes.", lambda: 2)  # another cache replaces the first one
    depth["interactive"] = 5
    families = scrape(metrics)
    assert families["runed_queue_texts"].type == "gauge"
    assert value(families["runed_queue_texts"], lane="interactive") == 5
    assert value(families["runed_queue_texts"], lane="bulk") == 7
    assert families["runed_engine_restarts"].type == "counter"
    assert value(families["runed_engine_restarts"], "_total") == 3
    assert value(families["runed_cache_bytes"]) == 2
    depth["bulk"] = 0
    assert value(scrape(metrics)["runed_queue_texts"], lane="bulk") == 0


def test_two_engines_count_apart(metrics: Metrics) -> None:
    metrics.answered(1)
    assert value(scrape(Metrics())["runed_texts"], "_total") == 0


def test_an_hour_at_any_rate_takes_bounded_memory_and_little_time(metrics: Metrics, clock: Clock) -> None:
    observations = 100_000
    waits = [10 ** random.Random(seed).uniform(-7, 4) for seed in range(1000)]
    started = time.process_time()
    for number in range(observations):
        clock.now += 0.036
        metrics.waited(Lane.BULK, waits[number % 1000])
        metrics.computed(Lane.BULK, texts=1, tokens=10, seconds=0.01)
    each = (time.process_time() - started) / observations
    assert each < 50e-6  # measured: 3 microseconds; the bound is reached only if the time grows with the number of counts
    recent = metrics._recent_waits[Lane.BULK]._slices
    assert len(recent) == 12
    assert all(len(counts) <= 520 for _, counts in recent)
    assert metrics.stats().bulk.total_texts == observations
