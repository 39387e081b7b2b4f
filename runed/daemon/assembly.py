"""The composition root: only this module constructs the parts of a daemon."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from runed.api.later import Later
from runed.bootstrap import DeviceFailures, Installation, Progress, install, load_failures
from runed.daemon.bootstrapper import Bootstrapper
from runed.daemon.draining import Draining
from runed.daemon.inherited import restrictions
from runed.daemon.served_model import ServedModel
from runed.errors import RunedError
from runed.files import run_in_thread
from runed.lifecycle.listener import Listener
from runed.lifecycle.loopback import Loopback
from runed.lifecycle.record import DaemonRecord
from runed.locking import LockFile
from runed.paths import Paths
from runed.processes import trim_memory
from runed.settings import Settings
from runed.version import __version__

if TYPE_CHECKING:  # in the functions below, these are imported while the engine is looked for and loads its model
    from runed.backends.llama import LlamaBackend
    from runed.caching.cache import VectorCache
    from runed.daemon.host import DaemonHost
    from runed.metrics import Metrics
    from runed.scheduling.scheduler import Scheduler
    from runed.server import Server


@dataclass(frozen=True, slots=True)
class Face:
    """The parts of a daemon that answer calls."""

    host: DaemonHost
    servers: Sequence[Server]


@dataclass(frozen=True, slots=True)
class Daemon:
    """The parts of a daemon that its process runs."""

    bootstrapper: Bootstrapper
    draining: Draining
    build_face: Callable[[], Awaitable[Face]]
    """Construct the host and the servers."""


def assemble(
    settings: Settings, paths: Paths, *, lock: LockFile, record: DaemonRecord, listener: Listener, http: Loopback | None
) -> Daemon:
    """Construct the parts of a daemon that find engine and model for one home. Nothing runs yet.

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

    # One thread imports, in the order of need: two would slow each other down, and the engine would start later. It begins in
    # `build_face`: until then a signal raises SystemExit, even amid the start of a thread, which nobody would end.
    importing = ThreadPoolExecutor(1, thread_name_prefix="runed-imports")
    metrics = Later(_build_metrics, importing)
    draining = Draining(announce_drain)
    failures = load_failures(settings, paths)
    bootstrapper = Bootstrapper(partial(_build_model, settings, paths, lock, metrics, failures=failures), draining)

    async def build_face() -> Face:
        with importing:
            for module in ("runed.backends.llama", "runed.daemon.host"):
                importing.submit(importlib.import_module, module)
            made = await metrics.get()
            build = partial(_build_face, settings, listener, http, bootstrapper=bootstrapper, draining=draining, metrics=made)
            return await asyncio.get_running_loop().run_in_executor(importing, build)

    return Daemon(bootstrapper, draining, build_face)


def _build_metrics() -> Metrics:
    from runed.metrics import Metrics  # noqa: PLC0415 # as above

    return Metrics()


def _build_face(
    settings: Settings,
    listener: Listener,
    http: Loopback | None,
    *,
    bootstrapper: Bootstrapper,
    draining: Draining,
    metrics: Metrics,
) -> Face:
    from runed.api.app import build_app  # noqa: PLC0415 # as above
    from runed.daemon.gauges import add_gauges  # noqa: PLC0415 # as above
    from runed.daemon.host import DaemonHost  # noqa: PLC0415 # as above
    from runed.domain.status import Info  # noqa: PLC0415 # as above
    from runed.scheduling.preparing import MAX_BATCH_TEXTS  # noqa: PLC0415 # as above
    from runed.scheduling.queue import QueueLimits  # noqa: PLC0415 # as above
    from runed.scheduling.scheduler import MAX_REQUEST_BYTES  # noqa: PLC0415 # as above
    from runed.server import Budget, Server, connection_limits  # noqa: PLC0415 # as above

    queue = QueueLimits(texts=settings.queue_texts, bytes=settings.queue_bytes)
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
    budget = Budget(settings.request_bytes, metrics.refused, trim_memory)
    clients, strangers = connection_limits()
    servers = [Server(build_app(host), listener.sock, max_connections=clients, budget=budget)]
    if http is not None:
        from runed.api.openai.app import build_openai_app  # noqa: PLC0415 # as above
        from runed.api.openai.token_guard import token_gate  # noqa: PLC0415 # as above

        gate = token_gate(token=http.token, port=http.port)
        servers.append(Server(build_openai_app(host), http.sock, max_connections=strangers, budget=budget, gate=gate))
    return Face(host, servers)


async def _build_model(
    settings: Settings,
    paths: Paths,
    lock: LockFile,
    metrics: Later[Metrics],
    report: Callable[[Progress], None],
    *,
    failures: DeviceFailures,
) -> ServedModel:
    """Get engine and model, begin to start the engine, and construct the parts that serve them."""
    installation = await install(settings, paths, report=report, check_model=_check_model, failures=failures)
    # In threads, since imports take 0.1 s, and so does reading the metadata of a large vocabulary.
    backend = await asyncio.to_thread(_build_backend, settings, paths, lock, installation)
    async with _starting(backend):
        scheduler = await run_in_thread(partial(_build_scheduler, settings, paths, installation, backend, await metrics.get()))
    return ServedModel(scheduler, installation, failures)


def _check_model(path: Path) -> None:
    from runed.backends.llama import check_model  # noqa: PLC0415 # as above

    check_model(path)


def _build_backend(settings: Settings, paths: Paths, lock: LockFile, installation: Installation) -> LlamaBackend:
    from runed.backends.llama import backend_for  # noqa: PLC0415 # as above

    return backend_for(installation.model)(
        executable=installation.llama_server,
        model=installation.model,
        model_sha256=installation.model_sha256,
        paths=paths,
        ctx_size=settings.ctx_size,
        profile=settings.profile,
        device=installation.device,
        holds_home=lock.is_current,
    )


@contextlib.asynccontextmanager
async def _starting(backend: LlamaBackend) -> AsyncIterator[None]:
    """Let the engine start during the block. It ends if the block fails."""

    async def start() -> None:
        # A failed start shows in the backend's state, and the bootstrapper tries again.
        with contextlib.suppress(RunedError):
            await backend.start()

    starting = asyncio.create_task(start())
    try:
        yield
    except BaseException:
        await backend.stop()
        await asyncio.wait([starting])
        raise


def _build_scheduler(
    settings: Settings, paths: Paths, installation: Installation, backend: LlamaBackend, metrics: Metrics
) -> Scheduler:
    from runed.routing.store import CentroidStore  # noqa: PLC0415 # as above
    from runed.scheduling.batcher import Batcher  # noqa: PLC0415 # as above
    from runed.scheduling.queue import QueueLimits  # noqa: PLC0415 # as above
    from runed.scheduling.reranking import scheduler_for  # noqa: PLC0415 # as above

    centroids = CentroidStore(paths.centroids, dim=backend.model.dim, model=backend.model.identity)
    centroids.restore()
    queue = QueueLimits(texts=settings.queue_texts, bytes=settings.queue_bytes)
    return scheduler_for(backend)(
        backend,
        batcher=Batcher(limits=queue, metrics=metrics),
        idle_timeout=settings.idle_timeout,
        cache=_build_cache(settings, paths),
        metrics=metrics,
        centroids=centroids,
        engine_version=installation.engine_version,
        device=installation.device,
        traits=installation.traits,
    )


def _build_cache(settings: Settings, paths: Paths) -> VectorCache:
    from runed.caching.cache import VectorCache  # noqa: PLC0415 # as above

    disk = None
    if settings.disk_cache and settings.disk_cache_bytes:
        from runed.caching.disk_cache import DiskCache  # noqa: PLC0415 # a daemon that keeps nothing on disk loads no SQLite

        disk = DiskCache(paths.vector_cache, paths.cache_secret, max_bytes=settings.disk_cache_bytes)
    return VectorCache(settings.cache_bytes, disk)
