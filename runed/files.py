"""Work on large files: hashing, syncing and disk space, without blocking the event loop."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from runed.errors import BootstrapError, DiskSpaceError, RunedError

_HASH_STEP = 1024 * 1024
"""How much is read and hashed at once: little memory, and a cancel waits for no more than this."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""No room, no quota, or over the limit of a file's size (`ulimit -f`)."""

T = TypeVar("T")


class Digest(Protocol):
    """What hashlib gives."""

    def update(self, data: bytes, /) -> None:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """Give the hash as hexadecimal digits."""
        ...


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


async def hash_into(digest: Digest, file: BinaryIO) -> None:
    """Take a file into a digest, from its current position to its end.

    Args:
        digest: The digest to go on with.
        file: The open file.
    """

    def step() -> int:
        data = file.read(_HASH_STEP)
        digest.update(data)
        return len(data)

    while await run_in_thread(step):
        pass


async def sha256_of(path: Path) -> str:
    """Give the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        await hash_into(digest, file)
    return digest.hexdigest()


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


def partial_path(target: Path) -> Path:
    """Give the path of what is there of a file so far."""
    return target.with_name(f"{target.name}.partial")


def sidecar_path(target: Path) -> Path:
    """Give the path of the note on what the partial file is a part of."""
    return target.with_name(f"{target.name}.partial.json")


def partial_size(target: Path) -> int:
    """Give the bytes that are there of a file so far."""
    try:
        return partial_path(target).stat().st_size
    except OSError:
        return 0


def discard_partial(target: Path) -> None:
    """Remove what is there of a file so far."""
    partial_path(target).unlink(missing_ok=True)
    sidecar_path(target).unlink(missing_ok=True)


def require_space(directory: Path, needed: int, purpose: str) -> None:
    """Check that there is room before a long work begins.

    Args:
        directory: Where the room is needed.
        needed: The bytes.
        purpose: What they are for, such as "the model".

    Raises:
        DiskSpaceError: There is not enough.
    """
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise DiskSpaceError(
            f"{purpose} needs {megabytes(needed)} in {directory}, but only {megabytes(free)} are free; "
            "make room, or set RUNED_HOME to a larger disk"
        )


@contextmanager
def file_errors(action: str) -> Iterator[None]:
    """Turn an error of the file system into one that says what to do.

    Args:
        action: What was being done, such as "write the model".

    Raises:
        DiskSpaceError: The disk is full.
        BootstrapError: Any other error of the file system.
    """
    try:
        yield
    except OSError as error:
        raise describe_file_error(error, action) from error


def describe_file_error(error: OSError, action: str) -> RunedError:
    """Give the error that `file_errors` raises."""
    place = error.filename2 or error.filename or "RUNED_HOME"
    if error.errno in _FULL:
        return DiskSpaceError(
            f"cannot {action}: {error.strerror} ({place}); make room or raise the limit, and try again: what is there is kept"
        )
    return BootstrapError(
        f"cannot {action}: {error.strerror or type(error).__name__} ({place}); check the permissions of RUNED_HOME"
    )


def megabytes(count: int) -> str:
    """Give a number of bytes for people, in MB of 1,000,000 bytes as disks are sold."""
    return f"{count / 1e6:,.1f} MB"


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
