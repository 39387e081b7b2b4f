"""The nearest centroid is that of a plain sum of products in float64, one after another."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runed.errors import BadCentroidsError
from runed.routing.centroids import BLOCK_BYTES, CentroidSet, Content, Matrix, block_rows
from runed.routing.router import keep_blas_to_one_thread

MIB = 1024 * 1024


@pytest.fixture(scope="module", autouse=True)
def blas() -> None:
    """Find the nearest centroids as the daemon does."""
    keep_blas_to_one_thread()


def naive(vector: Matrix, centroids: Matrix) -> int:
    """Find the nearest centroid with Python's float64 alone."""
    best, winner = -float("inf"), 0
    for number, centroid in enumerate(centroids.tolist()):
        total = 0.0
        for one, other in zip(vector.tolist(), centroid, strict=True):
            total += one * other
        if total > best:
            best, winner = total, number
    return winner


def made(values: Matrix) -> CentroidSet:
    content = Content(dim=values.shape[1], nlist=len(values), preset="")
    content.update(values)
    return CentroidSet(values, version=content.version, max_norm=content.max_norm)


def unit(values: NDArray[np.float64]) -> Matrix:
    result: Matrix = (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype("<f4")
    return result


@st.composite
def problems(draw: st.DrawFn) -> tuple[Matrix, Matrix]:
    """Vectors and centroids with many equal or nearly equal distances."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dim = draw(st.sampled_from([1, 2, 3, 8, 33, 64, 250]))
    distinct = draw(st.integers(1, 6))
    scale = draw(st.sampled_from([1.0, 1e-40, 1e-3, 1e30, 3e38]))
    values = (rng.uniform(-1, 1, size=(distinct, dim)) * scale).astype("<f4")
    if draw(st.booleans()):  # sums that cancel out, so that the order of their terms decides
        values[:, : dim // 2] = -values[:, dim - dim // 2 :][:, ::-1]
    centroids = values[rng.integers(0, distinct, size=draw(st.integers(1, 60)))]
    if draw(st.booleans()):  # neighbours that differ in the last bit of one value
        rows = np.arange(0, len(centroids), 3)
        places = rng.integers(0, dim, size=len(rows))
        centroids[rows, places] = np.nextafter(centroids[rows, places], np.float32(0))
    vectors = unit(rng.normal(size=(draw(st.integers(1, 5)), dim)))
    if draw(st.booleans()):
        vectors[0] = np.abs(vectors[0, 0])  # the same values in another order: equally near except for rounding
    return vectors, centroids


@settings(deadline=None, max_examples=150)
@given(problems())
def test_nearest_is_that_of_the_naive_sum(problem: tuple[Matrix, Matrix]) -> None:
    vectors, centroids = problem
    assert made(centroids).nearest(vectors) == [naive(vector, centroids) for vector in vectors]


def test_order_of_the_sum_decides_between_permutations() -> None:
    rng = np.random.default_rng(3)
    row = rng.normal(size=1024).astype("<f4")
    centroids = np.array([rng.permutation(row) for _ in range(64)])
    vectors = np.full((1, 1024), 1 / 32, "<f4")
    wide = centroids.astype(np.float64) @ vectors[0].astype(np.float64)
    assert np.ptp(wide) < 1e-12
    assert made(centroids).nearest(vectors) == [naive(vectors[0], centroids)]


@pytest.mark.parametrize("dim", [3, 1024])
def test_of_equal_ones_the_lowest_id_wins_wherever_it_is(dim: int) -> None:
    rng = np.random.default_rng(7)
    rows = block_rows(dim)
    count = min(3 * rows + 7, 2000)
    centroids = unit(rng.normal(size=(count, dim)))
    vector = unit(rng.normal(size=(1, dim)))
    twins = sorted({1, rows - 1, rows, 2 * rows + 3, count - 1} & set(range(count)))
    for first in range(len(twins)):
        some = centroids.copy()
        some[twins[first:]] = vector
        assert made(some).nearest(vector) == [twins[first]]
    assert made(np.repeat(vector, count, axis=0)).nearest(vector) == [0]


def test_company_changes_nothing() -> None:
    rng = np.random.default_rng(11)
    centroids, vectors = unit(rng.normal(size=(3000, 48))), unit(rng.normal(size=(200, 48)))
    centroids[2000:] = centroids[:1000]
    whole = made(centroids)
    assert whole.nearest(vectors) == [whole.nearest(vectors[row : row + 1])[0] for row in range(len(vectors))]


def test_zeros_are_near_to_everything_alike() -> None:
    assert made(np.zeros((9, 4), "<f4")).nearest(unit(np.ones((2, 4)))) == [0, 0]


def test_memory_stays_small_beside_a_large_set() -> None:
    rng = np.random.default_rng(5)
    centroids = rng.random(size=(16_384, 1024), dtype=np.float32)  # 64 MiB
    large = made(centroids)
    vectors = unit(rng.normal(size=(large.portion, 1024)))
    tracemalloc.start()
    try:
        large.nearest(vectors)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * MIB
    assert large.portion * large.nlist * 8 <= 2 * MIB
    assert made(centroids[:1]).portion > 1000


def test_version_is_the_hash_that_the_design_describes() -> None:
    values = np.arange(12, dtype="<f4").reshape(4, 3)
    expected = hashlib.sha256(struct.pack("<II", 3, 4) + b"k4-\xc3\xa9" + b"\0")
    for row in values:
        expected.update(struct.pack("<3f", *row))
    content = Content(dim=3, nlist=4, preset="k4-é")
    content.update(values[:3])
    content.update(values[3:])
    assert content.version == f"sha256:{expected.hexdigest()}"
    assert content.max_norm == pytest.approx(np.linalg.norm(values[3]))
    # The values are pinned, since other programs compute them, too.
    assert content.version == "sha256:0c2518828cf88b03cb16fe819fde735764b01b7a4cebd8898563dbe43894b79c"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_value_that_is_not_finite_is_named(value: float) -> None:
    content = Content(dim=2, nlist=9, preset="")
    content.update(np.ones((5, 2), "<f4"))
    block = np.full((4, 2), np.finfo(np.float32).max, "<f4")  # whose squares overflow in float32
    block[3, 1] = value
    with pytest.raises(BadCentroidsError, match="centroid 8 has a value that is infinite") as caught:
        content.update(block)
    assert caught.value.metadata == {"id": "8"}


def test_blocks_are_of_whole_centroids() -> None:
    assert block_rows(1024) * 1024 * 4 == BLOCK_BYTES
    assert block_rows(1000) * 1000 * 4 <= BLOCK_BYTES
    assert block_rows(BLOCK_BYTES) == 1
