"""A process that fills a disk cache until a test kills it: `vector_writer.py <directory> <start> [<max file size>]`.

After each flush it writes the number up to which everything is on disk. With a max file size in bytes, the kernel lets no file
grow beyond it. The process then ends by itself when it has written three times that size.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import resource
import sys
from pathlib import Path

from runed.caching.disk_cache import MIN_DISK_BYTES, DiskCache
from runed.caching.entry import CachedVector, cache_key

STEP = 128
DIM = 384


def key_of(number: int, fingerprint: str = "fingerprint") -> bytes:
    return cache_key(fingerprint, "", "none", f"text {number}")


def value_of(number: int, dim: int = DIM) -> CachedVector:
    return CachedVector(hashlib.shake_128(f"vector {number}".encode()).digest(4 * dim), number, number + 1)


def open_cache(directory: Path, *, max_bytes: int = MIN_DISK_BYTES) -> DiskCache:
    return DiskCache(directory / "cache" / "vectors.sqlite", directory / "secret", max_bytes=max_bytes)


async def main(directory: Path, start: int, max_file_size: int) -> None:
    if max_file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_size, max_file_size))
    disk = open_cache(directory)
    for number in itertools.count(start, STEP):
        for each in range(number, number + STEP):
            disk.put(key_of(each), value_of(each))
        await disk.flush()
        sys.stdout.write(f"{number + STEP}\n")
        sys.stdout.flush()
        if max_file_size and (number - start) * DIM * 4 > 3 * max_file_size:
            break
    found = await disk.get([key_of(number)])
    assert found in ({}, {key_of(number): value_of(number)})
    assert disk.active
    await disk.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if sys.argv[3:] else 0))
