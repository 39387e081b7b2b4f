"""Accepts connections on a listening socket, and ends them without losing an answer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import resource
import socket
from collections import Counter
from collections.abc import Set as AbstractSet

from runed.log import get_logger
from runed.server.acceptor import Acceptor
from runed.server.budget import Budget
from runed.server.connection import Connection, events_of
from runed.server.door import refusal_of_stranger
from runed.server.gate import Gate, Share
from runed.server.stream import Application, ServerContext

CANCEL_TIMEOUT = 5.0
"""Seconds that cancelled calls of the app may take to clean up."""

STRANGERS_PACE = 0.02
"""Seconds between two batches of connections of clients that have to pass a gate."""

LATE_GRACE = 1.0
"""Seconds for the calls of connections that were made during a drain. These are status requests and refusals, no work."""

MAX_CONNECTIONS = 512
"""Most connections of known clients."""

MAX_STRANGERS = 64
"""Most connections of clients that have to pass a gate."""

MIN_CONNECTIONS = 16
"""Connections that are tried even if the limit of open files is too small for them."""

OWN_FILES = 64
"""Files that the process needs besides connections: its log, its caches, its engine and its downloads."""

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
        max_connections: Connections at a time. A further one closes the connection that has been idle, or has kept its requests
            waiting, for the longest time. If there is none, it waits in the backlog.
        head_timeout: Seconds within which the head of a request must be complete once it has begun.
        stall_timeout: Seconds that a request waits for a client that neither sends nor reads a byte of it. The request is ended
            then. A frame of HTTP/2, or a header block of several, must be complete within this time. The time of the app is not
            limited. Common web servers wait as long.
        budget: The memory of all requests, of this server and of others.
        gate: Refuses requests by their heads, before the app is called; the connection is closed then. Clients that have not
            passed the gate get a small share of the event loop, all together.
    """

    def __init__(
        self,
        app: Application,
        sock: socket.socket,
        *,
        max_streams: int = 128,
        max_connections: int = MAX_CONNECTIONS,
        head_timeout: float = 30.0,
        stall_timeout: float = 60.0,
        budget: Budget | None = None,
        gate: Gate | None = None,
    ) -> None:
        self._context = ServerContext(
            app,
            asyncio.Event(),
            max_streams,
            head_timeout,
            stall_timeout,
            "unix" if sock.family is socket.AF_UNIX else "tcp",
            budget or Budget(),
            gate,
            Share(),
        )
        self._acceptor = Acceptor(sock, self._accept, self._make_room, pace=0.0 if gate is None else STRANGERS_PACE)
        self._max_connections = max_connections
        self._numbers = itertools.count(1)
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self._late: set[asyncio.Task[None]] = set()

    def clients(self) -> Counter[int]:
        """Return the process ids of the clients of a UNIX socket, with the number of their connections; as in `Peer.pid`."""
        peers = (connection.peer for connection in self._connections.values() if self._context.transport == "unix")
        return Counter(peer.pid for peer in peers if peer is not None)

    async def start(self) -> None:
        """Begin to accept connections."""
        self._acceptor.start()

    async def stop(self, grace: float) -> None:
        """Wait for the requests in flight, then cut off the rest.

        Present connections take no new requests. Until the last of them has ended, new connections are served, so that a client
        can ask for the state of the app. The server does not wait for new connections. The app itself must refuse new work.
        This may be called again while it runs; the shorter grace counts.

        Args:
            grace: Seconds that the requests in flight may take.
        """
        self._context.draining.set()
        for task, connection in self._connections.items():
            if task not in self._late:
                connection.drain()
        left = await self._wait(self._connections.keys() - self._late, grace)
        self._acceptor.close()
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

    def _accept(self, sock: socket.socket) -> None:
        if events_of(sock, 0):  # the client has left while it waited; thousands of such must not keep others waiting
            sock.close()
            return
        if self._context.transport == "unix" and (refusal := refusal_of_stranger(sock)):
            with sock, contextlib.suppress(OSError):  # a client that is gone needs no answer
                sock.send(refusal)
            return
        connection = Connection(self._context, next(self._numbers), sock)
        task = asyncio.get_running_loop().create_task(connection.run())
        self._connections[task] = connection
        if self._context.draining.is_set():
            self._late.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._connections[task]
        self._late.discard(task)
        self._acceptor.room_made()

    def _make_room(self, out_of_files: bool) -> bool:  # noqa: FBT001 # see `Acceptor`
        """Return whether one more connection fits. Close one if there are too many, or if no descriptor is left.

        Otherwise clients that leave connections open, or send requests without an end, would lock others out.
        """
        if len(self._connections) < self._max_connections and not out_of_files:
            return True
        now = asyncio.get_running_loop().time()
        missed = [
            (since, connection)
            for connection in self._connections.values()
            if (since := connection.missed_since(now)) is not None
        ]
        return any(connection.give_way() for _, connection in sorted(missed, key=lambda entry: entry[0]))


def connection_limits() -> tuple[int, int]:
    """Return the numbers of connections that a server of known clients, and one of strangers, may have at a time.

    They follow the limit of open files of this process (`ulimit -n`).
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    left = MAX_CONNECTIONS + MAX_STRANGERS if files == resource.RLIM_INFINITY else max(files - OWN_FILES, MIN_CONNECTIONS)
    strangers = min(MAX_STRANGERS, left // 4)
    return min(MAX_CONNECTIONS, left - strangers), strangers
