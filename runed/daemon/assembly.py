"""The composition root: only this module constructs the parts of a daemon."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from runed.backends.llama import LlamaBackend, check_model
from runed.bootstrap import DeviceFailures, Progress, install, load_failures
from runed.caching.cache import VectorCache
from runed.daemon.bootstrapper import Bootstrapper
from runed.daemon.draining import Draining
from runed.daemon.gauges import add_gauges
from runed.daemon.host import DaemonHost
from runed.daemon.inherited import restrictions
from runed.daemon.served_model import ServedModel
from runed.domain.status import Info
from runed.files import run_in_thread
from runed.lifecycle.listener import Listener
from runed.lifecycle.loopback import Loopback
from runed.lifecycle.record import DaemonRecord
from runed.locking import LockFile
from runed.metrics import Metrics
from runed.paths import Paths
from runed.routing.store import CentroidStore
from runed.scheduling.preparing import MAX_BATCH_TEXTS
from runed.scheduling.queue import QueueLimits
from runed.scheduling.scheduler import MAX_REQUEST_BYTES, Scheduler, SchedulerSettings
from runed.settings import Settings
from runed.version import __version__

if TYPE_CHECKING:
    from runed.server import Server


@dataclass(frozen=True, slots=True)
class Daemon:
    """The parts of a daemon that its process runs."""

    host: DaemonHost
    bootstrapper: Bootstrapper
    draining: Draining
    build_servers: Callable[[], Sequence[Server]]
    """Construct the servers, which may take half a second."""


def assemble(
    settings: Settings, paths: Paths, *, lock: LockFile, record: DaemonRecord, listener: Listener, http: Loopback | None
) -> Daemon:
    """Construct a daemon that serves one home. Nothing runs yet.

    Args:
        settings: The settings.
        paths: The files of the home.
        lock: The daemon's lock of the home, which is held.
        record: The home's record of this process.
        listener: The listening socket.
        http: The listening loopback port, or None.
    """

    def announce_drain() -> None:
        with contextlib.suppress(OSError):  # tells clients that find this daemon that it takes no more calls
            record.tell_draining(paths.daemon_record)

    queue = QueueLimits(texts=settings.queue_texts, bytes=settings.queue_bytes)
    metrics = Metrics()
    draining = Draining(announce_drain)
    failures = load_failures(settings, paths)
    bootstrapper = Bootstrapper(partial(_build_model, settings, paths, lock, queue, metrics, failures=failures), draining)
    facts = Info(
        daemon_version=__version__,
        socket_path=str(listener.path),
        # A batch that can never wait would be refused for ever.
        max_batch_size=min(MAX_BATCH_TEXTS, queue.bulk.texts),
        max_request_bytes=min(MAX_REQUEST_BYTES, queue.bulk.bytes),
        profile=settings.profile,
        max_queued_texts=settings.queue_texts,
        max_queued_bytes=settings.queue_bytes,
        restrictions=restrictions(),
    )
    host = DaemonHost(facts, bootstrapper=bootstrapper, draining=draining, metrics=metrics)
    add_gauges(metrics, host, bootstrapper)
    return Daemon(host, bootstrapper, draining, partial(_build_servers, settings, host, metrics, listener, http))


def _build_servers(
    settings: Settings, host: DaemonHost, metrics: Metrics, listener: Listener, http: Loopback | None
) -> Sequence[Server]:
    from runed.api.app import build_app  # noqa: PLC0415 # 0.2 s for this and the next, in which an engine loads already
    from runed.server import Budget, Server, connection_limits  # noqa: PLC0415 # as above

    budget = Budget(settings.request_bytes, metrics.refused)
    clients, strangers = connection_limits()
    servers = [Server(build_app(host), listener.sock, max_connections=clients, budget=budget)]
    if http is not None:
        from runed.api.openai.app import build_openai_app  # noqa: PLC0415 # as above
        from runed.api.openai.token_guard import token_gate  # noqa: PLC0415 # as above

        gate = token_gate(token=http.token, port=http.port)
        servers.append(Server(build_openai_app(host), http.sock, max_connections=strangers, budget=budget, gate=gate))
    return servers


async def _build_model(  # noqa: PLR0917 # the parts of a daemon
    settings: Settings,
    paths: Paths,
    lock: LockFile,
    queue: QueueLimits,
    metrics: Metrics,
    report: Callable[[Progress], None],
    *,
    failures: DeviceFailures,
) -> ServedModel:
    """Get engine and model, and construct the parts that serve them. The engine is not started."""
    installation = await install(settings, paths, report=report, check_model=check_model, failures=failures)
    # In a thread, since reading the metadata of a large vocabulary takes 0.1 s.
    backend = await asyncio.to_thread(
        LlamaBackend,
        executable=installation.llama_server,
        model=installation.model,
        model_sha256=installation.model_sha256,
        paths=paths,
        ctx_size=settings.ctx_size,
        profile=settings.profile,
        device=installation.device,
        holds_home=lock.is_current,
    )
    centroids = CentroidStore(paths.centroids, dim=backend.model.dim, model=backend.model.identity)
    await run_in_thread(centroids.restore)
    scheduler = Scheduler(
        backend,
        settings=SchedulerSettings(idle_timeout=settings.idle_timeout, queue=queue),
        cache=_build_cache(settings, paths),
        metrics=metrics,
        centroids=centroids,
        engine_version=installation.engine_version,
        device=installation.device,
        traits=installation.traits,
    )
    return ServedModel(scheduler, installation, failures)


def _build_cache(settings: Settings, paths: Paths) -> VectorCache:
    disk = None
    if settings.disk_cache and settings.disk_cache_bytes:
        from runed.caching.disk_cache import DiskCache  # noqa: PLC0415 # a daemon that keeps nothing on disk loads no SQLite

        disk = DiskCache(paths.vector_cache, paths.cache_secret, max_bytes=settings.disk_cache_bytes)
    return VectorCache(settings.cache_bytes, disk)
