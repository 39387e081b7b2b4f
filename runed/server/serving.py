"""Accepts connections on a listening socket, and ends them without losing an answer."""

from __future__ import annotations

import asyncio
import itertools
import socket
import sys
from collections.abc import Set as AbstractSet

from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config

from runed.log import get_logger
from runed.server.connection import Connection
from runed.server.door import Door
from runed.server.stream import Application, ServerContext

CANCEL_TIMEOUT = 5.0
"""Seconds that cancelled calls of the app may take to clean up."""

LATE_GRACE = 1.0
"""Seconds for the calls of connections that were made during a drain. These are status requests and refusals, no work."""

_log = get_logger(__name__)


class Server:
    """Serves an ASGI application over HTTP/1.1 and HTTP/2 on a UNIX or TCP socket. A UNIX socket serves its own user alone.

    Each connection has its own number; the app sees it in each request as `scope["client"] == ("unix", number)`, or "tcp". The
    app reads `http.disconnect` if a client disconnects or abandons a request. The app gets no lifespan events: the caller of
    `start` and `stop` has no use for them. An exception of the app ends only its own request, and is logged without its text.

    Args:
        app: The application.
        sock: A bound and listening socket. `stop` closes it, and leaves the path of a UNIX socket alone.
        max_streams: Requests that one HTTP/2 connection may have open at a time. A further one is refused, and the client may
            try again.
        max_connections: Connections at a time. A further one closes the connection that has been idle for the longest time. If
            none is idle, the new one is closed.
        head_timeout: Seconds within which the head of a request must be complete once it has begun.
        stall_timeout: Seconds that a request waits for a client that neither sends nor reads a byte of it. The request is ended
            then. The time of the app is not limited. Common web servers wait as long.
    """

    def __init__(
        self,
        app: Application,
        sock: socket.socket,
        *,
        max_streams: int = 128,
        max_connections: int = 512,
        head_timeout: float = 30.0,
        stall_timeout: float = 60.0,
    ) -> None:
        self._context = ServerContext(
            app,
            _hypercorn_config(),
            WorkerContext(None),
            max_streams,
            head_timeout,
            stall_timeout,
            "unix" if sock.family is socket.AF_UNIX else "tcp",
        )
        self._sock = sock
        self._door = Door() if sock.family is socket.AF_UNIX else None
        self._max_connections = max_connections
        self._numbers = itertools.count(1)
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self._late: set[asyncio.Task[None]] = set()
        self._closed = False
        self._listener: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to accept connections."""
        if self._context.transport == "tcp":
            self._listener = await asyncio.start_server(self._accept, sock=self._sock, backlog=socket.SOMAXCONN)
        elif sys.version_info >= (3, 13):
            # Since Python 3.13, asyncio would unlink the path, which may belong to another daemon by then.
            self._listener = await asyncio.start_unix_server(
                self._accept, sock=self._sock, backlog=socket.SOMAXCONN, cleanup_socket=False
            )
        else:
            self._listener = await asyncio.start_unix_server(self._accept, sock=self._sock, backlog=socket.SOMAXCONN)

    async def stop(self, grace: float) -> None:
        """Wait for the requests in flight, then cut off the rest.

        Present connections take no new requests. Until the last of them has ended, new connections are served, so that a client
        can ask for the state of the app. The server does not wait for new connections. The app itself must refuse new work.
        This may be called again while it runs; the shorter grace counts.

        Args:
            grace: Seconds that the requests in flight may take.
        """
        await self._context.worker.terminated.set()
        for task, connection in self._connections.items():
            if task not in self._late:
                connection.drain()
        left = await self._wait(self._connections.keys() - self._late, grace)
        self._closed = True
        if self._listener is not None:
            self._listener.close()
        for task in self._late:
            self._connections[task].drain()
        left += await self._wait(self._late, 0 if left else min(grace, LATE_GRACE))
        if not left:
            return
        _log.warning("cutting off what is still in flight", connections=left)
        for task, connection in self._connections.items():
            connection.abort()
            task.cancel()
        if left := await self._wait(self._connections.keys(), CANCEL_TIMEOUT):
            _log.error("requests ignore their cancellation", connections=left)

    async def _wait(self, connections: AbstractSet[asyncio.Task[None]], seconds: float) -> int:
        """Wait for the end of connections. Return the number of those that have not ended."""
        if not connections:
            return 0
        _, pending = await asyncio.wait(connections, timeout=seconds)
        return len(pending)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._door is not None and (refusal := self._door.refusal(writer.get_extra_info("socket"))):
            writer.write(refusal)
            writer.close()
            return
        if self._closed or not self._make_room():
            writer.transport.abort()
            return
        connection = Connection(self._context, next(self._numbers), reader, writer)
        task = asyncio.get_running_loop().create_task(connection.run())
        self._connections[task] = connection
        if self._context.worker.terminated.is_set():
            self._late.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._connections[task]
        self._late.discard(task)

    def _make_room(self) -> bool:
        """Close an idle connection if there are too many, and return whether one more fits.

        Otherwise clients that leave connections open would lock others out.
        """
        if len(self._connections) < self._max_connections:
            return True
        idle = min((c for c in self._connections.values() if c.idle), key=lambda c: c.last_heard, default=None)
        if idle is not None:
            idle.drain()
        return idle is not None


def _hypercorn_config() -> Config:
    config = Config()
    config.accesslog = config.errorlog = None
    config.include_server_header = False
    config.keep_alive_max_requests = sys.maxsize
    return config
