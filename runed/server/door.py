"""The door of a UNIX socket: clients of other users are turned away before a byte of theirs is read."""

from __future__ import annotations

import json
import os

from runed.log import get_logger, log_refusal
from runed.peers import Connected, peer_of

_log = get_logger(__name__)


def refusal_of_stranger(connection: Connected) -> bytes:
    """Return what a client of another user gets instead of service, as an HTTP/1.1 response; b"" for a client that is let in.

    The mode of the socket keeps other users away. It does not keep root away, nor anybody once the mode was changed.

    Args:
        connection: An accepted connection of a UNIX socket.
    """
    try:
        peer = peer_of(connection)
    except ConnectionResetError:
        return b""  # gone already, which the connection shows by itself
    if peer.is_ours:
        return b""
    log_refusal(_log, "a client of another user was turned away", uid=peer.uid, pid=peer.pid)
    message = f"this daemon serves user id {os.geteuid()} alone, and you are user id {peer.uid}; run this as that user"
    # The form of an error of the Connect protocol.
    body = json.dumps({"code": "permission_denied", "message": message}).encode() + b"\n"
    head = b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return head + b"content-length: %d\r\n\r\n" % len(body) + body
