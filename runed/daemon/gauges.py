"""Metrics that other parts count, and that are read at each request."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator

from runed.backends.base import BackendState, BackendStatus
from runed.daemon.gpus import add_gpus
from runed.daemon.history import Sample
from runed.daemon.host import DaemonHost
from runed.daemon.pool import Pool
from runed.domain.requests import Lane
from runed.domain.status import Load
from runed.metrics import Labelled, Metrics
from runed.processes import resident_bytes
from runed.version import __version__


def add_gauges(metrics: Metrics, host: DaemonHost, pool: Pool) -> None:
    """Add the numbers of the host, of the engines and of the queues to the metrics. They are 0 until there is a model."""

    def default(read: Callable[[BackendState], float]) -> Callable[[], float]:
        return lambda: read(pool.default.model.state) if pool.default.model else 0

    def load(read: Callable[[Load], float]) -> Callable[[], float]:
        return lambda: read(models[0].scheduler.load) if (models := pool.all_served()) else 0

    def queued(lane: Lane, part: int) -> Callable[[], float]:
        return load(lambda load: load.queued[lane][part])

    watch = metrics.watch
    watch("runed_uptime_seconds", "Seconds since the daemon started.", lambda: host.uptime)
    watch("runed_requests_total", "Embedding calls that could be read, including failed ones.", lambda: host.total_requests)
    watch("runed_requests_in_flight", "Embedding calls being served.", lambda: host.in_flight)
    watch(
        "runed_engine_up",
        "Whether the default model's engine is ready.",
        default(lambda state: state.status is BackendStatus.READY),
    )
    watch(
        "runed_engine_restarts_total",
        "How often the default model's engine died and was replaced.",
        default(lambda state: state.restarts),
    )
    metrics.watch_all(
        "runed_engine_wakeups_total",
        "Starts of a stopped engine, by model.",
        lambda: [({"model": served.seat.name}, served.state.wakeups) for served in pool.all_served()],
    )
    metrics.watch_all(
        "runed_engine_wakeup_seconds_total",
        "Time of the starts of a stopped engine, all together, by model.",
        lambda: [({"model": served.seat.name}, served.state.waking_seconds) for served in pool.all_served()],
    )
    metrics.watch_all(
        "runed_engine_memory_bytes", "The memory that an engine has now, by model; not that of a device.", lambda: _memory(pool)
    )
    metrics.watch_all("runed_engine_info", "What serves each model.", lambda: _engines(pool))
    about = {"version": __version__, "python_version": platform.python_version()}
    watch("runed_build_info", "The version of the daemon.", lambda: 1, **about)
    add_gpus(metrics, lambda: any(not served.serving.device.is_cpu for served in pool.all_served()))
    watch("runed_engines", "Engines that run.", lambda: sum(bool(served.state.pid) for served in pool.all_served()))
    watch("runed_engines_memory_bytes", "The memory that is counted for all engines.", lambda: pool.seats.used)
    watch("runed_engine_starts_total", "How often an engine got room.", lambda: pool.seats.starts)
    watch("runed_cache_entries", "Vectors in the cache of the memory.", load(lambda load: load.cache_entries))
    watch("runed_cache_bytes", "The memory that cached vectors take.", load(lambda load: load.cache_bytes))
    watch("runed_disk_cache_bytes", "The size of the cache on disk.", load(lambda load: load.disk_cache_bytes))
    for lane in Lane:
        watch("runed_queued_texts", "Texts that wait.", queued(lane, 0), lane=lane.value)
        watch("runed_queued_bytes", "Bytes of text that wait.", queued(lane, 1), lane=lane.value)


def _memory(pool: Pool) -> Iterator[Labelled]:
    for served in pool.all_served():
        if pid := served.state.pid:
            yield {"model": served.seat.name}, resident_bytes(pid)


def _engines(pool: Pool) -> Iterator[Labelled]:
    for served in pool.all_served():
        serving = served.serving
        yield (
            {
                "model": served.seat.name,
                "engine": serving.engine,
                "version": serving.version,
                "accelerator": serving.device.accelerator,
                "device": serving.device.description,
            },
            1,
        )


def sample(pool: Pool) -> Sample:
    """Return the numbers that the history samples. They are 0 until there is a model."""
    if not (models := pool.all_served()):
        return Sample()
    load = models[0].scheduler.load
    return Sample(
        texts=load.stats.total_texts,
        tokens=load.stats.total_tokens,
        queued=sum(texts for texts, _ in load.queued.values()),
        engine_bytes=pool.seats.used,
    )
