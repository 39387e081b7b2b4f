"""The composition root: only this module constructs the parts of a daemon."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from runed.api.later import Later
from runed.bootstrap import Installation, Phase, Progress, install, load_failures, read_catalog
from runed.bootstrap.catalog import own_default
from runed.daemon.added_models import AddedModels
from runed.daemon.choosing import EngineChooser, Makers, Serving
from runed.daemon.draining import Draining
from runed.daemon.inherited import half_of_memory, restrictions
from runed.daemon.pool import Pool
from runed.daemon.seats import PairSeat, Seat, Seats
from runed.daemon.served_model import ServedModel, served_name
from runed.domain.device import CPU
from runed.domain.model import RANK
from runed.domain.model_spec import ModelKind, ModelSpec
from runed.domain.names import ModelNames
from runed.errors import BootstrapError, RunedError
from runed.files import run_in_thread
from runed.lifecycle.listener import Listener
from runed.lifecycle.loopback import Loopback
from runed.lifecycle.marks import marks_of
from runed.lifecycle.record import DaemonRecord
from runed.locking import LockFile
from runed.log import get_logger
from runed.onnx_files import files_of, is_onnx
from runed.paths import Paths, ensure_home, ensure_private_dir
from runed.processes import trim_memory
from runed.settings import Settings, in_force
from runed.version import __version__

_log = get_logger(__name__)

if TYPE_CHECKING:  # in the functions below, these are imported while the engine is looked for and loads its model
    from runed.api.page.access import Access
    from runed.backends.llama import LlamaBackend
    from runed.backends.onnx.backend import OnnxBackend
    from runed.caching.cache import VectorCache
    from runed.daemon.host import DaemonHost
    from runed.daemon.remote import RemoteInstallation
    from runed.domain.model import ModelInfo
    from runed.metrics import Metrics
    from runed.routing.store import CentroidStore
    from runed.scheduling.batcher import Batcher
    from runed.scheduling.scheduler import Scheduler
    from runed.server import Server


@dataclass(frozen=True, slots=True)
class Face:
    """The parts of a daemon that answer calls."""

    host: DaemonHost
    servers: Sequence[Server]
    exporting: Callable[[], AbstractAsyncContextManager[None]]
    """Send traces and metrics for the length of a block, if the settings name a collector."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """The parts of a daemon that its process runs."""

    pool: Pool
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

    def note_settings(changed: Settings) -> None:
        record.tell_settings(paths.daemon_record, marks_of(changed))

    # One thread imports, in the order of need: two would slow each other down, and the engine would start later. It begins in
    # `build_face`: until then a signal raises SystemExit, even amid the start of a thread, which nobody would end.
    importing = ThreadPoolExecutor(1, thread_name_prefix="runed-imports")
    metrics = Later(_build_metrics, importing)
    draining = Draining(partial(record.tell_draining, paths.daemon_record))
    seats = Seats(settings.memory_bytes or half_of_memory(), strict=settings.memory_bytes > 0, most=settings.max_models)
    port = http.sock.getsockname()[:2] if http else None
    workshop = _Workshop(settings, paths, lock, metrics, seats, port=port, note=note_settings)
    pool = Pool(
        names=workshop.names,
        build=workshop.build,
        is_installed=workshop.is_installed,
        keep_alive=settings.idle_timeout,
        seats=seats,
        draining=draining,
        on_close=workshop.close,
        note=partial(record.tell_failed, paths.daemon_record),
    )
    workshop.scheduler_of = pool.scheduler

    async def build_face() -> Face:
        with importing:
            for module in ("runed.backends.llama", "runed.daemon.host"):
                importing.submit(importlib.import_module, module)
            made = await metrics.get()
            build = partial(_build_face, settings, listener, http, pool=pool, draining=draining, metrics=made)
            return await asyncio.get_running_loop().run_in_executor(importing, build)

    return Daemon(pool, draining, build_face)


def _build_metrics() -> Metrics:
    from runed.metrics import Metrics  # noqa: PLC0415 # as above

    return Metrics()


def _build_face(
    settings: Settings,
    listener: Listener,
    http: Loopback | None,
    *,
    pool: Pool,
    draining: Draining,
    metrics: Metrics,
) -> Face:
    from runed.api.app import build_app, build_port_app  # noqa: PLC0415 # as above
    from runed.daemon.gauges import add_gauges, sample  # noqa: PLC0415 # as above
    from runed.daemon.history import History  # noqa: PLC0415 # as above
    from runed.daemon.host import DaemonHost  # noqa: PLC0415 # as above
    from runed.daemon.telemetry import exporting  # noqa: PLC0415 # as above
    from runed.domain.status import Info, SettingInForce  # noqa: PLC0415 # as above
    from runed.scheduling.preparing import MAX_BATCH_TEXTS  # noqa: PLC0415 # as above
    from runed.scheduling.queue import QueueLimits  # noqa: PLC0415 # as above
    from runed.scheduling.scheduler import MAX_REQUEST_BYTES  # noqa: PLC0415 # as above
    from runed.server import Budget, Server, connection_limits  # noqa: PLC0415 # as above

    queue = QueueLimits(texts=settings.queue_texts, bytes=settings.queue_bytes)
    told = restrictions()
    facts = Info(
        daemon_version=__version__,
        socket_path=str(listener.path),
        # A batch that can never wait would be refused for ever.
        max_batch_size=min(MAX_BATCH_TEXTS, queue.bulk.texts),
        max_request_bytes=min(MAX_REQUEST_BYTES, queue.bulk.bytes),
        profile=settings.profile,
        max_queued_texts=settings.queue_texts,
        max_queued_bytes=settings.queue_bytes,
        restrictions=told,
        settings=[SettingInForce(*row) for row in in_force(settings)],
    )
    history = History(partial(sample, pool))
    host = DaemonHost(facts, pool=pool, draining=draining, metrics=metrics, history=history)
    add_gauges(metrics, host, pool)
    budget = Budget(settings.request_bytes, metrics.refused, trim_memory)
    clients, strangers = connection_limits()

    def count(method: str, code: str, seconds: float, reason: str = "", texts: Mapping[str, int] | None = None) -> None:
        metrics.called(method, code, seconds, reason, texts)
        history.count_errors(reason, texts or {})

    access = None if http is None else _build_access(http)
    servers = [Server(build_app(host, count, access), listener.sock, max_connections=clients, budget=budget)]
    host.clients = servers[0].clients
    if http is not None:
        from runed.api.token_guard import token_gate  # noqa: PLC0415 # as above

        gate = token_gate(token=http.token, port=http.port, exposed=http.exposed, count=count, page=access)
        app = build_port_app(host, count, access)
        servers.append(Server(app, http.sock, max_connections=strangers, budget=budget, gate=gate))
    sending = partial(exporting, settings, metrics, told) if settings.otel_endpoint else contextlib.nullcontext
    return Face(host, servers, sending)


def _build_access(http: Loopback) -> Access:
    from runed.api.page.access import Access  # noqa: PLC0415 # as above

    return Access(http.url, http.port, needs_link=http.token is not None)


@dataclass(frozen=True, slots=True)
class _Common:
    """The parts that all models share."""

    batcher: Batcher
    cache: VectorCache
    metrics: Metrics


class _Workshop:
    """Makes the parts that serve a model, and those that all models share.

    Args:
        settings: The settings.
        paths: The files of the home.
        lock: The daemon's lock of the home.
        metrics: Counts and measures.
        seats: The room for engines.
        port: Host and port that the daemon listens on, or None.
        note: Is told settings that have got models.

    Attributes:
        scheduler_of: Returns the scheduler of a model by its name. Whoever has the models sets it.
    """

    def __init__(
        self,
        settings: Settings,
        paths: Paths,
        lock: LockFile,
        metrics: Later[Metrics],
        seats: Seats,
        *,
        port: tuple[str, int] | None,
        note: Callable[[Settings], None],
    ) -> None:
        self._settings = settings
        self._added = AddedModels(settings)
        self._learning = asyncio.Lock()
        self._names: ModelNames | None = None
        self._note = note
        self._paths = paths
        self._lock = lock
        self._metrics = metrics
        self._seats = seats
        self._port = port
        self._failures = load_failures(settings, paths)
        self._chooser = EngineChooser(settings, paths, seats, self._failures)
        self._common: asyncio.Task[_Common] | None = None
        self.scheduler_of: Callable[[str], Awaitable[Scheduler]]

    async def names(self, model: str = "") -> ModelNames:
        """Return the models that requests may name.

        Args:
            model: The name that is looked for. If no model has it, or it is "", those that were added since are looked for.
        """
        if self._names is None:
            self._names = await self._read_names(self._settings)
        if not (model and self._names.named(model)):
            await self._learn()
        return self._names

    async def _learn(self) -> None:
        """Take the models that the configuration has got, if it was changed."""
        async with self._learning:  # a second call waits for what the first one reads
            if (state := self._added.state()) != self._added.seen:
                await self._take_added()
                self._added.seen = state  # not if this call was given up: the next one shall take them

    async def _take_added(self) -> None:
        try:
            if (added := await run_in_thread(partial(self._added.add_to, self._settings))) is not None:
                self._names = await self._read_names(added)
                self._settings = added
                self._note(added)
        except RunedError as error:
            _log.warning("the changed configuration cannot be used", reason=error.message)

    async def _read_names(self, settings: Settings) -> ModelNames:
        return await read_catalog(settings, self._paths, report=lambda _: None, ranks=_ranks)

    def is_installed(self, spec: ModelSpec) -> bool:
        """Return whether the file of a model is on this machine."""
        return spec.remote is not None or (spec.path or self._paths.model(spec.name)).is_file()

    async def build(self, spec: ModelSpec | None, report: Callable[[Progress], None]) -> ServedModel:
        """Get engine and model, and construct the parts that serve them. Begin to start the engine of the default model.

        Args:
            spec: The model; None means the default one.
            report: Takes the progress.
        """
        wanted = spec or own_default(self._settings)
        if wanted is not None and wanted.remote is not None:
            asking = f"asking the engine at {wanted.remote.url}"
            report(Progress(Phase.CHOOSING_ENGINE, 0, 0, asking))
            return await self._build_remote(wanted, is_default=spec is None)
        installation = await install(
            self._settings, self._paths, report=report, check_model=_check_model, wanted=spec, failures=self._failures
        )
        name = served_name(installation)
        # The files of the default model's engine have the names that they have had with one model.
        paths = self._paths if spec is None else replace(self._paths, engine_name=name)
        makers = Makers(
            llama=partial(self._build_llama_seat, installation, paths), onnx=partial(self._build_onnx_seat, installation, paths)
        )
        seat, serving = await self._chooser.choose(installation, makers, report)
        async with _starting(seat) if spec is None else contextlib.nullcontext():
            centroids = await run_in_thread(partial(_restore_centroids, paths, seat.model))
            scheduler = self._build_scheduler(installation, serving, seat, centroids, await self._shared())
        seat.demand = scheduler.demand
        return ServedModel(scheduler, installation, serving, seat)

    async def _build_remote(self, spec: ModelSpec, *, is_default: bool) -> ServedModel:
        """Construct the parts that serve a model of an engine on another machine."""
        from runed.daemon.far_seat import FarSeat  # noqa: PLC0415 # most daemons have no such model
        from runed.daemon.remote import build_remote, check_loop  # noqa: PLC0415 # as above

        assert spec.remote is not None
        if self._port:
            await run_in_thread(partial(check_loop, spec, self._port))
        if spec.remote.fallback:
            with contextlib.suppress(BootstrapError):  # a manifest that cannot be had now must not keep the engine away
                await self.names()  # refuses a fallback that does not exist
        paths = self._paths if is_default else replace(self._paths, engine_name=spec.name)
        await run_in_thread(partial(_prepare_home, self._settings, paths))
        backend, installation, serving = await build_remote(spec, paths, self.scheduler_of)
        seat = FarSeat(backend, self._seats, name=spec.name)
        centroids = await run_in_thread(partial(_restore_centroids, paths, backend.model))
        scheduler = self._build_scheduler(installation, serving, seat, centroids, await self._shared())
        seat.demand = scheduler.demand
        return ServedModel(scheduler, installation, serving, seat)

    async def close(self) -> None:
        """Write the vectors that wait to be written, and close the cache. All models must be closed."""
        if self._common is not None:
            await (await self._common).cache.close()

    async def _build_llama_seat(self, installation: Installation, paths: Paths) -> Seat:
        # In a thread, since imports take 0.1 s, and so does reading the metadata of a large vocabulary.
        backend = await asyncio.to_thread(_build_llama, self._settings, paths, self._lock, installation)
        name, size = served_name(installation), installation.model.stat().st_size
        if backend.model.pooling != RANK:
            return Seat(backend, self._seats, name=name, file_bytes=size)
        from runed.backends.llama.reranker import LlamaReranker  # noqa: PLC0415 # as in `_build_llama`

        assert isinstance(backend, LlamaReranker)
        return PairSeat(backend, self._seats, name=name, file_bytes=size)

    async def _build_onnx_seat(self, installation: Installation, paths: Paths, is_replaceable: bool) -> Seat:  # noqa: FBT001 # as in `Makers`
        from runed.backends.onnx.graphs import ensure_graph, folder_bytes  # noqa: PLC0415 # most daemons have no such engine

        model, sha256 = installation.model, installation.model_sha256
        folder = await ensure_graph(model, sha256, paths, pooling=installation.spec.pooling)
        build = partial(_build_onnx, self._settings, paths, self._lock, installation, is_replaceable=is_replaceable)
        backend = await asyncio.to_thread(build)
        size = sum(file.stat().st_size for file in files_of(model)) if is_onnx(model) else folder_bytes(folder)
        return Seat(backend, self._seats, name=served_name(installation), file_bytes=size)

    async def _shared(self) -> _Common:
        if self._common is None:
            self._common = asyncio.create_task(self._build_common())
        return await asyncio.shield(self._common)

    async def _build_common(self) -> _Common:
        metrics = await self._metrics.get()
        return await run_in_thread(partial(_build_common, self._settings, self._paths, metrics))

    def _build_scheduler(
        self,
        installation: Installation | RemoteInstallation,
        serving: Serving,
        seat: Seat,
        centroids: CentroidStore,
        common: _Common,
    ) -> Scheduler:
        from runed.domain.traits import traits_of  # noqa: PLC0415 # as above
        from runed.scheduling.scheduler import Scheduler  # noqa: PLC0415 # as above

        spec, kind = installation.spec, Scheduler
        if spec.kind is ModelKind.RERANK:
            from runed.scheduling.reranking import RerankScheduler  # noqa: PLC0415 # as in `_build_llama`

            kind = RerankScheduler
        return kind(
            seat,
            batcher=common.batcher,
            name=seat.name,
            idle_timeout=self._settings.idle_timeout if spec.keep_alive is None else spec.keep_alive,
            cache=common.cache,
            metrics=common.metrics,
            centroids=centroids,
            engine_version=serving.version,
            device=serving.device if spec.remote is None else CPU,  # vectors do not tell where they were made
            traits=traits_of(seat.model, spec.traits, spec.own),
        )


def _build_common(settings: Settings, paths: Paths, metrics: Metrics) -> _Common:
    from runed.backends.engine.process import reap_orphan  # noqa: PLC0415 # as above
    from runed.scheduling import scheduler  # noqa: F401, PLC0415 # as above
    from runed.scheduling.batcher import Batcher  # noqa: PLC0415 # as above
    from runed.scheduling.queue import QueueLimits  # noqa: PLC0415 # as above

    for record in paths.engine_records:
        reap_orphan(record)
    queue = QueueLimits(texts=settings.queue_texts, bytes=settings.queue_bytes)
    return _Common(Batcher(limits=queue, metrics=metrics), _build_cache(settings, paths), metrics)


def _prepare_home(settings: Settings, paths: Paths) -> None:
    ensure_home(paths.home, trust_parents=settings.trust_parents)
    ensure_private_dir(paths.cache)


def _restore_centroids(paths: Paths, model: ModelInfo) -> CentroidStore:
    from runed.routing.store import CentroidStore  # noqa: PLC0415 # as above

    centroids = CentroidStore(paths.centroids, dim=model.dim, model=model.identity)
    centroids.restore()
    return centroids


def _check_model(path: Path) -> None:
    from runed.backends.gguf import check_model  # noqa: PLC0415 # as above

    check_model(path)


def _ranks(path: Path) -> bool:
    from runed.backends.gguf import ranks  # noqa: PLC0415 # as above

    return ranks(path)


def _build_llama(settings: Settings, paths: Paths, lock: LockFile, installation: Installation) -> LlamaBackend:
    from runed.backends.llama import LlamaBackend  # noqa: PLC0415 # as above

    kind = LlamaBackend
    if installation.spec.kind is ModelKind.RERANK:
        from runed.backends.llama.reranker import LlamaReranker  # noqa: PLC0415 # most daemons never rerank

        kind = LlamaReranker
    return kind(
        executable=installation.program,
        model=installation.model,
        model_sha256=installation.model_sha256,
        paths=paths,
        ctx_size=settings.ctx_size,
        pooling=installation.spec.pooling,
        profile=settings.profile,
        device=installation.device,
        holds_home=lock.is_current,
    )


def _build_onnx(
    settings: Settings, paths: Paths, lock: LockFile, installation: Installation, *, is_replaceable: bool
) -> OnnxBackend:
    from runed.backends.onnx.backend import OnnxBackend  # noqa: PLC0415 # as in `_build_onnx_seat`

    return OnnxBackend(
        model=installation.model,
        model_sha256=installation.model_sha256,
        paths=paths,
        ctx_size=settings.ctx_size,
        pooling=installation.spec.pooling,
        profile=settings.profile,
        provider=settings.onnx_provider,
        is_replaceable=is_replaceable,
        holds_home=lock.is_current,
    )


@contextlib.asynccontextmanager
async def _starting(backend: Seat) -> AsyncIterator[None]:
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


def _build_cache(settings: Settings, paths: Paths) -> VectorCache:
    from runed.caching.cache import VectorCache  # noqa: PLC0415 # as above

    disk = None
    if settings.disk_cache and settings.disk_cache_bytes:
        from runed.caching.disk_cache import DiskCache  # noqa: PLC0415 # a daemon that keeps nothing on disk loads no SQLite

        disk = DiskCache(paths.vector_cache, paths.cache_secret, max_bytes=settings.disk_cache_bytes)
    return VectorCache(settings.cache_bytes, disk)
