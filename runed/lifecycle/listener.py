"""The daemon's socket: to see whether somebody listens, to bind without harm to anybody, to know whether it still is ours."""

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

BACKLOG = 1024
"""Connections that wait to be accepted; the kernel may hold fewer (`net.core.somaxconn`, `kern.ipc.somaxconn`)."""

_PROBE_TIMEOUT = 1.0


def dial(path: Path, *, timeout: float | None = None) -> socket.socket:
    """Connect to a daemon's socket.

    Args:
        path: The socket, as `Paths.socket` gives it.
        timeout: Seconds that the returned socket waits in any one operation; None waits for ever.

    Returns:
        The connected socket.

    Raises:
        DaemonUnavailableError: Nobody listens there.
        ForeignPathError: The alias directory is not ours, or what stands at the path cannot be talked to.
        BlockingIOError: Somebody listens, but more connections than fit wait to be accepted.
        TimeoutError: As `BlockingIOError`, on macOS.
    """
    check_socket_dir(path)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(os.fspath(path))
    except BaseException as error:
        connection.close()
        if isinstance(error, (ConnectionRefusedError, FileNotFoundError, NotADirectoryError)):
            raise DaemonUnavailableError(f"no daemon listens on {path}; start one with `runed ensure` or `runed`") from None
        if isinstance(error, (BlockingIOError, TimeoutError)) or not isinstance(error, OSError):
            raise
        reason = error.strerror or str(error)
        raise ForeignPathError(f"{path} cannot be connected to: {reason}; set RUNED_HOME to another place") from None
    return connection


def probe(path: Path) -> bool:
    """Tell whether somebody accepts connections at a path.

    Args:
        path: The socket, as `Paths.socket` gives it.

    Raises:
        ForeignPathError: See `dial`.
    """
    try:
        dial(path, timeout=_PROBE_TIMEOUT).close()
    except DaemonUnavailableError:
        return False
    except (BlockingIOError, TimeoutError):
        # A full backlog is the mark of a busy daemon; taking it for a dead one would unlink a live socket.
        return True
    return True


class Listener:
    """A listening UNIX socket of mode 0600 that knows whether its path still leads to it.

    Attributes:
        sock: The listening socket, for the server.
        path: Where it is bound.
    """

    def __init__(self, sock: socket.socket, path: Path) -> None:
        self.sock = sock
        self.path = path
        self._identity = _identity(path)

    @classmethod
    def bind(cls, path: Path) -> Self:
        """Bind and listen; a dead socket of ours in the way is removed, nothing else is.

        Call it with the daemon's lifetime lock held, so that nobody else probes and unlinks at the same time, and before there
        are threads, since the umask belongs to the whole process for a moment.

        Args:
            path: Where to listen, as `Paths.socket` gives it.

        Raises:
            AlreadyRunningError: Somebody accepts connections there.
            ForeignPathError: Something else than a socket of ours stands there, or the directory cannot be trusted.
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
                raise ForeignPathError(f"{path} cannot be listened on: {error.strerror or error}") from None
            raise

    def is_ours(self) -> bool:
        """Tell whether the path still leads to this socket: not removed, not replaced by another's.

        The kernel keeps the inode for as long as the socket is open, so its number cannot come back for another file.
        """
        return self._identity is not None and _identity(self.path) == self._identity

    def close(self) -> None:
        """Close the socket and remove its path if that still is ours; closing twice does nothing."""
        if self.is_ours():
            # Before the close: afterwards the inode number could be another daemon's.
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
    """Make room for a new socket, or say why there is none."""
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
