"""Files that a crash leaves whole, bad files that count as missing, and threads whose work is always finished."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import msgspec

from runed.errors import ForeignPathError
from runed.os_errors import naming

if TYPE_CHECKING:  # the blocking client writes files too, and uses no threads of asyncio
    from concurrent.futures import Executor

_MAX_SECRET_BYTES = 4096
"""Bytes that are read of a secret's file."""

MAX_RECORD_BYTES = 4 * 1024 * 1024
"""Most bytes of a record. A larger file is none of ours."""

T = TypeVar("T")


async def run_in_thread(function: Callable[[], T], executor: Executor | None = None) -> T:
    """Run a function in a thread to its end, even if the caller is cancelled several times. The cancel is delivered afterwards.

    `asyncio.to_thread` returns at a cancel while the thread goes on. The thread would write to files after the caller has
    released their lock.

    Args:
        function: The work. It should take about a second at most, since a cancel waits for it.
        executor: The threads to use; None means those of the event loop.
    """
    import asyncio  # noqa: PLC0415 # the blocking client writes files too, and needs no event loop

    # A future, not a task: at its end, `asyncio.run` cancels all tasks.
    work = asyncio.get_running_loop().run_in_executor(executor, function)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([work])
        work.exception()  # marks an error as seen, which asyncio would log otherwise
        raise


def open_regular(path: Path, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
    """Open a regular file. Never wait, as an open of a pipe does until somebody writes to it.

    Args:
        path: The file.
        flags: Further flags of `os.open`.
        mode: The permissions of a file that is made.

    Returns:
        The descriptor.

    Raises:
        OSError: It cannot be opened, or is something else, such as a pipe.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, mode)
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, "Not a regular file", os.fspath(path))


def read_regular(path: Path, *, limit: int) -> bytes:
    """Read a whole file.

    Raises:
        OSError: It cannot be read, is no regular file, or has more than `limit` bytes.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"More than {limit:,} bytes", os.fspath(path))
    return data


def read_record(path: Path, type_: type[T]) -> T | None:
    """Read a record of a home, a JSON file that runed wrote. A bad file counts as missing: every record can be made again.

    Returns:
        The content; None if the file is missing, cannot be read, is too large, or holds something else.
    """
    try:
        return decode_record(read_regular(path, limit=MAX_RECORD_BYTES), type_)
    except OSError:
        return None


def decode_record(data: bytes, type_: type[T]) -> T | None:
    """Decode JSON that may be damaged.

    Returns:
        The content; None if it is no JSON of this type.
    """
    try:
        return msgspec.json.decode(data, type=type_)
    except (ValueError, RecursionError):  # a DecodeError; bytes that are not UTF-8; lists in lists in lists
        return None


def sync_file(file: BinaryIO) -> None:
    """Flush an open file and sync its content to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """Sync the content of a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_durably(temporary: Path, target: Path) -> None:
    """Rename a complete file in one step that survives a power cut.

    Args:
        temporary: The file, in the directory of `target`.
        target: The new name. A file of that name is replaced.
    """
    sync_path(temporary)
    make_way(target)
    temporary.replace(target)
    sync_path(target.parent)


def make_way(path: Path) -> None:
    """Move a directory aside that lies in the place of a file of a home. A rename replaces anything else by itself."""
    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name(f"{path.name}.{os.urandom(4).hex()}.aside"))


class NewFile:
    """A file that is written under a temporary name, and renamed when it is complete.

    Call `discard` at the end in any case.

    Args:
        path: The final path. Its directory must exist.
        mode: The permissions of the file.

    Attributes:
        file: The open file, for reading and writing.

    Raises:
        OSError: The file cannot be made.
    """

    def __init__(self, path: Path, *, mode: int = 0o600) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.file: BinaryIO = os.fdopen(os.open(self._temporary, flags, mode), "w+b")

    def publish(self, *, replace: bool = True) -> None:
        """Rename the complete file, in one step that survives a power cut.

        Args:
            replace: Whether to replace a file of that name; otherwise that file stays.

        Raises:
            OSError: The file cannot be written or renamed.
        """
        sync_file(self.file)
        if replace:
            make_way(self._path)
            self._temporary.replace(self._path)
        else:
            # A rename would replace the file that another process has just made.
            with suppress(FileExistsError):
                os.link(self._temporary, self._path)
        sync_path(self._path.parent)

    def discard(self) -> None:
        """Close the file, and remove it unless it was published."""
        with suppress(OSError):  # the rest of the buffer may not fit on the disk, and is not needed any more
            self.file.close()
        self._temporary.unlink(missing_ok=True)


def remove_unfinished(path: Path) -> None:
    """Remove every `NewFile` that a killed process left beside a path."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write a file in one step. At any moment, also after a crash or power cut, it has the whole old or the whole new content.

    Args:
        path: The file. Its directory must exist.
        data: The new content.
        mode: The permissions of the new file.

    Raises:
        OSError: The file cannot be written; its `filename` is `path`.
    """
    try:
        new = NewFile(path, mode=mode)
        try:
            new.file.write(data)
            new.publish()
        finally:
            new.discard()
    except OSError as error:
        # A full disk names no file, and other errors name the temporary one.
        error.filename, error.filename2 = os.fspath(path), None
        raise


def load_secret(path: Path, make: Callable[[], bytes]) -> bytes:
    """Read a secret, and make it first if there is none. Concurrent processes get the same secret.

    Args:
        path: The file, in a private directory that exists. The mode of the file becomes 0600.
        make: Returns a new secret.

    Returns:
        The content of the file, at most 4,096 bytes.

    Raises:
        ForeignPathError: The path is not a file of this user, or cannot be read. It is left unchanged.
        OSError: The file cannot be made.
    """
    with suppress(FileNotFoundError):
        return _read_secret(path)
    new = NewFile(path)
    try:
        with naming(path):
            new.file.write(make())
            new.publish(replace=False)
    finally:
        new.discard()
    return _read_secret(path)


def _read_secret(path: Path) -> bytes:
    try:
        # O_NONBLOCK as in `open_regular`.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ForeignPathError(f"{path} cannot be read: {error.strerror}; remove it, and the next start makes one") from None
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.getuid():
            raise ForeignPathError(f"{path} is not a file of yours; remove it, and the next start makes one")
        if stat.S_IMODE(info.st_mode) & 0o077:
            os.fchmod(descriptor, 0o600)
        return os.read(descriptor, _MAX_SECRET_BYTES)
    finally:
        os.close(descriptor)
