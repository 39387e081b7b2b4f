"""Checks the vectors that an engine answers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from runed.errors import BackendFaultError

_NORM_TOLERANCE = 1e-3
"""Largest distance of the square of a vector's norm from 1."""


def check_vectors(vectors: Iterable[bytes], *, dim: int, engine: str) -> None:
    """Check that vectors are embeddings. An engine answers NaN and zeros as if all were well.

    Args:
        vectors: The vectors, each of little-endian float32 values.
        dim: The number of values that each must have.
        engine: The name of the engine.

    Raises:
        BackendFaultError: A vector is of another length, not finite, or not of L2 norm 1.
    """
    for vector in vectors:
        if len(vector) != 4 * dim:
            raise BackendFaultError(f"{engine} answered a vector of {len(vector)} bytes, and the model's have {4 * dim}")
        values = np.frombuffer(vector, dtype="<f4")
        if not abs(float(values.dot(values)) - 1.0) < _NORM_TOLERANCE:  # also for NaN and infinity
            what = "not finite" if not np.isfinite(values).all() else "not of unit norm"
            raise BackendFaultError(f"{engine} answered a vector that is {what}; the text's vector cannot be trusted")
