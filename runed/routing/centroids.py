"""Centroid sets: the name of their content, and the search for the centroid nearest to a vector."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from runed.errors import BadCentroidsError

Matrix: TypeAlias = NDArray[np.float32]
"""Float32 values, little-endian, shape (n, dim)."""

MAX_SET_BYTES = 256 * 1024 * 1024
"""Most bytes of the values of a set: 65,536 centroids of 1,024 values."""

BLOCK_BYTES = 1024 * 1024
"""Bytes of centroids that are converted at a time. In float64, a whole set would take twice its size."""

_SCORES = 256 * 1024
"""Inner products that are computed at a time. Other calls wait for the one thread meanwhile."""

_UNIT_ROUNDOFF = 2.0**-53
"""The largest relative error of one operation in float64."""


def block_rows(dim: int) -> int:
    """Return the number of centroids that are converted at a time."""
    return max(1, BLOCK_BYTES // (4 * dim))


def raw(block: Matrix) -> memoryview:
    """Return the bytes of centroids, without a copy."""
    return block.reshape(-1).view(np.uint8).data


class Content:
    """The hash of a set and its largest norm, computed block after block.

    Args:
        dim: The number of values of each centroid.
        nlist: The number of centroids.
        preset: The name of the parameters that the set was built with.

    Attributes:
        max_norm: The largest L2 norm of a centroid so far.
    """

    def __init__(self, *, dim: int, nlist: int, preset: str) -> None:
        self._hash = hashlib.sha256(struct.pack("<II", dim, nlist) + preset.encode() + b"\0")
        self._rows = 0
        self.max_norm = 0.0

    def update(self, block: Matrix) -> None:
        """Add the next centroids.

        Raises:
            BadCentroidsError: A value is not finite.
        """
        wide = block.astype(np.float64)
        squares = np.einsum("ij,ij->i", wide, wide)  # the square of a float32 value does not overflow in float64
        if (bad := np.flatnonzero(~np.isfinite(squares))).size:
            number = self._rows + int(bad[0])
            raise BadCentroidsError(
                f"centroid {number} has a value that is infinite or not a number; a centroid is made of finite values",
                metadata={"id": str(number)},
            )
        self._hash.update(raw(block))
        self._rows += len(block)
        self.max_norm = max(self.max_norm, float(np.sqrt(squares.max(initial=0.0))))

    @property
    def version(self) -> str:
        """The name of the content: "sha256:" and 64 hexadecimal digits."""
        return f"sha256:{self._hash.hexdigest()}"

    def checksum(self, *rest: str) -> str:
        """Return the hash of the content and of some strings, in 64 hexadecimal digits."""
        whole = self._hash.copy()
        whole.update("\0".join(rest).encode())
        return whole.hexdigest()


class CentroidSet:
    """A set to route by. It never changes, and any thread may use it.

    Args:
        values: The centroids.
        version: The name of the set.
        max_norm: The largest L2 norm of a centroid.
    """

    def __init__(self, values: Matrix, *, version: str, max_norm: float) -> None:
        self._values = values
        self._rows = block_rows(values.shape[1])
        # A sum in any order is wrong by at most `dim` roundings of the product of the norms. The scores of two centroids are
        # compared, and each has two sums, so the bound is four times as large. It is doubled, since it is rounded itself.
        self._doubt = 8 * values.shape[1] * _UNIT_ROUNDOFF * max_norm
        self.version = version

    @property
    def nlist(self) -> int:
        """The number of centroids."""
        return len(self._values)

    @property
    def portion(self) -> int:
        """The number of vectors for one call of `nearest`, which keeps the call short and its memory small."""
        return max(1, _SCORES // self.nlist)

    def nearest(self, vectors: Matrix) -> list[int]:
        """Find the centroids with the largest inner product.

        The inner product is the sum of the products in float64, added one after another. float64 holds each product exactly, so
        every program that adds in this order finds the same centroid. Of equally near centroids, the lowest id wins.

        Args:
            vectors: The vectors. They have the dimensions of the centroids.

        Returns:
            One id a vector.
        """
        # BLAS is fast, but its order of additions may differ from row to row. So it only finds the candidates.
        wide = vectors.astype(np.float64)
        scores = np.empty((len(vectors), self.nlist))
        for rows in self._blocks(self.nlist):
            scores[:, rows] = wide @ self._values[rows].astype(np.float64).T
        least = scores.max(axis=1) - self._doubt * np.linalg.norm(wide, axis=1)
        return [
            self._choose(vector, np.flatnonzero(row >= bound)) for vector, row, bound in zip(wide, scores, least, strict=True)
        ]

    def _choose(self, vector: NDArray[np.float64], candidates: NDArray[np.intp]) -> int:
        """Find the nearest of some centroids.

        Args:
            vector: The vector.
            candidates: The ids of the centroids, in ascending order.
        """
        winner, best = int(candidates[0]), -np.inf
        if len(candidates) == 1:
            return winner
        for some in self._blocks(len(candidates)):
            ids = candidates[some]
            sums = np.add.accumulate(self._values[ids].astype(np.float64) * vector, axis=1)[:, -1]
            place = int(sums.argmax())  # the first of equal ones
            if sums[place] > best:
                winner, best = int(ids[place]), sums[place]
        return winner

    def _blocks(self, count: int) -> Iterator[slice]:
        return (slice(start, start + self._rows) for start in range(0, count, self._rows))
