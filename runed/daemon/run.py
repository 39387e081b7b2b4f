"""The composition root: one daemon from its lock to its last answer. Only this module constructs the concrete parts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from runed.api.app import build_app
from runed.api.openai.app import build_openai_app
from runed.api.openai.token_guard import guarded
from runed.backends.base import BackendState, BackendStatus
from runed.backends.llama import LlamaBackend, check_model
from runed.bootstrap import Installation, Phase, Progress, install
from runed.caching.cache import VectorCache
from runed.domain.model import traits_of
from runed.domain.requests import Centroid, CentroidHeader, EmbedAnswer, EmbedOptions, Lane, StreamAnswer, StreamItem
from runed.domain.status import Health, Info, Load, LoadingPhase, Status
from runed.errors import (
    AlreadyRunningError,
    BackendUnavailableError,
    BootstrappingError,
    RunedError,
    ShuttingDownError,
)
from runed.files import run_in_thread
from runed.lifecycle.launch import READY
from runed.lifecycle.listener import Listener, probe
from runed.lifecycle.loopback import Loopback
from runed.lifecycle.record import DaemonRecord
from runed.locking import LockFile
from runed.log import configure_logging, describe_exception, get_logger, log_unobserved_exception
from runed.metrics import Metrics
from runed.paths import Paths, ensure_private_dir, ensure_socket_dir
from runed.routing.store import CentroidStore
from runed.scheduling.preparing import MAX_BATCH_TEXTS
from runed.scheduling.queue import QueueLimits
from runed.scheduling.scheduler import MAX_REQUEST_BYTES, Engine, EngineSettings
from runed.server import Server
from runed.settings import Settings
from runed.version import __version__

DEFAULT_GRACE = 10.0
MAX_GRACE = 300.0
"""Seconds that what is in flight may take at a shutdown: the default, and the most that a caller can ask for."""

EVICTION_CHECK_INTERVAL = 1.0
"""Seconds between two looks at whether the socket's path still is ours."""

BOOTSTRAP_PAUSE = 5.0
"""Seconds after a failed bootstrap before a request starts the next one."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks the daemon to leave; see `Daemon.shut_down`."""

_LOADING_PHASES = {
    Phase.FETCHING_LLAMA_SERVER: LoadingPhase.FETCHING_LLAMA_SERVER,
    Phase.FETCHING_MODEL: LoadingPhase.FETCHING_MODEL,
}

_NOTHING_DONE = Progress(Phase.FETCHING_LLAMA_SERVER, 0, 0, "looking for engine and model")

_log = get_logger(__name__)


def run(settings: Settings, *, log_file: Path | None = None, ready_fd: int | None = None) -> int:
    """Serve until a signal or a `Shutdown`.

    Args:
        settings: The settings.
        log_file: Where to log; None means standard error.
        ready_fd: A pipe to write one line to once the socket listens, for whoever started this process.

    Returns:
        The exit code: 0, also when another daemon serves this home, which is then named on standard error.

    Raises:
        ForeignPathError: Something that is not ours is in the way; it is left untouched.
        SettingsError: The port of `RUNED_HTTP` cannot be had.
    """
    os.umask(0o077)
    paths = Paths(settings.home)
    ensure_private_dir(paths.home)
    ensure_private_dir(paths.logs)
    configure_logging(log_file)
    try:
        with LockFile(paths.daemon_lock) as lock:
            if not lock.try_acquire():
                raise AlreadyRunningError(f"pid {lock.holder() or 'unknown'} already serves {paths.socket}")  # noqa: TRY301 # as bind
            _serve(settings, paths, ready_fd)
    except AlreadyRunningError as error:
        print(f"runed: {error}; nothing to do", file=sys.stderr)  # noqa: T201 # for a person at a terminal, not for the log
    return 0


def _serve(settings: Settings, paths: Paths, ready_fd: int | None) -> None:
    ensure_socket_dir(paths.socket)
    if probe(paths.socket):
        # A daemon that holds no lock of ours; what it left here, such as a record, stays as it is.
        raise AlreadyRunningError(f"another daemon already listens on {paths.socket}")
    with contextlib.ExitStack() as stack:
        with _signals_held_back():
            # Before the record, which tells its port, and so before the socket: a port that is taken is told at the start.
            http = stack.enter_context(Loopback.open(settings.http, paths.http_token)) if settings.http else None
            record = DaemonRecord.of_this_process(paths.socket, http=http.url if http else "")
            # Before the socket listens: a client that finds the socket reads the record at once.
            record.write(paths.daemon_record)
            stack.callback(record.remove, paths.daemon_record)
            listener = stack.enter_context(Listener.bind(paths.socket))
        asyncio.run(Daemon(settings, paths, record, listener, http).serve(ready_fd))


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Let signals wait: one between the making of a file and the note that it is to be removed would leave the file behind.

    Not by a mask, since the threads of numpy's BLAS would take the signal then.
    """
    came: list[int] = []
    for number in _SIGNALS:
        signal.signal(number, lambda number, _: came.append(number))
    yield
    for number in _SIGNALS:  # the default would leave socket and record behind, until the event loop takes over
        signal.signal(number, _leave)
    if came:
        sys.exit(0)


def _leave(number: int, frame: object) -> None:  # noqa: ARG001 # Python calls it so
    sys.exit(0)


@dataclass(frozen=True, slots=True)
class _Failure:
    """A bootstrap that failed.

    Attributes:
        message: Why, for people.
        retry_at: The time of the monotonic clock from which on a request may start the next one.
    """

    message: str
    retry_at: float


class Daemon:
    """Serves one home on a listening socket; implements `service.handler.Host`.

    Args:
        settings: The settings.
        paths: The files of the home.
        record: What the home says of this process.
        listener: The listening socket.
        http: The listening loopback port, if there is to be one.
    """

    def __init__(
        self, settings: Settings, paths: Paths, record: DaemonRecord, listener: Listener, http: Loopback | None = None
    ) -> None:
        self._settings = settings
        self._paths = paths
        self._record = record
        self._listener = listener
        self._http = http
        self._started = time.monotonic()
        self._total_requests = 0
        self._in_flight = 0
        self._queue_limits = QueueLimits(texts=settings.queue_texts, bytes=settings.queue_bytes)
        self._metrics = Metrics()
        self._watch()
        self._progress = _NOTHING_DONE
        self._bootstrap: asyncio.Task[None] | None = None
        self._failure: _Failure | None = None
        self._installation: Installation | None = None
        self._engine: Engine | None = None
        self._grace: float | None = None
        self._shutdown_asked = asyncio.Event()
        self._hurry_asked = asyncio.Event()

    async def serve(self, ready_fd: int | None = None) -> None:
        """Serve until `shut_down` is called, by a signal, by a request or because the socket is no longer ours.

        Args:
            ready_fd: As in `run`.
        """
        asyncio.get_running_loop().set_exception_handler(log_unobserved_exception)
        servers = [Server(build_app(self), self._listener.sock)]
        if self._http is not None:
            openai = guarded(build_openai_app(self), token=self._http.token, port=self._http.port)
            servers.append(Server(openai, self._http.sock))
        with self._signals():
            for server in servers:
                await server.start()
            if ready_fd is not None:
                _announce(ready_fd)
            places = {"socket": str(self._listener.path)} | ({"http": self._http.url} if self._http else {})
            _log.info("serving", **places, pid=os.getpid(), version=__version__)
            self._begin_bootstrap()
            async with self._eviction_watch():
                await self._shutdown_asked.wait()
            _log.info("shutting down", in_flight=self._in_flight, grace_seconds=self._grace)
            await self._drain(servers)
        _log.info("stopped", uptime_seconds=round(time.monotonic() - self._started), requests=self._total_requests)

    async def embed(
        self, texts: Sequence[str], options: EmbedOptions, *, client: str, per_item_errors: bool = False
    ) -> EmbedAnswer:
        """Embed the texts of one call.

        Raises:
            RunedError: See `Engine.embed`; or there is no engine yet, or no longer.
        """
        with self._serving() as engine:
            return await engine.embed(texts, options, client=client, per_item_errors=per_item_errors)

    async def embed_stream(
        self, chunks: AsyncIterator[Sequence[StreamItem]], options: EmbedOptions, *, client: str
    ) -> AsyncGenerator[StreamAnswer]:
        """Embed the texts of one stream.

        Raises:
            RunedError: See `Engine.embed_stream`; or there is no engine yet, or no longer.
        """
        with self._serving() as engine:
            source = _Drainable(chunks, self._shutdown_asked)
            async with contextlib.aclosing(engine.embed_stream(source.chunks(), options, client=client)) as answers:
                async for answer in answers:
                    yield answer
            if source.cut_off:
                self._check_serving()

    async def count_tokens(self, texts: Sequence[str], options: EmbedOptions) -> list[int]:
        """Count the tokens of texts.

        Raises:
            RunedError: See `Engine.count_tokens`; or there is no engine yet, or no longer.
        """
        return await self._ready_engine().count_tokens(texts, options)

    async def set_centroids(self, header: CentroidHeader, batches: AsyncIterator[Iterable[Centroid]]) -> str:
        """Receive a centroid set, and give what it is called.

        Raises:
            RunedError: See `CentroidStore.install`; or there is no model yet that it could be for.
        """
        return await self._ready_engine().centroids.install(header, batches)

    def metrics(self) -> bytes:
        """Give the numbers to look at, as Prometheus text."""
        return self._metrics.render()

    def info(self) -> Info:
        """Tell what the daemon and its model are."""
        base = Info(
            daemon_version=__version__,
            socket_path=str(self._listener.path),
            # A batch that can never wait would be refused for ever.
            max_batch_size=min(MAX_BATCH_TEXTS, self._queue_limits.bulk.texts),
            max_request_bytes=min(MAX_REQUEST_BYTES, self._queue_limits.bulk.bytes),
            profile=self._settings.profile,
            max_queued_texts=self._settings.queue_texts,
            max_queued_bytes=self._settings.queue_bytes,
        )
        if self._engine is None or self._installation is None:
            return base
        model = self._engine.backend.model
        return replace(
            base,
            model_identity=model.identity,
            vector_dim=model.dim,
            max_text_length=model.max_tokens,
            model_name=model.name,
            model_variant=self._installation.variant,
            pooling=model.pooling,
            engine_version=self._installation.engine_version,
            fingerprint=self._engine.fingerprint(model.dim),
            min_dimensions=self._engine.min_dimensions,
            query_prompt=self._engine.traits.query_prompt,
            document_prompt=self._engine.traits.document_prompt,
            default_instruction=self._engine.traits.default_instruction,
            centroid_set_version=self._engine.centroids.version,
        )

    def health(self) -> Health:
        """Tell what the daemon is doing right now."""
        status, phase, message = self._situation()
        counting = status is Status.LOADING and phase is not LoadingPhase.STARTING_LLAMA_SERVER
        state = self._engine.backend.state if self._engine else None
        return Health(
            status=status,
            phase=phase,
            bytes_done=self._progress.bytes_done if counting else 0,
            bytes_total=self._progress.bytes_total if counting else 0,
            message=message,
            uptime_seconds=int(time.monotonic() - self._started),
            total_requests=self._total_requests,
            in_flight_requests=self._in_flight,
            pid=os.getpid(),
            engine_pid=state.pid if state else 0,
            engine_restarts=state.restarts if state else 0,
            load=self._engine.load if self._engine else None,
        )

    def shut_down(self, grace: float | None = None) -> None:
        """Begin to drain; a second call does not wait for what is in flight any longer.

        Args:
            grace: Seconds that what is in flight may take, at most `MAX_GRACE`; None means `DEFAULT_GRACE`.
        """
        if self._shutdown_asked.is_set():
            self._hurry_asked.set()
            return
        self._grace = DEFAULT_GRACE if grace is None else min(grace, MAX_GRACE)
        self._shutdown_asked.set()
        with contextlib.suppress(OSError):  # whoever looks for a daemon then finds this one, and is refused
            self._record.tell_draining(self._paths.daemon_record)

    def _situation(self) -> tuple[Status, LoadingPhase | None, str]:
        if self._shutdown_asked.is_set():
            return Status.SHUTTING_DOWN, None, f"finishing {self._in_flight} requests in flight"
        if self._engine is None:
            if self._failure is not None:
                return Status.DEGRADED, None, self._failure.message
            return Status.LOADING, _LOADING_PHASES[self._progress.phase], self._progress.message
        state = self._engine.backend.state
        warnings = "; ".join(filter(None, [state.reason, *(self._installation.warnings if self._installation else ())]))
        match state.status:
            case BackendStatus.READY:
                return Status.OK, None, warnings
            case BackendStatus.STARTING:
                return Status.LOADING, LoadingPhase.STARTING_LLAMA_SERVER, "llama-server loads the model"
            case BackendStatus.STOPPED:
                return Status.IDLE, None, warnings
            case BackendStatus.FAILED:
                return Status.DEGRADED, None, state.reason

    @contextlib.contextmanager
    def _serving(self) -> Iterator[Engine]:
        """Count a call, and give it the engine."""
        self._total_requests += 1
        engine = self._ready_engine()
        self._in_flight += 1
        try:
            yield engine
        finally:
            self._in_flight -= 1

    def _watch(self) -> None:
        """Let the metrics look at what is counted elsewhere."""

        def state(read: Callable[[BackendState], float]) -> Callable[[], float]:
            return lambda: read(self._engine.backend.state) if self._engine else 0

        def load(read: Callable[[Load], float]) -> Callable[[], float]:
            return lambda: read(self._engine.load) if self._engine else 0

        def queued(lane: Lane, part: int) -> Callable[[], float]:
            return load(lambda load: load.queued[lane][part])

        watch = self._metrics.watch
        watch("runed_uptime_seconds", "Seconds since the daemon started.", lambda: time.monotonic() - self._started)
        watch("runed_requests_total", "Embedding calls that could be read, failed ones included.", lambda: self._total_requests)
        watch("runed_requests_in_flight", "Embedding calls being served.", lambda: self._in_flight)
        watch("runed_engine_up", "Whether llama-server is ready.", state(lambda state: state.status is BackendStatus.READY))
        watch(
            "runed_engine_restarts_total", "How often llama-server died and was replaced.", state(lambda state: state.restarts)
        )
        watch("runed_cache_entries", "Vectors in the cache of the memory.", load(lambda load: load.cache_entries))
        watch("runed_cache_bytes", "The memory that cached vectors take.", load(lambda load: load.cache_bytes))
        watch("runed_disk_cache_bytes", "The size of the cache on disk.", load(lambda load: load.disk_cache_bytes))
        for lane in Lane:
            watch("runed_queued_texts", "Texts that wait.", queued(lane, 0), lane=lane.value)
            watch("runed_queued_bytes", "Bytes of text that wait.", queued(lane, 1), lane=lane.value)

    def _check_serving(self) -> None:
        if self._shutdown_asked.is_set():
            raise ShuttingDownError("the daemon is shutting down; connect again to start a new one")

    def _ready_engine(self) -> Engine:
        self._check_serving()
        if self._engine is not None:
            return self._engine
        if self._failure is not None:
            if (pause := self._failure.retry_at - time.monotonic()) > 0:
                raise BackendUnavailableError(self._failure.message, retry_after=pause)
            self._begin_bootstrap()
        raise BootstrappingError(
            f"engine and model are not there yet: {self._progress.message}; Health tells the progress", retry_after=1.0
        )

    def _begin_bootstrap(self) -> None:
        self._failure = None
        self._progress = _NOTHING_DONE
        self._bootstrap = asyncio.create_task(self._bootstrap_engine())

    async def _bootstrap_engine(self) -> None:
        try:
            installation = await install(self._settings, self._paths, report=self._report, check_model=check_model)
            # In a thread, since reading the metadata of a large vocabulary takes 0.1 s.
            backend = await asyncio.to_thread(
                LlamaBackend,
                executable=installation.llama_server,
                model=installation.model,
                model_sha256=installation.model_sha256,
                engine_version=installation.engine_version,
                paths=self._paths,
                ctx_size=self._settings.ctx_size,
                profile=self._settings.profile,
            )
            engine = await self._build_engine(backend, installation)
        except RunedError as error:
            self._fail_bootstrap(error.message)
            return
        except Exception as error:  # noqa: BLE001 # the daemon must live on to tell what went wrong
            _log.error("bootstrap failed unexpectedly", **describe_exception(error))
            self._fail_bootstrap(f"the bootstrap failed unexpectedly ({type(error).__name__}); the daemon's log says where")
            return
        self._installation = installation
        self._engine = engine
        # A failed start shows in the backend's state, and the next request tries again.
        with contextlib.suppress(RunedError):
            await self._engine.start()

    async def _build_engine(self, backend: LlamaBackend, installation: Installation) -> Engine:
        settings, model = self._settings, backend.model
        traits = installation.traits or traits_of(model)
        disk = None
        if settings.disk_cache and settings.disk_cache_bytes:
            from runed.caching.disk_cache import DiskCache  # noqa: PLC0415 # who keeps nothing on disk loads no SQLite

            disk = DiskCache(self._paths.vector_cache, self._paths.cache_secret, max_bytes=settings.disk_cache_bytes)
        centroids = CentroidStore(self._paths.centroids, dim=model.dim, model=model.identity)
        await run_in_thread(centroids.restore)
        return Engine(
            backend,
            settings=EngineSettings(idle_timeout=settings.idle_timeout, queue=self._queue_limits),
            cache=VectorCache(settings.cache_bytes, disk),
            metrics=self._metrics,
            centroids=centroids,
            engine_version=installation.engine_version,
            traits=traits,
        )

    def _fail_bootstrap(self, message: str) -> None:
        _log.error("bootstrap failed", reason=message)
        self._failure = _Failure(message, time.monotonic() + BOOTSTRAP_PAUSE)

    def _report(self, progress: Progress) -> None:
        self._progress = progress

    async def _drain(self, servers: Sequence[Server]) -> None:
        if self._bootstrap is not None and self._engine is None:
            self._bootstrap.cancel()
        assert self._grace is not None
        stopping = asyncio.create_task(_stop(servers, self._grace))
        hurry = asyncio.create_task(self._hurry_asked.wait())
        await asyncio.wait([stopping, hurry], return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not stopping.done():
            await _stop(servers, 0)
        await stopping
        if self._bootstrap is not None:
            self._bootstrap.cancel()
            await asyncio.wait([self._bootstrap])
        if self._engine is not None:
            await self._engine.close()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.shut_down)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
                # The default would end this process between here and the removal of its socket and record.
                signal.signal(number, signal.SIG_IGN)

    @contextlib.asynccontextmanager
    async def _eviction_watch(self) -> AsyncIterator[None]:
        """Leave when the path is somebody else's: no client can find this daemon any more, it would only hold memory."""

        async def watch() -> None:
            while self._listener.is_ours():  # noqa: ASYNC110 # no event tells that a path was replaced
                await asyncio.sleep(EVICTION_CHECK_INTERVAL)
            _log.warning("the socket's path is no longer this daemon's; leaving", socket=str(self._listener.path))
            self.shut_down()

        task = asyncio.create_task(watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])


async def _stop(servers: Sequence[Server], grace: float) -> None:
    await asyncio.gather(*(server.stop(grace) for server in servers))


def _announce(ready_fd: int) -> None:
    """Tell whoever started this process that the socket listens; it may have gone away meanwhile."""
    with contextlib.suppress(OSError):
        os.write(ready_fd, READY)
    with contextlib.suppress(OSError):
        os.close(ready_fd)


class _Drainable:
    """The texts of a stream until the daemon shuts down: what was read is still answered, the rest is for the next daemon.

    Args:
        chunks: The texts.
        draining: Set when the daemon shuts down.

    Attributes:
        cut_off: Whether there may have been more.
    """

    def __init__(self, chunks: AsyncIterator[Sequence[StreamItem]], draining: asyncio.Event) -> None:
        self._chunks = chunks
        self._draining = draining
        self.cut_off = False

    async def chunks(self) -> AsyncGenerator[Sequence[StreamItem]]:
        """Give the texts."""
        draining = asyncio.create_task(self._draining.wait())
        try:
            while True:
                chunk = asyncio.ensure_future(anext(self._chunks, None))
                try:
                    await asyncio.wait({chunk, draining}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not chunk.done():
                        chunk.cancel()
                        await asyncio.wait({chunk})
                if chunk.cancelled():
                    self.cut_off = True
                    return
                if (items := chunk.result()) is None:
                    return
                yield items
        finally:
            draining.cancel()
