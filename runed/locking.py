"""A lock between processes that the kernel releases at any end of its holder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from runed.files import open_regular
from runed.os_errors import naming


class LockFile:
    """An exclusive `flock` on a file that holds the pid of the holder as text.

    runed never unlinks the file, but a user may, alone or with its directory. A lock on a file that is no longer at its path
    excludes nobody, so `is_current` tells whether it still is.

    Args:
        path: The lock file; its directory must exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def try_acquire(self) -> bool:
        """Take the lock if it is free; return whether this object holds it now."""
        if self._descriptor is not None:
            return True
        descriptor = open_regular(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        if not _is_at(self._path, descriptor):  # it was unlinked before it was locked
            os.close(descriptor)
            return False
        try:
            with naming(self._path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError:  # the disk is full; an open descriptor would hold the lock for the life of the process
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def is_current(self) -> bool:
        """Return whether this object holds the lock, and its file is still the one at the path.

        The kernel keeps the inode while the file is open, so no other file can get its number.
        """
        return self._descriptor is not None and _is_at(self._path, self._descriptor)

    def is_held(self) -> bool:
        """Return whether a process holds the lock. A process that tries to take it at this very moment fails, too."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def holder(self) -> int | None:
        """Return the pid in the file: of the holder, or of the last holder if the lock is free. None if there is none."""
        try:
            return int(self._path.read_text())
        except (OSError, ValueError):
            return None

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except OSError:
        return False
