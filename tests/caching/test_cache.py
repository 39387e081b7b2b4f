"""The cache in memory keeps to its bound in real memory, drops the least recently used entry, and never mixes entries up."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runed.caching.cache import VectorCache
from runed.caching.entry import ENTRY_OVERHEAD_BYTES, CachedVector, cache_key
from tests.fakes.vector_writer import key_of, open_cache, value_of

ENTRY_BYTES = 64 * 4 + ENTRY_OVERHEAD_BYTES


def fill(cache: VectorCache, start: int, end: int) -> None:
    for number in range(start, end):
        cache.put(key_of(number), value_of(number, 64))


async def numbers_in(cache: VectorCache, numbers: range) -> set[int]:
    found = await cache.get([key_of(number) for number in numbers])
    assert all(found[key_of(number)] == value_of(number, 64) for number in numbers if key_of(number) in found)
    return {number for number in numbers if key_of(number) in found}


# The key

parts = st.text(st.sampled_from("ab\0\n:é\ud800"), max_size=3)


@given(st.tuples(parts, parts, parts, parts), st.tuples(parts, parts, parts, parts))
def test_only_equal_parts_give_equal_keys(first: tuple[str, str, str, str], second: tuple[str, str, str, str]) -> None:
    assert (cache_key(*first) == cache_key(*second)) == (first == second)


@given(st.text(max_size=20), st.lists(st.integers(0), min_size=3, max_size=3))
def test_parts_that_join_to_the_same_text_give_different_keys(text: str, cuts: list[int]) -> None:
    a, b, c = sorted(cut % (len(text) + 1) for cut in cuts)
    split = (text[:a], text[a:b], text[b:c], text[c:])
    assert (cache_key(*split) == cache_key("", "", "", text)) == (split == ("", "", "", text))


def test_lone_surrogates_are_values_of_their_own() -> None:
    texts = ["\ud83d\ude00", "\U0001f600", "\ud83d", "\ude00", "\ufffd", "?", ""]
    assert len({cache_key("f", "", "none", text) for text in texts}) == len(texts)


def test_the_key_stays_what_it_is() -> None:
    # Another key would silently make every cache on disk useless.
    assert cache_key("fingerprint", "Query: ", "end", "Grüße").hex().startswith("98bde78c9b84954d")
    assert len(cache_key("", "", "", "")) == 32


# In memory


async def test_what_was_put_is_there_and_nothing_else() -> None:
    cache = VectorCache(1 << 20)
    fill(cache, 0, 3)
    assert await cache.get([key_of(1), key_of(7), key_of(1), key_of(2)]) == {
        key_of(1): value_of(1, 64),
        key_of(2): value_of(2, 64),
    }
    assert await cache.get([]) == {}
    assert cache.entries == 3
    assert cache.size == 3 * ENTRY_BYTES


async def test_what_was_used_longest_ago_goes_first() -> None:
    cache = VectorCache(4 * ENTRY_BYTES)
    fill(cache, 0, 4)
    await cache.get([key_of(0)])
    cache.put(key_of(1), value_of(1, 64))
    fill(cache, 4, 6)
    assert await numbers_in(cache, range(6)) == {0, 1, 4, 5}
    assert cache.entries == 4
    assert cache.size == 4 * ENTRY_BYTES


async def test_zero_keeps_nothing() -> None:
    cache = VectorCache(0)
    fill(cache, 0, 3)
    assert await cache.get([key_of(0)]) == {}
    assert (cache.entries, cache.size) == (0, 0)
    await cache.close()


async def test_a_vector_larger_than_the_cache_pushes_nothing_out() -> None:
    cache = VectorCache(2 * ENTRY_BYTES)
    fill(cache, 0, 2)
    cache.put(key_of(9), value_of(9, 4096))
    assert await numbers_in(cache, range(10)) == {0, 1}


async def test_a_key_put_twice_counts_once() -> None:
    cache = VectorCache(1 << 20)
    cache.put(key_of(0), value_of(5, 512))
    fill(cache, 0, 1)
    assert await numbers_in(cache, range(1)) == {0}
    assert cache.size == ENTRY_BYTES


def test_without_a_disk_nothing_waits() -> None:
    cache = VectorCache(1 << 20)
    fill(cache, 0, 1)
    with pytest.raises(StopIteration) as answer:  # the coroutine ends at its first step, without an event loop
        cache.get([key_of(0), key_of(1)]).send(None)
    assert answer.value.value == {key_of(0): value_of(0, 64)}


@pytest.mark.parametrize("dim", [32, 64, 384, 1024])
@pytest.mark.parametrize(
    "memory_bytes", [1_500_000, 2_500_000]
)  # the tables of a dict are emptier at some sizes than at others
@pytest.mark.slow
def test_the_bound_holds_for_real_memory(dim: int, memory_bytes: int) -> None:
    most = memory_bytes // (4 * dim + ENTRY_OVERHEAD_BYTES)
    numbers = random.Random(0)
    gc.collect()
    tracemalloc.start()
    try:
        before = used = tracemalloc.get_traced_memory()[0]
        cache = VectorCache(memory_bytes)
        for count in range(5 * most):
            # Integers beyond 256 are objects of their own.
            value = CachedVector(numbers.randbytes(4 * dim), 1000 + count, 10_000_000 + count)
            cache.put(numbers.randbytes(32), value)
            del value
            used = tracemalloc.get_traced_memory()[0] - before
            # The empty cache takes a fixed amount; a nearly empty one takes that of the smallest tables.
            assert used <= 1.1 * cache.size + 8192, f"{used} bytes for {cache.entries} entries booked with {cache.size}"
            assert cache.size <= memory_bytes
    finally:
        tracemalloc.stop()
    assert cache.entries == most
    assert used >= 0.7 * memory_bytes, "the overhead is booked far too high"


def test_the_bound_holds_for_the_process() -> None:
    code = """
import os, psutil
from runed.caching.cache import CachedVector, VectorCache
MEMORY_BYTES = 64 * 1024 * 1024
cache = VectorCache(MEMORY_BYTES)
def put(count):
    for number in range(count):
        cache.put(os.urandom(32), CachedVector(os.urandom(1536), 1000 + number, 2000 + number))
put(10)
before = psutil.Process().memory_info().rss
put(60_000)
print((psutil.Process().memory_info().rss - before) / MEMORY_BYTES)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 0.7 <= float(done.stdout) <= 1.1


# In front of a disk


async def test_what_the_disk_gives_is_in_memory_from_then_on(tmp_path: Path) -> None:
    writer = VectorCache(0, open_cache(tmp_path))
    fill(writer, 0, 3)
    await writer.close()

    disk = open_cache(tmp_path)
    cache = VectorCache(1 << 20, disk)
    fill(cache, 3, 4)
    assert await numbers_in(cache, range(6)) == {0, 1, 2, 3}
    assert cache.entries == 4
    await disk.close()
    assert await numbers_in(cache, range(6)) == {0, 1, 2, 3}
    await cache.close()


async def test_without_memory_the_disk_alone_answers(tmp_path: Path) -> None:
    cache = VectorCache(0, open_cache(tmp_path))
    fill(cache, 0, 3)
    assert await numbers_in(cache, range(6)) == {0, 1, 2}
    await cache.close()
