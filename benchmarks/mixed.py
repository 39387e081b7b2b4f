"""An interactive client beside a bulk job."""

from __future__ import annotations

import time
from concurrent.futures import Future

from benchmarks.lab import Daemon, Lab, say
from benchmarks.load import stream_job
from benchmarks.results import Row, percentile
from runed import Client

_OTHER = "other"
"""The name of a model of the same file."""


def measure_interactive_beside_bulk(lab: Lab) -> list[Row]:
    """Measure short single texts during a bulk job, and the job itself; each against the same without the other."""
    return _measure(lab, lab.daemon, None, "a bulk job")


def measure_beside_another_model(lab: Lab) -> list[Row]:
    """Measure the same with a job for another model, of the same size, while there is room for both."""
    with Daemon(lab.model, others={_OTHER: {"path": str(lab.model.file)}}) as daemon:
        return _measure(lab, daemon, _OTHER, "another model's bulk job")


def _measure(lab: Lab, daemon: Daemon, name: str | None, what: str) -> list[Row]:
    """Measure single texts for the default model beside a job.

    The job's speed alone is measured half before and half after, so that a drift of the machine's speed hits both.

    Args:
        lab: The lab.
        daemon: The daemon.
        name: The model of the job; None means the default one.
        what: The job, for people.
    """
    texts = lab.effort.beside_texts
    with daemon.connect() as client:
        unloaded = _probe_alone(lab, client)
        alone = texts / 2 / _start_job(lab, daemon, name, texts // 2).result()
        job = _start_job(lab, daemon, name, texts)
        loaded: list[float] = []
        while not job.done():
            loaded.append(_probe(lab, client))
        rate = job.result()
        alone += texts / 2 / _start_job(lab, daemon, name, texts // 2).result()
        unloaded += _probe_alone(lab, client)
    lone_rate = texts / alone
    p50, p99 = percentile(unloaded, 0.5), percentile(loaded, 0.99)
    say(f"  beside bulk: {len(loaded)} texts, p50 {percentile(loaded, 0.5) * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms")
    return [
        Row(
            f"one short text every {lab.effort.probe_pause:g} s beside {what} of {texts:,}, p99",
            f"{p99 * 1000:.0f} ms (p50 {percentile(loaded, 0.5) * 1000:.0f} ms)",
            "-",
            f"x {p99 / p50:.1f} the p50 without the job, {p50 * 1000:.0f} ms",
            "at most x 4",
            p99 <= 4 * p50,
        ),
        Row(
            f"{what.replace('a bulk', 'that bulk')}, against the same alone",
            f"{rate:.1f} texts/s",
            "-",
            f"x {rate / lone_rate:.2f} of {lone_rate:.1f} texts/s",
            "at least x 0.8",
            rate >= 0.8 * lone_rate,
        ),
    ]


def _start_job(lab: Lab, daemon: Daemon, name: str | None, texts: int) -> Future[float]:
    first = lab.fresh(texts)
    return lab.load.start(stream_job, daemon.target, lab.model, range(first, first + texts), name=name)


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
