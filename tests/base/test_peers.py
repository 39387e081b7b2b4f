"""The kernel tells who is at the other end of a socket."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from runed.peers import Peer, peer_of
from tests.users import OTHER, listening_as_other, needs_root


def test_a_process_of_this_user_is_ours() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert peer_of(left) == peer_of(right) == Peer(uid=os.geteuid(), pid=os.getpid())
        assert peer_of(left).is_ours


@needs_root
def test_a_listener_of_another_user_is_not_ours(home: Path) -> None:
    with listening_as_other(home / "s"), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(home / "s"))
        assert peer_of(connection).uid == OTHER
        assert not peer_of(connection).is_ours
