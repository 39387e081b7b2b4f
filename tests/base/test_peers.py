"""The kernel tells who is at the other end of a socket."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from runed.peers import Peer, peer_of, programs_at_port
from tests.users import OTHER, listening_as_other, needs_root


def test_a_process_of_this_user_is_ours() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert peer_of(left) == peer_of(right) == Peer(uid=os.geteuid(), pid=os.getpid())
        assert peer_of(left).is_ours


@pytest.mark.skipif(shutil.which("fakeroot") is None, reason="fakeroot is not installed")
def test_a_process_of_this_user_is_ours_also_under_another_number(home: Path) -> None:
    ask = f"""
import os, socket, sys
from runed.peers import peer_of
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({str(home / "s")!r})
    print(os.geteuid(), peer_of(connection).is_ours)
"""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "s"))
        listener.listen()
        faked = ["fakeroot", "env", f"FAKEROOTEUID={OTHER}", sys.executable, "-c", ask]
        assert subprocess.run(faked, capture_output=True, check=True, text=True, timeout=60).stdout.split() == [
            str(OTHER),
            "True",
        ]


@needs_root
def test_a_listener_of_another_user_is_not_ours(home: Path) -> None:
    with listening_as_other(home / "s"), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(home / "s"))
        assert peer_of(connection).uid == OTHER
        assert not peer_of(connection).is_ours


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the programs at a port")
def test_a_program_that_is_connected_to_the_same_port_of_another_machine_is_none_of_the_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        port = server.getsockname()[1]
        assert programs_at_port(port) == {os.getpid(): 1}
        here = [each for each in psutil.net_connections("tcp") if each.pid == os.getpid()]
        far = [
            each._replace(laddr=each.laddr._replace(ip="10.0.0.1"), raddr=each.raddr._replace(ip="10.0.0.2"))
            for each in here
            if each.laddr and each.raddr
        ]
        monkeypatch.setattr(psutil, "net_connections", lambda _kind: here + far)
        assert programs_at_port(port) == {os.getpid(): 1}
