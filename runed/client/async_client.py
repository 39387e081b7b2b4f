"""The client for asyncio. It has its own module, so that a blocking program does not import asyncio."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Generator, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

from numpy.typing import ArrayLike

from runed.client.calls.drive import drive_async
from runed.client.calls.flows import Flows
from runed.client.calls.patience import Deadline
from runed.client.calls.steps import Flow
from runed.client.client import described
from runed.client.options import Lane, Options, Role, Truncate
from runed.client.progress import download_bar
from runed.client.target import Target
from runed.client.transport.aio import AsyncTransport
from runed.client.types import CentroidSet, Embedding, Health, Info, Model, RerankResult, Vectors
from runed.errors import RunedError

K = TypeVar("K")
T = TypeVar("T")


def connect_async(
    *,
    home: str | os.PathLike[str] | None = None,
    socket_path: str | os.PathLike[str] | None = None,
    spawn: bool = True,
    timeout: float | None = None,
    on_progress: Callable[[Health], None] | None = None,
    progress: bool | None = None,
) -> Connecting:
    """Connect to the daemon, for asyncio; arguments and errors as for `connect`.

        async with runed.connect_async() as client:
            vector = await client.embed("hello")

    Args:
        home: As for `connect`.
        socket_path: As for `connect`.
        spawn: As for `connect`.
        timeout: As for `connect`.
        on_progress: As for `connect`, called in the event loop.
        progress: As for `connect`.

    Returns:
        An object for `async with`, which closes the client; or for `await`, after which you close the client.
    """

    async def connect() -> AsyncClient:
        target = Target.resolve(home=home, socket_path=socket_path, spawn=spawn)
        await asyncio.to_thread(target.ensure, timeout)
        return AsyncClient(target, timeout=timeout, on_progress=on_progress, progress=progress)

    return Connecting(connect())


class Connecting(Coroutine[Any, Any, "AsyncClient"]):
    """A coroutine that connects, and that also works in `async with`; `runed.connect_async` makes it.

    Args:
        coroutine: The coroutine that connects.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, AsyncClient]) -> None:
        self._coroutine = coroutine
        self._client: AsyncClient | None = None

    def __await__(self) -> Generator[Any, Any, AsyncClient]:
        return self._coroutine.__await__()

    def send(self, value: Any, /) -> Any:  # noqa: ANN401 # the signature of every coroutine
        """Run the coroutine up to its next wait, as a task does."""
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:  # noqa: ANN401 # as above; it has three forms
        """Raise an error where the coroutine waits, as a task does when it is cancelled."""
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """Abandon the connect."""
        self._coroutine.close()

    async def __aenter__(self) -> AsyncClient:
        self._client = await self._coroutine
        return self._client

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.close()


class AsyncClient:
    """A connection to the daemon, for any number of tasks of one event loop; `runed.connect_async` makes it.

    The methods are those of `Client`, and so are their arguments; they are awaited, and can be cancelled.

    Args:
        target: The daemon to talk to.
        timeout: As for `connect`.
        on_progress: As for `connect`.
        progress: As for `connect`.
    """

    def __init__(
        self,
        target: Target,
        *,
        timeout: float | None,
        on_progress: Callable[[Health], None] | None,
        progress: bool | None = None,
    ) -> None:
        self._target = target
        self._timeout = timeout
        bar = download_bar(wanted=progress if progress is not None else target.progress and on_progress is None)
        self._flows = Flows(spawn=target.settings is not None, on_progress=on_progress, bar=bar)
        self._transport = AsyncTransport(target)

    async def embed(
        self,
        text: str,
        *,
        role: Role | None = None,
        instruction: str = "",
        dimensions: int | None = None,
        truncate: Truncate = "none",
        lane: Lane | None = None,
        model: str | None = None,
        timeout: float | None = None,
    ) -> Vectors:
        """Embed one text.

        As `Client.embed`:

            vector = await client.embed("how do I brew tea?", role="query")
        """
        options = Options(role=role, instruction=instruction, dimensions=dimensions, truncate=truncate, lane=lane, model=model)
        return await self._run(self._flows.embed(text, options, self._deadline(timeout)))

    async def embed_batch(
        self,
        texts: Iterable[str],
        *,
        role: Role | None = None,
        instruction: str = "",
        dimensions: int | None = None,
        truncate: Truncate = "none",
        lane: Lane | None = None,
        model: str | None = None,
        timeout: float | None = None,
    ) -> Vectors:
        """Embed many texts.

        As `Client.embed_batch`:

            vectors = await client.embed_batch(["green tea", "black tea"], role="document")
        """
        options = Options(role=role, instruction=instruction, dimensions=dimensions, truncate=truncate, lane=lane, model=model)
        return await self._run(self._flows.embed_batch(texts, options, self._deadline(timeout)))

    async def embed_items(
        self,
        texts: Iterable[str],
        *,
        with_route: bool = False,
        role: Role | None = None,
        instruction: str = "",
        dimensions: int | None = None,
        truncate: Truncate = "none",
        lane: Lane | None = None,
        model: str | None = None,
        timeout: float | None = None,
    ) -> list[Embedding | RunedError]:
        """Embed many texts, with details and an error of its own for each.

        As `Client.embed_items`:

            outcomes = await client.embed_items(texts, truncate="end")
        """
        options = Options(role=role, instruction=instruction, dimensions=dimensions, truncate=truncate, lane=lane, model=model)
        return await self._run(self._flows.embed_items(texts, options, self._deadline(timeout), with_route=with_route))

    def embed_stream(
        self,
        items: Iterable[tuple[K, str]] | AsyncIterable[tuple[K, str]],
        *,
        role: Role | None = None,
        instruction: str = "",
        dimensions: int | None = None,
        truncate: Truncate = "none",
        lane: Lane | None = None,
        model: str | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[tuple[K, Embedding | RunedError], None]:
        """Embed any number of texts in constant memory, and yield each as it is ready; see `Client.embed_stream`.

            async with contextlib.aclosing(client.embed_stream(items)) as results:
                async for key, outcome in results:
                    await store(key, outcome)

        `items` may be asynchronous and wait for results; it is run in a task of its own. To stop early, close the generator, as
        `contextlib.aclosing` does, or cancel the task.
        """
        # As in `Client.embed_stream`.
        from runed.client.calls.stream import stream_flow  # noqa: PLC0415
        from runed.client.transport.aio_stream import run_stream  # noqa: PLC0415

        self._transport.check_open()
        options = Options(role=role, instruction=instruction, dimensions=dimensions, truncate=truncate, lane=lane, model=model)
        pending, flow = stream_flow(self._flows, options, self._timeout if timeout is None else timeout)
        return run_stream(flow, pending, items, self._transport)

    async def count_tokens(
        self,
        texts: Iterable[str],
        *,
        role: Role | None = None,
        instruction: str = "",
        model: str | None = None,
        timeout: float | None = None,
    ) -> list[int]:
        """Count the tokens of texts.

        As `Client.count_tokens`:

            counts = await client.count_tokens(texts, role="document")
        """
        options = Options(role=role, instruction=instruction, model=model)
        return await self._run(self._flows.count_tokens(texts, options, self._deadline(timeout)))

    async def rerank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        model: str | None = None,
        truncate: Truncate = "none",
        lane: Lane | None = None,
        timeout: float | None = None,
    ) -> list[RerankResult]:
        """Rank documents by their relevance to a query.

        As `Client.rerank`:

            best = (await client.rerank("how do I brew tea?", passages, top_n=3))[0].document
        """
        # As in `Client.embed_stream`.
        from runed.client.calls.ranking import RerankOptions, rerank_flow  # noqa: PLC0415

        options = RerankOptions(top_n=top_n, truncate=truncate, lane=lane, model=model)
        return await self._run(rerank_flow(self._flows, query, documents, options, self._deadline(timeout)))

    async def set_centroids(
        self,
        vectors: ArrayLike,
        preset: str = "",
        version: str = "",
        *,
        model: str | None = None,
        timeout: float | None = None,
    ) -> CentroidSet:
        """Replace the daemon's centroid set.

        As `Client.set_centroids`:

            installed = await client.set_centroids(kmeans.cluster_centers_, preset="k1024")
        """
        # As in `Client.embed_stream`.
        from runed.client.calls.centroids import set_centroids_flow  # noqa: PLC0415
        from runed.client.transport.aio_stream import run_upload  # noqa: PLC0415

        self._transport.check_open()
        flow = set_centroids_flow(self._flows, vectors, preset, version, self._deadline(timeout), model=model)
        return await run_upload(flow, self._transport)

    async def wait_until_ready(self, *, model: str | None = None, timeout: float | None = None) -> Info:
        """Wait while the daemon fetches its engine and model; see `Client.wait_until_ready`."""
        return await self._run(self._flows.wait_until_ready(self._deadline(timeout), model))

    async def info(self, *, model: str | None = None, timeout: float | None = None) -> Info:
        """Return the description of the daemon and its model; see `Client.info`."""
        return await self._run(self._flows.info(self._deadline(timeout), model))

    async def warm_up(self, *, model: str | None = None, timeout: float | None = None) -> None:
        """Start the engine ahead of the first text, and wait for it; see `Client.warm_up`."""
        await self._run(self._flows.warm_up(self._deadline(timeout), model))

    async def health(self, *, model: str | None = None, timeout: float | None = None) -> Health:
        """Return the present state of the daemon; see `Client.health`."""
        return await self._run(self._flows.health(self._deadline(timeout), model))

    async def list_models(self, *, timeout: float | None = None) -> list[Model]:
        """Return the models that requests may name; see `Client.list_models`."""
        return await self._run(self._flows.list_models(self._deadline(timeout)))

    async def shutdown(self, grace_seconds: int = 0, *, timeout: float | None = None) -> None:
        """Ask the daemon to exit; see `Client.shutdown`."""
        await self._run(self._flows.shutdown(grace_seconds, self._deadline(timeout)))

    async def close(self) -> None:
        """Close the connections; the daemon goes on for others."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return described(self, self._target, self._flows)

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline(self._timeout if timeout is None else timeout)

    async def _run(self, flow: Flow[T]) -> T:
        return await drive_async(flow, self._transport.perform)
