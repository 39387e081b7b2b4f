"""The process at the other end of a UNIX socket, as the kernel noted it. No process can pretend to be another user's.

Of a TCP port, only Linux tells the programs that are connected, and only those of the same user.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_LINUX_UCRED = struct.Struct("iII")
"""`struct ucred` of Linux: pid, user id, group id."""

_MACOS_XUCRED = struct.Struct("IIh2x16I")
"""`struct xucred` of macOS: version, user id, and its groups."""

_MACOS_SOL_LOCAL = 0
_MACOS_LOCAL_PEERCRED = 1
_MACOS_LOCAL_PEERPID = 2


class Connected(Protocol):
    """A connected UNIX socket: one of `socket`, or that of a transport of asyncio."""

    def getsockopt(self, level: int, option: int, length: int, /) -> bytes:
        """Read an option, as `socket.getsockopt`."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end.

    Attributes:
        uid: Its effective user id when it connected, or when it began to listen.
        pid: Its process id then; 0 if it lives in a pid namespace that this process cannot see.
    """

    uid: int
    pid: int

    @property
    def is_ours(self) -> bool:
        """Whether the process belongs to the user of this process."""
        return self.uid == os.geteuid() or self.uid == _own_uid()


def peer_of(connection: Connected) -> Peer:
    """Return the process at the other end of a connection.

    Args:
        connection: A connected UNIX socket.

    Raises:
        ConnectionResetError: The other end is gone already, and the system does not tell who it was.
    """
    try:
        if sys.platform == "darwin":
            credentials = connection.getsockopt(_MACOS_SOL_LOCAL, _MACOS_LOCAL_PEERCRED, _MACOS_XUCRED.size)
            pid = connection.getsockopt(_MACOS_SOL_LOCAL, _MACOS_LOCAL_PEERPID, 4)
            return Peer(uid=_MACOS_XUCRED.unpack(credentials)[1], pid=int.from_bytes(pid, sys.byteorder))
        pid, uid, _ = _LINUX_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _LINUX_UCRED.size))
    except OSError:
        raise ConnectionResetError("the other end of the connection is gone") from None
    return Peer(uid=uid, pid=pid)


def programs_at_port(port: int) -> Counter[int]:
    """Return the process ids of this user's programs that are connected to a port of this machine, with their connections.

    Looking for programs takes some hundredths of a second, so that it is only done if there is a connection.
    """
    if not any(_has_connection(Path(table), port) for table in ("/proc/net/tcp", "/proc/net/tcp6")):
        return Counter()
    import psutil  # noqa: PLC0415 # 15 ms that most calls do not spend

    with suppress(psutil.Error, OSError):
        return Counter(
            each.pid
            for each in psutil.net_connections("tcp")
            if each.pid
            and each.laddr
            and each.raddr
            and each.raddr.port == port
            # Others lead to the same port of another machine.
            and (each.raddr.ip == each.laddr.ip or each.raddr.ip.startswith("127."))
        )
    return Counter()


def _has_connection(table: Path, port: int) -> bool:
    """Return whether a table of the kernel has a connection to a port: "01" is the state of one that is open."""
    try:
        rows = [line.split()[2:4] for line in table.read_text().splitlines()[1:]]
    except OSError:  # another system
        return False
    return any(remote.endswith(f":{port:04X}") and state == "01" for remote, state in rows)


def _own_uid() -> int | None:
    """Return the user of this process as the kernel sees it. Programs such as fakeroot let `os.geteuid` tell another one."""
    left, right = socket.socketpair()
    with left, right, suppress(ConnectionResetError):  # macOS does not tell it of such a pair
        return peer_of(left).uid
    return None
