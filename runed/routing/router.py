"""The way from a vector to the nearest centroid, beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from runed.domain.requests import Embedding
from runed.domain.vectors import shorten
from runed.errors import RunedError
from runed.routing.centroids import CentroidSet


def keep_blas_to_one_thread() -> None:
    """Let matrix products use the thread that asks for them and no others.

    BLAS has threads of its own that spin while they wait for each other. Where the engine wants the processors too, that takes
    20 times as long (16 vectors, 16,384 x 1,024 centroids, two busy cores: 2.5 s instead of 0.13 s).
    """
    from threadpoolctl import threadpool_limits  # noqa: PLC0415 # 20 ms that only routing needs

    threadpool_limits(limits=1, user_api="blas")


class Router:
    """Finds the nearest centroids in a thread: only one, so that routing takes a bounded share of memory and processors."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="runed-routing", initializer=keep_blas_to_one_thread
        )

    async def route(
        self, items: Sequence[Embedding | RunedError], centroids: CentroidSet, dimensions: int
    ) -> list[Embedding | RunedError]:
        """Find the nearest centroid of each embedding, and cut its vector afterwards.

        Calls take turns by the portion, so that a single vector does not wait for all of somebody's batch.

        Args:
            items: Embeddings of all of the model's dimensions; errors stay what they are.
            centroids: The set to route by.
            dimensions: The number of values that each vector is to have.

        Returns:
            The embeddings with their cluster ids; an error for one that cannot be cut.
        """
        routed = list(items)
        embedded = [(index, item) for index, item in enumerate(items) if isinstance(item, Embedding)]
        for start in range(0, len(embedded), centroids.portion):
            portion = embedded[start : start + centroids.portion]
            vectors = np.frombuffer(b"".join(item.vector for _, item in portion), "<f4").reshape(len(portion), -1)
            ids = await asyncio.get_running_loop().run_in_executor(self._thread, centroids.nearest, vectors)
            for (index, item), cluster_id in zip(portion, ids, strict=True):
                routed[index] = _finish(item, cluster_id, dimensions)
        return routed

    def close(self) -> None:
        """End the thread once it has done what it does."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _finish(item: Embedding, cluster_id: int, dimensions: int) -> Embedding | RunedError:
    try:
        return replace(item, vector=shorten(item.vector, dimensions), cluster_id=cluster_id)
    except RunedError as error:
        return error
