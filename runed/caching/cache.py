"""Vectors that were computed before: least recently used first out of memory and, if the user wants it, on disk."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

from cachetools import LRUCache

from runed.caching.entry import CachedVector

if TYPE_CHECKING:  # disk_cache needs CachedVector from here; and who keeps nothing on disk loads no sqlite3
    from runed.caching.disk_cache import DiskCache

DEFAULT_MEMORY_BYTES = 64 * 1024 * 1024
"""The default of `VectorCache`'s `memory_bytes`."""


class VectorCache:
    """The vectors used last, in memory, in front of a cache on disk. For use in one event loop.

    Args:
        memory_bytes: The bound of the memory that the entries take, overhead included; 0 keeps nothing in memory.
        disk: Where vectors are kept beyond the life of this process; the cache owns it from now on.
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
        """The bytes of memory that they take, overhead included."""
        return int(self._memory.currsize)

    @property
    def disk_size(self) -> int:
        """The bytes of the cache on disk, as of the last writing; 0 if there is none, or it was given up."""
        return self._disk.size if self._disk is not None and self._disk.active else 0

    async def get(self, keys: Sequence[bytes]) -> dict[bytes, CachedVector]:
        """Look vectors up, in memory first; what only the disk has is in memory too from then on.

        Never raises and never waits long: what the disk cannot give soon is not there.

        Args:
            keys: As `cache_key` gives them; a key may come several times.

        Returns:
            What is there.
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
        # Else the texts that are asked for most, which memory answers, would be the first to go from the disk.
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
        """Keep a vector: in memory at once, on disk soon.

        Args:
            key: As `cache_key` gives it.
            value: The vector.
        """
        self._remember(key, value)
        if self._disk is not None:
            self._disk.put(key, value)

    async def close(self) -> None:
        """Write what the disk has not got yet, and close it."""
        if self._disk is not None:
            await self._disk.close()

    def _remember(self, key: bytes, value: CachedVector) -> None:
        if value.size <= self._memory.maxsize:
            self._memory[key] = value
