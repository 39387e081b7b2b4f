"""The daemon's implementation of the interface that its faces use."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence

from runed.daemon.draining import DrainableStream, Draining
from runed.daemon.history import History
from runed.daemon.pool import Pool
from runed.domain.history import LastHour, Work
from runed.domain.model_spec import ModelKind
from runed.domain.model_status import ModelRoom, ModelStatus, Tokenized
from runed.domain.ranking import RerankAnswer, RerankOptions
from runed.domain.requests import Centroid, CentroidHeader, EmbedAnswer, EmbedOptions, StreamAnswer, StreamItem
from runed.domain.status import ConnectedClient, Health, Info, Status
from runed.metrics import Metrics
from runed.processes import program_title


class DaemonHost:
    """Implements `runed.api.host.Host`: counts each call, and passes it to the scheduler of its model.

    Args:
        daemon: The facts about the daemon alone.
        pool: Has the models, or gets them.
        draining: Tells whether the daemon takes calls.
        metrics: Counts and measures.
        history: Remembers the last hour.

    Attributes:
        total_requests: Embedding calls that could be read, including failed ones.
        in_flight: Embedding calls that are being served.
        clients: Returns the process ids of the connected clients, with the number of their connections. Whoever makes the
            servers sets it.
    """

    def __init__(self, daemon: Info, *, pool: Pool, draining: Draining, metrics: Metrics, history: History) -> None:
        self.total_requests = 0
        self.in_flight = 0
        self.clients: Callable[[], Mapping[int, int]] = dict
        self._daemon = daemon
        self._pool = pool
        self._draining = draining
        self._metrics = metrics
        self._history = history
        self._started = time.monotonic()

    @property
    def uptime(self) -> float:
        """Seconds since the daemon started."""
        return time.monotonic() - self._started

    async def embed(
        self, texts: Sequence[str], options: EmbedOptions, *, client: str, per_item_errors: bool = False
    ) -> EmbedAnswer:
        """Embed the texts of one call; see `Host.embed`."""
        with self._counted("batch", client, len(texts)) as work:
            scheduler = await self._pool.scheduler(options.model)
            work.model = scheduler.name
            return await scheduler.embed(texts, options, client=client, per_item_errors=per_item_errors)

    async def embed_stream(
        self, chunks: AsyncIterator[Sequence[StreamItem]], options: EmbedOptions, *, client: str
    ) -> AsyncGenerator[StreamAnswer]:
        """Embed the texts of one stream; see `Host.embed_stream`."""
        with self._counted("stream", client) as work:
            scheduler = await self._pool.scheduler(options.model)
            work.model = scheduler.name
            source = DrainableStream(chunks, self._draining)
            async with contextlib.aclosing(scheduler.embed_stream(source.chunks(), options, client=client)) as answers:
                async for answer in answers:
                    work.texts += len(answer.results)
                    yield answer
            if source.was_cut_off:
                self._draining.check()

    async def count_tokens(self, texts: Sequence[str], options: EmbedOptions) -> list[int]:
        """Count the tokens of texts; see `Host.count_tokens`."""
        return await (await self._pool.scheduler(options.model)).count_tokens(texts, options)

    async def tokenize(self, texts: Sequence[str], options: EmbedOptions, *, special: bool = True) -> Tokenized:
        """Return the tokens of texts; see `Host.tokenize`."""
        return await (await self._pool.scheduler(options.model)).tokenize(texts, options, special=special)

    async def rerank(self, query: str, documents: Sequence[str], options: RerankOptions, *, client: str) -> RerankAnswer:
        """Rank documents by their relevance to a query; see `Host.rerank`."""
        from runed.scheduling.reranking import RerankScheduler  # noqa: PLC0415 # most daemons never rerank

        with self._counted("rerank", client, len(documents)) as work:
            scheduler = await self._pool.scheduler(options.model, ModelKind.RERANK)
            assert isinstance(scheduler, RerankScheduler)
            work.model = scheduler.name
            return await scheduler.rerank(query, documents, options, client=client)

    async def set_centroids(self, header: CentroidHeader, batches: AsyncIterator[Iterable[Centroid]]) -> str:
        """Replace the centroid set; see `Host.set_centroids`."""
        return await (await self._pool.scheduler(header.model)).centroids.install(header, batches)

    async def warm_up(self, model: str = "") -> None:
        """Start the engine ahead of the first text; see `Host.warm_up`."""
        await (await self._pool.scheduler(model, None)).start()

    async def unload(self, model: str = "") -> None:
        """Stop the engine of a model; see `Host.unload`."""
        await self._pool.unload(model)

    async def pull(self, model: str = "") -> None:
        """Begin to install a model; see `Host.pull`."""
        await self._pool.pull(model)

    async def settle(self, model: str = "") -> None:
        """Wait until the model is known, but not for a download; see `Host.settle`."""
        await self._pool.settle(model)

    async def models(self) -> list[ModelStatus]:
        """Describe all models; see `Host.models`."""
        return await self._pool.list()

    async def model(self, name: str = "") -> ModelStatus:
        """Describe a model; see `Host.model`."""
        return await self._pool.describe(name)

    def room(self) -> ModelRoom:
        """Describe the bounds of the engines; see `Host.room`."""
        seats = self._pool.seats
        return ModelRoom(memory_limit=seats.limit, memory_bytes=seats.used, max_loaded_models=seats.most)

    def metrics(self) -> bytes:
        """Return the metrics; see `Host.metrics`."""
        return self._metrics.render()

    def last_hour(self, since: int = 0) -> LastHour:
        """Return what is remembered of the last hour; see `Host.last_hour`."""
        return self._history.last_hour(since)

    def info(self, model: str = "") -> Info:
        """Describe the daemon and a model; see `Host.info`."""
        served = self._pool.served(model)
        return self._daemon if served is None else served.describe(self._daemon)

    def health(self, model: str = "", *, detailed: bool = False) -> Health:
        """Describe the present state; see `Host.health`."""
        served, (situation, progress) = self._pool.served(model), self._pool.situation(model)
        status, phase, message = situation
        if self._draining.begun:
            status, phase, message = Status.SHUTTING_DOWN, None, f"finishing {self.in_flight} requests in flight"
            progress = None
        everything = self._pool.all_served()
        return Health(
            status=status,
            phase=phase,
            bytes_done=progress.bytes_done if progress else 0,
            bytes_total=progress.bytes_total if progress else 0,
            downloading=progress.downloading if progress else False,
            message=message,
            uptime_seconds=int(self.uptime),
            total_requests=self.total_requests,
            in_flight_requests=self.in_flight,
            pid=os.getpid(),
            engine_pid=served.state.pid if served else 0,
            engine_restarts=served.state.restarts if served else 0,
            load=everything[0].scheduler.load if everything else None,
            model=served.scheduler.name if served else "",
            loaded_models=sum(bool(other.state.pid) for other in everything),
            models=self._pool.health() if detailed else (),
            clients=list(self._connected()) if detailed else (),
        )

    def _connected(self) -> Iterator[ConnectedClient]:
        for pid, connections in self.clients().items():
            name = program_title(pid) if pid else ""
            if name or not pid:  # otherwise it has ended, and its connections soon do
                yield ConnectedClient(pid, name, connections)

    def shut_down(self, grace: float | None) -> None:
        """Begin to drain; see `Host.shut_down`."""
        self._draining.begin(grace)

    @contextlib.contextmanager
    def _counted(self, kind: str, client: str, texts: int = 0) -> Iterator[Work]:
        self.total_requests += 1
        self.in_flight += 1
        work = self._history.begin(kind, client, texts)
        try:
            yield work
        finally:
            self.in_flight -= 1
            self._history.end(work)
