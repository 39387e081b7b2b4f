"""The cache of vectors on disk. A thread reads and writes the file, and trouble with the file never reaches a caller."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from runed.caching.entry import CachedVector
from runed.caching.vector_file import SPARE_BYTES, VectorFile, is_damage
from runed.errors import RunedError
from runed.files import run_in_thread
from runed.log import describe_exception, get_logger

MIN_DISK_BYTES = 2 * SPARE_BYTES
"""The smallest bound of a disk cache, in bytes."""

MAX_PENDING_BYTES = 8 * 1024 * 1024
"""Bytes of vectors that may wait in memory to be written. Beyond this, the oldest vector is dropped."""

MAX_USED_KEYS = 4096
"""Keys whose time of use may wait to be written. A further key is ignored until its next use."""

WRITE_DELAY = 0.5
"""Seconds that a vector waits for others to be written with it. A crash costs the vectors of that time."""

WRITE_ROWS = 64
"""Vectors that are written at a time. Readers wait meanwhile, and the write-ahead log grows by a transaction."""

WRITE_BYTES = 1024 * 1024
"""Bytes that are written at a time, for the same reasons."""

READ_SECONDS = 0.5
"""Seconds that a reader waits for the disk. After that, computing is quicker."""

_log = get_logger(__name__)

_Result = TypeVar("_Result")


class DiskCache:
    """A `VectorFile` in a worker thread.

    For use in one event loop. If the file fails, callers see a miss. A problem is logged once. A file that cannot be opened is
    abandoned. A damaged file is replaced once, and abandoned the next time.

    Args:
        path: The file; see `VectorFile`. The thread opens it at once.
        secret: The file of the secret; see `VectorFile`.
        max_bytes: The bound of the bytes that the cache takes on disk.

    Raises:
        ValueError: `max_bytes` is less than `MIN_DISK_BYTES`.
    """

    def __init__(self, path: Path, secret: Path, *, max_bytes: int) -> None:
        if max_bytes < MIN_DISK_BYTES:
            raise ValueError(f"a disk cache of {max_bytes} bytes is too small; give it at least {MIN_DISK_BYTES}")
        self._file: VectorFile | None = None  # only the thread uses it
        self._repaired = False
        self._reported: set[str] = set()
        self._size = 0
        self._on = True
        self._pending: dict[bytes, CachedVector] = {}
        self._pending_bytes = 0
        self._used: set[bytes] = set()
        self._writer: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._closed = False
        self._stall: Future[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="runed-disk-cache")
        self._thread.submit(self._open, partial(VectorFile, path, secret, max_bytes=max_bytes))

    @property
    def active(self) -> bool:
        """Whether the file is in use: it was neither abandoned nor closed."""
        return self._on and not self._closed

    @property
    def size(self) -> int:
        """The bytes on disk at the last writing."""
        return self._size

    async def get(self, keys: Sequence[bytes]) -> dict[bytes, CachedVector]:
        """Look vectors up. Those that wait to be written are found, too.

        Args:
            keys: Keys from `cache_key`. A key may come several times.

        Returns:
            The vectors that could be read within `READ_SECONDS`, by key.
        """
        found: dict[bytes, CachedVector] = {}
        missing: list[bytes] = []
        for key in dict.fromkeys(keys):
            value = self._pending.get(key)
            if value is None:
                missing.append(key)
            else:
                found[key] = value
        if missing and self.active and not self._stalled():
            try:
                async with asyncio.timeout(READ_SECONDS):
                    read = await self._in_thread(partial(VectorFile.read, keys=missing), dict[bytes, CachedVector]())
            except TimeoutError:
                self._report("is slow")
                if self.active:
                    self._stall = self._thread.submit(lambda: None)
            else:
                self.touch(read)
                found |= read
        return found

    def put(self, key: bytes, value: CachedVector) -> None:
        """Store a vector soon. Never blocks.

        Args:
            key: A key from `cache_key`.
            value: The vector.
        """
        if not self.active:
            return
        self._drop_pending(key)
        self._pending[key] = value
        self._pending_bytes += value.size
        while self._pending_bytes > MAX_PENDING_BYTES:
            self._drop_pending(next(iter(self._pending)))
        self._wake()

    def touch(self, keys: Iterable[bytes]) -> None:
        """Note that vectors were used, so that others go first. Never blocks.

        Args:
            keys: Keys from `cache_key`. Their time of use is written with the next vectors.
        """
        if self.active:
            self._used.update(islice(keys, MAX_USED_KEYS - len(self._used)))
            if len(self._used) >= MAX_USED_KEYS:
                self._wake()

    async def flush(self) -> None:
        """Write now what waits to be written."""
        if self._pending or self._used:
            self._wake()
        if self._writer is not None and not self._writer.done():
            self._hurry.set()
            await asyncio.wait([self._writer])  # unlike `await`, this does not cancel the writer with the caller

    async def close(self) -> None:
        """Write waiting vectors and close the file.

        A cancel drops waiting vectors, but the file is closed. Afterwards the cache is empty.
        """
        if self._closed:
            return
        self._closed = True  # first, so that no new vector follows the flushed ones
        try:
            await self.flush()
        finally:
            # The next daemon gets the file only when this thread has released it.
            await run_in_thread(self._give_up, self._thread)
            self._thread.shutdown(wait=False)

    def _drop_pending(self, key: bytes) -> None:
        if (value := self._pending.pop(key, None)) is not None:
            self._pending_bytes -= value.size

    def _stalled(self) -> bool:
        """Return whether the thread is still busy with the work for which the last reader waited too long."""
        return self._stall is not None and not self._stall.done()

    def _wake(self) -> None:
        if self._writer is None or self._writer.done():
            self._hurry.clear()
            self._writer = asyncio.create_task(self._write_behind())

    async def _write_behind(self) -> None:
        try:
            async with asyncio.timeout(WRITE_DELAY):
                await self._hurry.wait()
        except TimeoutError:
            pass
        used = list(self._used)
        self._used.clear()  # now, since readers add to it all the time
        while self._pending or used:
            # No reader misses the vectors taken here: the thread serves readers after this write.
            write = partial(VectorFile.write, values=self._take_pending(), used=used[:WRITE_ROWS])
            await self._in_thread(write, None)
            del used[:WRITE_ROWS]

    def _take_pending(self) -> dict[bytes, CachedVector]:
        taken: dict[bytes, CachedVector] = {}
        size = 0
        for key, value in islice(self._pending.items(), WRITE_ROWS):
            size += value.size
            if taken and size > WRITE_BYTES:
                break
            taken[key] = value
        for key in taken:
            self._drop_pending(key)
        return taken

    async def _in_thread(self, work: Callable[[VectorFile], _Result], otherwise: _Result) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._attempt, work, otherwise)

    # In the thread

    def _open(self, make: Callable[[], VectorFile]) -> None:
        try:
            self._file = make()
        except Exception as error:  # noqa: BLE001 # whatever is wrong with the cache, texts can be computed
            self._report("cannot be opened", error)
            self._on = False
            return
        self._attempt(VectorFile.shrink, None)

    def _attempt(self, work: Callable[[VectorFile], _Result], otherwise: _Result) -> _Result:
        """Do some work with the file. Return `otherwise` if it fails."""
        if self._file is None:
            return otherwise
        try:
            result = work(self._file)
            self._size = self._file.size
        except Exception as error:  # noqa: BLE001 # whatever is wrong with the cache, texts can be computed
            self._cope(self._file, error)
            return otherwise
        return result

    def _cope(self, file: VectorFile, error: Exception) -> None:
        if not is_damage(error):
            self._report("cannot be used", error)  # such as a full disk: the next attempt may succeed
            return
        if not self._repaired:
            self._repaired = True
            self._report("is damaged and begins anew", error)
            try:
                file.start_anew()
            except Exception as second:  # noqa: BLE001 # whatever is wrong with the cache, texts can be computed
                error = second
            else:
                return
        self._report("is given up", error)
        self._give_up()

    def _give_up(self) -> None:
        self._on = False
        if self._file is not None:
            self._file.close()
            self._file = None
        self._size = 0

    def _report(self, what: str, error: Exception | None = None) -> None:
        """Log a problem, unless it was logged before."""
        if what in self._reported:
            return
        self._reported.add(what)
        details: dict[str, str] = {}
        if isinstance(error, sqlite3.Error):
            details["problem"] = getattr(error, "sqlite_errorname", type(error).__name__)
        elif isinstance(error, RunedError):
            details["problem"] = error.message
        elif isinstance(error, OSError):
            details["problem"] = error.strerror or type(error).__name__
        elif error is not None:
            details = describe_exception(error)
        _log.warning(f"the disk cache {what}", **details)
