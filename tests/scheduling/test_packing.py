"""Packing loses nothing, and fills micro-batches."""

from __future__ import annotations

import asyncio
import random
import time

from hypothesis import given
from hypothesis import strategies as st

from runed.backends.base import BatchLimits
from runed.domain.requests import Lane
from runed.scheduling.packing import pack
from runed.scheduling.queue import Job


def jobs_of(*tokens: int) -> list[Job]:
    loop = asyncio.new_event_loop()
    try:
        return [
            Job(input="x", tokens=count, exact=True, size=1, lane=Lane.BULK, client="me", future=loop.create_future())
            for count in tokens
        ]
    finally:
        loop.close()


def taken(jobs: list[Job], limits: BatchLimits) -> list[list[int]]:
    """What a queue makes of this order: from the front, as many as fit."""
    batches: list[list[int]] = []
    for job in jobs:
        if not batches or len(batches[-1]) == limits.texts or sum(batches[-1]) + job.tokens > limits.tokens:
            batches.append([])
        batches[-1].append(job.tokens)
    return batches


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(1, 9), st.integers(1, 80))
def test_the_same_jobs_come_out(tokens: list[int], texts: int, most: int) -> None:
    jobs = jobs_of(*tokens)
    limits = BatchLimits(texts, most)
    packed = pack(jobs, limits)
    assert len(packed) == len(jobs)
    assert set(map(id, packed)) == set(map(id, jobs))
    assert len(taken(packed, limits)) <= len(taken(sorted(jobs, key=lambda job: job.tokens), limits)) + 1


def test_short_texts_fill_what_long_ones_leave() -> None:
    limits = BatchLimits(8, 60)
    assert taken(pack(jobs_of(24, 24, 24, 24, 12, 12), limits), limits) == [[24, 24, 12], [24, 24, 12]]
    source = random.Random(7)
    jobs = jobs_of(*(source.randint(9, 25) for _ in range(64)))
    batches = taken(pack(jobs, limits), limits)
    assert sum(map(sum, batches)) / (60 * len(batches)) >= 0.93


def test_a_large_batch_is_packed_in_no_time_that_others_would_notice() -> None:
    source = random.Random(7)
    jobs = jobs_of(*(source.randint(3, 400) for _ in range(2048)))
    began = time.process_time()
    pack(jobs, BatchLimits(32, 512))
    assert time.process_time() - began < 0.25
