"""Accepts connections as long as there is room for them. The others wait in the backlog of the kernel."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

from runed.log import get_logger, log_refusal

BATCH = 16
"""Connections that are accepted before the requests of others get their turn."""

NO_ROOM_PAUSE = 0.05
"""Seconds until the next look for room, if no connection ends before."""

OUT_OF_FILES_PAUSE = 1.0
"""Seconds until the next try to accept, if the system has no descriptor left and no connection of ours ends before."""

_OUT_OF_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_log = get_logger(__name__)


class Acceptor:
    """Accepts the connections of a listening socket.

    asyncio's own server accepts a whole backlog at a time. Without descriptors it tries thousands of times in a row, and logs
    each try.

    Args:
        sock: The socket. It is made to listen, and is closed at the end.
        take: Takes an accepted connection.
        make_room: Returns whether one more connection fits, after it has closed one that can be missed. Its argument tells that
            it must close one in any case.
        pace: Seconds between two batches of connections.
    """

    def __init__(
        self,
        sock: socket.socket,
        take: Callable[[socket.socket], None],
        make_room: Callable[[bool], bool],
        *,
        pace: float = 0.0,
    ) -> None:
        self._sock = sock
        self._take = take
        self._make_room = make_room
        self._pace = pace
        self._pause: asyncio.TimerHandle | None = None
        self._waits_for_room = False
        self._listening = False

    def start(self) -> None:
        """Begin to accept."""
        self._sock.setblocking(False)
        self._sock.listen(socket.SOMAXCONN)
        self._listening = True
        self._go_on()

    def close(self) -> None:
        """Close the socket. A second close does nothing."""
        if self._listening:
            self._listening = False
            self._stop()
            self._sock.close()

    def room_made(self) -> None:
        """Go on after a connection has ended."""
        if self._listening and self._waits_for_room:
            self._go_on()

    def _go_on(self) -> None:
        self._stop()
        asyncio.get_running_loop().add_reader(self._sock, self._accept)

    def _stop(self, seconds: float | None = None, *, for_room: bool = False) -> None:
        """Stop accepting, for some seconds at most if there is a number of them."""
        loop = asyncio.get_running_loop()
        if self._pause is not None:
            self._pause.cancel()
        loop.remove_reader(self._sock)
        self._pause = None if seconds is None else loop.call_later(seconds, self._go_on)
        self._waits_for_room = for_room

    def _accept(self) -> None:
        for _ in range(BATCH):
            if not self._make_room(False):
                self._stop(NO_ROOM_PAUSE, for_room=True)
                return
            try:
                connection, _ = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                break
            except OSError as error:
                if error.errno not in _OUT_OF_FILES:
                    raise
                log_refusal(_log, "no descriptor is left for a new connection; it waits", problem=error.strerror)
                self._make_room(True)
                self._stop(OUT_OF_FILES_PAUSE, for_room=True)
                return
            self._take(connection)
        if self._pace:
            self._stop(self._pace)
