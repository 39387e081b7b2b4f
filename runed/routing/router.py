"""The search for the nearest centroid, in a thread beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from runed.domain.requests import Embedding
from runed.errors import RunedError
from runed.routing.centroids import CentroidSet


def keep_blas_to_one_thread() -> None:
    """Let matrix products use the calling thread alone.

    BLAS has its own threads, which spin while they wait for each other. Beside a busy engine, a product takes 20 times as long.
    Measured for 16 vectors and 16,384 x 1,024 centroids on two busy cores: 2.5 s instead of 0.13 s.
    """
    from threadpoolctl import threadpool_limits  # noqa: PLC0415 # 20 ms that only routing needs

    threadpool_limits(limits=1, user_api="blas")


class Router:
    """Finds the nearest centroids in one thread, which bounds the memory and processor time of routing."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="runed-routing", initializer=keep_blas_to_one_thread
        )

    async def route(self, items: Sequence[Embedding | RunedError], centroids: CentroidSet) -> list[Embedding | RunedError]:
        """Find the nearest centroid of each embedding.

        Calls take turns after each portion, so that a single vector does not wait for a whole batch of another call.

        Args:
            items: Embeddings of all of the model's dimensions. Errors are passed on.
            centroids: The set to route by.

        Returns:
            The embeddings with their cluster ids.
        """
        routed = list(items)
        embedded = [(index, item) for index, item in enumerate(items) if isinstance(item, Embedding)]
        for start in range(0, len(embedded), centroids.portion):
            portion = embedded[start : start + centroids.portion]
            vectors = np.frombuffer(b"".join(item.vector for _, item in portion), "<f4").reshape(len(portion), -1)
            ids = await asyncio.get_running_loop().run_in_executor(self._thread, centroids.nearest, vectors)
            for (index, item), cluster_id in zip(portion, ids, strict=True):
                routed[index] = replace(item, cluster_id=cluster_id)
        return routed

    def close(self) -> None:
        """End the thread after its present portion."""
        self._thread.shutdown(wait=False, cancel_futures=True)
