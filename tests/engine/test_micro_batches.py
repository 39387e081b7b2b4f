"""Cutting a batch loses nothing, keeps the order and keeps the bounds."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from runed.engine.engine import MICRO_BATCH_BYTES, MICRO_BATCH_TEXTS, _micro_batches


@given(st.lists(st.integers(1, MICRO_BATCH_BYTES * 2), min_size=1, max_size=80))
def test_ranges_join_and_keep_the_bounds(lengths: list[int]) -> None:
    texts = ["x" * length for length in lengths]
    ranges = list(_micro_batches(texts))
    assert ranges[0][0] == 0
    assert ranges[-1][1] == len(texts)
    assert all(end == start for (_, end), (start, _) in pairwise(ranges))
    for start, end in ranges:
        assert 1 <= end - start <= MICRO_BATCH_TEXTS
        assert end - start == 1 or sum(lengths[start:end]) <= MICRO_BATCH_BYTES


@given(st.lists(st.integers(1, 40), min_size=1, max_size=80))
def test_no_more_pieces_than_needed_for_short_texts(lengths: list[int]) -> None:
    texts = ["x" * length for length in lengths]
    assert len(list(_micro_batches(texts))) == -(-len(texts) // MICRO_BATCH_TEXTS)
