"""Packing loses no text, and fills micro-batches."""

from __future__ import annotations

import asyncio
import random
import time

from hypothesis import given
from hypothesis import strategies as st

from runed.backends.base import BatchLimits
from runed.domain.requests import Lane
from runed.scheduling.packing import pack
from runed.scheduling.queue import QueueEntry


def entries_of(*tokens: int) -> list[QueueEntry]:
    loop = asyncio.new_event_loop()
    try:
        return [
            QueueEntry(input="x", tokens=count, exact=True, size=1, lane=Lane.BULK, client="me", future=loop.create_future())
            for count in tokens
        ]
    finally:
        loop.close()


def taken(entries: list[QueueEntry], limits: BatchLimits) -> list[list[int]]:
    """Return the batches that a queue takes in this order: from the front, as many texts as fit."""
    batches: list[list[int]] = []
    for entry in entries:
        if not batches or len(batches[-1]) == limits.texts or sum(batches[-1]) + entry.tokens > limits.tokens:
            batches.append([])
        batches[-1].append(entry.tokens)
    return batches


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(1, 9), st.integers(1, 80))
def test_the_same_jobs_come_out(tokens: list[int], texts: int, most: int) -> None:
    entries = entries_of(*tokens)
    limits = BatchLimits(texts, most)
    packed = pack(entries, limits)
    assert len(packed) == len(entries)
    assert set(map(id, packed)) == set(map(id, entries))
    assert len(taken(packed, limits)) <= len(taken(sorted(entries, key=lambda entry: entry.tokens), limits)) + 1


def test_short_texts_fill_what_long_ones_leave() -> None:
    limits = BatchLimits(8, 60)
    assert taken(pack(entries_of(24, 24, 24, 24, 12, 12), limits), limits) == [[24, 24, 12], [24, 24, 12]]
    source = random.Random(7)
    entries = entries_of(*(source.randint(9, 25) for _ in range(64)))
    batches = taken(pack(entries, limits), limits)
    assert sum(map(sum, batches)) / (60 * len(batches)) >= 0.93


def test_a_text_that_fits_exactly_is_packed_and_one_that_does_not_is_not() -> None:
    limits = BatchLimits(8, 60)
    assert taken(pack(entries_of(30, 20, 41, 20, 19, 20, 30), limits), limits) == [[41, 19], [30, 30], [20, 20, 20]]
    assert taken(pack(entries_of(41, 20, 60, 61), limits), limits) == [[61], [60], [41], [20]]
    assert taken(pack(entries_of(1, 1, 60), limits), limits) == [[60], [1, 1]]


def test_the_last_token_of_a_batch_is_used() -> None:
    limits = BatchLimits(8, 60)
    assert taken(pack(entries_of(59, 40, 1), limits), limits) == [[59, 1], [40]]


def test_a_batch_takes_as_many_texts_as_may_be_and_not_one_more() -> None:
    limits = BatchLimits(2, 100)
    assert taken(pack(entries_of(50, 30, 25, 20), limits), limits) == [[50, 30], [25, 20]]
    assert taken(pack(entries_of(60, 50, 40, 30), limits), limits) == [[60, 40], [50, 30]]


def test_texts_of_one_length_stay_in_their_order() -> None:
    entries = entries_of(10, 10, 10)
    assert pack(entries, BatchLimits(8, 60)) == entries


def test_a_large_batch_is_packed_in_no_time_that_others_would_notice() -> None:
    source = random.Random(7)
    entries = entries_of(*(source.randint(3, 400) for _ in range(2048)))
    began = time.process_time()
    pack(entries, BatchLimits(32, 512))
    assert time.process_time() - began < 0.25
