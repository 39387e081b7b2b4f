"""The client for asyncio, in a module of its own: a blocking program need not import asyncio for it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self, TypeVar

from google.protobuf.message import Message

from runed.client.async_transport import AsyncTransport
from runed.client.flow import Deadline, Ensure, Flow, Flows, Send, Sleep, Vectors
from runed.client.target import Target
from runed.client.types import Health, Info
from runed.errors import RunedError

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

    As `Client`, with methods that are awaited and can be cancelled.

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

    async def embed(self, text: str, *, timeout: float | None = None) -> Vectors:  # noqa: ASYNC109 # the daemon is told too
        """Embed one text; see `Client.embed`."""
        return await self._run(self._flows.embed(text, self._deadline(timeout)))

    async def embed_batch(self, texts: Iterable[str], *, timeout: float | None = None) -> Vectors:  # noqa: ASYNC109 # as above
        """Embed many texts; see `Client.embed_batch`."""
        return await self._run(self._flows.embed_batch(texts, self._deadline(timeout)))

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
                match step:
                    case Send():
                        data = await self._transport.call(step.method, step.request.SerializeToString(), step.timeout)
                        result = step.decode(data)
                    case Sleep():
                        await asyncio.sleep(step.seconds)
                    case Ensure():
                        result = await asyncio.to_thread(self._target.ensure, step.timeout)
            except RunedError as raised:
                error = raised
