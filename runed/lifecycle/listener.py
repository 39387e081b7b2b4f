"""The daemon's socket: connecting to it, binding it without harm to others, and noticing that its path was replaced."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from runed.errors import AlreadyRunningError, DaemonUnavailableError, ForeignPathError
from runed.paths import check_socket_dir, ensure_socket_dir
from runed.peers import Peer, peer_of
from runed.trust import mode_of

BACKLOG = 1024
"""Connections that may wait to be accepted. The kernel may hold fewer (`net.core.somaxconn`, `kern.ipc.somaxconn`)."""

_PROBE_TIMEOUT = 1.0
"""Seconds that a probe waits for a connection."""


def dial(path: Path, *, timeout: float | None = None) -> socket.socket:
    """Connect to a daemon's socket. A listener of another user is refused before a byte is sent to it.

    Args:
        path: A socket from `Paths`.
        timeout: Seconds that one operation of the returned socket may take; None means no limit.

    Returns:
        The connected socket.

    Raises:
        DaemonUnavailableError: No process listens there.
        ForeignPathError: The alias directory or the listener is another user's, or the path is no socket that this user may
            connect to.
        BlockingIOError: A process listens, but its backlog is full.
        TimeoutError: The same on macOS.
    """
    check_socket_dir(path)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(os.fspath(path))
        _check_listener(connection, path)
    except BaseException as error:
        connection.close()
        if isinstance(error, (ConnectionRefusedError, ConnectionResetError, FileNotFoundError, NotADirectoryError)):
            raise DaemonUnavailableError(f"no daemon listens on {path}; start one by `runed ensure`") from None
        if isinstance(error, (BlockingIOError, TimeoutError)) or not isinstance(error, OSError):
            raise
        reason = error.strerror or str(error)
        raise ForeignPathError(f"{path} cannot be connected to: {reason}; set RUNED_HOME to another place") from None
    return connection


def _check_listener(connection: socket.socket, path: Path) -> None:
    """Refuse a listener of another user. The path proves nothing: its directory may have been swapped since it was checked."""
    peer = peer_of(connection)
    if not peer.is_ours:
        raise ForeignPathError(
            f"what listens on {path} belongs to user id {peer.uid}, and you are user id {os.geteuid()}, so nothing was sent; "
            f"run this as that user, or set RUNED_HOME to a place of your own"
        )


def find_listener(path: Path) -> Peer | None:
    """Return the process that accepts connections at a path, or None.

    Args:
        path: A socket from `Paths`.

    Raises:
        ForeignPathError: See `dial`.
    """
    try:
        with dial(path, timeout=_PROBE_TIMEOUT) as connection:
            return peer_of(connection)
    except (DaemonUnavailableError, ConnectionResetError):
        return None
    except (BlockingIOError, TimeoutError):
        # A full backlog belongs to a busy daemon. Its live socket must not be unlinked.
        return Peer(uid=os.geteuid(), pid=0)


def probe(path: Path) -> bool:
    """Return whether a process accepts connections at a path; see `find_listener`."""
    return find_listener(path) is not None


class Listener:
    """A listening UNIX socket of mode 0600 that knows whether its path still leads to it.

    Args:
        lent: Whether a service manager listens on the socket, too, and goes on after the close.

    Attributes:
        sock: The listening socket, for the server.
        path: The path of the socket.
    """

    def __init__(self, sock: socket.socket, path: Path, *, lent: bool = False) -> None:
        self.sock = sock
        self.path = path
        self._lent = lent
        self._identity = _identity(path)

    @classmethod
    def bind(cls, path: Path) -> Self:
        """Bind and listen. Remove a dead socket of this user, and nothing else.

        The caller must hold the daemon's lock, so that no other daemon probes and unlinks at the same time. It must have no
        other threads, since the umask of the whole process changes for a moment.

        Args:
            path: A socket from `Paths`.

        Raises:
            AlreadyRunningError: A process accepts connections there.
            ForeignPathError: The path is no socket of this user, or its directory cannot be trusted.
        """
        ensure_socket_dir(path)
        _clear(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The socket must not be open to others even for the moment between bind and a chmod.
            umask = os.umask(0o177)
            try:
                sock.bind(os.fspath(path))
            finally:
                os.umask(umask)
            sock.listen(BACKLOG)
            return cls(sock, path)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise ForeignPathError(
                    f"{path} cannot be listened on: {error.strerror or error}; set RUNED_HOME to another place"
                ) from None
            raise

    @classmethod
    def adopt(cls, sock: socket.socket, path: Path) -> Self:
        """Listen on a socket that a service manager has made, and keeps.

        Args:
            sock: The listening socket.
            path: Its path.

        Raises:
            ForeignPathError: Others may connect to it, or its directory cannot be trusted.
        """
        ensure_socket_dir(path)
        with contextlib.suppress(FileNotFoundError):  # a path that is gone makes the daemon leave, as a later removal does
            info = path.lstat()
            if info.st_uid != os.getuid() or stat.S_IMODE(info.st_mode) & 0o077:
                raise ForeignPathError(
                    f"others may connect to {path} (user id {info.st_uid}, mode {mode_of(info)}); "
                    "let its unit have SocketMode=0600, as `runed service install` writes it"
                )
        # Again: by this, the kernel tells the peers the pid of this process, and not that of the manager.
        sock.listen(BACKLOG)
        return cls(sock, path, lent=True)

    def is_ours(self) -> bool:
        """Return whether the path still leads to this socket: it was neither removed nor replaced.

        The kernel keeps the inode while the socket is open, so no other file can get its number.
        """
        return self._identity is not None and _identity(self.path) == self._identity

    def close(self) -> None:
        """Close the socket. Remove its path if that still leads to it, unless it was lent. A second close does nothing."""
        if self.is_ours() and not self._lent:
            # Before the close. After it, another daemon's socket could get the inode number.
            self.path.unlink(missing_ok=True)
        self._identity = None
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _clear(path: Path) -> None:
    """Remove a dead socket of this user; raise if the path is anything else."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(info.st_mode) or info.st_uid != os.getuid():
        raise ForeignPathError(f"{path} is not a socket of yours; move it away, or set RUNED_HOME to another place")
    if probe(path):
        raise AlreadyRunningError(f"another daemon already listens on {path}")
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        info = path.lstat()
    except OSError:
        return None
    return info.st_dev, info.st_ino
