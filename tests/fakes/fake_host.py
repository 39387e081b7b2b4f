"""A `Host` of the service whose work the test arranges. The vector of a text is a function of the text.

Texts with effects: "wait" waits until the test lets it go, "fail:REASON" fails for a reason, "break:REASON" fails its whole
stream. A text has one token a word, and two special ones.

    python -m tests.fakes.fake_host SOCKET      serves one until SIGTERM
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from connectrpc.errors import ConnectError

from runed import testing
from runed.api.app import build_app
from runed.domain.history import LastHour
from runed.domain.ranking import RerankAnswer, RerankOptions
from runed.domain.requests import (
    Centroid,
    CentroidHeader,
    EmbedAnswer,
    Embedding,
    EmbedOptions,
    Lane,
    StreamAnswer,
    StreamItem,
    StreamResult,
    VectorSpace,
)
from runed.domain.status import ConnectedClient, Health, Info, LaneStats, Load, LoadingPhase, SchedulerStats, Status
from runed.errors import (
    NoCentroidSetError,
    RunedError,
    TextTooLongError,
    error_for_reason,
)
from runed.server import Server
from runed.testing import DaemonDouble

WAIT = "wait"
DIM = 8
MAX_TOKENS = 12
METRICS = b"# HELP fake A number.\n# TYPE fake gauge\nfake 7.0\n"

LOAD = Load(
    stats=SchedulerStats(
        total_texts=1,
        total_tokens=2,
        tokens_per_second=3.5,
        total_batches=4,
        mean_batch_texts=5.5,
        cache_hits=6,
        shared_texts=7,
        refused_requests=8,
        interactive=LaneStats(total_texts=9, wait_p50_seconds=0.25, wait_p99_seconds=0.5),
        bulk=LaneStats(total_texts=10, wait_p50_seconds=0.75, wait_p99_seconds=1.5),
    ),
    queued={Lane.INTERACTIVE: (11, 12), Lane.BULK: (13, 14)},
    cache_entries=15,
    cache_bytes=16,
    disk_cache_bytes=17,
)


@dataclass(frozen=True)
class Asked:
    """One call that reached the host."""

    texts: list[str]
    options: EmbedOptions
    client: str
    per_item_errors: bool


@dataclass(frozen=True)
class AskedToRank:
    """One call of `rerank` that reached the host."""

    query: str
    documents: list[str]
    options: RerankOptions
    client: str


@dataclass
class FakeHost(DaemonDouble):
    """A host whose work the test arranges.

    Attributes:
        asked: The calls of `embed`, of `embed_stream` (without texts) and of `count_tokens`.
        ranked: The calls of `rerank`.
        taken: The number of texts taken from streams.
        waiting: The number of waiting calls.
        cancelled: The number of cancelled calls, and of streams that were cancelled, closed or broken before their end.
        busy: The number of calls being served.
        load: The load that Health tells.
        status: The status that Health tells.
        phase: The phase that Health tells.
        downloading: Whether something is being downloaded in that phase.
        message: The message that Health tells.
        clients: The programs that Health tells.
        hour: What it remembers of the last hour.
        grace: The grace of the last `Shutdown`.
        pushed: The complete centroid sets: their headers, and their centroids by message.
    """

    home: Path = Path("/")
    max_text_length: int = MAX_TOKENS
    models_served: Sequence[str] = ("fake.f32", "fake.q8_0", "other")
    asked: list[Asked] = field(default_factory=list)
    ranked: list[AskedToRank] = field(default_factory=list)
    taken: int = 0
    waiting: int = 0
    cancelled: int = 0
    busy: int = 0
    load: Load | None = None
    status: Status = Status.OK
    phase: LoadingPhase | None = None
    downloading: bool = True
    message: str = ""
    clients: Sequence[ConnectedClient] = ()
    hour: LastHour = field(default_factory=LastHour)
    grace: float | None = None
    pushed: list[tuple[CentroidHeader, list[list[Centroid]]]] = field(default_factory=list)
    _go: asyncio.Event = field(default_factory=asyncio.Event)

    async def embed(
        self, texts: Sequence[str], options: EmbedOptions, *, client: str, per_item_errors: bool = False
    ) -> EmbedAnswer:
        self.asked.append(Asked(list(texts), options, client, per_item_errors))
        with self._serving():
            if WAIT in texts:
                await self._wait()
            answer = await super().embed(texts, options, client=client, per_item_errors=True)
            for item in answer.items:
                if isinstance(item, RunedError) and not per_item_errors:
                    raise item
        if not options.with_route:
            return answer
        items = [
            replace(item, cluster_id=number) if isinstance(item, Embedding) else item
            for number, item in enumerate(answer.items)
        ]
        return replace(answer, items=items, centroid_set_version=self.pushed[-1][0].version)

    async def embed_stream(
        self, chunks: AsyncIterator[Sequence[StreamItem]], options: EmbedOptions, *, client: str
    ) -> AsyncGenerator[StreamAnswer, None]:
        self.asked.append(Asked([], options, client, per_item_errors=True))
        with self._serving():
            # Not the method of the double, which keeps all texts for its calls.
            async for chunk in chunks:
                self.taken += len(chunk)
                if any(item.text == WAIT for item in chunk):
                    await self._wait()
                for item in chunk:
                    if item.text.startswith("break:"):
                        raise _arranged(item.text)
                results = [StreamResult(item.id, self._outcome(item.text, options)) for item in chunk]
                yield StreamAnswer(results, self._space(options))

    async def count_tokens(self, texts: Sequence[str], options: EmbedOptions) -> list[int]:
        self.asked.append(Asked(list(texts), options, "", per_item_errors=False))
        return await super().count_tokens(texts, options)

    async def rerank(self, query: str, documents: Sequence[str], options: RerankOptions, *, client: str) -> RerankAnswer:
        self.ranked.append(AskedToRank(query, list(documents), options, client))
        with self._serving():
            if WAIT in documents:
                await self._wait()
            return await super().rerank(query, documents, options, client=client)

    async def set_centroids(self, header: CentroidHeader, batches: AsyncIterator[Iterable[Centroid]]) -> str:
        with self._serving():
            received = [list(batch) async for batch in batches]
            if header.preset.startswith("fail:"):
                raise _arranged(header.preset)
        self.pushed.append((header, received))
        return header.version

    def info(self, model: str = "") -> Info:
        return Info(
            daemon_version="1.2.3",
            socket_path="/s",
            max_batch_size=2048,
            max_request_bytes=4 * 1024 * 1024,
            model_identity="sha256:1",
            vector_dim=DIM,
            max_text_length=MAX_TOKENS,
            model_name="fake",
            model_variant="fake.f32",
            pooling="mean",
            engine_version="b1",
            fingerprint="fp",
            min_dimensions=4,
            query_prompt="Q: {instruction} ",
            document_prompt="D: ",
            default_instruction="find",
            profile="balanced",
            max_queued_texts=17,
            max_queued_bytes=18,
            restrictions=["nice 3"],
            accelerator="vulkan",
            device="fake device",
            device_tuned_at="2026-11-27T12:00:00+00:00",
            company_cosine=0.75,
            tuned_at="2026-11-28T12:00:00+00:00",
            centroid_set_version=self.pushed[-1][0].version if self.pushed else "",
            model=self._model(model),
        )

    def health(self, model: str = "", *, detailed: bool = False) -> Health:
        return Health(
            status=self.status,
            phase=self.phase,
            bytes_done=0,
            bytes_total=0,
            message=self.message,
            uptime_seconds=1,
            total_requests=len(self.asked),
            in_flight_requests=self.busy,
            pid=2,
            engine_pid=3,
            engine_restarts=4,
            model=self._model(model),
            load=self.load,
            downloading=self.downloading and self.phase is not LoadingPhase.STARTING_LLAMA_SERVER,
            clients=self.clients,
        )

    def metrics(self) -> bytes:
        return METRICS

    def last_hour(self, since: int = 0) -> LastHour:
        return replace(self.hour, slots=[slot for slot in self.hour.slots if slot.number > since])

    def shut_down(self, grace: float | None) -> None:
        self.grace = grace

    def let_go(self) -> None:
        """Let the calls that wait go on."""
        self._go.set()
        self._go = asyncio.Event()

    async def _wait(self) -> None:
        self.waiting += 1
        try:
            await self._go.wait()
        finally:
            self.waiting -= 1

    @contextmanager
    def _serving(self) -> Iterator[None]:
        self.busy += 1
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit, ConnectError):  # reading raises the last one when the client goes
            self.cancelled += 1
            raise
        finally:
            self.busy -= 1

    def _admit(self, options: EmbedOptions) -> None:
        self._model(options.model)
        if options.with_route and not self.pushed:
            raise NoCentroidSetError("there is no centroid set to route by")

    def _outcome(self, text: str, options: EmbedOptions) -> Embedding | RunedError:
        if text.startswith("fail:"):
            return _arranged(text)
        outcome = super()._outcome(text, options)
        if isinstance(outcome, TextTooLongError):
            return TextTooLongError("too long", metadata=outcome.metadata)
        return replace(outcome, cached=text.startswith("cached")) if isinstance(outcome, Embedding) else outcome

    def _nearest(self, text: str) -> int:
        return 0

    def _space(self, options: EmbedOptions) -> VectorSpace:
        prompt = f"{options.role.value}:{options.instruction}" if options.instruction else ""
        return VectorSpace(fingerprint="fp", prompt=prompt, model=self._model(options.model))


def vector_of(text: str, dimensions: int = DIM) -> bytes:
    """Return the vector of a text."""
    return testing.vector_of(text, dimensions).astype("<f4").tobytes()


def _arranged(text: str) -> RunedError:
    reason = text.partition(":")[2]
    return error_for_reason(reason)("arranged to fail", metadata={"limit_texts": "7"}, retry_after=1.5)


async def _main(path: str) -> None:
    asked_to_stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked_to_stop.set)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        server = Server(build_app(FakeHost()), sock)
        await server.start()
        await asked_to_stop.wait()
        await server.stop(0)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
