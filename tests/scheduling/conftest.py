"""Fixtures with schedulers over the real `llama-server` that note the computed texts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from runed.backends.base import BackendState, BatchLimits, EmbeddingBatch, TextInput, Tokens
from runed.backends.llama.backend import LlamaBackend
from runed.caching.cache import VectorCache
from runed.domain.model import ModelInfo, ModelTraits
from runed.metrics import Metrics
from runed.paths import Paths
from runed.routing.store import CentroidStore
from runed.scheduling.batcher import Batcher
from runed.scheduling.queue import QueueLimits
from runed.scheduling.scheduler import Scheduler


class Recorder:
    """A backend that passes every call on, and notes each micro-batch and each tokenized text."""

    def __init__(self, backend: LlamaBackend) -> None:
        self._backend = backend
        self.batches: list[list[TextInput]] = []
        self.tokenized: list[str] = []

    @property
    def model(self) -> ModelInfo:
        return self._backend.model

    @property
    def state(self) -> BackendState:
        return self._backend.state

    @property
    def limits(self) -> BatchLimits:
        return self._backend.limits

    @property
    def computed(self) -> list[TextInput]:
        """All computed texts, in order."""
        return [text for batch in self.batches for text in batch]

    async def start(self) -> None:
        await self._backend.start()

    async def stop(self) -> None:
        await self._backend.stop()

    async def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        self.tokenized.extend(texts)
        return await self._backend.tokenize(texts)

    async def spell(self, tokens: Sequence[int]) -> list[str]:
        return await self._backend.spell(tokens)

    async def embed(self, texts: Sequence[TextInput]) -> EmbeddingBatch:
        self.batches.append(list(texts))
        return await self._backend.embed(texts)


MakeEngine = Callable[..., tuple[Scheduler, Recorder]]


@pytest.fixture
async def make_engine(home: Path, llama_server: Path, tiny_qwen3: Path) -> AsyncIterator[MakeEngine]:
    """Make schedulers, by default of the tiny Qwen3 with a context of 256 tokens. Each is closed at the end."""
    made: list[Scheduler] = []

    def make(
        model: Path = tiny_qwen3,
        *,
        ctx_size: int = 256,
        queue: QueueLimits = QueueLimits(10_000, 10_000_000),  # noqa: B008 # immutable
        cache_bytes: int = 1_000_000,
        profile: str = "balanced",
        traits: ModelTraits | None = None,
        cache: VectorCache | None = None,
    ) -> tuple[Scheduler, Recorder]:
        backend = Recorder(
            LlamaBackend(
                executable=llama_server,
                model=model,
                model_sha256="ab" * 32,
                paths=Paths(home),
                ctx_size=ctx_size,
                profile=profile,
            )
        )
        metrics = Metrics()
        engine = Scheduler(
            backend,
            batcher=Batcher(limits=queue, metrics=metrics),
            idle_timeout=0,
            cache=cache or VectorCache(cache_bytes),
            metrics=metrics,
            centroids=CentroidStore(Paths(home).centroids, dim=backend.model.dim, model=backend.model.identity),
            engine_version="engine 1",
            traits=traits,
        )
        made.append(engine)
        return engine, backend

    yield make
    for engine in made:
        await engine.close()
