"""A lock between processes that the kernel releases however its holder ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self


class LockFile:
    """An exclusive `flock` on a file that holds its holder's pid as text.

    The file is never unlinked: a process that waits on an unlinked file would lock something that nobody else can see.

    Args:
        path: The lock file; its directory must exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def try_acquire(self) -> bool:
        """Take the lock if it is free.

        Returns:
            Whether this object holds the lock now.
        """
        if self._descriptor is not None:
            return True
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:  # the disk is full; left open, the descriptor would hold the lock as long as the process lives
            os.close(descriptor)
            error.filename = os.fspath(self._path)
            raise
        self._descriptor = descriptor
        return True

    def holder(self) -> int | None:
        """Give the pid that the file names: the holder's, or where nobody holds the lock, the last one's."""
        try:
            return int(self._path.read_text())
        except (OSError, ValueError):
            return None

    def release(self) -> None:
        """Give the lock back; does nothing if it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
