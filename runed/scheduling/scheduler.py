"""One backend, shared: the way of a text from a call to its vector.

It is checked, given its prompt, looked up in the cache, joined with the same text in flight or queued, computed in a
micro-batch, kept in the cache and cut to the dimensions asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from runed.backends.base import Embedder
from runed.caching.cache import VectorCache
from runed.caching.entry import CachedVector, cache_key
from runed.domain.model import ModelTraits, dimensions_for, fingerprint, min_dimensions, prompt_for, traits_of
from runed.domain.requests import EmbedAnswer, Embedding, EmbedOptions, Lane, Space, StreamAnswer, StreamItem
from runed.domain.status import Load
from runed.domain.vectors import shorten
from runed.errors import QueueFullError, RunedError
from runed.log import get_logger
from runed.metrics import Metrics
from runed.processes import release_free_memory
from runed.routing.router import Router
from runed.routing.store import CentroidStore
from runed.scheduling.batcher import Batcher
from runed.scheduling.idle import IdleClock
from runed.scheduling.packing import pack
from runed.scheduling.preparing import Prepared, Preparer, check_count, check_text, named, portions
from runed.scheduling.queue import Computed, Job, QueueLimits
from runed.scheduling.stream import PIECE_TEXTS, Stream
from runed.scheduling.tickets import Computation, Plan, Ticket

MAX_REQUEST_BYTES = 32 * 1024 * 1024
"""The largest request message in bytes."""

INTERACTIVE_BATCH = 8
"""Batches of up to so many texts are taken for interactive, unless their caller says otherwise."""

_STREAMED: tuple[str, dict[str, str]] = ("the text", {})
"""How to call a text of a stream in an error, which travels beside its id."""

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What the user says of an engine.

    Attributes:
        idle_timeout: Seconds without an embedding after which the backend is stopped; 0 never.
        queue: How much may wait.
    """

    idle_timeout: float
    queue: QueueLimits


class Engine:
    """Turns texts into vectors for many callers at once.

    Args:
        backend: What computes; the engine owns it from now on.
        settings: What the user says.
        cache: Where vectors are kept; the engine owns it from now on.
        metrics: What counts and measures.
        centroids: What vectors are routed by.
        engine_version: What the backend's program calls itself.
        traits: How the model wants to be used; None means as its file says.
    """

    def __init__(
        self,
        backend: Embedder,
        *,
        settings: EngineSettings,
        cache: VectorCache,
        metrics: Metrics,
        centroids: CentroidStore,
        engine_version: str = "",
        traits: ModelTraits | None = None,
    ) -> None:
        self._backend = backend
        self._idle_timeout = settings.idle_timeout
        self._cache = cache
        self._metrics = metrics
        self._centroids = centroids
        self._router = Router()
        self._engine_version = engine_version
        self._traits = traits or traits_of(backend.model)
        self._native_fingerprint = self.fingerprint(backend.model.dim)
        self._idle = IdleClock(settings.idle_timeout, self._suspend)
        self._batcher = Batcher(backend, limits=settings.queue, metrics=metrics)
        self._preparer = Preparer(backend)
        self._piece_texts = min(PIECE_TEXTS, settings.queue.bulk.texts)
        self._computations: dict[bytes, Computation] = {}

    @property
    def backend(self) -> Embedder:
        """The backend, to be looked at."""
        return self._backend

    @property
    def traits(self) -> ModelTraits:
        """How the model wants to be used."""
        return self._traits

    @property
    def centroids(self) -> CentroidStore:
        """What vectors are routed by."""
        return self._centroids

    @property
    def min_dimensions(self) -> int:
        """The fewest values of a vector."""
        return min_dimensions(self._backend.model, self._traits)

    @property
    def load(self) -> Load:
        """How much there is to do and was done."""
        return Load(
            stats=self._metrics.stats(),
            queued={lane: self._batcher.depth(lane) for lane in Lane},
            cache_entries=self._cache.entries,
            cache_bytes=self._cache.size,
            disk_cache_bytes=self._cache.disk_size,
        )

    def fingerprint(self, dimensions: int) -> str:
        """Name the space of vectors of so many values; see `traits.fingerprint`."""
        return fingerprint(self._backend.model, self._traits, engine_version=self._engine_version, dimensions=dimensions)

    async def start(self) -> None:
        """Start the backend ahead of the first text.

        Raises:
            BackendError: It did not come up.
        """
        with self._idle.busy():
            await self._backend.start()

    async def embed(
        self, texts: Sequence[str], options: EmbedOptions, *, client: str, per_item_errors: bool = False
    ) -> EmbedAnswer:
        """Embed the texts of one call.

        Args:
            texts: 1 to `MAX_BATCH_TEXTS` texts, none of them blank.
            options: How.
            client: Who asks; texts of different clients take turns.
            per_item_errors: Whether a text that cannot be embedded leaves the others alone. Otherwise nothing is computed
                unless every text can be.

        Returns:
            One item a text, in order.

        Raises:
            InvalidRequestError: The call, or without `per_item_errors` one of its texts, cannot be served; says which and why.
            NoCentroidSetError: A route was asked for, and there is no set to route by; nothing was computed.
            QueueFullError: Too much waits already.
            BackendError: The backend failed; with `per_item_errors` only if it could not even count tokens.
        """
        check_count(texts)
        strict = not per_item_errors
        plan = self._plan(options, client, Lane.INTERACTIVE if len(texts) <= INTERACTIVE_BATCH else Lane.BULK)
        # One set for all of the call, though another one may be installed meanwhile.
        centroids = self._centroids.current() if options.with_route else None
        # A route is that of the whole vector, which is cut afterwards.
        claimed = plan if centroids is None else replace(plan, dimensions=self._backend.model.dim)
        with contextlib.ExitStack() as awake:
            tickets = await self._claim(texts, claimed, awake, strict=strict)
            try:
                items = await _redeem(tickets, strict=strict)
            finally:
                for ticket in tickets:
                    ticket.release()
        if centroids is not None:
            items = await self._router.route(items, centroids, plan.dimensions)
            if strict:
                _raise_first(items)
        self._metrics.answered(sum(isinstance(item, Embedding) for item in items))
        return EmbedAnswer(items=items, space=plan.space, centroid_set_version=centroids.version if centroids else "")

    def embed_stream(
        self, chunks: AsyncIterator[Sequence[StreamItem]], options: EmbedOptions, *, client: str
    ) -> AsyncGenerator[StreamAnswer]:
        """Embed any number of texts, with a bounded number of them in flight.

        Args:
            chunks: The texts as they come; more are taken only when there is room for them.
            options: How; without a lane, in bulk.
            client: As for `embed`.

        Returns:
            What becomes ready; its iteration raises what was no text's fault, such as a BackendUnavailableError.

        Raises:
            InvalidRequestError: The options cannot be served. What is wrong with a text is told in its result.
        """
        plan = self._plan(options, client, Lane.BULK, streamed=True)
        claim = partial(self._claim, strict=False)
        return Stream(plan, claim=claim, answered=self._metrics.answered, piece_texts=self._piece_texts).run(chunks)

    async def count_tokens(self, texts: Sequence[str], options: EmbedOptions) -> list[int]:
        """Count tokens as `embed` would see them, with prompts and special tokens.

        Args:
            texts: 1 to `MAX_BATCH_TEXTS` texts, of any length.
            options: `role` and `instruction` count.

        Raises:
            InvalidRequestError: The call or one of its texts cannot be served.
            BackendError: The backend failed.
        """
        check_count(texts)
        prompt = prompt_for(options, self._traits)
        for index, text in enumerate(texts):
            check_text(text, *named(index, len(texts)))
        with self._idle.busy():
            counts: list[int] = []
            for part in portions([prompt + text for text in texts]):
                counts += [len(tokens) for tokens in await self._backend.tokenize(part)]
            return counts

    async def close(self) -> None:
        """Stop the clock and the backend, and refuse what waits."""
        await self._idle.close()
        await self._batcher.close()
        self._router.close()
        await self._backend.stop()
        await self._cache.close()

    def _plan(self, options: EmbedOptions, client: str, lane: Lane, *, streamed: bool = False) -> Plan:
        dimensions = dimensions_for(options, self._backend.model, self._traits)
        prompt = prompt_for(options, self._traits)
        native = dimensions == self._backend.model.dim
        space = Space(fingerprint=self._native_fingerprint if native else self.fingerprint(dimensions), prompt=prompt)
        return Plan(
            options=options,
            lane=options.lane or lane,
            client=client,
            prompt=prompt,
            dimensions=dimensions,
            space=space,
            streamed=streamed,
        )

    async def _claim(self, texts: Sequence[str], plan: Plan, awake: contextlib.ExitStack, *, strict: bool) -> list[Ticket]:
        """Begin to embed texts, unless their vectors are there already.

        Args:
            texts: The texts.
            plan: What holds for all of them.
            awake: Keeps the backend awake until it is closed, if there is anything to compute.
            strict: Whether the first text that cannot be embedded fails them all.

        Returns:
            A ticket a text, each to be released.

        Raises:
            InvalidRequestError: If `strict`: a text cannot be embedded.
            QueueFullError: Too much waits already, unless `plan.streamed`.
            BackendError: The backend cannot count tokens.
        """
        names = [_STREAMED if plan.streamed else named(index, len(texts)) for index in range(len(texts))]
        problems = [_problem(text, *name) for text, name in zip(texts, names, strict=True)]
        if strict:
            _raise_first(problems)
        sound = [index for index, problem in enumerate(problems) if problem is None]
        keys = {index: self._key(texts[index], plan) for index in sound}
        cached = await self._cache.get(list(dict.fromkeys(keys.values())))
        missing = [index for index in sound if keys[index] not in cached]
        if missing:  # what is in the cache needs no engine, and wakes none
            awake.enter_context(self._idle.busy())
        prepared = await self._preparer.prepare(
            [texts[index] for index in missing],
            prompt=plan.prompt,
            truncate=plan.options.truncate,
            names=[names[index] for index in missing],
            exact=plan.lane is Lane.BULK and len(missing) > 1,  # to be packed
        )
        if strict:
            _raise_first(prepared)
        known: dict[int, Embedding | RunedError] = {
            **{index: problem for index, problem in enumerate(problems) if problem is not None},
            **{index: _from_cache(cached[key], plan) for index, key in keys.items() if key in cached},
            **{index: item for index, item in zip(missing, prepared, strict=True) if isinstance(item, RunedError)},
        }
        wanted = {index: item for index, item in zip(missing, prepared, strict=True) if isinstance(item, Prepared)}
        tickets = await self._queue(wanted, keys, plan)
        self._metrics.hit(len(keys) - len(missing))
        return [tickets[index] if index in tickets else Ticket(outcome=known[index]) for index in range(len(texts))]

    async def _queue(self, wanted: Mapping[int, Prepared], keys: Mapping[int, bytes], plan: Plan) -> dict[int, Ticket]:
        """Queue texts, and wait for room first if the plan says so."""
        while plan.streamed and wanted:
            await self._batcher.room(texts=len(wanted), size=sum(item.size for item in wanted.values()))
            with contextlib.suppress(QueueFullError):  # somebody was faster
                return self._join_or_submit(wanted, keys, plan)
        try:
            return self._join_or_submit(wanted, keys, plan)
        except QueueFullError:
            self._metrics.refused()
            raise

    def _join_or_submit(self, wanted: Mapping[int, Prepared], keys: Mapping[int, bytes], plan: Plan) -> dict[int, Ticket]:
        """Join each text with its twin in flight, or else submit it. Nothing is awaited here, so that no twin escapes."""
        tickets: dict[int, Ticket] = {}
        new: list[Job] = []
        found = 0
        for index, item in wanted.items():
            key = keys[index]
            # A twin may have become ready while this text was counted or waited for room.
            if (value := self._cache.peek(key)) is not None:
                tickets[index] = Ticket(outcome=_from_cache(value, plan))
                found += 1
                continue
            twin = self._computations.get(key)
            shared = twin is not None and twin.alive
            if twin is None or not shared:
                twin = self._begin(key, item, plan)
                new.append(twin.job)
            elif plan.lane is Lane.INTERACTIVE:
                self._batcher.promote(twin.job)
            tickets[index] = Ticket(computation=twin, dimensions=plan.dimensions, shared=shared)
        if plan.lane is Lane.BULK:
            new = pack(new, self._backend.limits)
        try:
            if new:
                self._batcher.submit(new)
        except RunedError:
            for ticket in tickets.values():
                ticket.release()
            raise
        self._metrics.hit(found)
        self._metrics.shared(len(tickets) - len(new) - found)
        return tickets

    def _begin(self, key: bytes, item: Prepared, plan: Plan) -> Computation:
        job = Job(
            input=item.input,
            tokens=item.tokens,
            exact=item.exact,
            size=item.size,
            lane=plan.lane,
            client=plan.client,
            future=asyncio.get_running_loop().create_future(),
        )
        computation = self._computations[key] = Computation(job, item.total_tokens)
        job.future.add_done_callback(partial(self._end, key, computation))
        return computation

    def _end(self, key: bytes, computation: Computation, future: asyncio.Future[Computed]) -> None:
        if self._computations.get(key) is computation:
            del self._computations[key]
        # Asking for the exception also tells asyncio that somebody has seen it, should all callers have gone.
        if not future.cancelled() and future.exception() is None:
            done = future.result()
            total = computation.total_tokens or done.tokens
            self._cache.put(key, CachedVector(vector=done.vector, tokens=done.tokens, total_tokens=total))

    def _key(self, text: str, plan: Plan) -> bytes:
        # A text that is short enough anyway has one vector, however it might have been cut. Where one is cut depends on the
        # context, which may be another one the next time, when the cache is on disk.
        too_long = self._preparer.may_be_too_long(plan.prompt + text)
        cut = f"{plan.options.truncate.value} {self._backend.model.max_tokens}" if too_long else ""
        return cache_key(self._native_fingerprint, plan.prompt, cut, text)

    async def _suspend(self) -> None:
        _log.info("engine suspended", idle_seconds=self._idle_timeout)
        await self._backend.stop()
        release_free_memory()


async def _redeem(tickets: Sequence[Ticket], *, strict: bool) -> list[Embedding | RunedError]:
    """Wait for the outcomes of all tickets; if `strict`, only until the first error, which is raised."""
    futures = {ticket.future for ticket in tickets if ticket.future is not None}
    if futures:
        await asyncio.wait(futures, return_when=asyncio.FIRST_EXCEPTION if strict else asyncio.ALL_COMPLETED)
    if strict:
        _raise_first([ticket.redeem() for ticket in tickets if ticket.ready])
    return [ticket.redeem() for ticket in tickets]


def _from_cache(item: CachedVector, plan: Plan) -> Embedding:
    vector = shorten(item.vector, plan.dimensions)
    return Embedding(vector=vector, tokens=item.tokens, total_tokens=item.total_tokens, cached=True)


def _problem(text: str, name: str, where: dict[str, str]) -> RunedError | None:
    try:
        check_text(text, name, where)
    except RunedError as error:
        return error
    return None


def _raise_first(items: Sequence[object]) -> None:
    """Raise the first error among the items of a call, if there is one."""
    for item in items:
        if isinstance(item, RunedError):
            raise item
