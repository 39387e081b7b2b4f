"""The door of a UNIX socket: clients of other users are turned away before a byte of theirs is read."""

from __future__ import annotations

import json
import os
import time

from runed.log import get_logger
from runed.peers import Connected, peer_of

_TELL_SECONDS = 1.0
"""Fewest seconds between two lines of the log about clients that were turned away."""

_log = get_logger(__name__)


class Door:
    """Decides which clients of a UNIX socket are served: those of the user that the server runs as.

    The mode of the socket keeps other users away. It does not keep root away, nor anybody once the mode was changed.
    """

    def __init__(self) -> None:
        self._unsaid = 0
        self._told = -_TELL_SECONDS

    def refusal(self, connection: Connected) -> bytes:
        """Return what a client gets instead of service, as an HTTP/1.1 response; b"" for a client that is let in.

        Args:
            connection: The accepted connection.
        """
        try:
            peer = peer_of(connection)
        except ConnectionResetError:
            return b""  # gone already, which the connection shows by itself
        if peer.is_ours:
            return b""
        self._tell(peer.uid, peer.pid)
        message = f"this daemon serves user id {os.geteuid()} alone, and you are user id {peer.uid}; run this as that user"
        # The form of an error of the Connect protocol.
        body = json.dumps({"code": "permission_denied", "message": message}).encode() + b"\n"
        head = b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\nconnection: close\r\n"
        return head + b"content-length: %d\r\n\r\n" % len(body) + body

    def _tell(self, uid: int, pid: int) -> None:
        """Log that a client was turned away. A client that comes all the time must not fill the log."""
        self._unsaid += 1
        if time.monotonic() - self._told < _TELL_SECONDS:
            return
        _log.warning("a client of another user was turned away", uid=uid, pid=pid, times=self._unsaid)
        self._told, self._unsaid = time.monotonic(), 0
