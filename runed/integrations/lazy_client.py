"""The client that all adapters share: it connects when the first text comes.

Frameworks make their embedding objects long before they use them. They copy and pickle them, and call them from any thread,
event loop or forked worker. They never close them.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from runed.client.async_client import AsyncClient, connect_async
from runed.client.client import Client, connect
from runed.client.options import EmbedOptions, Lane, Options, QueueOptions, Role, Truncate
from runed.client.types import RerankResult, Vectors

_MAX_CALLS = 4
"""Most batches of one event loop that are sent to the daemon at a time. Frameworks start all batches of a job at once. Each
would take a connection, and together they would fill the daemon's queue, so that it would refuse some."""


class LazyClient:
    """The client of an adapter, for any number of threads, event loops and forked children.

    It connects, and starts the daemon if none runs, when the first text comes. Errors are those of `runed.Client`.

    Args:
        dimensions: As for `runed.Client`.
        instruction: As for `runed.Client`; used for queries.
        truncate: As for `runed.Client`.
        lane: As for `runed.Client`.
        model: As for `runed.Client`.
        home: As for `runed.connect`.
        socket_path: As for `runed.connect`.
        timeout: As for `runed.connect`.

    Raises:
        RunedError: The value of an option is not one of the accepted ones.
    """

    def __init__(
        self,
        *,
        dimensions: int | None = None,
        instruction: str = "",
        truncate: Truncate = "none",
        lane: Lane | None = None,
        model: str | None = None,
        home: str | os.PathLike[str] | None = None,
        socket_path: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
    ) -> None:
        if home is not None and socket_path is not None:
            raise TypeError("give home or socket_path, not both")
        self._remake = partial(
            LazyClient,
            dimensions=dimensions,
            instruction=instruction,
            truncate=truncate,
            lane=lane,
            model=model,
            home=home,
            socket_path=socket_path,
            timeout=timeout,
        )
        self._connect = partial(connect, home=home, socket_path=socket_path, timeout=timeout)
        self._connect_async = partial(connect_async, home=home, socket_path=socket_path, timeout=timeout)
        self._common: EmbedOptions = {"dimensions": dimensions, "truncate": truncate, "lane": lane, "model": model}
        self._queue: QueueOptions = {"truncate": truncate, "lane": lane}
        self._instruction = instruction
        # A wrong option fails here, and not at the first text.
        Options(**self.options("query"))
        # No lock guards these two attributes: a child that was forked while another thread held the lock would wait for ever.
        self._blocking: dict[None, Client] = {}
        self._loops: dict[asyncio.AbstractEventLoop, _LoopClient] = {}
        weakref.finalize(self, _close_all, self._blocking)

    def options(self, role: Role | None) -> EmbedOptions:
        """Return the keyword arguments of a call; `role` as for `runed.Client`."""
        if role != "query":
            return {"role": role, **self._common}
        return {"role": role, "instruction": self._instruction, **self._common}

    def client(self) -> Client:
        """Return the client of blocking calls. The first call makes it."""
        if client := self._blocking.get(None):
            return client
        # Several threads may come here at once. All but one of their clients are dropped before they open a connection.
        client = self._connect()
        client._flows.ignore_roles()  # noqa: SLF001 # the framework chooses the role of a text, not the program
        return self._blocking.setdefault(None, client)

    def embed(self, text: str, role: Role | None) -> Vectors:
        """Embed one text. The vector is float32 of shape (dim,)."""
        return self.client().embed(text, **self.options(role))

    def embed_batch(self, texts: Sequence[str], role: Role | None) -> Vectors:
        """Embed many texts, in their order. The vectors are float32 of shape (n, dim)."""
        return self.client().embed_batch(texts, **self.options(role))

    def rerank(self, query: str, documents: Sequence[str], *, top_n: int | None, model: str | None) -> list[RerankResult]:
        """Rank documents. Blank ones are left out, since they have no score."""
        places, texts = _not_blank(documents)
        results = self.client().rerank(query, texts, top_n=top_n, model=model, **self._queue) if texts else []
        return [replace(result, index=places[result.index]) for result in results]

    async def arerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None, model: str | None
    ) -> list[RerankResult]:
        """Rank documents without blocking the event loop; see `rerank`."""
        places, texts = _not_blank(documents)
        if not texts:
            return []
        loop_client = await self._loop_client()
        async with loop_client.room:
            results = await loop_client.client.rerank(query, texts, top_n=top_n, model=model, **self._queue)
        return [replace(result, index=places[result.index]) for result in results]

    async def aembed(self, text: str, role: Role | None) -> Vectors:
        """Embed one text without blocking the event loop; see `embed`."""
        return await (await self._loop_client()).client.embed(text, **self.options(role))

    async def aembed_batch(self, texts: Sequence[str], role: Role | None) -> Vectors:
        """Embed many texts without blocking the event loop; see `embed_batch`."""
        loop_client = await self._loop_client()
        async with loop_client.room:
            return await loop_client.client.embed_batch(texts, **self.options(role))

    def close(self) -> None:
        """Close the connections of blocking calls. A later call makes new ones. This happens by itself when the object goes."""
        _close_all(self._blocking)

    async def aclose(self) -> None:
        """Close the connections of this event loop, too. This happens by itself when the loop ends."""
        self.close()
        if loop_client := self._loops.pop(asyncio.get_running_loop(), None):
            await loop_client.guard.aclose()

    def __reduce__(self) -> tuple[partial[LazyClient], tuple[()]]:
        # A copy, in this process or another one, makes its own connections.
        return self._remake, ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LazyClient) and self._remake.keywords == other._remake.keywords

    def __hash__(self) -> int:
        return hash(tuple(self._remake.keywords.values()))

    async def _loop_client(self) -> _LoopClient:
        """Return the client of the running event loop. Its connections belong to that loop."""
        loop = asyncio.get_running_loop()
        if loop_client := self._loops.get(loop):
            return loop_client
        for other in list(self._loops):
            if other.is_closed():
                self._loops.pop(other, None)
        client = await self._connect_async()
        client._flows.ignore_roles()  # noqa: SLF001 # as in `client`
        # As in `client`, several tasks may come here at once.
        loop_client = self._loops.setdefault(loop, _LoopClient(client, _guard(client), asyncio.Semaphore(_MAX_CALLS)))
        if loop_client.client is client:
            await anext(loop_client.guard)
        return loop_client


@dataclass(frozen=True, slots=True)
class _LoopClient:
    client: AsyncClient
    guard: AsyncGenerator[None, None]
    room: asyncio.Semaphore


async def _guard(client: AsyncClient) -> AsyncGenerator[None, None]:
    """Close a client when its event loop ends.

    `asyncio.run` and the like close all asynchronous generators at the end of a loop.
    """
    try:
        yield
    finally:
        await client.close()


def _not_blank(documents: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return the documents that have a score, and their places."""
    places = [index for index, document in enumerate(documents) if document and not document.isspace()]
    return places, [documents[index] for index in places]


def _close_all(clients: dict[None, Client]) -> None:
    while clients:
        clients.popitem()[1].close()


def as_text(path: object) -> object:
    """Return a path as a string, which a framework can write into its files.

    Return any other value unchanged, for later checks.
    """
    return os.fspath(path) if isinstance(path, os.PathLike) else path


def floats(vector: Vectors) -> list[float]:
    """Return a vector as a list, as most frameworks want it."""
    values: list[float] = vector.tolist()
    return values


def lists_of_floats(vectors: Vectors) -> list[list[float]]:
    """Return many vectors as lists, as most frameworks want them."""
    values: list[list[float]] = vectors.tolist()
    return values
