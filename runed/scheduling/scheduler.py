"""The scheduler of one model shares its backend among many callers. All schedulers have one batcher and one cache."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

from runed.backends.base import LocalBackend, Tokens
from runed.caching.cache import VectorCache
from runed.domain.device import CPU, Device
from runed.domain.model import ModelTraits, cache_space, dimensions_for, fingerprint, min_dimensions, prompt_for
from runed.domain.model_status import Tokenized
from runed.domain.requests import EmbedAnswer, Embedding, EmbedOptions, Lane, StreamAnswer, StreamItem, VectorSpace
from runed.domain.status import Load
from runed.domain.traits import traits_of
from runed.errors import RunedError
from runed.log import get_logger
from runed.metrics import Metrics
from runed.processes import release_free_memory
from runed.routing.router import Router
from runed.routing.store import CentroidStore
from runed.scheduling.batcher import Batcher
from runed.scheduling.claims import Claim, ClaimDesk, Terms, redeem
from runed.scheduling.counting import tokenize_each
from runed.scheduling.idle import IdleClock
from runed.scheduling.preparing import Preparer, check_count, check_text, located, named, portions
from runed.scheduling.stream import PIECE_TEXTS, Stream
from runed.turns import breathe, breathe_before

MAX_REQUEST_BYTES = 32 * 1024 * 1024
"""The largest request message in bytes."""

INTERACTIVE_BATCH = 8
"""The most texts of a batch that counts as interactive, unless its caller chooses a lane."""

_log = get_logger(__name__)


class Scheduler:
    """Turns texts into vectors of one model, for many callers at once.

    Args:
        backend: The backend. The scheduler closes it.
        batcher: Computes the texts of all models.
        name: The name of the model. No other scheduler of the batcher may have it.
        idle_timeout: Seconds without an embedding after which the backend is stopped; 0 never stops it.
        cache: The cache of the vectors of all models.
        metrics: Counts and measures.
        centroids: The centroid set to route by.
        engine_version: The version that the engine tells, or "".
        device: The device that the engine computes on.
        traits: The traits of the model; None derives them from its file.

    Attributes:
        backend: The backend, for reading only.
        traits: The traits of the model.
        centroids: The centroid set to route by.
        name: The name of the model.
        idle: Stops the engine when no text has come for `idle_timeout` seconds.
        demand: The calls that wait for the engine, by lane.
        last_used: The time of the last call with texts, in seconds since 1970; 0 before the first one.
    """

    def __init__(
        self,
        backend: LocalBackend,
        *,
        batcher: Batcher,
        name: str = "",
        idle_timeout: float,
        cache: VectorCache,
        metrics: Metrics,
        centroids: CentroidStore,
        engine_version: str = "",
        device: Device = CPU,
        traits: ModelTraits | None = None,
    ) -> None:
        self.backend = backend
        self.name = name
        self.demand: Counter[Lane] = Counter()
        self.last_used = 0.0
        self._cache = cache
        self._metrics = metrics
        self.centroids = centroids
        self._router = Router()
        self._engine_version = engine_version
        self._device = device
        self.traits = traits or traits_of(backend.model)
        self._native_fingerprint = self.fingerprint(backend.model.dim)
        self.idle = IdleClock(idle_timeout, self._suspend)
        self._batcher = batcher
        self._line = batcher.open(backend, name)
        self._desk = ClaimDesk(
            self._line,
            batcher,
            space=cache_space(backend.model, self._native_fingerprint),
            cache=cache,
            busy=self._busy,
            metrics=metrics,
            preparer=self._make_preparer(),
        )
        self._piece_texts = min(PIECE_TEXTS, batcher.limits(Lane.BULK).texts)

    @property
    def min_dimensions(self) -> int:
        """The fewest values of a vector."""
        return min_dimensions(self.backend.model, self.traits)

    @property
    def load(self) -> Load:
        """The waiting and the finished work."""
        return Load(
            stats=self._metrics.stats(),
            queued={lane: self._batcher.depth(lane) for lane in Lane},
            cache_entries=self._cache.entries,
            cache_bytes=self._cache.size,
            disk_cache_bytes=self._cache.disk_size,
        )

    def fingerprint(self, dimensions: int) -> str:
        """Return the name of the space of vectors with the given number of values; see `runed.domain.model.fingerprint`."""
        return fingerprint(
            self.backend.model,
            self.traits,
            engine_version=self._engine_version,
            dimensions=dimensions,
            device=self._device,
        )

    async def start(self) -> None:
        """Start the backend ahead of the first text.

        Raises:
            BackendError: It did not come up.
        """
        with self._busy(Lane.INTERACTIVE):
            await self.backend.start()

    async def embed(
        self, texts: Sequence[str], options: EmbedOptions, *, client: str, per_item_errors: bool = False
    ) -> EmbedAnswer:
        """Embed the texts of one call.

        Args:
            texts: 1 to `MAX_BATCH_TEXTS` texts, none of them blank.
            options: The caller's options.
            client: The caller's name; texts of different clients take turns.
            per_item_errors: Whether a text that cannot be embedded gets its own error. Otherwise it fails the whole call, and
                nothing is computed.

        Returns:
            One item a text, in order.

        Raises:
            InvalidRequestError: The call, or without `per_item_errors` one of its texts, cannot be served.
            NoCentroidSetError: A route was asked for, and there is no set to route by; nothing was computed.
            QueueFullError: Too much waits already.
            ShuttingDownError: The scheduler was closed meanwhile.
            BackendUnavailableError: The engine failed.
            BackendFaultError: Without `per_item_errors`: the engine's answer is not an embedding.
        """
        check_count(texts)
        lane = Lane.INTERACTIVE if len(texts) <= INTERACTIVE_BATCH else Lane.BULK
        terms = self._terms(options, client, lane, strict=not per_item_errors)
        # The whole call uses one set, even if another one is installed meanwhile.
        centroids = self.centroids.current() if options.with_route else None
        claims = [Claim(text, index, len(texts)) for index, text in enumerate(texts)]
        async with self._desk.claimed(claims, terms):
            items = await redeem(claims, terms)
        if centroids is not None:
            items = await self._router.route(items, centroids)  # a route is that of the whole vector
        for index, claim in enumerate(claims):
            await breathe_before(index)
            items[index] = terms.finish(items[index], claim)
        self._metrics.answered(sum(isinstance(item, Embedding) for item in items))
        return EmbedAnswer(items=items, space=terms.space, centroid_set_version=centroids.version if centroids else "")

    def embed_stream(
        self, chunks: AsyncIterator[Sequence[StreamItem]], options: EmbedOptions, *, client: str
    ) -> AsyncGenerator[StreamAnswer]:
        """Embed any number of texts, with a bounded number of them in flight.

        Args:
            chunks: The texts as they come. More are taken only while there is room for them.
            options: The caller's options. Without a lane, the texts wait in the bulk lane.
            client: As for `embed`.

        Returns:
            The results as they become ready. The iteration raises an error that has another cause than a text, such as a
            BackendUnavailableError.

        Raises:
            InvalidRequestError: The options cannot be served. An error of a text is told in its result.
        """
        terms = self._terms(options, client, Lane.BULK, streamed=True)
        return Stream(terms, desk=self._desk, answered=self._metrics.answered, piece_texts=self._piece_texts).run(chunks)

    async def count_tokens(self, texts: Sequence[str], options: EmbedOptions) -> list[int]:
        """Count tokens as `embed` would, with prompts and special tokens.

        Args:
            texts: 1 to `MAX_BATCH_TEXTS` texts, of any length.
            options: `role` and `instruction` count.

        Raises:
            InvalidRequestError: The call or one of its texts cannot be served.
            BackendError: The backend failed.
        """
        return [len(tokens) async for tokens in self._tokenize(texts, options)]

    async def tokenize(self, texts: Sequence[str], options: EmbedOptions, *, special: bool = True) -> Tokenized:
        """Return the tokens of texts as `embed` would see them.

        Args:
            texts: As for `count_tokens`.
            options: As for `count_tokens`.
            special: Whether to include the special tokens around each text.

        Raises:
            RunedError: As for `count_tokens`.
        """
        ids = [tokens async for tokens in self._tokenize(texts, options)]
        with self._busy(Lane.INTERACTIVE):
            if not special:
                first, last = await Preparer(self.backend).count_special_tokens()
                ids = [tokens[first : len(tokens) - last] for tokens in ids]
            known = list({token for tokens in ids for token in tokens})
            pieces = dict(zip(known, await self.backend.spell(known), strict=True))
        return Tokenized(ids, pieces, frozenset(token for token, _ in self.backend.model.special_tokens))

    async def _tokenize(self, texts: Sequence[str], options: EmbedOptions) -> AsyncIterator[Tokens]:
        """Yield the tokens of each text, with prompts and special tokens."""
        check_count(texts)
        prompt = prompt_for(options, self.traits)
        for index, text in enumerate(texts):
            check_text(text, *named(index, len(texts)))
            await breathe()
        with self._busy(Lane.INTERACTIVE):
            index = 0
            for part in portions([prompt + text for text in texts]):
                for tokens in await tokenize_each(part, self.backend):
                    if isinstance(tokens, RunedError):
                        raise located(tokens, named(index, len(texts)))
                    index += 1
                    yield tokens

    async def close(self, *, replaced: bool = False) -> None:
        """Stop the clock and the backend, and fail waiting texts. `replaced` tells whether another scheduler takes over."""
        await self.idle.close()
        await self._batcher.close(self._line, replaced=replaced)
        self._router.close()
        await self.backend.stop()

    @contextmanager
    def _busy(self, lane: Lane) -> Iterator[None]:
        """Keep the engine awake inside the block, for a call of a lane."""
        self.demand[lane] += 1
        try:
            with self.idle.busy():
                yield
        finally:
            self.demand[lane] -= 1

    def _make_preparer(self) -> Preparer:
        return Preparer(self.backend)

    def _terms(self, options: EmbedOptions, client: str, lane: Lane, *, strict: bool = False, streamed: bool = False) -> Terms:
        self.last_used = time.time()
        dimensions = dimensions_for(options, self.backend.model, self.traits)
        prompt = prompt_for(options, self.traits)
        native = dimensions == self.backend.model.dim
        name = self._native_fingerprint if native else self.fingerprint(dimensions)
        return Terms(
            lane=options.lane or lane,
            client=client,
            prompt=prompt,
            truncate=options.truncate,
            dimensions=dimensions,
            space=VectorSpace(fingerprint=name, prompt=prompt, model=self.name),
            strict=strict,
            streamed=streamed,
        )

    async def _suspend(self) -> None:
        _log.info("engine suspended", model=self.name, idle_seconds=self.idle.timeout)
        await self.backend.stop()
        release_free_memory()
