"""Work on large files: hashing, syncing and disk space, without blocking the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


async def run_in_thread(function: Callable[[], T]) -> T:
    """Run a function in a thread; a cancel waits for its end.

    `asyncio.to_thread` abandons the thread, which then would go on writing after the install lock was given back.

    Args:
        function: What to run; it should not take much longer than a second.
    """
    work = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def sync_file(path: Path) -> None:
    """Bring a file's content, or a directory's entries, to the disk, so that a power cut cannot undo them."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_durably(temporary: Path, target: Path) -> None:
    """Put a finished file in its place in one step that survives a power cut.

    Args:
        temporary: The file, in the same directory.
        target: Its place; what is there is replaced.
    """
    sync_file(temporary)
    temporary.replace(target)
    sync_file(target.parent)


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace a file in one step, so that a reader or a crash sees the old or the new one, whole.

    Args:
        path: The file; its directory must exist.
        data: The new content.
        mode: The permissions of the new file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename, error.filename2 = os.fspath(path), None  # a full disk names no file, the rest one that nobody knows
        raise
    finally:
        temporary.unlink(missing_ok=True)
