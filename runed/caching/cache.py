"""The cache of vectors: in memory, and on disk if the user wants it. The least recently used vectors are dropped first."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

from cachetools import LRUCache

from runed.caching.entry import CachedVector

if TYPE_CHECKING:  # a daemon without a disk cache does not load sqlite3
    from runed.caching.disk_cache import DiskCache


class VectorCache:
    """The most recently used vectors in memory, in front of a cache on disk. For use in one event loop.

    Args:
        memory_bytes: Most bytes that the entries may take in memory, including overhead; 0 keeps nothing in memory.
        disk: The cache on disk, which outlives this process; None for none. `close` closes it.
    """

    def __init__(self, memory_bytes: int, disk: DiskCache | None = None) -> None:
        self._memory: LRUCache[bytes, CachedVector] = LRUCache(memory_bytes, getsizeof=attrgetter("size"))
        self._disk = disk

    @property
    def entries(self) -> int:
        """The number of vectors in memory."""
        return len(self._memory)

    @property
    def size(self) -> int:
        """The bytes that the vectors take in memory, including overhead."""
        return int(self._memory.currsize)

    @property
    def disk_size(self) -> int:
        """The bytes of the cache on disk at its last write; 0 if there is none, or it was abandoned."""
        return self._disk.size if self._disk is not None and self._disk.active else 0

    async def get(self, keys: Sequence[bytes]) -> dict[bytes, CachedVector]:
        """Look vectors up, in memory first. A vector that only the disk has is copied to memory.

        It never raises. A vector that the disk cannot read soon counts as missing.

        Args:
            keys: Keys from `cache_key`. A key may come several times.

        Returns:
            The vectors that were found, by key.
        """
        found: dict[bytes, CachedVector] = {}
        missing: list[bytes] = []
        for key in keys:
            value = self._memory.get(key)
            if value is None:
                missing.append(key)
            else:
                found[key] = value
        if self._disk is None:
            return found
        # Memory answers the most frequent texts. Without this line, the disk would drop them first.
        self._disk.touch(found)
        if missing:
            from_disk = await self._disk.get(missing)
            for key, value in from_disk.items():
                self._remember(key, value)
            found |= from_disk
        return found

    def peek(self, key: bytes) -> CachedVector | None:
        """Look one vector up, in memory only."""
        return self._memory.get(key)

    def put(self, key: bytes, value: CachedVector) -> None:
        """Store a vector: in memory at once, on disk soon.

        Args:
            key: A key from `cache_key`.
            value: The vector.
        """
        self._remember(key, value)
        if self._disk is not None:
            self._disk.put(key, value)

    async def close(self) -> None:
        """Write the vectors that wait to be written, and close the cache on disk."""
        if self._disk is not None:
            await self._disk.close()

    def _remember(self, key: bytes, value: CachedVector) -> None:
        if value.size <= self._memory.maxsize:
            self._memory[key] = value
