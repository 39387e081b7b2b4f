"""Vectors on disk, for the event loop: a thread of their own reads and writes them, and no trouble with it reaches a caller."""

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
from runed.log import describe_exception, get_logger

MIN_DISK_BYTES = 2 * SPARE_BYTES
"""The smallest bound of a disk cache."""

MAX_PENDING_BYTES = 8 * 1024 * 1024
"""What may wait to be written, in memory; beyond it the oldest is not written at all."""

MAX_USED_KEYS = 4096
"""How many keys may wait to be noted as used; what comes beyond them is noted another time."""

WRITE_DELAY = 0.5
"""Seconds that a vector waits for others to be written with it; as much as a crash can cost."""

WRITE_ROWS = 64
WRITE_BYTES = 1024 * 1024
"""What is written at a time: little, because readers wait for it, and because a transaction swells the write-ahead log."""

READ_SECONDS = 0.5
"""How long a reader waits for the disk, before it is quicker to compute."""

_log = get_logger(__name__)

_Result = TypeVar("_Result")


class DiskCache:
    """A `VectorFile` in a worker thread. For use in one event loop; whatever happens to the file, callers see a miss.

    A problem is logged once. A file that cannot be opened is given up; a damaged one is replaced, and given up the second time.

    Args:
        path: The file; see `VectorFile`. Opening it begins at once, in the thread.
        secret: The file of the secret, made if it is missing.
        fingerprint: The space of the vectors; those of another one are thrown away.
        max_bytes: The bound of what the cache takes on disk.

    Raises:
        ValueError: `max_bytes` is less than `MIN_DISK_BYTES`.
    """

    def __init__(self, path: Path, secret: Path, *, fingerprint: str, max_bytes: int) -> None:
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
        self._thread.submit(self._open, partial(VectorFile, path, secret, fingerprint=fingerprint, max_bytes=max_bytes))

    @property
    def active(self) -> bool:
        """Whether the file is in use; False after it was given up or closed."""
        return self._on and not self._closed

    @property
    def size(self) -> int:
        """The bytes on disk, as of the last writing."""
        return self._size

    async def get(self, keys: Sequence[bytes]) -> dict[bytes, CachedVector]:
        """Look vectors up, those that wait to be written included.

        Args:
            keys: As `cache_key` gives them; a key may come several times.

        Returns:
            What is there and could be read within `READ_SECONDS`.
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
        """Keep a vector soon; never blocks.

        Args:
            key: As `cache_key` gives it.
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
        """Note that vectors were used, so that others go first; never blocks.

        Args:
            keys: As `cache_key` gives them. They are written with the next vectors.
        """
        if self.active:
            self._used.update(islice(keys, MAX_USED_KEYS - len(self._used)))
            if len(self._used) >= MAX_USED_KEYS:
                self._wake()

    async def flush(self) -> None:
        """Write all that waits, now."""
        if self._pending or self._used:
            self._wake()
        if self._writer is not None and not self._writer.done():
            self._hurry.set()
            await asyncio.wait([self._writer])  # unlike await, does not cancel the writer with the caller

    async def close(self) -> None:
        """Write all that waits and close the file; afterwards nothing is there."""
        if self._closed:
            return
        self._closed = True  # first, so that nothing comes behind what is flushed
        await self.flush()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._give_up)
        self._thread.shutdown(wait=False)

    def _drop_pending(self, key: bytes) -> None:
        if (value := self._pending.pop(key, None)) is not None:
            self._pending_bytes -= value.size

    def _stalled(self) -> bool:
        """Whether the thread has not yet caught up since a reader lost its patience."""
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
        self._used.clear()  # now, since readers that go on and on would never let it become empty
        while self._pending or used:
            # What is taken is not missed meanwhile: a reader's turn in the thread comes behind it.
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
        """Do something with the file, or give `otherwise` where that fails."""
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
            self._report("cannot be used", error)  # a full disk, say: the next attempt may succeed
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
        """Log a problem, the first time."""
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
