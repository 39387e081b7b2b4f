"""Errors of the file system in words for people: the file, what happened, and the file system where that is the reason."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers for no room, no quota, and a file over the limit of its size (`ulimit -f`)."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors of the block name a file. The kernel names none if a write fails, as on a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def explain(error: OSError) -> str:
    """Return a clause such as "/h/x: No space left on device: the file system at /h is full"."""
    path = _path_of(error)
    return f"{f'{path}: ' if path else ''}{error.strerror or type(error).__name__}{reason_of(error)}"


def reason_of(error: OSError) -> str:
    """Return the words for a file system that is the reason, such as ": the file system at /h is full"; otherwise ""."""
    path = _path_of(error)
    return _reason(error.errno, path) if path else ""


def forbids_programs(path: Path) -> bool:
    """Return whether the file system of a path runs no programs (`noexec`)."""
    with suppress(OSError):
        return bool(os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0))
    return False


def noexec(path: Path) -> str:
    """Return a clause that tells why no program of a file system can be run."""
    return f"the file system at {mount_point(path)} is mounted noexec, so no program on it can be run"


def mount_point(path: Path) -> Path:
    """Return the directory at which the file system of a path is mounted. The path need not exist."""
    with suppress(OSError):
        path = path.resolve()
    while not path.is_mount() and path != path.parent:
        path = path.parent
    return path


def _path_of(error: OSError) -> Path | None:
    name = error.filename2 or error.filename
    return Path(os.fsdecode(name)) if isinstance(name, str | bytes) else None


def _reason(number: int | None, path: Path) -> str:
    # The methods of `Path` fail for a file in a directory that may not be looked into.
    is_there, is_usual = os.path.exists(path), os.path.isfile(path) or os.path.isdir(path)  # noqa: PTH110, PTH112, PTH113
    if str(path) == "standard output" or (is_there and not is_usual):
        return ""  # a device or a pipe
    if number == errno.ENOSPC:
        place = mount_point(path)
        with suppress(OSError):
            found = os.statvfs(place)
            if found.f_files and not found.f_favail and found.f_bavail:
                return f": the file system at {place} has no room for more files"
        return f": the file system at {place} is full"
    if number == errno.EDQUOT:
        return f": your quota of the file system at {mount_point(path)} is used up"
    if number == errno.EROFS:
        return f": the file system at {mount_point(path)} is mounted read-only"
    if number == errno.EACCES and path.is_file() and forbids_programs(path):
        return f": {noexec(path)}"
    return ""
