"""The client for asyncio, in a module of its own: a blocking program need not import asyncio for it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from types import TracebackType
from typing import Self, TypeVar, Unpack

from google.protobuf.message import Message
from numpy.typing import ArrayLike

from runed.client.calls.flows import Ensure, Flow, Flows, Send, Sleep
from runed.client.calls.patience import Deadline
from runed.client.options import EmbedOptions, Options, Role
from runed.client.target import Target
from runed.client.transport.aio import AsyncTransport
from runed.client.types import CentroidSet, Embedding, Health, Info, Vectors
from runed.errors import RunedError

K = TypeVar("K")
T = TypeVar("T")


async def connect_async(
    *,
    home: str | os.PathLike[str] | None = None,
    socket_path: str | os.PathLike[str] | None = None,
    spawn: bool = True,
    timeout: float | None = None,  # noqa: ASYNC109 # it is for the calls to come as well
    on_progress: Callable[[Health], None] | None = None,
) -> AsyncClient:
    """Connect to the daemon, for asyncio; arguments and errors as for `connect`.

    Args:
        home: As for `connect`.
        socket_path: As for `connect`.
        spawn: As for `connect`.
        timeout: As for `connect`.
        on_progress: As for `connect`, called in the event loop.

    Returns:
        The client, to be closed, or used as an asynchronous context manager.
    """
    target = Target.resolve(home=home, socket_path=socket_path, spawn=spawn)
    await asyncio.to_thread(target.ensure, timeout)
    return AsyncClient(target, timeout=timeout, on_progress=on_progress)


class AsyncClient:
    """A connection to the daemon, for any number of tasks of one event loop; `runed.connect_async` makes it.

    As `Client`, with methods that are awaited and can be cancelled; the options of all methods that embed are the same.

    Args:
        target: The daemon to talk to.
        timeout: As for `connect`.
        on_progress: As for `connect`.
    """

    def __init__(self, target: Target, *, timeout: float | None, on_progress: Callable[[Health], None] | None) -> None:
        self._target = target
        self._timeout = timeout
        self._flows = Flows(spawn=target.settings is not None, on_progress=on_progress)
        self._transport = AsyncTransport(target.socket)

    async def embed(
        self,
        text: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 # the daemon is told too
        **options: Unpack[EmbedOptions],
    ) -> Vectors:
        """Embed one text.

        As `Client.embed`:

            vector = await client.embed("how do I brew tea?", role="query")
        """
        return await self._run(self._flows.embed(text, Options.of(options), self._deadline(timeout)))

    async def embed_batch(
        self,
        texts: Iterable[str],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 # as above
        **options: Unpack[EmbedOptions],
    ) -> Vectors:
        """Embed many texts.

        As `Client.embed_batch`:

            vectors = await client.embed_batch(["green tea", "black tea"], role="document")
        """
        return await self._run(self._flows.embed_batch(texts, Options.of(options), self._deadline(timeout)))

    async def embed_items(
        self,
        texts: Iterable[str],
        *,
        with_route: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 # as above
        **options: Unpack[EmbedOptions],
    ) -> list[Embedding | RunedError]:
        """Embed many texts, with details and an error of its own for each.

        As `Client.embed_items`:

            outcomes = await client.embed_items(texts, truncate="end")
        """
        flow = self._flows.embed_items(texts, Options.of(options), self._deadline(timeout), with_route=with_route)
        return await self._run(flow)

    def embed_stream(
        self,
        items: Iterable[tuple[K, str]] | AsyncIterable[tuple[K, str]],
        *,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> AsyncGenerator[tuple[K, Embedding | RunedError], None]:
        """Embed any number of texts in constant memory, and give each as it is ready; see `Client.embed_stream`.

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
        job, flow = stream_flow(self._flows, Options.of(options), self._timeout if timeout is None else timeout)
        return run_stream(flow, job, items, self._target.socket, self._perform)

    async def count_tokens(
        self,
        texts: Iterable[str],
        *,
        role: Role | None = None,
        instruction: str = "",
        timeout: float | None = None,  # noqa: ASYNC109 # as above
    ) -> list[int]:
        """Count the tokens of texts.

        As `Client.count_tokens`:

            counts = await client.count_tokens(texts, role="document")
        """
        options = Options(role=role, instruction=instruction)
        return await self._run(self._flows.count_tokens(texts, options, self._deadline(timeout)))

    async def set_centroids(
        self,
        vectors: ArrayLike,
        preset: str = "",
        version: str = "",
        *,
        timeout: float | None = None,  # noqa: ASYNC109 # as above
    ) -> CentroidSet:
        """Replace the daemon's centroid set.

        As `Client.set_centroids`:

            installed = await client.set_centroids(kmeans.cluster_centers_, preset="k1024")
        """
        # As in `Client.embed_stream`.
        from runed.client.calls.centroids import set_centroids_flow  # noqa: PLC0415
        from runed.client.transport.aio_stream import run_upload  # noqa: PLC0415

        self._transport.check_open()
        flow = set_centroids_flow(self._flows, vectors, preset, version, self._deadline(timeout))
        return await run_upload(flow, self._target.socket, self._perform)

    async def wait_until_ready(self, *, timeout: float | None = None) -> Info:  # noqa: ASYNC109 # as above
        """Wait while the daemon fetches its engine and model; see `Client.wait_until_ready`."""
        return await self._run(self._flows.wait_until_ready(self._deadline(timeout)))

    async def info(self, *, timeout: float | None = None) -> Info:  # noqa: ASYNC109 # as above
        """Ask what the daemon and its model are; see `Client.info`."""
        return await self._run(self._flows.info(self._deadline(timeout)))

    async def health(self, *, timeout: float | None = None) -> Health:  # noqa: ASYNC109 # as above
        """Ask what the daemon is doing right now; see `Client.health`."""
        return await self._run(self._flows.health(self._deadline(timeout)))

    async def shutdown(self, grace_seconds: int = 0, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 # as above
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

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline(self._timeout if timeout is None else timeout)

    async def _run(self, flow: Flow[T]) -> T:
        result: Message | bool | None = None
        error: RunedError | None = None
        while True:
            try:
                step = flow.throw(error) if error else flow.send(result)
            except StopIteration as stop:
                value: T = stop.value
                return value
            result = error = None
            try:
                result = await self._perform(step)
            except RunedError as raised:
                error = raised

    async def _perform(self, step: Send | Sleep | Ensure) -> Message | bool | None:
        match step:
            case Send():
                return step.decode(await self._transport.call(step.method, step.request.SerializeToString(), step.timeout))
            case Ensure():
                return await asyncio.to_thread(self._target.ensure, step.timeout)
            case Sleep():
                await asyncio.sleep(step.seconds)
        return None
