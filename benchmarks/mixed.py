"""An interactive client beside a bulk job."""

from __future__ import annotations

import time
from concurrent.futures import Future

from benchmarks.lab import Lab, say
from benchmarks.load import stream_job
from benchmarks.results import Row, percentile
from runed import Client


def measure_interactive_beside_bulk(lab: Lab) -> list[Row]:
    """Measure short single texts during a bulk job, and the job itself; each against the same without the other.

    The job's speed alone is measured half before and half after, so that a drift of the machine's speed hits both.
    """
    texts = lab.effort.beside_texts
    with lab.daemon.connect() as client:
        unloaded = _probe_alone(lab, client)
        alone = texts / 2 / _start_job(lab, texts // 2).result()
        job = _start_job(lab, texts)
        loaded: list[float] = []
        while not job.done():
            loaded.append(_probe(lab, client))
        rate = job.result()
        alone += texts / 2 / _start_job(lab, texts // 2).result()
        unloaded += _probe_alone(lab, client)
    lone_rate = texts / alone
    p50, p99 = percentile(unloaded, 0.5), percentile(loaded, 0.99)
    say(f"  beside bulk: {len(loaded)} texts, p50 {percentile(loaded, 0.5) * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms")
    return [
        Row(
            f"one short text every {lab.effort.probe_pause:g} s beside a bulk job of {texts:,}, p99",
            f"{p99 * 1000:.0f} ms (p50 {percentile(loaded, 0.5) * 1000:.0f} ms)",
            "-",
            f"x {p99 / p50:.1f} the p50 without the job, {p50 * 1000:.0f} ms",
            "at most x 4",
            p99 <= 4 * p50,
        ),
        Row(
            "that bulk job, against the same alone",
            f"{rate:.1f} texts/s",
            "-",
            f"x {rate / lone_rate:.2f} of {lone_rate:.1f} texts/s",
            "at least x 0.8",
            rate >= 0.8 * lone_rate,
        ),
    ]


def _start_job(lab: Lab, texts: int) -> Future[float]:
    first = lab.fresh(texts)
    return lab.load.start(stream_job, lab.daemon.target, lab.model, range(first, first + texts))


def _probe_alone(lab: Lab, client: Client) -> list[float]:
    return [_probe(lab, client) for _ in range(lab.effort.lone_probes // 2)]


def _probe(lab: Lab, client: Client) -> float:
    """Embed one short text, wait until the next one is due, and return the seconds that the text took."""
    [text] = lab.fresh_texts(1)
    began = time.perf_counter()
    client.embed(text)
    seconds = time.perf_counter() - began
    time.sleep(max(0.0, lab.effort.probe_pause - seconds))
    return seconds
